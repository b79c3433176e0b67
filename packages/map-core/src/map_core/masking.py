"""Which tokens are hidden from the encoder."""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from map_core.errors import UserError, unknown_name
from map_core.float64 import to_double
from map_core.randomness import Draw
from map_core.tokens import Regions, Tokens

MaskStrategy = Literal["random", "sequential", "diagonal"]
MaskScope = Literal["all", "region"]
MaskPlacement = Literal["fixed", "random"]


@dataclass(frozen=True)
class TokenMask:
    """A partition of every sample's tokens into visible and hidden ones, with the same counts in every sample.

    Attributes:
        hidden: True where a token is hidden from the encoder.
        keep: Sequence indices of the visible tokens, ascending.
        drop: Sequence indices of the hidden tokens, ascending.
    """

    hidden: Bool[Tensor, "b l"]
    keep: Int[Tensor, "b k"]
    drop: Int[Tensor, "b h"]


@dataclass(frozen=True)
class Masking:
    """How many tokens are hidden, and which.

    >>> from map_core.testing import toy_tokens
    >>> mask = Masking(0.25)(toy_tokens(16, batch=2), Draw.of_batch(2, seed=0))
    >>> mask.keep.shape, mask.drop.shape
    (torch.Size([2, 12]), torch.Size([2, 4]))

    Attributes:
        ratio: Share of the tokens to hide, in [0, 1); 0 hides none.
        ratio_std: Draw the ratio of each step from a normal distribution around ``ratio`` with this standard deviation,
            truncated to ``ratio_bounds``, one ratio for all samples and processes (the authors' code: .25 within
            [.3, .7]); None keeps the ratio fixed.
        ratio_bounds: Lowest and highest ratio that can be drawn.
        strategy: See :func:`sample_mask`.
        scope: ``all`` chooses among all tokens; ``region`` within each region (paper eq. 2).
        unit: Hide squares of ``unit`` x ``unit`` tokens of a grid, at random (SimMIM).
        placement: Where ``sequential`` and ``diagonal`` start: ``fixed`` hides the same tokens of every sample,
            ``random`` draws a start for each sample.
    """

    ratio: float = 0.5
    ratio_std: float | None = None
    ratio_bounds: tuple[float, float] = (0.3, 0.7)
    strategy: MaskStrategy = "random"
    scope: MaskScope = "all"
    unit: int = 1
    placement: MaskPlacement = "fixed"

    def __post_init__(self) -> None:
        """Check what needs no tokens.

        Raises:
            UserError: a ratio, its deviation or its bounds out of range; a unit below 1; an unknown strategy, scope or
                placement; or a random placement that would have no effect.
        """
        choices = (("strategy", MaskStrategy), ("scope", MaskScope), ("placement", MaskPlacement))
        for what, kinds in choices:
            if getattr(self, what) not in get_args(kinds):
                raise unknown_name(f"mask {what}", getattr(self, what), get_args(kinds))
        check_ratio("mask ratio", self.ratio, self.ratio_std, self.ratio_bounds)
        check_placement("mask ", self.placement, self.strategy)
        if self.unit < 1:
            raise UserError(f"mask unit must be at least 1; got {self.unit}")

    @property
    def highest_ratio(self) -> float:
        """The largest share that a step may hide."""
        return self.extremes[-1].ratio

    @property
    def extremes(self) -> tuple["Masking", ...]:
        """The maskings with the smallest and the largest ratio that a step may use; one if the ratio is fixed."""
        ratios = (self.ratio,) if self.ratio_std is None else self.ratio_bounds
        return tuple(replace(self, ratio=ratio, ratio_std=None) for ratio in ratios)

    def step_ratio(self, draw: Draw) -> float:
        """The mask ratio of a step: fixed, or one keyed draw for all processes."""
        if self.ratio_std is None:
            return self.ratio
        return truncated_normal(draw.scalar("ratio"), self.ratio, self.ratio_std, self.ratio_bounds)

    def __call__(self, tokens: Tokens, draw: Draw, regions: Regions | None = None) -> TokenMask:
        """Hide tokens of a batch; only scope ``region`` needs ``regions``.

        Raises:
            UserError: a draw of another number of samples, scope ``region`` without regions, or what
                :func:`sample_mask` raises.
        """
        if self.scope == "region" and regions is None:
            raise UserError(
                "mask scope 'region' needs the regions of the tokens; pass them, or use scope 'all'"
            )
        noise = None
        if self.strategy == "random":
            noise = draw.uniform("mask", tokens.length, tokens.embedding.device)
        elif self.placement == "random":
            noise = draw.uniform("mask placement", 1, tokens.embedding.device)
        if noise is not None and len(noise) != tokens.batch_size:
            raise UserError(
                f"the draw is of {len(noise)} samples, the batch has {tokens.batch_size}: draw for this batch, such as "
                "Draw.of_batch(len(inputs), seed=seed, step=step)"
            )
        within = regions if self.scope == "region" else None
        ratio = self.step_ratio(draw)
        return sample_mask(tokens, ratio, self.strategy, noise=noise, within=within, unit=self.unit)


def check_ratio(name: str, ratio: float, std: float | None, bounds: tuple[float, float]) -> None:
    """Check a mask ratio, and how it is drawn.

    Args:
        name: Name of the ratio in messages.
        ratio, std, bounds: See :class:`Masking`.

    Raises:
        UserError: one of them is out of range.
    """
    if not 0 <= ratio < 1:
        raise UserError(f"{name} must lie in [0, 1); got {ratio}")
    low, high = bounds
    if not 0 < low < high < 1:
        raise UserError(f"{name}_bounds must satisfy 0 < low < high < 1; got {low}, {high}")
    if std is not None and not 0 < std < math.inf:
        raise UserError(f"{name}_std must be positive; got {std}")


def check_placement(prefix: str, placement: MaskPlacement, strategy: MaskStrategy) -> None:
    """Check that a random placement has an effect.

    Args:
        prefix: Prefix of the names in messages.
        placement, strategy: See :class:`Masking`.

    Raises:
        UserError: it has none.
    """
    if placement == "random" and strategy == "random":
        raise UserError(
            f"{prefix}placement 'random' has no effect with {prefix}strategy 'random': choose sequential or diagonal, "
            "or drop it"
        )


def truncated_normal(uniform: float, mean: float, std: float, bounds: tuple[float, float]) -> float:
    """Map a uniform number to a sample of the normal distribution truncated to ``bounds`` (inverse CDF)."""
    low, high = (0.5 * (1 + math.erf((bound - mean) / (std * math.sqrt(2)))) for bound in bounds)
    quantile = torch.tensor(low + (high - low) * uniform, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    normal = math.sqrt(2) * torch.erfinv(2 * quantile - 1)
    return min(max(float(mean + std * normal), bounds[0]), bounds[1])


def sample_mask(
    tokens: Tokens,
    ratio: float,
    strategy: MaskStrategy = "random",
    *,
    noise: Float[Tensor, "b _"] | None = None,
    within: Regions | None = None,
    unit: int = 1,
) -> TokenMask:
    """Hide ``round(ratio * l)`` of each sample's l tokens (global tokens do not count and stay visible).

    Args:
        tokens: The tokens in scan order.
        ratio: Share to hide, in [0, 1); unless it is 0, at least one token must be hidden and one visible.
        strategy: ``random``; ``sequential`` hides the last tokens in scan order; ``diagonal`` those with the
            largest row + column, ties to the later one in scan order (our reading of the paper's Figure 5).
        noise: Uniform noise, see :meth:`Draw.uniform`. ``random`` hides the tokens with the largest noise, one number
            for each token, drawn from torch's global generator when None. For the other strategies it is one number
            for each sample: ``sequential`` then hides a run that ends anywhere in the scan and may wrap around,
            ``diagonal`` counts from any of the four corners. None hides the same tokens of every sample, so that
            half of the positions never train at a ratio of 0.5.
        within: Choose within each of these regions (paper eq. 2), with the total split over them so that their
            counts differ by at most one; among all tokens when None.
        unit: Hide squares of ``unit`` x ``unit`` tokens of the grid together.

    Raises:
        UserError: the ratio is outside [0, 1), hides all tokens or rounds to none; an unknown strategy;
            ``diagonal`` or units for tokens without a grid; units that do not tile it, with another strategy than
            ``random`` or within regions; a region smaller than its share.
    """
    if unit > 1 and (strategy != "random" or within is not None):
        chosen = f"strategy {strategy!r}" if strategy != "random" else "scope 'region'"
        raise UserError(
            f"mask unit {unit} needs squares hidden at random over the grid; got {chosen}: use unit 1"
        )
    score = _hiding_score(tokens, strategy, noise)
    if unit > 1:
        score = _unit_score(score, tokens, unit)
    count = hidden_count(ratio, tokens.num_maskable, unit)
    if within is not None:
        hidden = _hidden_within_regions(tokens, score, count, within, shuffle=strategy == "random")
    else:
        score = torch.cat(
            [score.new_full(_global_shape(tokens), -math.inf), score[:, tokens.num_global :]], dim=1
        )
        hidden = _descending_rank(score) < count
    # visible first, each part in scan order
    order = torch.argsort(hidden.to(torch.uint8), dim=1, stable=True)
    num_visible = tokens.length - count
    return TokenMask(hidden=hidden, keep=order[:, :num_visible], drop=order[:, num_visible:])


def hidden_count(ratio: float, length: int, unit: int = 1) -> int:
    """Number of tokens to hide, in squares of ``unit``; unless the ratio is 0 it must be neither none nor all."""
    if not 0 <= ratio < 1:
        raise UserError(f"mask ratio must lie in [0, 1); got {ratio}")
    if ratio == 0:
        return 0
    squares = length // unit**2
    count = round(ratio * squares)
    if not 0 < count < squares:
        what = "tokens" if unit == 1 else f"squares of {unit}x{unit} tokens"
        smaller = "" if unit == 1 else "a smaller mask unit, "
        raise UserError(
            f"mask ratio {ratio} of {squares} {what} hides {count}: it must hide at least one and keep at least one; "
            "change the ratio (objective.mask_ratio, or objective.mask_ratio_bounds where it is drawn) or use "
            f"{smaller}more tokens (smaller patches)"
        )
    return count * unit**2


def predicted_tokens(tokens: Tokens, mask: TokenMask) -> Int[Tensor, "b h"]:
    """Sequence indices of the predicted tokens: the hidden ones, or all but the global ones where none is hidden."""
    return mask.drop if mask.drop.shape[1] else mask.keep[:, tokens.num_global :]


def _unit_score(score: Float[Tensor, "b l"], tokens: Tokens, unit: int) -> Float[Tensor, "b l"]:
    """Give all tokens of a square of the grid the same score, one of the random scores."""
    if tokens.grid is None or any(side % unit for side in tokens.grid):
        grid = (
            "tokens without a grid" if tokens.grid is None else f"a grid of {tokens.grid[0]}x{tokens.grid[1]}"
        )
        raise UserError(f"mask unit {unit} does not tile {grid}: choose one that divides both sides, or 1")
    front = score[:, : tokens.num_global]
    row, col = tokens.position[:, tokens.num_global :].long().unbind(-1)
    square = (row // unit * (tokens.grid[1] // unit) + col // unit).expand(score.shape[0], -1)
    return torch.cat([front, torch.gather(score[:, tokens.num_global :], 1, square)], dim=1)


def _global_shape(tokens: Tokens) -> tuple[int, int]:
    """Shape (b, n) of the global tokens at the front of every sequence."""
    return tokens.batch_size, tokens.num_global


def _hiding_score(tokens: Tokens, strategy: str, noise: Tensor | None) -> Float[Tensor, "b l"]:
    """Score every token; those with the largest scores are hidden."""
    shape, device = (tokens.batch_size, tokens.length), tokens.embedding.device
    if strategy not in get_args(MaskStrategy):
        known = get_args(MaskStrategy)
        raise unknown_name("mask strategy", strategy, known)
    if noise is not None:
        expected = shape if strategy == "random" else (tokens.batch_size, 1)
        if tuple(noise.shape) != expected:
            raise UserError(
                f"noise has shape {tuple(noise.shape)}, strategy {strategy!r} of these tokens needs {expected}; draw "
                "it for these tokens"
            )
        noise = noise.to(device)
    if strategy == "random":
        return torch.rand(shape, device=device) if noise is None else noise
    if strategy == "sequential":
        return _scan_score(tokens, noise).expand(shape)
    return _diagonal_score(tokens, noise).expand(shape)


def _scan_score(tokens: Tokens, start: Float[Tensor, "b 1"] | None) -> Float[Tensor, "#b l"]:
    """Score tokens by their rank in the scan, which starts at the fraction ``start`` of it and wraps around."""
    rank = torch.arange(tokens.length, device=tokens.embedding.device) - tokens.num_global
    if start is not None:
        rank = rank - (start * tokens.num_maskable).long()
    return to_double(rank.remainder(tokens.num_maskable)).view(-1, tokens.length)


def _diagonal_score(tokens: Tokens, corner: Float[Tensor, "b 1"] | None) -> Float[Tensor, "#b l"]:
    """Score tokens by row + column, counted from a corner; ``corner`` in the first quarter of [0, 1) is top left."""
    if tokens.grid is None:
        raise UserError(
            "mask strategy 'diagonal' needs tokens on a grid; these have none: use 'random' or 'sequential'"
        )
    row, col = to_double(tokens.position).unbind(-1)
    if corner is not None:
        quarter = (corner * 4).long()
        row = torch.where(quarter // 2 == 1, tokens.grid[0] - 1 - row, row)
        col = torch.where(quarter % 2 == 1, tokens.grid[1] - 1 - col, col)
    index = to_double(torch.arange(tokens.length, device=row.device))
    # ties: the later in scan order is hidden first; float32 gives up to 1,024 tokens the same order
    return row + col + index / tokens.length


def _descending_rank(score: Float[Tensor, "b l"]) -> Int[Tensor, "b l"]:
    """Rank of each entry in its row, 0 for the largest; ties by index."""
    return torch.argsort(torch.argsort(score, dim=1, descending=True, stable=True), dim=1)


def require_room(count: int, regions: Regions) -> None:
    """Check that ``count`` tokens can be hidden evenly over the regions, whose shares differ by at most one.

    Raises:
        UserError: the smallest region has too few tokens.
    """
    share = -(-count // regions.count)
    if regions.smallest < share:
        raise UserError(
            f"mask scope 'region' must hide up to {share} tokens of every region, but the smallest has "
            f"{regions.smallest}; lower the ratio, use larger regions or scope 'all'"
        )


def _hidden_within_regions(
    tokens: Tokens, score: Float[Tensor, "b l"], count: int, regions: Regions, *, shuffle: bool
) -> Bool[Tensor, "b l"]:
    """Hide ``count`` tokens of each sample: the largest scores of each region, evenly over the regions."""
    require_room(count, regions)
    base, extra = divmod(count, regions.count)
    n = tokens.num_global
    score, region = score[:, n:], regions.index[:, n:].expand(tokens.batch_size, -1).long()
    numbers = torch.arange(regions.count, device=region.device)
    member = region.unsqueeze(1) == numbers.unsqueeze(-1)  # (b, r, m)
    size = member.sum(-1)
    # The sum of a region's uniform scores, modulo 1, is uniform whatever the region's size and independent
    # of their ranks, so the extra tokens go to random regions. Scores that are not random favour late regions.
    total = (member * to_double(score).unsqueeze(1)).sum(-1)
    quota = base + (_descending_rank(total.remainder(1) if shuffle else total) < extra).long()  # (b, r)
    # rank within the region: the number of tokens of the same region with a larger score, ties by index
    order = torch.argsort(score, dim=1, descending=True, stable=True)
    by_region = torch.argsort(torch.gather(region, 1, order), dim=1, stable=True)
    place = torch.argsort(torch.gather(order, 1, by_region), dim=1)  # region by region, largest score first
    rank = place - torch.gather(size.cumsum(1) - size, 1, region)
    hidden = rank < torch.gather(quota, 1, region)
    return torch.cat([hidden.new_zeros(_global_shape(tokens)), hidden], dim=1)
