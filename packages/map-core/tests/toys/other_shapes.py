"""State dicts with the right names and wrong shapes: how a family of checkpoints refuses them."""

import torch

from map_core.errors import UserError


def refused_shapes(family, state):
    """Give every tensor of a file other shapes, one at a time; return how many were refused, naming the file."""
    num_refused = 0
    for key, value in state.items():
        for other in (value.flatten()[:1], value.flatten()[:0], torch.zeros(()), value.reshape(1, 1, 1, -1)):
            try:
                family.convert_file_state({**state, key: other}, "file.pth")
            except UserError as error:
                assert str(error).startswith(("file.pth: ", "file.pth has the names of "))  # noqa: PT017
                num_refused += 1
    return num_refused
