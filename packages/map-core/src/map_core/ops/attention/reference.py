"""The definition of attention, readable by eye. Tests compare with it."""

from jaxtyping import Bool, Float
from torch import Tensor


def reference_attention(
    q: Float[Tensor, "b h q d"],
    k: Float[Tensor, "b h l d"],
    v: Float[Tensor, "b h l d"],
    mask: Bool[Tensor, "#b #q l"] | None,
) -> Float[Tensor, "b h q d"]:
    """Average the values by softmax(q k' / sqrt(d)) over the keys that each query sees; 0 where it sees none."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5  # (b, h, q, l)
    if mask is not None:
        scores = scores.masked_fill(~mask.unsqueeze(1), float("-inf"))
        sees_none = ~mask.any(-1, keepdim=True).unsqueeze(1)
        return scores.softmax(-1).masked_fill(sees_none, 0.0) @ v
    return scores.softmax(-1) @ v
