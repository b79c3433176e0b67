import hashlib
from dataclasses import dataclass

import numpy as np
import pytest

from map_core.data.subsets import (
    evaluates_held_out,
    hold_out,
    prefer_given_holdout,
    refuse_two_evaluation_sets,
    stratified_choice,
    take_subset,
)
from map_core.errors import UserError

LABELS = np.repeat([0, 1, 2], [50, 30, 21])


def test_parts_are_disjoint_complete_and_stratified() -> None:
    training, held_out = hold_out(LABELS, 0.2, seed=0)
    assert sorted(np.concatenate([training, held_out])) == list(range(101))
    assert np.bincount(LABELS[held_out]).tolist() == [10, 6, 4]


def test_choice_is_fixed_by_its_seed() -> None:
    subset_index = stratified_choice(LABELS, 20, seed=0, what="subset")
    # sha256 of the int64 indices: a change would change every subset in use.
    assert hashlib.sha256(subset_index.astype("<i8").tobytes()).hexdigest()[:16] == "272e590636252cc5"
    assert not np.array_equal(subset_index, stratified_choice(LABELS, 20, seed=1, what="subset"))


@pytest.mark.parametrize("count", [1, 7, 100, 101])
def test_subset_has_the_asked_size_and_proportions(count: int) -> None:
    subset = take_subset(LABELS, count, seed=0)
    assert len(set(subset)) == count
    exact = np.array([50, 30, 21]) * count / 101
    assert np.all(np.abs(np.bincount(LABELS[subset], minlength=3) - exact) < 1)


@pytest.mark.parametrize("count", [0, 102])
def test_subset_out_of_range_names_both_numbers(count: int) -> None:
    with pytest.raises(UserError, match=rf"subset \({count}\) must lie in 1..101"):
        take_subset(LABELS, count, seed=0)


@pytest.mark.parametrize(
    ("samples", "fraction", "message"),
    [
        (101, 0.001, r"holds out 0 of 101 .* on both sides: give --data.holdout 0.0099 or more"),
        (
            5,
            0.1,
            r"data.holdout \(0.1\) holds out 0 of 5 training samples, .*: give --data.holdout 0.2 or more",
        ),
        (5, 0.95, r"holds out 5 of 5 training samples, .*: give a smaller one"),
        (1, 0.5, r"can hold out none of 1 training samples: add samples; each class needs one for training"),
        (5, 1.0, r"data.holdout \(1.0\) must lie inside \(0, 1\)"),
        (5, 0.0, r"data.holdout \(0.0\) must lie inside \(0, 1\)"),
    ],
)
def test_a_holdout_that_leaves_one_side_empty_says_what_would_not(
    samples: int, fraction: float, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        hold_out(np.zeros(samples, dtype=np.int64), fraction, seed=0)
    if "give --data.holdout" in message:
        cure = float(message.split("give --data.holdout ")[1].split()[0])
        assert len(hold_out(np.zeros(samples, dtype=np.int64), cure, seed=0)[1]) == 1


def test_a_class_keeps_its_last_sample_while_others_have_more() -> None:
    labels = np.concatenate([np.repeat([0, 1], 50), np.arange(2, 42)])  # four of forty would lose theirs
    training, held_out = hold_out(labels, 0.1, seed=0)
    assert len(held_out) == 14
    assert sorted(np.concatenate([training, held_out])) == list(range(140))
    assert set(labels[training]) == set(range(42))


def test_classes_that_keep_a_sample_anyway_are_held_out_as_ever() -> None:
    labels = np.repeat(np.arange(3), [50, 30, 2])
    for fraction in (0.1, 0.5):
        count = round(fraction * len(labels))
        expected = stratified_choice(labels, count, seed=0, what="holdout")
        assert np.array_equal(hold_out(labels, fraction, seed=0)[1], expected)


def test_a_holdout_that_takes_whole_classes_is_refused_unless_classes_do_not_matter() -> None:
    labels = np.array([0, 1, 2, 3, 3])
    with pytest.raises(UserError, match=r"holds out 2 of 5 .* cannot leave one of each of 4 classes: give a"):
        hold_out(labels, 0.5, seed=0)
    assert len(hold_out(labels, 0.5, seed=0, every_class=False)[1]) == 2


@pytest.mark.parametrize("fraction", [0.1, 0.34, 0.9])
def test_classes_of_one_sample_each_ask_for_samples_whatever_the_fraction(fraction: float) -> None:
    """Advice on the fraction would go round in a circle: none would do."""
    message = (
        rf"data.holdout \({fraction}\) can hold out none of 3 training samples: add samples; each class needs one for "
        "training besides those held out"
    )
    with pytest.raises(UserError, match=message):
        hold_out(np.arange(3), fraction, seed=0)
    with pytest.raises(
        UserError, match=r"none of 1 training samples: add samples; training needs one besides"
    ):
        hold_out(np.arange(1), fraction, seed=0, every_class=False)


def test_fewer_samples_than_classes_are_of_classes_that_the_seed_draws() -> None:
    labels = np.repeat(np.arange(100), 5)
    classes_by_seed = [np.unique(labels[hold_out(labels, 0.1, seed=seed)[1]]) for seed in (0, 1)]
    for classes in classes_by_seed:
        assert len(classes) == 50
        assert 0 < np.sum(classes < 50) < 50
    assert not np.array_equal(*classes_by_seed)
    few = np.unique(labels[take_subset(labels, 30, seed=0)])
    assert len(few) == 30
    assert few.max() >= 30


def test_a_class_that_would_have_none_comes_before_one_that_has_some() -> None:
    labels = np.repeat([0, 1], [30, 10])  # half a sample too much of each
    assert np.bincount(labels[take_subset(labels, 2, seed=0)]).tolist() == [1, 1]


@dataclass
class Settings:
    holdout: float = 0.0
    eval_split: str | None = None


def test_a_named_split_is_evaluated_on_before_a_held_out_part() -> None:
    assert evaluates_held_out(Settings(holdout=0.1))
    assert not evaluates_held_out(Settings(holdout=0.1, eval_split="val"))
    assert not evaluates_held_out(Settings())


def test_training_takes_one_set_to_evaluate_on() -> None:
    refuse_two_evaluation_sets(Settings(holdout=0.1))
    refuse_two_evaluation_sets(Settings(eval_split="val"))
    with pytest.raises(UserError, match=r"'val' and data.holdout \(0.1\) each name .* drop one"):
        refuse_two_evaluation_sets(Settings(holdout=0.1, eval_split="val"))


def test_a_given_held_out_part_replaces_the_split_of_a_run_alone() -> None:
    run = {"eval_split": "val", "root": "photos"}
    assert prefer_given_holdout(run, {"data.holdout": "0.1"}) == {"root": "photos"}
    assert prefer_given_holdout(run, {"data.holdout": "0.1", "data.eval_split": "test"}) == run
    assert prefer_given_holdout(run, {"data.root": "photos"}) == run
    assert prefer_given_holdout(run, {"data.holdout": "0.0"}) == run
