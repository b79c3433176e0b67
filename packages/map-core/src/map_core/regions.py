"""Which token of the decoder may attend to which: the four masks of the paper's Figure 6."""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from map_core.errors import UserError, near_matches
from map_core.tokens import GLOBAL_REGION

AttentionMaskKind = Literal["map", "mae", "local_mae", "ar"]
ATTENTION_MASK_KINDS: tuple[str, ...] = get_args(AttentionMaskKind)


def region_attention_mask(region: Int[Tensor, "*b l"], kind: AttentionMaskKind) -> Bool[Tensor, "*b l l"]:
    """Build the decoder's attention mask; entry (i, j) is True where query i may attend to key j.

    ``map``: j's region is i's or an earlier one. ``local_mae``: the same region. ``mae``: always. ``ar``: j
    stands in an earlier region, or in the same one and not after i in the sequence. Global tokens (region -1)
    are seen by every query. Source: paper, section 4 and Figure 6.

    Raises:
        UserError: ``kind`` is none of the four.
    """
    query, key = region.unsqueeze(-1), region.unsqueeze(-2)
    if kind == "mae":
        allowed = torch.ones_like(query == key)
    elif kind == "local_mae":
        allowed = query == key
    elif kind == "map":
        allowed = key <= query
    elif kind == "ar":
        index = torch.arange(region.shape[-1], device=region.device)
        not_after = index.unsqueeze(-2) <= index.unsqueeze(-1)
        allowed = (key < query) | ((key == query) & not_after)
    else:
        raise UserError(
            f"attention mask kind {kind!r} is unknown; {near_matches(kind, ATTENTION_MASK_KINDS)}"
        )
    return allowed | (key == GLOBAL_REGION)
