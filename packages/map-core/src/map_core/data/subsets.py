"""Fixed, stratified selections of labelled samples: a subset, and a held-out part, and when that is evaluated on."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from map_core.errors import UserError
from map_core.randomness import derive_seed


def stratified_choice(
    labels: np.ndarray, count: int, *, seed: int, what: str, leave_one: bool = False
) -> np.ndarray:
    """Choose ``count`` indices, each class in proportion to its size; return them sorted.

    The choice depends on nothing but the arguments: bit generators keep their streams across numpy versions.
    Apart from rounding, a smaller choice is part of a larger one with the same seed. With ``leave_one``, no class is
    chosen whole.
    """
    rank = np.random.PCG64(derive_seed(seed, what)).random_raw(len(labels))
    order = np.lexsort((rank, labels))
    classes, sizes = np.unique(labels, return_counts=True)
    quotas = _quotas(sizes, count, np.random.PCG64(derive_seed(seed, what, "classes")).random_raw(len(sizes)))
    if leave_one:
        quotas = _below(sizes, quotas)
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


def _below(sizes: np.ndarray, quotas: np.ndarray) -> np.ndarray:
    """Quotas of the same sum, none of which takes a whole class: the class with most left gives one instead."""
    excess = quotas == sizes
    quotas = quotas - excess
    for _ in range(int(excess.sum())):
        quotas[np.argmax(sizes - quotas)] += 1
    return quotas


def hold_out(
    labels: np.ndarray, fraction: float, *, seed: int, every_class: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Split indices into (training, held out), with ``fraction`` of every class held out.

    A class keeps its last sample in training, as long as there are enough others to hold out.

    Args:
        labels: [n], whole numbers.
        fraction: Share of every class to hold out, between 0 and 1.
        seed: Seed of the choice.
        every_class: Whether it is an error if a class can keep no sample; pretraining needs none.

    Raises:
        UserError: the fraction leaves one part empty, or a class without training samples, as any would do where there
            is nothing to spare.
    """
    if not 0 < fraction < 1:
        raise UserError(f"data.holdout ({fraction}) must lie inside (0, 1): change --data.holdout")
    samples, classes = len(labels), len(np.unique(labels))
    count = round(fraction * samples)
    if samples <= (classes if every_class else 1):
        need = "each class needs one for training" if every_class else "training needs one"
        raise UserError(
            f"data.holdout ({fraction}) can hold out none of {samples} training samples: add samples; {need} besides "
            "those held out"
        )
    if not 0 < count < samples:
        cure = f"give --data.holdout {1 / samples:.2g} or more" if count == 0 else "give a smaller one"
        raise UserError(
            f"data.holdout ({fraction}) holds out {count} of {samples} training samples, and must leave some on both "
            f"sides: {cure}"
        )
    leave_one = count <= samples - classes
    if every_class and not leave_one:
        raise UserError(
            f"data.holdout ({fraction}) holds out {count} of {samples} training samples, which cannot leave one of "
            f"each of {classes} classes: give a smaller --data.holdout, or add samples to the classes"
        )
    held_out = stratified_choice(labels, count, seed=seed, what="holdout", leave_one=leave_one)
    return np.setdiff1d(np.arange(samples), held_out), held_out


def take_subset(labels: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Choose the indices of a training subset.

    Raises:
        UserError: the count lies outside 1..len(labels).
    """
    if not 0 < count <= len(labels):
        raise UserError(
            f"data.subset ({count}) must lie in 1..{len(labels)}, the number of training samples: lower --data.subset, "
            "or leave it out for all of them"
        )
    return stratified_choice(labels, count, seed=seed, what="subset")


@runtime_checkable
class EvaluationSettings(Protocol):
    """What of a data section says where to evaluate: on a named split, or on a held-out part of the training split."""

    @property
    def holdout(self) -> float: ...

    @property
    def eval_split(self) -> str | None: ...


def evaluates_held_out(config: EvaluationSettings) -> bool:
    """Whether evaluation is on the held-out part: a named split comes before it.

    A run that was trained with a held-out part may so be evaluated elsewhere.
    """
    return config.holdout > 0 and config.eval_split is None


def refuse_two_evaluation_sets(config: EvaluationSettings) -> None:
    """Raise a :class:`UserError` if both a held-out part and a split are named, as training cannot have both."""
    if config.holdout and config.eval_split is not None:
        raise UserError(
            f"data.eval_split '{config.eval_split}' and data.holdout ({config.holdout}) each name what to "
            "evaluate on: drop one of them"
        )


def report_unused_split(split: str, config: EvaluationSettings, report: Callable[[str], object]) -> None:
    """Say, by ``report``, if a split that there is, named in words, is not evaluated on because a held-out part is."""
    if evaluates_held_out(config):
        report(
            f"{split} is not evaluated on, because data.holdout is {config.holdout:g}; data.holdout 0 would "
            "evaluate on it"
        )


def prefer_given_holdout(values: Mapping[str, Any], options: Mapping[str, str]) -> dict[str, Any]:
    """A run's data settings, without its ``eval_split`` where ``options`` give a held-out part only."""
    if float(options.get("data.holdout", 0)) > 0 and "data.eval_split" not in options:
        return {name: value for name, value in values.items() if name != "eval_split"}
    return dict(values)
