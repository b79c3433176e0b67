"""Which tokens are hidden from the encoder."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from map_core.errors import UserError, near_matches
from map_core.randomness import keyed_generator
from map_core.tokens import GLOBAL_REGION, Tokens

MaskStrategy = Literal["random", "sequential", "diagonal"]
MaskScope = Literal["all", "region"]


@dataclass(frozen=True)
class TokenMask:
    """A partition of every sample's tokens into kept and hidden, with the same counts in every sample.

    Attributes:
        hidden: True = hidden from the encoder.
        keep: Sequence indices of the visible tokens, ascending.
        drop: Sequence indices of the hidden tokens, ascending.
    """

    hidden: Bool[Tensor, "b l"]
    keep: Int[Tensor, "b k"]
    drop: Int[Tensor, "b h"]


def mask_noise(seed: int, step: int, samples: slice, shape: tuple[int, int]) -> Float[Tensor, "s l"]:
    """Draw the uniform noise of one step for the whole global batch; return this process's ``samples`` of it.

    Args:
        seed, step: Keys of the draw; the same keys give the same noise on any number of processes.
        samples: Which samples of the global batch to return.
        shape: Global batch size and number of tokens.
    """
    return torch.rand(shape, generator=keyed_generator(seed, "mask", step))[samples]


def truncated_normal_ratio(
    seed: int, step: int, mean: float, std: float, bounds: tuple[float, float]
) -> float:
    """Draw the masking ratio of one step, one for all samples and processes, from a truncated normal.

    Source: the authors' code hides a ratio drawn with mean .5, std .25 within [.3, .7].
    """
    low, high = (0.5 * (1 + math.erf((bound - mean) / (std * math.sqrt(2)))) for bound in bounds)
    uniform = torch.rand((), generator=keyed_generator(seed, "ratio", step), dtype=torch.float64)
    quantile = (low + (high - low) * uniform).clamp(1e-12, 1 - 1e-12)
    normal = math.sqrt(2) * torch.erfinv(2 * quantile - 1)
    return min(max(float(mean + std * normal), bounds[0]), bounds[1])


def sample_mask(
    tokens: Tokens,
    ratio: float,
    strategy: MaskStrategy = "random",
    *,
    noise: Float[Tensor, "b l"] | None = None,
    scope: MaskScope = "all",
) -> TokenMask:
    """Hide ``round(ratio * l)`` of each sample's l tokens (global tokens do not count and stay visible).

    Args:
        tokens: The tokens in scan order.
        ratio: Hidden share, inside (0, 1); at least one token is hidden and one kept.
        strategy: ``random``; ``sequential`` hides the last tokens in scan order; ``diagonal`` those with the
            largest row + column, ties to the later one in scan order (our reading of the paper's Figure 5).
        noise: Uniform noise that decides the random strategy, see :func:`mask_noise`; drawn from torch's
            global generator when None.
        scope: ``all`` chooses among all tokens; ``region`` within each region (paper eq. 2), the total split
            over regions so that their counts differ by at most one.

    Raises:
        UserError: the ratio is outside (0, 1) or leaves nothing hidden or visible; an unknown strategy or
            scope; ``diagonal`` on tokens that are no grid; ``region`` where one is smaller than its share.
    """
    is_global = (tokens.region == GLOBAL_REGION).expand(tokens.batch_size, -1)
    # all samples have as many global tokens as the first
    length = tokens.length - int(is_global[:1].sum())
    count = hidden_count(ratio, length)
    score = _hiding_score(tokens, strategy, noise)
    if scope == "all":
        rank = _descending_rank(score.masked_fill(is_global, -math.inf))
        hidden = rank < count
    elif scope == "region":
        hidden = _hidden_within_regions(tokens, score, count, shuffle=strategy == "random")
    else:
        raise UserError(f"mask scope {scope!r} is unknown; {near_matches(scope, get_args(MaskScope))}")
    order = torch.argsort(
        hidden.to(torch.uint8), dim=1, stable=True
    )  # visible first, each part in scan order
    kept = tokens.length - count
    return TokenMask(hidden=hidden, keep=order[:, :kept], drop=order[:, kept:])


def hidden_count(ratio: float, length: int) -> int:
    """Return ``round(ratio * length)``, checked to leave both hidden and visible tokens."""
    if not 0 < ratio < 1:
        raise UserError(f"mask ratio must lie inside (0, 1); got {ratio}")
    count = round(ratio * length)
    if not 0 < count < length:
        raise UserError(
            f"mask ratio {ratio} of {length} tokens hides {count}: it must hide at least one and keep at "
            "least one; change the ratio or use more tokens (smaller patches)"
        )
    return count


def _hiding_score(tokens: Tokens, strategy: str, noise: Tensor | None) -> Float[Tensor, "b l"]:
    """Score every token; the largest scores are hidden."""
    shape, device = (tokens.batch_size, tokens.length), tokens.embedding.device
    if strategy == "random":
        if noise is None:
            return torch.rand(shape, device=device)
        if tuple(noise.shape) != shape:
            raise UserError(
                f"noise has shape {tuple(noise.shape)}, the tokens have {shape}; draw it for these tokens"
            )
        return noise.to(device)
    index = torch.arange(tokens.length, device=device, dtype=torch.float64)
    if strategy == "sequential":
        return index.expand(shape)
    if strategy == "diagonal":
        if tokens.grid is None:
            raise UserError(
                "mask strategy 'diagonal' needs tokens on a grid; these have none: use 'random' or "
                "'sequential'"
            )
        return (tokens.position.double().sum(-1) + index / tokens.length).expand(shape)
    raise UserError(
        f"mask strategy {strategy!r} is unknown; {near_matches(strategy, get_args(MaskStrategy))}"
    )


def _descending_rank(score: Float[Tensor, "b l"]) -> Int[Tensor, "b l"]:
    """Rank of each entry in its row, 0 for the largest; equal scores by index."""
    return torch.argsort(torch.argsort(score, dim=1, descending=True, stable=True), dim=1)


def _hidden_within_regions(
    tokens: Tokens, score: Float[Tensor, "b l"], count: int, *, shuffle: bool
) -> Bool[Tensor, "b l"]:
    region = tokens.region.expand(tokens.batch_size, -1).long()
    num_regions = int(region.max()) + 1
    member = region.unsqueeze(1) == torch.arange(num_regions, device=region.device).unsqueeze(-1)  # (b, r, l)
    size = member.sum(-1)
    base, extra = divmod(count, num_regions)
    share, smallest = base + (extra > 0), int(size.min())
    if smallest < share:
        raise UserError(
            f"mask scope 'region' must hide up to {share} tokens of every region, but the smallest has "
            f"{smallest}; lower the ratio, use larger regions or scope 'all'"
        )
    # The sum of a region's uniform scores, modulo 1, is uniform whatever the region's size, and independent
    # of their ranks: the extra tokens fall on random regions. Scores that are not random favour late regions.
    total = (member * score.unsqueeze(1).double()).sum(-1)
    quota = base + (_descending_rank(total.remainder(1) if shuffle else total) < extra).long()  # (b, r)
    # rank within the region: tokens of the same region with a larger score, equal scores by index
    order = torch.argsort(score, dim=1, descending=True, stable=True)
    region_in_order = torch.gather(region, 1, order)
    by_region = torch.argsort(region_in_order, dim=1, stable=True)
    order = torch.gather(order, 1, by_region)  # global tokens, then region by region, largest score first
    place = torch.argsort(order, dim=1)
    start = (region == GLOBAL_REGION).sum(1, keepdim=True) + size.cumsum(1) - size  # (b, r)
    own = region.clamp(min=0)
    rank = place - torch.gather(start, 1, own)
    return (rank < torch.gather(quota, 1, own)) & (region != GLOBAL_REGION)
