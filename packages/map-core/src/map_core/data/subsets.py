"""Fixed, stratified selections of labelled samples: a subset, and a held-out part."""

import numpy as np

from map_core.errors import UserError
from map_core.randomness import derive_seed


def stratified_choice(labels: np.ndarray, count: int, *, seed: int, what: str) -> np.ndarray:
    """Choose ``count`` indices, each class in proportion to its size; return them sorted.

    The choice depends on nothing but the arguments: bit generators keep their streams across numpy versions.
    Apart from rounding, a smaller choice is part of a larger one with the same seed.
    """
    rank = np.random.PCG64(derive_seed(seed, what)).random_raw(len(labels))
    order = np.lexsort((rank, labels))
    classes, sizes = np.unique(labels, return_counts=True)
    quotas = _quotas(sizes, count, np.random.PCG64(derive_seed(seed, what, "classes")).random_raw(len(sizes)))
    starts = np.cumsum(sizes) - sizes
    chosen = [order[start : start + quota] for start, quota in zip(starts, quotas, strict=True)]
    return np.sort(np.concatenate(chosen)) if len(classes) else np.array([], dtype=np.int64)


def _quotas(sizes: np.ndarray, count: int, rank: np.ndarray) -> np.ndarray:
    """Split ``count`` in proportion to ``sizes``, rounding the largest remainders up.

    Among equal remainders, classes that would get nothing come first, by ``rank``: with fewer samples than classes of
    equal size, the seed decides which of them are included, not their order. The other classes follow in their order.
    """
    quotas, remainders = np.divmod(sizes.astype(np.int64) * count, max(int(sizes.sum()), 1))
    order = np.lexsort((np.where(quotas == 0, rank, 0), quotas > 0, -remainders))
    largest = order[: count - int(quotas.sum())]
    quotas[largest] += 1
    return quotas


def hold_out(labels: np.ndarray, fraction: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split indices into (training, held out), with ``fraction`` of every class held out.

    Raises:
        UserError: the fraction leaves one part empty.
    """
    count = round(fraction * len(labels)) if 0.0 <= fraction < 1.0 else 0
    if not 0 < count < len(labels):
        raise UserError(
            f"holdout ({fraction}) must lie in (0, 1) and leave samples on both sides; "
            f"the training set has {len(labels)} samples"
        )
    held_out = stratified_choice(labels, count, seed=seed, what="holdout")
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def take_subset(labels: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Choose the indices of a training subset.

    Raises:
        UserError: the count lies outside 1..len(labels).
    """
    if not 0 < count <= len(labels):
        raise UserError(f"subset ({count}) must lie in 1..{len(labels)}, the number of training samples")
    return stratified_choice(labels, count, seed=seed, what="subset")
