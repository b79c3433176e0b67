"""What a prediction depends on, measured by gradient: the proof that an objective does not see the future."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from map_core.masking import TokenMask
from map_core.objective import MaskedAutoregression
from map_core.randomness import Draw
from map_core.tokens import gather_tokens


@dataclass(frozen=True)
class Dependencies:
    """Which decoder inputs reach which predictions.

    Attributes:
        depends: Entry (i, j) of a sample is True where the prediction of its i-th hidden token has a gradient
            other than exactly zero with respect to the decoder's input at sequence index j.
        region: Region of every token, from the region rule.
        hidden_region: Region of every predicted token: the hidden ones, or all if none is hidden.
        mask: Which tokens were hidden.
    """

    depends: Bool[Tensor, "b h l"]
    region: Int[Tensor, "b l"]
    hidden_region: Int[Tensor, "b h"]
    mask: TokenMask


def decoder_dependencies(objective: MaskedAutoregression, inputs: Any, draw: Draw) -> Dependencies:
    """Differentiate every prediction of ``objective(inputs, draw)`` with respect to the decoder's input.

    That input is the output of ``RegionDecoder.sequence``; after it only the attention mask decides what a
    prediction can read. Costs one backward pass for each hidden token.
    """
    sequences: list[Tensor] = []

    def record(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        sequences.append(arguments[0])

    hook = objective.decoder.blocks[0].register_forward_pre_hook(record)
    try:
        result = objective(inputs, draw)
    finally:
        hook.remove()
    (sequence,) = sequences
    gradients = [
        torch.autograd.grad(prediction.square().sum(), sequence, retain_graph=True)[0]
        for prediction in result.prediction.unbind(1)
    ]
    depends = (torch.stack(gradients, dim=1) != 0).any(-1)  # (b, h, l, e) -> (b, h, l)
    tokens, mask = result.tokens, result.mask
    region = objective.regions(tokens, mask).index.expand(tokens.batch_size, -1)
    return Dependencies(depends, region, gather_tokens(region, result.index), mask)
