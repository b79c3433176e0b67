"""State dicts with the right names and wrong shapes: what a family of checkpoints says of them."""

import torch

from map_core.errors import UserError


def refused_shapes(family, state):
    """Give every tensor of a file other shapes, one at a time; how many were refused, each by the file's name."""
    refused = 0
    for key, value in state.items():
        for other in (value.flatten()[:1], value.flatten()[:0], torch.zeros(()), value.reshape(1, 1, 1, -1)):
            try:
                family.converted({**state, key: other}, "file.pth")
            except UserError as error:
                assert str(error).startswith(("file.pth: ", "file.pth has the names of "))  # noqa: PT017
                refused += 1
    return refused
