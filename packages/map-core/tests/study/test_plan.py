"""What a study runs follows from its file and the results so far."""

import datetime
import itertools
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import yaml

from map_core.errors import Diverged, UserError
from map_core.study import measures, runner
from map_core.study.consistency import planned_results
from map_core.study.cost import resolve_known_compute
from map_core.study.definition import Study, read_study
from map_core.study.location import StudyLocation, as_option, command_line
from map_core.study.plan import PlannedRun, next_runs, planned_runs
from map_core.study.preconditions import check_added_measures
from map_core.study.report import page, scores
from map_core.study.results import Result, append_result, read_results
from map_core.study.run_settings import read_run_settings
from map_core.study.runner import Budget, RunningStudy, run_or_prerequisite, run_study
from map_core.tasks.weights import MODEL_FILE, weights_identity

FILE: dict[str, Any] = {
    "name": "small",
    "arms": {
        "map": {"pretrain": {"recipe": "pretrain_digits", "objective.attention": "map"}},
        "scratch": {},
    },
    "finetune": {"recipe": "finetune_digits", "training.epochs": 4},
    "labels": {50: {"training.batch_size": 50}, "all": {}},
    "seeds": [0, 1],
    "measures": ["finetune", "knn"],
}


def make_study(tmp_path: Path, **changes: Any) -> Study:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**FILE, **changes}))
    return read_study(path, "map_core.study")


def result_of(study: Study, run: PlannedRun, score: float = 50.0) -> Result:
    settings = run.settings
    return Result(
        study.name, run.key, run.arm, run.seed, run.labels, run.stage, run.lr, settings, float(score)
    )


def run_all(study: Study, score_of: Any = lambda run: 50.0) -> list[Result]:
    """Finish every run as soon as it can start."""
    results: list[Result] = []
    while ready := next_runs(study, results):
        results += [result_of(study, run, score_of(run)) for run in ready]
    return results


def test_a_run_starts_only_when_what_it_builds_on_is_done(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    first = {run.key for run in next_runs(study, [])}
    pretraining = {f"map/seed{seed}/pretrain" for seed in (0, 1)}
    scratch = {f"scratch/seed{seed}/finetune{labels}" for seed in (0, 1) for labels in ("", "_50")}
    assert first == pretraining | scratch
    run = next(run for run in planned_runs(study, []) if run.key == "map/seed0/pretrain")
    ready = {run.key for run in next_runs(study, [result_of(study, run)])}
    assert {"map/seed0/finetune", "map/seed0/finetune_50", "map/seed0/knn"} <= ready
    assert "map/seed1/finetune" not in ready
    assert "map/seed0/pretrain" not in ready


def test_every_run_has_a_log_of_its_own(tmp_path: Path) -> None:
    """A learning rate in a run's name has a point, which begins no suffix."""
    study = make_study(tmp_path, learning_rates={"finetune": [0.001, 0.01]}, extensions=0)
    location, runs = (
        StudyLocation("map_vision", tmp_path, tmp_path / "results.jsonl"),
        list(planned_runs(study, [])),
    )
    assert len({location.log(run.key) for run in runs}) == len(runs)
    assert all(location.log(run.key).parent == location.directory(run.key).parent for run in runs)


def test_everything_is_run_once(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    keys = [result.key for result in run_all(study)]
    assert len(keys) == len(set(keys)) == 2 * (1 + 1 + 2) + 2 * 2


@pytest.mark.parametrize("nested", list(itertools.product([False, True], repeat=3)))
def test_an_arm_overrides_labels_which_override_the_study_however_settings_are_written(
    tmp_path: Path, nested: tuple[bool, bool, bool]
) -> None:
    def written(is_nested: bool, **training: int) -> dict[str, Any]:
        flat = {f"training.{name}": value for name, value in training.items()}
        return {"training": training} if is_nested else flat

    of_study, of_labels, of_arm = nested
    study = make_study(
        tmp_path,
        finetune={"recipe": "finetune_digits", **written(of_study, epochs=1, batch_size=1, warmup_epochs=1)},
        labels={50: written(of_labels, epochs=2, batch_size=2)},
        arms={"scratch": {"finetune": written(of_arm, epochs=3)}, "equal": {"compute_of": "scratch"}},
        measures=["finetune"],
    )
    own = {"training.warmup_epochs": 1, "training.batch_size": 2, "training.epochs": 3}
    equal, scratch = study.arms
    equal = replace(equal, lengths={50: {"training.epochs": 4}})
    for run in planned_runs(replace(study, arms=(equal, scratch)), []):
        epochs = 4 if run.arm == "equal" else 3
        seeds = {"data.subset": 50, "data.subset_seed": run.seed, "training.seed": run.seed}
        assert run.settings == {"recipe": "finetune_digits", **own, "training.epochs": epochs, **seeds}


def test_a_section_that_is_a_file_comes_before_what_overrides_it(tmp_path: Path) -> None:
    """In a command the last option wins."""
    study = make_study(
        tmp_path,
        labels={50: {"training": "fifty.yaml"}},
        arms={"scratch": {"finetune": {"training.epochs": 9}}},
        measures=["finetune"],
    )
    line = command_line(next_runs(study, [])[0], StudyLocation("map_vision", tmp_path, tmp_path / "r"))
    assert line.index("--training=fifty.yaml") < line.index("--training.epochs=9")


def test_arms_differ_in_their_start_alone(tmp_path: Path) -> None:
    runs = [run for run in planned_runs(make_study(tmp_path), []) if run.stage == "finetune"]
    by_arm = {arm: [run.settings for run in runs if run.arm == arm] for arm in ("map", "scratch")}
    assert by_arm["map"] == by_arm["scratch"]
    assert {run.after for run in runs if run.arm == "scratch"} == {None}
    assert {run.after for run in runs if run.arm == "map"} == {"map/seed0/pretrain", "map/seed1/pretrain"}


def test_labels_choose_a_subset_by_seed(tmp_path: Path) -> None:
    runs = [run for run in planned_runs(make_study(tmp_path), []) if run.key == "scratch/seed1/finetune_50"]
    assert runs[0].settings == {
        "recipe": "finetune_digits",
        "training.epochs": 4,
        "training.batch_size": 50,
        "training.seed": 1,
        "data.subset": 50,
        "data.subset_seed": 1,
    }


def test_every_arm_gets_the_same_number_of_trials_and_its_best_rate(tmp_path: Path) -> None:
    study = make_study(tmp_path, learning_rates=[0.001, 0.002, 0.004], measures=["finetune"])

    def best_in_the_middle(run: PlannedRun) -> float:
        return 90.0 if run.lr == 0.002 else 50.0

    results = run_all(study, best_in_the_middle)
    for arm in ("map", "scratch"):
        trials = [result for result in results if result.arm == arm and result.stage == "trial"]
        assert sorted((str(r.labels), r.lr) for r in trials) == sorted(
            (labels, lr) for labels in ("50", "None") for lr in (0.001, 0.002, 0.004)
        )
        assert {result.seed for result in trials} == {0}
        assert all(result.settings["data.holdout"] == 0.1 for result in trials)
        final = [result for result in results if result.arm == arm and result.stage == "finetune"]
        assert {result.lr for result in final} == {0.002}
        assert not any("data.holdout" in result.settings for result in final)


@pytest.mark.parametrize(("best", "expected"), [(0.004, [0.008, 0.016]), (0.001, [0.0005, 0.00025])])
def test_a_best_rate_at_an_edge_extends_the_grid(tmp_path: Path, best: float, expected: list[float]) -> None:
    grid = [0.001, 0.002, 0.004]
    study = make_study(tmp_path, learning_rates=grid, measures=["finetune"], labels={"all": {}})
    sign = 1 if best == max(grid) else -1
    results = run_all(study, lambda run: 50 + sign * 1000 * (run.lr or 0))
    tried = sorted({r.lr for r in results if r.stage == "trial" and r.arm == "map"})  # type: ignore[type-var]
    assert tried == pytest.approx(sorted([*grid, *expected]))
    chosen = [result.lr for result in results if result.stage == "finetune" and result.arm == "map"]
    assert chosen == pytest.approx([expected[-1]] * 2)


@pytest.mark.parametrize(
    ("scores", "expected"), [([7, 8, 8], [1, 2, 4, 8]), ([8, 8, 7], [0.5, 1, 2, 4]), ([7, 8, 7], [1, 2, 4])]
)
def test_an_edge_that_is_as_good_as_the_best_extends_the_grid(
    tmp_path: Path, scores: list[float], expected: list[float]
) -> None:
    study = make_study(
        tmp_path, learning_rates=[1, 2, 4], measures=["finetune"], labels={"all": {}}, extensions=1
    )
    by_rate = dict(zip([1, 2, 4], scores, strict=True))
    results = run_all(study, lambda run: by_rate.get(run.lr or 0, 5))
    assert sorted({r.lr or 0 for r in results if r.stage == "trial"}) == expected
    lowest = min(lr for lr, score in by_rate.items() if score == 8)
    assert {r.lr for r in results if r.stage == "finetune"} == {lowest}


def test_a_report_is_of_what_the_study_asks_for(tmp_path: Path) -> None:
    study = make_study(tmp_path, learning_rates=[1, 2, 4], measures=["finetune"], labels={"all": {}})
    results = run_all(study, lambda run: 50 + (run.lr == 2))
    location = StudyLocation("map_vision", tmp_path, tmp_path / "r.jsonl")
    assert planned_results(study, results, location) == results
    smaller_study = replace(study, seeds=study.seeds[:1], arms=study.arms[:1])
    expected = [r for r in results if r.seed == study.seeds[0] and r.arm == study.arms[0].name]
    assert planned_results(smaller_study, results, location) == expected != results
    trial = next(r for r in results if r.stage == "trial")
    without_trial = [r for r in results if r is not trial]  # finished runs whose rate has to be tried again
    assert planned_results(study, without_trial, location) == without_trial
    other_settings = [replace(r, settings=r.settings | {"training.epochs": 99}) for r in results]
    with pytest.raises(UserError, match=r"with other settings \(training.epochs was 99 and is None\)"):
        planned_results(study, other_settings, location)


def test_a_grid_of_rates_can_be_one_stage_s_alone(tmp_path: Path) -> None:
    recipes = {"finetune": {"recipe": "finetune_digits"}, "linear_probe": {"recipe": "linear_digits"}}
    grid, measures = {"linear_probe": [0.01, 0.1]}, ["finetune", "linear_probe"]
    results = run_all(make_study(tmp_path, **recipes, learning_rates=grid, measures=measures, extensions=0))
    assert {result.lr for result in results if result.stage == "finetune"} == {None}
    assert {result.key for result in results if result.stage == "trial"} == {
        f"map/trials/linear_probe{labels}_lr{lr:g}" for labels in ("", "_50") for lr in (0.01, 0.1)
    }


def test_an_arm_can_start_from_weights_that_are_there(tmp_path: Path) -> None:
    arms = {"released": {"init": "weights/nano"}, "scratch": {}}
    recipe = {"linear_probe": {"recipe": "linear_digits"}}
    study = make_study(
        tmp_path,
        arms=arms,
        labels={50: {}},
        seeds=[0],
        measures=["finetune", "linear_probe"],
        **recipe,
    )
    runs = {run.key: run for run in next_runs(study, [])}
    assert set(runs) == {
        "released/seed0/linear_probe_50",
        "released/seed0/finetune_50",
        "scratch/seed0/finetune_50",
    }
    line = command_line(
        runs["released/seed0/finetune_50"], StudyLocation("map_vision", tmp_path, tmp_path / "r.jsonl")
    )
    assert "--init=weights/nano" in line
    assert as_option("data.auto_augment", None) == '--data={"auto_augment": null}'  # not a text of that name
    released, scratch = (runs[f"{arm}/seed0/finetune_50"].settings for arm in arms)
    assert released == {**scratch, "init": "weights/nano"}


def test_all_arms_come_to_a_seed_before_the_next_begins(tmp_path: Path) -> None:
    seeds = [run.seed for run in planned_runs(make_study(tmp_path), [])]
    assert seeds == sorted(seeds)


def test_a_run_whose_start_is_on_another_machine_makes_it_again(tmp_path: Path) -> None:
    study, location = (
        make_study(tmp_path),
        StudyLocation("map_vision", tmp_path / "runs", tmp_path / "results.jsonl"),
    )
    pretraining = next(run for run in planned_runs(study, []) if run.key == "map/seed0/pretrain")
    results = [result_of(study, pretraining)]
    knn = next(run for run in next_runs(study, results) if run.key == "map/seed0/knn")
    assert run_or_prerequisite(knn, study, results, location) == pretraining
    location.directory(pretraining.key).mkdir(parents=True)
    (location.directory(pretraining.key) / MODEL_FILE).touch()
    assert run_or_prerequisite(knn, study, results, location) == knn


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0, 0]}, "the seeds of .* repeat"),
        ({"measures": ["accuracy"]}, "measure 'accuracy' of .* is unknown"),
        ({"measures": ["linear_probe"]}, "without a recipe: add linear_probe.recipe"),
        ({"learning_rates": [0.002, 0.001]}, "must ascend"),
        ({"learning_rates": {"finetuning": [0.001]}}, "names 'finetuning'; did you mean finetune"),
        ({"arm": {}}, "unknown key 'arm' in study .*did you mean arms"),
        ({"arms": {}}, "lacks arms"),
        ({"labels": [50]}, "labels of .* must be a mapping of numbers, or 'all', to settings"),
        ({"labels": {0: {}}}, "must be positive numbers or 'all'; got 0"),
        ({"labels": {True: {}}}, "must be positive numbers or 'all'; got True"),
        ({"labels": {50: [1]}}, "labels 50 of .* must be a mapping of names of settings to values"),
        (
            {"arms": {"a": {"finetune": {"data.subset": 5}}}},
            "arm a of .* sets data.subset: all arms share data",
        ),
        ({"arms": {"a": {"pretrain": {}}}}, "arm a of .* is pretrained without a recipe"),
        (
            {"arms": {"a": {"pretraining": {}}}},
            "arm a of .* has an unknown key 'pretraining'; did you mean pretrain",
        ),
        ({"arms": {"a": {"compute_of": "b"}}}, "compute_of 'b': it must name another arm"),
        ({"arms": {"a": {"compute_of": "b", "init": "w"}, "b": {}}}, "start from scratch itself"),
        ({"arms": {"a": {"compute_of": "b"}, "b": {"init": "w"}}}, "what they cost is not known here"),
        (
            {"arms": {"a": {"compute_of": "a"}}},
            "compute_of 'a': it must name another arm, one without compute_of",
        ),
        (
            {"arms": {"a": {"compute_of": "b"}, "b": {"compute_of": "map"}, "map": {}}},
            "compute_of 'b': it must name another arm, one without compute_of",
        ),
        *(
            (
                {"arms": {"a": {"compute_of": "b", "finetune": {"training": {name: 5}}}, "b": {}}},
                rf"arm a of .* sets training.{name} of finetune \(5\), which has no effect with compute_of 'b'",
            )
            for name in ("epochs", "sample_budget")
        ),
        (
            {"arms": {"a": {"finetune": {"data": {"subset": 5}}}}},
            "arm a of .* sets data.subset: all arms share data",
        ),
        (
            {"arms": {"a": {"finetune": {"recipe": "finetune_cifar10"}}}},
            "arm a of .* has a recipe of its own for finetune, which may bring other data",
        ),
        (
            {"arms": {"a": {"init": "w", "pretrain": {"recipe": "pretrain_digits"}}}},
            "arm a of .* has init and pretrain: it can start from one of them",
        ),
        (
            {"finetune": {"recipe": "finetune_digits", "training.seed": 7}},
            "finetune of .* sets training.seed, which the study sets for each run itself",
        ),
        (
            {"arms": {"a": {"pretrain": {"recipe": "pretrain_digits", "training": {"seed": 7}}}}},
            r"pretrain of .* sets training\.seed",
        ),
        (
            {"arms": {"a": {"finetune": {"training.base_lr": 0.5}}}, "learning_rates": [0.1]},
            r"finetune of .* sets training\.base_lr",
        ),
        ({"labels": {50: {"data.subset": 70}}}, r"finetune of .* sets data\.subset"),
        ({"labels": {50: {"data.subset_seed": 7}, "all": {}}}, r"finetune of .* sets data\.subset_seed"),
        (
            {
                "finetune": {"recipe": "finetune_digits", "data.subset": 70},
                "labels": {50: {}, "all": {}},
            },
            r"finetune of .* sets data\.subset, which the study sets for each run itself",
        ),
        (
            {"finetune": {"recipe": "finetune_digits", "training.lr": 0.1, "training": {"lr": 0.2}}},
            "finetune of .* names training.lr twice, once by a dotted key; name it once",
        ),
        ({"measures": ["knn", "finetune", "knn"]}, "the measures of .* repeat"),
        (
            {"arms": {"a": {}}, "measures": ["knn", "heldout_loss"], "labels": None},
            "no arm of .* is pretrained by the study, so none has knn or heldout_loss: add pretrain to an arm",
        ),
        ({"arms": {"a": {"init": "w"}}, "measures": ["knn"], "labels": None}, "so none has knn"),
        ({"arms": {"a": {"init": "w"}}}, "so none has knn: .*, or leave knn out of measures"),
        (
            {
                "arms": {"a": {}},
                "linear_probe": {"recipe": "linear_digits"},
                "measures": ["finetune", "linear_probe"],
            },
            "so none has linear_probe",
        ),
        (
            {"learning_rates": {"linear_probe": [0.1]}},
            "learning_rates of .* has rates for linear_probe, which is not measured: leave them out",
        ),
        (
            {
                "arms": {"a": {"linear_probe": {"training.epochs": 5}}, "b": {"init": "w"}},
                "linear_probe": {"recipe": "linear_digits"},
                "measures": ["finetune", "linear_probe"],
            },
            "arm a of .* sets linear_probe, which measures only arms with pretrain or init: remove it",
        ),
        (
            {"arms": {"a": {"pretrain": None}}},
            r"pretrain of arm a of .* is null: give \{\} for the study's pretraining, or leave it out",
        ),
        (
            {"measures": ["knn"]},
            "labels of .* has no effect, as neither finetune nor linear_probe is measured",
        ),
        (
            {"measures": ["knn"], "labels": None, "learning_rates": [0.1]},
            "learning_rates of .* has no effect, as neither .*: remove it, or make it null where a base has it",
        ),
        (
            {"arms": {"a": {"linear_probe": {"training.epochs": 5}}}},
            "arm a of .* sets linear_probe, which is not measured: add it to measures, or remove it",
        ),
        (
            {
                "arms": {"a": {"pretrain": {"recipe": "pretrain_digits", "monitor": {"samples": 0}}}},
                "measures": ["finetune", "heldout_loss"],
            },
            "arm a of .* sets monitor.samples 0, with which no heldout_loss is measured: leave it out",
        ),
        ({"learning_rates": []}, "learning_rates of .* has no rate for finetune: add some, or leave it out"),
        ({"learning_rates": {"finetune": []}}, "learning_rates of .* has no rate for finetune"),
        (
            {"learning_rates": [0.0010000001, 0.0010000002]},
            "learning_rates of .* has rates that agree in six digits, by which runs are named",
        ),
    ],
)
def test_a_file_that_compares_nothing_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_study(tmp_path, **changes)


@pytest.fixture
def installed_measures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """The measures that installed packages add; none at first."""
    points: list[EntryPoint] = []
    monkeypatch.setattr(measures, "entry_points", lambda group: points if group == measures.GROUP else [])
    measures.added_measures.cache_clear()
    yield points
    measures.added_measures.cache_clear()


def test_a_package_adds_a_measure_of_its_own(
    tmp_path: Path, installed_measures: list[EntryPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("w.safetensors").touch()
    installed_measures.append(EntryPoint("length", "toy_measure:LENGTH", measures.GROUP))
    arms = {"weights": {"init": "w.safetensors"}, "scratch": {"length": {"more": "word"}}}
    study = make_study(tmp_path, arms=arms, labels=None, measures=["length"], length={"recipe": "short"})
    results = run_study(
        study, StudyLocation("map_vision", tmp_path / "out", tmp_path / "results"), progress=False
    )
    assert scores(results, "weights", "length", None) == {n: len("w.safetensors 0 short") for n in (0, 1)}
    assert scores(results, "scratch", "length", None) == {n: len("scratch 0 short word") for n in (0, 1)}
    assert "| weights | length | +1.00 [+1.00, +1.00] |" in page(study, results, "command")
    with pytest.raises(UserError, match=r"arm scratch of .* sets file: all arms share data"):
        make_study(tmp_path, arms={"scratch": {"length": {"file": "other"}}}, measures=["length"])


def test_a_measure_checks_its_settings_before_anything_runs(
    tmp_path: Path, installed_measures: list[EntryPoint]
) -> None:
    """What is done is not checked again."""
    installed_measures.append(EntryPoint("length", "toy_measure:LENGTH", measures.GROUP))
    arms = {"map": {"pretrain": {"recipe": "pretrain_digits"}}, "scratch": {"length": {"more": ""}}}
    study = make_study(tmp_path, arms=arms, labels=None, measures=["length"], length={"recipe": "short"})
    with pytest.raises(UserError, match="a setting is empty: give a text"):
        check_added_measures(study, [])
    runs = [run for run in planned_runs(study, []) if run.arm == "scratch"]
    check_added_measures(study, [result_of(study, run) for run in runs])
    with pytest.raises(UserError, match="a setting is empty"):  # where only a later seed is left
        check_added_measures(study, [result_of(study, run) for run in runs if run.seed == 0])


def test_equal_compute_is_refused_where_a_measure_of_a_package_would_not_have_it(
    tmp_path: Path, installed_measures: list[EntryPoint]
) -> None:
    installed_measures.append(EntryPoint("length", "toy_measure:LENGTH", measures.GROUP))
    values = {"arms": FILE["arms"] | {"equal": {"compute_of": "map"}}, "length": {"recipe": "short"}}
    message = r"arm equal of .* has compute_of, which lengthens finetuning alone, but length is measured too"
    with pytest.raises(UserError, match=message):
        make_study(tmp_path, **values, measures=["finetune", "length"])


def test_labels_that_no_measure_of_a_package_uses_are_refused(
    tmp_path: Path, installed_measures: list[EntryPoint]
) -> None:
    installed_measures.append(EntryPoint("length", "toy_measure:LENGTH", measures.GROUP))
    with pytest.raises(UserError, match=r"labels of .* has no effect"):
        make_study(tmp_path, measures=["length"], length={"recipe": "short"})


def test_a_measure_starts_from_the_pretraining_of_its_arm(
    tmp_path: Path, installed_measures: list[EntryPoint]
) -> None:
    installed_measures.append(EntryPoint("length", "toy_measure:LENGTH", measures.GROUP))
    study = make_study(tmp_path, labels=None, measures=["length"], length={"recipe": "short"})
    location = StudyLocation("map_vision", tmp_path / "out", tmp_path / "results")
    (run,) = [
        run for run in planned_runs(study, []) if (run.arm, run.seed, run.stage) == ("map", 1, "length")
    ]
    assert command_line(run, location)[-1] == f"{tmp_path}/out/map/seed1/pretrain 1 short"


def test_an_unavailable_measure_is_named(tmp_path: Path, installed_measures: list[EntryPoint]) -> None:
    segment = {"measures": ["segment"], "segment": {"recipe": "upernet"}}
    with pytest.raises(UserError, match=r"measure 'segment' of .* is unknown; .* \(map-dense: segment\)"):
        make_study(tmp_path, **segment)
    installed_measures.append(EntryPoint("segment", "no_such_package:SEGMENT", measures.GROUP))
    measures.added_measures.cache_clear()
    with pytest.raises(
        UserError, match=r"measure segment cannot be loaded .*no_such_package.*install what it"
    ):
        measures.load_measure("segment")
    installed_measures[:] = [EntryPoint("segment", "toy_measure:CODE", measures.GROUP)]
    measures.added_measures.cache_clear()
    with pytest.raises(UserError, match="measure segment is str, which lacks what a measure needs"):
        measures.load_measure("segment")


PLAIN_NAME = "a name without / and"
SETTINGS_MAPPING = "a mapping of names of settings to values; got"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ["map"]}, "arms of .* must be a mapping of names to stages; got"),
        (
            {"arms": {"map": "pretrained"}},
            "arm map of .* must be a mapping of stages to settings; got 'pretrained'",
        ),
        ({"arms": {"../../evil": {}}}, f"the name of an arm of .* must be {PLAIN_NAME}"),
        ({"arms": {"/tmp/evil": {}}}, PLAIN_NAME),
        ({"arms": {"": {}}}, PLAIN_NAME),
        ({"arms": {"a\nb": {}}}, PLAIN_NAME),
        (
            {"arms": {"report.md": {}}},
            "arm report.md of .* has the name of a file that the study itself writes: rename the arm",
        ),
        *(
            ({"arms": {name: {}}}, "arm .* has a name that the report's plots or tables cannot show")
            for name in ("$^$", "_base", "a | b")
        ),
        ({"arms": {"a" * 200: {}}}, r"characters; got 'a+\.\.\. \(202 characters\)"),
        ({"arms": {3: {}}}, PLAIN_NAME),
        ({"name": "../evil"}, f"name of .* must be {PLAIN_NAME}"),
        ({"name": ["small"]}, PLAIN_NAME),
        ({"question": {"a": 1}}, "question of .* must be text; got"),
        ({"arms": {"a": {"model": "large"}}}, f"model of arm a of .* must be {SETTINGS_MAPPING}"),
        ({"arms": {"a": {"pretrain": [1]}}}, f"pretrain of arm a of .* must be {SETTINGS_MAPPING}"),
        ({"arms": {"a": {"finetune": {3: 4}}}}, f"finetune of arm a of .* must be {SETTINGS_MAPPING}"),
        ({"finetune": "recipe"}, f"finetune of .* must be {SETTINGS_MAPPING}"),
        ({"finetune": {"recipe": 3}}, "recipe in finetune of .* must be a recipe's name or file; got 3"),
        (
            {"finetune": {"recipe": "r", "lr": datetime.date(2026, 1, 1)}},
            "lr in finetune of .* must be text, a num",
        ),
        (
            {"finetune": {"recipe": "r", "out": "/tmp/evil"}},
            "finetune of .* sets out, which the study gives each",
        ),
        ({"arms": {"a": {"pretrain": {"recipe": "r", "init": "x"}}}}, "pretrain of arm a of .* sets init"),
        ({"arms": {"a": {"init": 3}}}, "init of arm a of .* must be a run or weights file; got 3"),
        ({"arms": {"a": {"compute_of": ["map"]}}}, "compute_of of arm a of .* must be another arm's name"),
        ({"seeds": 3}, "seeds of .* must be a list of whole numbers; got 3"),
        ({"seeds": "01"}, "seeds of .* must be a list of whole numbers"),
        ({"seeds": [[0]]}, "seeds of .* must be a list of whole numbers"),
        ({"seeds": [-1]}, "seeds of .* must be a list of whole numbers"),
        ({"seeds": [0.5]}, "seeds of .* must be a list of whole numbers"),
        ({"measures": "finetune"}, "measures of .* must be a list of names; got 'finetune'"),
        ({"measures": [3]}, "measures of .* must be a list of names"),
        ({"learning_rates": 0.1}, "learning_rates of .* must be a list of positive numbers, or one for each"),
        ({"learning_rates": ["fast"]}, "must be a list of positive numbers"),
        ({"learning_rates": [float("nan")]}, "must be a list of positive numbers"),
        ({"learning_rates": [-0.1]}, "must be a list of positive numbers"),
        ({"learning_rates": {"finetune": "abc"}}, "must be a list of positive numbers"),
        ({"holdout": "much"}, "holdout of .* must be a number between 0 and 1; got 'much'"),
        ({"holdout": 2}, "holdout of .* must be a number between 0 and 1"),
        ({"extensions": float("inf")}, "extensions of .* must be a whole number up to 100; got inf"),
        ({"extensions": 10**9}, "extensions of .* must be a whole number up to 100"),
        ({"base": ["small"]}, "base of .* must be a study's name"),
        (
            {"base": "a" * 5000},
            r"base 'a+\.\.\. \(5002 characters\) of study .* is neither a packaged study nor a",
        ),
        (
            {"base": "nowhere"},
            r"base 'nowhere' of study .*study.yaml is neither a packaged study nor a file beside",
        ),
    ],
    ids=range(44),
)
def test_a_file_of_another_form_is_reported_in_one_sentence(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_study(tmp_path, **changes)


def test_rates_that_yaml_takes_for_text_are_numbers(tmp_path: Path) -> None:
    assert make_study(tmp_path, learning_rates=["9e-4", 1e-3]).learning_rates["finetune"] == (9e-4, 1e-3)


def test_a_study_builds_on_another(tmp_path: Path) -> None:
    make_study(tmp_path, finetune={"recipe": "finetune_digits", "training.epochs": 4})
    other = tmp_path / "other.yaml"
    arms = {"scratch": {}}
    other.write_text(
        yaml.safe_dump(
            {
                "base": "study",
                "name": "other",
                "arms": arms,
                "finetune": {"training.lr": 0.1},
                "measures": ["finetune"],
            }
        )
    )
    study = read_study(other, "map_core.study")
    assert (study.name, [arm.name for arm in study.arms], study.seeds) == ("other", ["scratch"], (0, 1))
    assert study.stages["finetune"] == {"recipe": "finetune_digits", "training.epochs": 4, "training.lr": 0.1}
    other.write_text("base: study\nseeds: [0]\n")
    with pytest.raises(UserError, match="builds on study and lacks name"):
        read_study(other, "map_core.study")
    other.write_text("name: other\nbase: other\n")
    with pytest.raises(UserError, match="builds on itself: other -> other; remove a base, or rename a file"):
        read_study(other, "map_core.study")


def test_an_arm_s_model_is_that_of_all_its_stages(tmp_path: Path) -> None:
    arms = {"map": {"model": {"layout": "Mx2"}, "pretrain": {"recipe": "pretrain_digits"}}}
    runs = list(planned_runs(make_study(tmp_path, arms=arms), []))
    assert {run.settings.get("model.layout") for run in runs if run.command != "features"} == {"Mx2"}


def test_an_arm_s_pretraining_may_differ_from_its_model(tmp_path: Path) -> None:
    pretrain = {"recipe": "pretrain_digits", "model.layout": "Mx4"}
    study = make_study(tmp_path, arms={"map": {"model": {"layout": "Mx2"}, "pretrain": pretrain}})
    layouts = {run.stage: run.settings.get("model.layout") for run in planned_runs(study, [])}
    assert (layouts["pretrain"], layouts["finetune"]) == ("Mx4", "Mx2")


@dataclass(frozen=True)
class FinishedJob:
    """A job that has ended at once."""

    code: int

    def status(self) -> int | None:
        return self.code

    def stop(self) -> None: ...

    def wait(self) -> None: ...


@dataclass(frozen=True)
class FakeLauncher:
    """A launcher whose runs leave a summary, and end with another status where their command holds a word."""

    summary: dict[str, Any]
    statuses: dict[str, int] = field(default_factory=dict)

    def start(self, line: Sequence[str], log: Path) -> FinishedJob:
        code = next((code for word, code in self.statuses.items() if word in " ".join(line)), 0)
        directory = Path(line[line.index("--out") + 1])
        directory.mkdir(parents=True)
        (directory / "summary.json").write_text(json.dumps(self.summary))
        log.write_text("what was wrong\n")
        return FinishedJob(code)


SCRATCH: dict[str, Any] = {"arms": {"scratch": {}}, "labels": {"all": {}}, "measures": ["finetune"]}


def test_a_trial_evaluates_on_the_held_out_part_whatever_the_study_evaluates_on(tmp_path: Path) -> None:
    finetune = {"recipe": "finetune_digits", "data.eval_split": "val"}
    study = make_study(tmp_path, **SCRATCH, finetune=finetune, learning_rates=[0.1])
    trial, final = (next_runs(study, results)[0] for results in ([], run_all(study)[:1]))
    assert (trial.settings["data.eval_split"], trial.settings["data.holdout"]) == (None, 0.1)
    assert final.settings["data.eval_split"] == "val"
    assert "data.holdout" not in final.settings


def test_a_run_whose_operations_cannot_be_counted_keeps_its_result(tmp_path: Path) -> None:
    def fail(run: PlannedRun) -> float:
        raise UserError("another model")

    location = StudyLocation("map_vision", tmp_path / "out", tmp_path / "r")
    launcher = FakeLauncher({"test_accuracy": 50.0})
    study = make_study(tmp_path, **SCRATCH)
    results = run_study(study, location, launcher=launcher, flops=fail, progress=False)
    assert [(result.score, result.flops) for result in results] == [(50.0, 0.0)] * 2


def test_a_study_that_is_stopped_with_its_runs_takes_none_for_failed(tmp_path: Path) -> None:
    """As by a scheduler's signal to the group, after which a run may end at once."""

    class Stopping(FakeLauncher):
        def start(self, line: Sequence[str], log: Path) -> FinishedJob:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().start(line, log)

    location = StudyLocation("map_vision", tmp_path / "out", tmp_path / "r")
    launcher = Stopping({"test_accuracy": 50.0}, {"finetune": -signal.SIGTERM})
    with pytest.raises(SystemExit) as error:
        run_study(make_study(tmp_path, **SCRATCH), location, launcher=launcher, progress=False)
    assert error.value.code == 128 + signal.SIGTERM


def test_the_runs_of_another_pretraining_are_to_go_with_it(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=[0])
    recipe = {"recipe": "pretrain_digits", "objective.attention": "map", "training.epochs": 50}
    changed = make_study(tmp_path, seeds=[0], arms={"map": {"pretrain": recipe}, "scratch": {}})
    location = StudyLocation("map_vision", tmp_path, tmp_path / "r")
    with pytest.raises(
        UserError,
        match=r"holds map/seed0/pretrain with other .*: give .*, or remove that line and the run's folder, and those "
        r"of the runs that start from it \(map/seed0/knn, map/seed0/finetune_50, map/seed0/finetune\)$",
    ):
        planned_results(changed, run_all(study), location)


def test_runs_at_equal_compute_are_to_go_with_what_they_equal(tmp_path: Path) -> None:
    """Their length would be kept although it is no longer equal."""
    location = StudyLocation("map_vision", tmp_path, tmp_path / "r")

    def study_of(epochs: int, smoothing: float) -> Study:
        pretrain = {"recipe": "pretrain_digits", "training.epochs": epochs}
        finetune = {"objective.smoothing": smoothing}
        arms = {
            "equal": {"compute_of": "map"},
            "map": {"pretrain": pretrain, "finetune": finetune},
            "scratch": {},
        }
        labels = {50: {}, "all": {}}
        return make_study(tmp_path, arms=arms, labels=labels, seeds=[0], learning_rates=[0.1])

    study = study_of(6, 0.0)
    equal = replace(study.arms[0], lengths={n: {"training.epochs": 23} for n in (50, None)})
    results = run_all(replace(study, arms=(equal, *study.arms[1:])))
    of_50 = "equal/trials/finetune_50_lr0.1, equal/seed0/finetune_50"
    for changed, keys in (
        (study_of(60, 0.0), f"{of_50}, equal/trials/finetune_lr0.1, equal/seed0/finetune"),
        (study_of(6, 0.1), of_50),
    ):
        resolved = resolve_known_compute(changed, results)
        with pytest.raises(
            UserError, match=rf"and those of the runs whose length follows from its operations \({keys}\)$"
        ):
            planned_results(resolved, results, location)


def test_results_with_nested_settings_are_those_of_their_dotted_names(tmp_path: Path) -> None:
    """Earlier versions recorded settings as the file has them."""
    study = make_study(tmp_path, **SCRATCH)
    results = [
        replace(result, settings={**result.settings, "training": {"epochs": 4}})
        for result in run_all(study)
        if result.settings.pop("training.epochs") == 4
    ]
    assert planned_results(study, results, StudyLocation("map_vision", tmp_path, tmp_path / "r")) == results


def test_results_of_a_study_that_was_another_are_refused(tmp_path: Path) -> None:
    location = StudyLocation("map_vision", tmp_path / "out", tmp_path / "r")
    launcher = FakeLauncher({"test_accuracy": 50.0})
    run_study(make_study(tmp_path, **SCRATCH), location, launcher=launcher, progress=False)
    changed = make_study(tmp_path, **SCRATCH, finetune={"recipe": "finetune_digits", "training.epochs": 400})
    with pytest.raises(
        UserError, match=r"r holds scratch/seed0/finetune .*training.epochs was 4 and is 400\)"
    ):
        run_study(changed, location, launcher=launcher, progress=False)


def test_machines_that_split_the_seeds_share_the_trials_of_the_first(tmp_path: Path) -> None:
    """Trials have no seed in their names: a machine goes on from another one's only if its seeds begin alike."""
    settings = {**SCRATCH, "learning_rates": [0.1], "name": "shared"}
    location = StudyLocation("map_vision", tmp_path / "out", tmp_path / "r")
    launcher = FakeLauncher({"test_accuracy": 50.0})
    run_study(make_study(tmp_path, **settings, seeds=[0]), location, launcher=launcher, progress=False)
    before = [result.key for result in read_results(location.results)]
    with pytest.raises(
        UserError,
        match=r"scratch/trials/finetune_lr0.1 .*training.seed was 0 and is 1\): trials run at the first of seeds: "
        r"begin seeds with 0 wherever parts of the study run, or remove the lines and folders of all trials; else give",
    ):
        run_study(make_study(tmp_path, **settings, seeds=[1]), location, launcher=launcher, progress=False)
    run_study(make_study(tmp_path, **settings, seeds=[0, 1]), location, launcher=launcher, progress=False)
    added = [result.key for result in read_results(location.results)][len(before) :]
    assert added == ["scratch/seed1/finetune"]


MACHINE_SETTINGS: dict[str, Any] = {
    "training.workers": 4,
    "training.compile": "blocks",
    "training.trackers": ["wandb"],
}


def test_a_machine_s_settings_are_those_of_every_training_run(
    tmp_path: Path, installed_measures: list[EntryPoint]
) -> None:
    installed_measures.append(EntryPoint("length", "toy_measure:LENGTH", measures.GROUP))
    all_measures = ["finetune", "linear_probe", "knn", "length"]
    recipes = {"linear_probe": {"recipe": "linear_digits"}, "length": {"recipe": "short"}}
    study = make_study(tmp_path, measures=all_measures, learning_rates=[0.1], **recipes)
    location = StudyLocation("map_vision", tmp_path / "out", tmp_path / "r")
    options = ["--training.workers=4", "--training.compile=blocks", '--training.trackers=["wandb"]']
    runs = {result.key: result for result in run_all(study)}
    assert {result.stage for result in runs.values()} == {"pretrain", "trial", *all_measures}
    for run in planned_runs(study, list(runs.values())):
        trains = run.stage not in ("knn", "length")
        plain = command_line(run, location)
        line = command_line(run, replace(location, run_settings=MACHINE_SETTINGS))
        assert line == [*plain, *options] if trains else line == plain


def test_a_machine_s_settings_override_the_study_s(tmp_path: Path) -> None:
    """Also those in a section that is set as a whole, which a later option overrides."""
    shared = {"recipe": "finetune_digits", "training.workers": 0}
    study = make_study(
        tmp_path, **SCRATCH | {"finetune": shared, "labels": {"all": {"training": "workers.yaml"}}}
    )
    location = StudyLocation("map_vision", tmp_path, tmp_path / "r", {"training.workers": 4})
    line = command_line(next_runs(study, [])[0], location)
    assert [word for word in line if "workers" in word] == ["--training=workers.yaml", "--training.workers=4"]


def test_results_keep_the_study_s_settings_and_name_the_machine_s(tmp_path: Path) -> None:
    """So a study that was begun without them continues, and another machine continues from the results here."""
    study = make_study(tmp_path, **SCRATCH)
    plain_location = StudyLocation("map_vision", tmp_path / "out", tmp_path / "r")
    first, second = next_runs(study, [])
    append_result(plain_location.results, result_of(study, first))
    machine_location = replace(plain_location, run_settings=MACHINE_SETTINGS)
    launcher = FakeLauncher({"test_accuracy": 50.0, "device": "cuda"})
    run_study(study, machine_location, launcher=launcher, progress=False)
    before, after = read_results(plain_location.results, study.name)
    assert (before.settings, after.settings) == (first.settings, second.settings)
    assert (before.facts, after.facts) == ({}, {"device": "cuda", "run_settings": MACHINE_SETTINGS})
    for location in (plain_location, machine_location):
        assert run_study(study, location, launcher=launcher, progress=False) == [before, after]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "training.lr: 0.1",
            r"gpu.yaml sets 'training.lr', none of .*\(known names: activation_checkpointing, .*a copy of",
        ),
        (
            "training.max_steps: 5",
            r"sets 'training.max_steps', none of .* set it in a copy of the study's file",
        ),
        ("training.accumulation_steps: 2", "sets 'training.accumulation_steps', none of"),
        ("training.worker: 4", r"sets 'training.worker', none of .*\(did you mean workers, trackers\?\)"),
        ("workers: 4", r"sets 'workers', none of the settings training.NAME .*did you mean workers"),
        ("training: workers.yaml", "sets 'training', none of the settings training.NAME"),
        (
            "training: {workers: 4}\ntraining.workers: 2",
            "run_settings of .*gpu.yaml names training.workers twice, once by a dotted key",
        ),
        (
            "training: {workers: many}",
            "training.workers of --run_settings .*gpu.yaml must be a whole number; got 'many'",
        ),
        (
            "training.compile: part",
            "training.compile of .*gpu.yaml must be one of none, model, blocks; got 'part'",
        ),
        ("training.workers: null", "training.workers of .*gpu.yaml must be a whole number; got null"),
        (
            "training.workers: -1",
            "--run_settings .*gpu.yaml: training.workers must be 0 or more; got -1; change there training.workers",
        ),
        (
            "training.device: gpu",
            "training.device of .*gpu.yaml must be one of auto, cpu, cuda, mps; got 'gpu'; did you mean cpu",
        ),
        (
            "{training.compile: none, training.compile_mode: reduce-overhead}",
            "--run_settings .*gpu.yaml: training.compile_mode reduce-overhead has no effect with training.compile",
        ),
        (
            "# nothing yet",
            "--run_settings .*gpu.yaml sets nothing: give it settings such as training.workers",
        ),
        ("training: {}", "--run_settings .*gpu.yaml sets nothing"),
        ("objective.compile: none", "sets 'objective.compile', none of"),
        ("training.workers: 2026-01-01", "training.workers in run_settings of .* must be text, a number"),
        ("[training.workers]", "run_settings of .*gpu.yaml must be a mapping of names of settings to values"),
        ("out: elsewhere", "run_settings of .* sets out, which the study gives each run itself"),
        ("training.workers: {", "gpu.yaml is not plain YAML"),
    ],
)
def test_a_machine_s_settings_that_results_depend_on_are_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "gpu.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_run_settings(tmp_path / "gpu.yaml")


def test_a_machine_s_settings_come_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "gpu.yaml").write_text(yaml.safe_dump(MACHINE_SETTINGS))
    assert read_run_settings(tmp_path / "gpu.yaml") == MACHINE_SETTINGS
    with pytest.raises(UserError, match=r"--run_settings: .*none.yaml cannot be read: .*choose another file"):
        read_run_settings(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "settings",
    [
        MACHINE_SETTINGS,
        {"training.compile_mode": "max-autotune", "training.recompute_every": 2},
        {"training.trackers": "wandb", "training.checkpoint_steps": None},
    ],
    ids=range(3),
)
def test_a_machine_s_settings_may_be_nested_and_build_on_the_study_s(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    nested = {"training": {name.removeprefix("training."): value for name, value in settings.items()}}
    (tmp_path / "gpu.yaml").write_text(yaml.safe_dump(nested))
    assert read_run_settings(tmp_path / "gpu.yaml") == settings


def test_a_rate_that_diverges_loses_and_the_study_goes_on(tmp_path: Path) -> None:
    location = StudyLocation("map_vision", tmp_path / "out", tmp_path / "r")
    study = make_study(tmp_path, **SCRATCH, learning_rates={"finetune": [0.1, 0.2, 0.4]}, extensions=0)
    launcher = FakeLauncher({"test_accuracy": 50.0}, {"--training.lr=0.4": Diverged.status})
    results = {result.key: result for result in run_study(study, location, launcher=launcher, progress=False)}
    lost = results["scratch/trials/finetune_lr0.4"]
    assert (lost.score, lost.facts) == (0.0, {"diverged": "what was wrong"})
    assert results["scratch/seed1/finetune"].lr == 0.1
    for status, cure in ((UserError.status, "correct that and start the"), (1, "then start the")):
        failing = FakeLauncher({"test_accuracy": 50.0}, {"--training.lr=0.4": status})
        elsewhere = replace(location, results=tmp_path / f"r{status}", out=tmp_path / f"o{status}")
        with pytest.raises(
            UserError, match=f"status {status}: what was wrong; see .*log, {cure} study again"
        ):
            run_study(study, elsewhere, launcher=failing, progress=False)


def test_a_run_that_diverges_holds_up_no_other(tmp_path: Path) -> None:
    location = StudyLocation("map_vision", tmp_path / "out", tmp_path / "r")
    study = make_study(tmp_path, **SCRATCH)
    launcher = FakeLauncher({"test_accuracy": 50.0}, {"seed0/finetune": Diverged.status})
    message = r"run scratch/seed0/finetune of the study diverged: what was wrong; see .* ask for lower rates"
    with pytest.raises(Diverged, match=message):
        run_study(study, location, launcher=launcher, progress=False)
    assert {result.key for result in read_results(location.results)} == {"scratch/seed1/finetune"}


def test_a_loss_is_never_taken_for_an_accuracy(tmp_path: Path) -> None:
    study, location = (
        make_study(tmp_path, **SCRATCH),
        StudyLocation("map_vision", tmp_path / "out", tmp_path / "r"),
    )
    with pytest.raises(UserError, match="run scratch/seed0/finetune measured no test_accuracy"):
        run_study(study, location, launcher=FakeLauncher({"loss": 0.3}), progress=False)


def test_missing_weights_are_reported_before_anything_runs(tmp_path: Path) -> None:
    location = StudyLocation("map_vision", tmp_path / "out", tmp_path / "r")
    launcher = FakeLauncher({"test_accuracy": 50.0})
    arms = {"scratch": {}, "map": {"init": str(tmp_path / "pretrained")}}
    study = make_study(tmp_path, **SCRATCH | {"arms": arms})
    with pytest.raises(UserError, match=r"arm map of study \w+ starts from init: .*pretrained"):
        run_study(study, location, launcher=launcher, progress=False)
    assert not location.out.exists()
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "pretrained" / "model.safetensors").touch()
    assert len(run_study(study, location, launcher=launcher, progress=False)) == 4


def test_runs_of_an_arm_start_from_the_same_weights(tmp_path: Path) -> None:
    """Replaced weights are noticed before anything runs, or by the results; earlier versions did not record them."""
    location = StudyLocation("map_vision", tmp_path / "out", tmp_path / "r")
    weights = tmp_path / "w.safetensors"
    weights.write_text("some")
    study = make_study(tmp_path, **SCRATCH | {"arms": {"given": {"init": str(weights)}}})
    old, first, second = (weights_identity(str(weights)), *next_runs(study, []))
    unknown, known = (
        replace(result_of(study, run), facts=facts)
        for run, facts in ((first, {}), (second, {"init_identity": old}))
    )
    assert planned_results(study, [unknown, known], location) == [unknown, known]
    append_result(location.results, known)
    weights.write_text("others")
    launcher = FakeLauncher({"test_accuracy": 50.0, "init_identity": weights_identity(str(weights))})
    message = r"init .*w.safetensors of arm given of study small no longer holds the weights from which given/seed1/fin"
    with pytest.raises(UserError, match=message):
        run_study(study, location, launcher=launcher, progress=False)
    assert not location.out.exists()
    location.results.unlink()
    append_result(location.results, unknown)
    *_, recorded = run_study(study, location, launcher=launcher, progress=False)
    assert recorded.facts == {"init_identity": weights_identity(str(weights))}
    other = replace(unknown, facts={"init_identity": old})
    with pytest.raises(
        UserError,
        match=r"r holds given/seed0/finetune and given/seed1/finetune of one arm, whose init named other",
    ):
        planned_results(study, [other, recorded], location)


def test_no_jobs_run_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--jobs must be at least 1; got 0"):
        run_study(make_study(tmp_path), StudyLocation("map_vision", tmp_path, tmp_path / "r"), jobs=0)


def test_a_held_out_loss_asks_the_pretraining_for_it(tmp_path: Path) -> None:
    values = {"measures": ["heldout_loss"], "labels": None}
    runs = list(planned_runs(make_study(tmp_path, **values), []))
    assert {run.stage for run in runs} == {"pretrain"}
    assert {run.settings["monitor.samples"] for run in runs} == {2048}
    arms = {"map": {"pretrain": {"recipe": "pretrain_digits", "monitor": {"samples": 300}}}}
    run = next(planned_runs(make_study(tmp_path, arms=arms, **values), []))
    assert run.settings["monitor.samples"] == 300
    study = make_study(tmp_path, **values)
    results = [
        replace(result_of(study, run), measures={"heldout_loss": 0.5 + run.seed})
        for run in planned_runs(study, [])
    ]
    assert scores(results, "map", "heldout_loss", None) == {0: 0.5, 1: 1.5}


def test_a_budget_that_is_too_small_for_any_run_is_an_error(tmp_path: Path) -> None:
    study, location = (
        make_study(tmp_path),
        StudyLocation("map_vision", tmp_path / "out", tmp_path / "results.jsonl"),
    )
    for run in next_runs(study, []):  # each took two minutes at the first seed
        if run.seed == 0:
            append_result(location.results, replace(result_of(study, run), seconds=120.0))
    for run in next_runs(study, read_results(location.results)):
        if run.seed == 0 and run.stage == "knn":
            append_result(location.results, replace(result_of(study, run), seconds=120.0))
    with pytest.raises(UserError, match="budget_minutes 1 is too small for any run that is left"):
        run_study(study, location, budget_minutes=1.0, progress=False)


@pytest.mark.parametrize(("minutes_ago", "allowed"), [(0, True), (7, True), (9, False), (20, False)])
def test_no_run_starts_that_would_end_after_the_budget(
    tmp_path: Path, minutes_ago: int, allowed: bool
) -> None:
    """Of ten minutes; the runs of this stage took one and two."""
    study = make_study(tmp_path, **SCRATCH)
    run, other = next_runs(study, [])
    results = [
        replace(result_of(study, run), seconds=120.0),
        replace(result_of(study, other), seconds=60.0),
        replace(result_of(study, other), key="other", stage="pretrain", seconds=6000.0),
    ]
    assert Budget(10.0, time.monotonic() - 60 * minutes_ago).allows(run, results) is allowed


@pytest.mark.parametrize("jobs", [1, 3])
def test_as_many_runs_are_in_progress_as_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    in_progress, collect = [], RunningStudy.collect

    def count(self: RunningStudy) -> None:
        in_progress.append(len(self.active))
        collect(self)

    monkeypatch.setattr(RunningStudy, "collect", count)
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.0)
    study = make_study(tmp_path, **SCRATCH | {"seeds": [0, 1, 2, 3]})
    location = StudyLocation("map_vision", tmp_path / "out", tmp_path / "r")
    run_study(study, location, jobs=jobs, launcher=FakeLauncher({"test_accuracy": 50.0}), progress=False)
    assert (max(in_progress), sum(in_progress)) == (jobs, 4)


def test_trials_start_from_the_pretraining_of_the_first_seed(tmp_path: Path) -> None:
    study = make_study(tmp_path, learning_rates=[0.001, 0.002], measures=["finetune"])
    starts = {(run.arm, run.after) for run in planned_runs(study, []) if run.stage == "trial"}
    assert starts == {("map", "map/seed0/pretrain"), ("scratch", None)}
