"""What a prediction depends on, measured by gradient: the proof that an objective sees no future."""

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
            other than exactly zero from the decoder's input at sequence index j.
        region: Region of every token, as the region rule gave it.
        hidden_region: Region of every predicted token, the hidden ones unless none is hidden.
        mask: Which tokens were hidden.
    """

    depends: Bool[Tensor, "b h l"]
    region: Int[Tensor, "b l"]
    hidden_region: Int[Tensor, "b h"]
    mask: TokenMask


def decoder_dependencies(objective: MaskedAutoregression, inputs: Any, draw: Draw) -> Dependencies:
    """Differentiate every prediction of ``objective(inputs, draw)`` by the decoder's input.

    The input is what ``RegionDecoder.sequence`` lays out; behind it only the attention mask decides what a
    prediction can read. Costs one backward pass for each hidden token.
    """
    seen: list[Tensor] = []

    def remember(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.append(arguments[0])

    hook = objective.decoder.blocks[0].register_forward_pre_hook(remember)
    try:
        result = objective(inputs, draw)
    finally:
        hook.remove()
    (sequence,) = seen
    gradients = [
        torch.autograd.grad(prediction.square().sum(), sequence, retain_graph=True)[0]
        for prediction in result.prediction.unbind(1)
    ]
    depends = (torch.stack(gradients, dim=1) != 0).any(-1)  # (b, h, l, e) -> (b, h, l)
    tokens, mask = result.tokens, result.mask
    region = objective.regions(tokens, mask).index.expand(tokens.batch_size, -1)
    return Dependencies(depends, region, gather_tokens(region, result.index), mask)
