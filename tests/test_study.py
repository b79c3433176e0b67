"""A study as users start it: killed halfway and started again, it gives the same results."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
import warm
import yaml

from map_core.commands.program import main
from map_core.cpu import cpu_name
from map_core.errors import RunStopped, UserError
from map_core.study import cost
from map_core.study.consistency import (
    planned_results,
    recipe_facts,
    recipe_identity,
    refuse_changed_recipes,
    refuse_other_settings,
)
from map_core.study.cost import Operations, configuration, count_cost, describe_plan, resolve_compute
from map_core.study.definition import read_study
from map_core.study.location import StudyLocation
from map_core.study.plan import PlannedRun, next_runs, planned_runs
from map_core.study.preconditions import (
    check_preconditions,
    refuse_impossible_runs,
    refuse_rates_chosen_on_measured,
)
from map_core.study.results import Result, read_results
from map_core.study.runner import run_study
from map_core.tasks.classification import FinetuneTask
from map_core.tasks.weights import save_weights
from map_vision.cli import COMMANDS
from map_vision.domain import DOMAIN
from map_vision.factory import MODELS, ModelConfig, create_backbone

TINY = {
    "model.embed_dim": 16,
    "model.layout": "MT",
    "training.epochs": 2,
    "training.warmup_epochs": 0,
    "training.batch_size": 32,
    "training.tensorboard": False,
    "training.device": "cpu",
}
STUDY: dict[str, Any] = {
    "name": "tiny",
    "arms": {
        "pretrained": {"pretrain": {"objective.attention": "map"}},
        "equal compute": {"compute_of": "pretrained"},
        "scratch": {},
    },
    "pretrain": {"recipe": "pretrain_digits", "data.subset": 64, **TINY},
    "finetune": {"recipe": "finetune_digits", **TINY},
    "linear_probe": {"recipe": "finetune_digits", **TINY},
    "labels": {64: {}},
    "seeds": [0],
    "measures": ["finetune", "linear_probe", "knn"],
}


def command(file: Path, out: Path, *extra: str) -> list[str]:
    return ["-m", "map_vision", "study", "--study", str(file), "--out", str(out), *extra]


def scores(out: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len({line["key"] for line in lines}) == len(lines)
    return {line["key"]: line["score"] for line in lines}


@pytest.fixture(scope="module")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("study") / "tiny.yaml"
    file.write_text(yaml.safe_dump(STUDY))
    return file


@pytest.fixture(scope="module")
def finished_study(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    warm.run(*command(study_file, out, "--jobs", "2"))
    return out


def test_every_run_is_measured_once_and_reported(finished_study: Path) -> None:
    expected = {f"pretrained/seed0/{stage}" for stage in ("pretrain", "linear_probe_64", "knn")}
    expected |= {f"{arm}/seed0/finetune_64" for arm in ("pretrained", "equal compute", "scratch")}
    assert scores(finished_study).keys() == expected
    page = (finished_study / "report.md").read_text()
    accuracy = scores(finished_study)["scratch/seed0/finetune_64"]
    assert f"{accuracy:.2f}" in page
    results = read_results(finished_study / "results.jsonl")
    assert all(cpu_name() in result.facts["device"] for result in results)
    assert len({result.facts["commit"] for result in results}) == 1


def test_a_report_of_nothing_and_of_no_study_says_so(
    study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for study, message in (
        (str(study_file), "results.jsonl holds no results; start the study (map-vision study --study"),
        ("digits_label", "unknown study 'digits_label'; did you mean digits_labels"),
        (
            "none.yaml",
            "--study none.yaml: there is no such file; give a file or the name of a packaged study",
        ),
    ):
        arguments = ["study-report", "--study", study, "--out", str(tmp_path / "out")]
        assert main("map-vision", COMMANDS, "map_vision.recipes", arguments) == UserError.status
        assert message in capsys.readouterr().err


def test_equal_compute_means_more_epochs(finished_study: Path) -> None:
    lines = [json.loads(line) for line in (finished_study / "results.jsonl").read_text().splitlines()]
    epochs = {
        line["arm"]: line["settings"]["training.epochs"] for line in lines if line["stage"] == "finetune"
    }
    assert epochs["pretrained"] == epochs["scratch"] == 2
    assert epochs["equal compute"] > 2
    assert all(line["flops"] > 0 for line in lines if line["stage"] != "knn")
    compared = [line for line in lines if line["stage"] in ("pretrain", "finetune")]
    flops = {arm: sum(line["flops"] for line in compared if line["arm"] == arm) for arm in epochs}
    # whole epochs; scratch costs as much as the finetuning of the pretrained arm
    assert flops["equal compute"] == pytest.approx(flops["pretrained"], abs=flops["scratch"] / 4)


def test_runs_keep_the_budget_that_they_started_with(
    study_file: Path, finished_study: Path, tmp_path: Path
) -> None:
    """Seeds of an arm are compared at one budget, even if another version or device counts operations differently."""
    study = read_study(study_file, "map_vision.studies")
    earlier_results = read_results(finished_study / "results.jsonl")

    def lengths(results: list[Result]) -> dict[str, Any]:
        arms = resolve_compute(study, DOMAIN, tmp_path / "none", results).arms
        return {arm.name: arm.lengths for arm in arms if arm.lengths}

    (resolved,) = lengths([]).values()
    assert lengths(earlier_results) == {"equal compute": resolved}
    longer = {"training.epochs": 100 + resolved[64]["training.epochs"]}
    changed = [replace(result, settings=result.settings | longer) for result in earlier_results]
    assert lengths(changed) == {"equal compute": {64: longer}}
    segmented = replace(
        earlier_results[0],
        key="equal compute/seed0/segment",
        arm="equal compute",
        stage="segment",
        labels=64,
    )
    assert lengths([*changed, segmented]) == lengths(changed)


def test_a_dry_run_counts_the_remaining_runs(study_file: Path, finished_study: Path, tmp_path: Path) -> None:
    results = read_results(finished_study / "results.jsonl")
    study = resolve_compute(read_study(study_file, "map_vision.studies"), DOMAIN, tmp_path / "none", results)
    study = replace(study, learning_rates={"finetune": (0.1, 0.2)})
    trial = replace(results[0], key="scratch/trials/finetune_64_lr0.1", arm="scratch", labels=64)
    partial_results = [*(result for result in results if result.arm != "scratch"), trial]
    lines = [line.split() for line in describe_plan(study, DOMAIN, tmp_path, partial_results).splitlines()]
    table = {(*line[:-7], line[-7]): line[-5:] for line in lines[1:-1]}
    assert table["pretrained", "pretrain"] == ["1", "0", "0", "0", "0.00"]
    assert table["equal", "compute", "finetune"][:2] == ["3", "2"]
    assert table["scratch", "finetune"][:3] == ["3", "2", str(2 * 2 * 64)]
    assert lines[-1][0] == "about"


def test_a_dry_run_times_steps_alone(
    study_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> Any:
        raise AssertionError("neither needs to be timed")

    monkeypatch.setattr(FinetuneTask, "evaluate", fail)
    monkeypatch.setattr(FinetuneTask, "finish", fail)
    (arm,) = [arm for arm in read_study(study_file, "map_vision.studies").arms if arm.name == "scratch"]
    study = replace(read_study(study_file, "map_vision.studies"), arms=(arm,), measures=("finetune",))
    (run,) = planned_runs(study, [])
    assert count_cost(DOMAIN, run, tmp_path / "run", timed=True).seconds > 0
    assert not capfd.readouterr().err
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_a_signal_ends_a_dry_run(study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although in a training run a signal takes effect only after the step."""
    study = read_study(study_file, "map_vision.studies")
    (run,) = [run for run in planned_runs(study, []) if run.arm == "scratch" and run.stage == "finetune"]
    endless = replace(run, settings=run.settings | {"training.epochs": 10**6, "training.log_steps": 1})
    monkeypatch.setattr(cost, "TIMED_STEPS", 10**6)

    def stop() -> None:
        lines = tmp_path / "run" / "metrics.jsonl"
        while not (lines.exists() and lines.stat().st_size):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=stop, daemon=True).start()
    with pytest.raises(RunStopped) as error:
        count_cost(DOMAIN, endless, tmp_path / "run", timed=True)
    assert error.value.status == 128 + signal.SIGTERM


def test_runs_from_before_an_arm_had_a_budget_give_it_none(study_file: Path, tmp_path: Path) -> None:
    study, key = read_study(study_file, "map_vision.studies"), "equal compute/seed0/finetune_64"
    settings = {**study.stages["finetune"], "training.seed": 0, "data.subset": 64, "data.subset_seed": 0}
    earlier = Result("tiny", key, "equal compute", 0, 64, "finetune", None, settings, 50.0)
    resolved = resolve_compute(study, DOMAIN, tmp_path / "none", [earlier])
    (lengths,) = [arm.lengths for arm in resolved.arms if arm.lengths]
    assert lengths[64]["training.epochs"] > settings["training.epochs"] == 2
    with pytest.raises(
        UserError, match=r"holds equal compute/seed0/finetune_64 with other settings .*epochs was 2"
    ):
        refuse_other_settings(
            resolved, [earlier], StudyLocation("map_vision", tmp_path, tmp_path / "results.jsonl")
        )


def test_an_arm_of_equal_compute_may_have_a_recipe_with_a_budget(tmp_path: Path) -> None:
    """Its warmup is not compared with epochs that neither the recipe nor the study has."""
    recipe = tmp_path / "budget.yaml"
    sizes = {"layout": "MT", "embed_dim": 16}
    recipe.write_text(
        yaml.safe_dump({"base": "finetune_digits", "training": {"sample_budget": 640}, "model": sizes})
    )
    values = {**STUDY, "finetune": {"recipe": str(recipe)}, "measures": ["finetune"]}
    del values["linear_probe"]
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    study = read_study(tmp_path / "tiny.yaml", "map_vision.studies")
    refuse_impossible_runs(study, DOMAIN, tmp_path / "none", [])


def test_a_budget_of_samples_is_what_a_run_trains_on(tmp_path: Path) -> None:
    """``training.sample_budget`` sets the epochs; equal compute raises the budget."""
    budget = {"training.sample_budget": 640}
    values = STUDY | {"finetune": STUDY["finetune"] | budget, "measures": ["finetune"]}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    study = resolve_compute(
        read_study(tmp_path / "tiny.yaml", "map_vision.studies"), DOMAIN, tmp_path / "none"
    )
    runs = {
        run.arm: run for run in planned_runs(study, []) if run.stage == "finetune" or run.arm != "pretrained"
    }
    assert count_cost(DOMAIN, runs["scratch"], tmp_path / "none").samples == 640
    longer = runs["equal compute"].settings
    assert (longer["training.sample_budget"] > 640, longer["training.epochs"]) == (True, 2)
    samples = count_cost(DOMAIN, runs["equal compute"], tmp_path / "none").samples
    assert samples == pytest.approx(longer["training.sample_budget"], abs=32)  # whole epochs of 64
    alone = {"training.batch_size": 100, "training.sample_budget": None}
    with pytest.raises(UserError, match="64 samples, fewer than one batch"):
        count_cost(
            DOMAIN, replace(runs["scratch"], settings=runs["scratch"].settings | alone), tmp_path / "none"
        )


def test_operations_are_those_of_all_samples_whatever_batch_is_counted(tmp_path: Path) -> None:
    settings = {**STUDY["finetune"], "data.subset": 64, "data.subset_seed": 0, "training.seed": 0}
    costs = [
        count_cost(
            DOMAIN,
            PlannedRun("", "a", 0, 64, "finetune", "finetune", settings | {"training.batch_size": size}),
            tmp_path / "none",
        )
        for size in (2, 8)
    ]
    assert {cost.samples for cost in costs} == {128}
    assert costs[0].flops == pytest.approx(costs[1].flops)


def test_a_count_of_steps_leaves_compute_of_no_effect(tmp_path: Path) -> None:
    values = STUDY | {
        "finetune": STUDY["finetune"] | {"training": {"max_steps": 30}},
        "measures": ["finetune"],
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    study = read_study(tmp_path / "tiny.yaml", "map_vision.studies")
    message = r"arm equal compute of study tiny has compute_of.*training.max_steps \(30\) would .*: set training.epochs"
    with pytest.raises(UserError, match=message):
        resolve_compute(study, DOMAIN, tmp_path / "none")


def test_a_length_may_be_nested_and_compute_of_still_sets_it(tmp_path: Path) -> None:
    values = STUDY | {"labels": {64: {"training": {"epochs": 3}}}, "measures": ["finetune"]}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    study = read_study(tmp_path / "tiny.yaml", "map_vision.studies")
    runs = {run.arm: run for run in planned_runs(resolve_compute(study, DOMAIN, tmp_path / "none"), [])}
    epochs = {arm: configuration(DOMAIN, run, tmp_path / "none").training.epochs for arm, run in runs.items()}
    assert epochs["scratch"] == 3
    assert epochs["equal compute"] == runs["equal compute"].settings["training.epochs"] > 3


def test_operations_are_those_of_the_model_that_the_pretraining_gives(tmp_path: Path) -> None:
    """A finetuning that leaves its model open has that of its weights: equal settings may mean other operations."""
    (tmp_path / "open.yaml").write_text(
        "data: {source: digits}\ntraining: {epochs: 1, warmup_epochs: 0, workers: 0}\n"
    )
    layouts = {"small": "MT", "large": "MMMT", "other seed": "MT"}
    runs = {
        arm: PlannedRun(
            "", arm, 0, None, "finetune", "finetune", {"recipe": str(tmp_path / "open.yaml")}, "pretrain",
            pretrain={"recipe": "pretrain_digits", **TINY, "model.layout": layout, "training.seed": seed},
        )
        for seed, (arm, layout) in enumerate(layouts.items())
    }  # fmt: skip
    operations = Operations(DOMAIN)
    counted = {arm: operations(run) for arm, run in runs.items()}
    assert counted == {arm: count_cost(DOMAIN, run, tmp_path / "none").flops for arm, run in runs.items()}
    assert counted["large"] > counted["small"] == counted["other seed"]
    assert len(operations.counts) == 2


def test_more_labels_than_samples_are_noticed_before_the_pretraining(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trials of learning rates train without the held-out part: 144 of the 1,438 digits."""
    file = tmp_path / "tiny.yaml"
    arguments = ["study", "--study", str(file), "--out", str(tmp_path / "out")]
    for measures, labels, message in (
        (["finetune"], 1295, "finetune has 1294 training samples without the held-out part (holdout 0.1)"),
        (["linear_probe"], 1439, "linear-probe has 1438 training samples: give a smaller number in labels"),
    ):
        arms = {"pretrained": STUDY["arms"]["pretrained"]}
        rates = {"finetune": [0.1, 0.2]} if measures == ["finetune"] else None
        changes = {"arms": arms, "measures": measures, "learning_rates": rates}
        file.write_text(yaml.safe_dump(STUDY | changes | {"labels": {labels: {}, 10: {}}}))
        assert main("map-vision", COMMANDS, "map_vision.recipes", arguments) == UserError.status
        assert f"study tiny asks for {labels} labels, but {message}" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
        file.write_text(yaml.safe_dump(STUDY | changes | {"labels": {labels - 1: {}, "all": {}}}))
        check_preconditions(read_study(file, "map_vision.studies"), DOMAIN, tmp_path / "none", [])


@pytest.mark.parametrize(("holdout", "held_out"), [(0.00001, 0), (0.99999, 1438)])
@pytest.mark.parametrize("stage", ["finetune", "linear_probe"])
def test_a_holdout_that_leaves_nothing_is_noticed_where_all_labels_are_used(
    tmp_path: Path, holdout: float, held_out: int, stage: str
) -> None:
    """Also for a probe where the first arm has none."""
    file = tmp_path / "tiny.yaml"
    arms: dict[str, Any] = {"scratch": {}, "pretrained": {"pretrain": {}}}
    rates = {"learning_rates": {stage: [0.1, 0.2]}, "holdout": holdout}
    file.write_text(yaml.safe_dump(STUDY | {"arms": arms, "labels": {"all": {}}} | rates))
    message = (
        rf"study tiny, {stage}: data.holdout \({holdout}\) holds out {held_out} of 1438 training samples"
    )
    with pytest.raises(UserError, match=message):
        check_preconditions(read_study(file, "map_vision.studies"), DOMAIN, tmp_path / "none", [])


PRETRAINED: dict[str, Any] = {"pretrained": {"pretrain": {}}}


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ("finetune", {"training.epochs": 1, "training.warmup_epochs": 1}, "warmup_epochs must be below epochs (1)"),
        ("finetune", {"objective": {"smoothing": 2}}, "objective.smoothing must lie in [0, 1); got 2"),
        ("finetune", {"model.layout": "MX"}, "layout 'MX' uses X"),
        ("pretrain", {"objective.decoder_heads": 7}, "must be a multiple of objective.decoder_heads (7)"),
        ("finetune", {"model.layout": "MTM"}, "the pretraining of its arm does not fit this model: missing: encoder."),
        ("linear_probe", {"model.layout": "M"}, "the pretraining of its arm does not fit this model: not used: enc"),
        ("finetune", {"model.embed_dim": 32}, "the pretraining of its arm does not fit this model: shapes: patch_"),
        ("linear_probe", {"model.num_heads": 2}, "pretraining of its arm was trained with model.num_heads 4, this"),
    ],
)  # fmt: skip
def test_what_a_later_run_would_refuse_is_refused_before_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str, changes: dict[str, Any], message: str
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(STUDY | {"arms": PRETRAINED, stage: STUDY[stage] | changes}))
    arguments = ["study", "--study", str(file), "--out", str(tmp_path / "out"), "--budget_minutes", "0"]
    assert main("map-vision", COMMANDS, "map_vision.recipes", arguments) == UserError.status
    error = capsys.readouterr().err
    assert f"study tiny, {stage}: " in error
    assert message in error
    assert error.endswith("; this run's settings come from the study's file\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("pretrain", "finetune"),
    [
        ({}, {"model.img_size": 16}),
        ({}, {"model.pool_norm": True, "model.global_pool": "avg"}),
        ({"model.bidirectional": False}, {"model.bidirectional": True}),
        ({}, {"model.num_heads": 2, "init_may_differ": ["num_heads"]}),
    ],
)
def test_a_model_may_differ_from_its_pretraining_as_init_allows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pretrain: dict[str, Any], finetune: dict[str, Any]
) -> None:
    """Without a warning, which the run itself gives."""
    file = tmp_path / "tiny.yaml"
    changes = {"pretrain": STUDY["pretrain"] | pretrain, "finetune": STUDY["finetune"] | finetune}
    file.write_text(yaml.safe_dump(STUDY | {"arms": PRETRAINED, "measures": ["finetune"]} | changes))
    study = read_study(file, "map_vision.studies")
    refuse_impossible_runs(study, DOMAIN, tmp_path / "none", [])
    assert not caplog.records


def test_finished_runs_are_not_checked_again(tmp_path: Path, finished_study: Path) -> None:
    file, finetune = tmp_path / "tiny.yaml", STUDY["finetune"] | {"training.batch_size": 0}
    file.write_text(yaml.safe_dump(STUDY | {"finetune": finetune}))
    results = read_results(finished_study / "results.jsonl")
    study = read_study(file, "map_vision.studies")
    refuse_impossible_runs(study, DOMAIN, tmp_path / "none", results)
    left = [result for result in results if result.key != "scratch/seed0/finetune_64"]
    with pytest.raises(
        UserError, match=r"study tiny, finetune: training.batch_size must be at least 1; got 0"
    ):
        refuse_impossible_runs(study, DOMAIN, tmp_path / "none", left)


def test_a_finetuning_at_equal_compute_is_checked_at_its_own_length(tmp_path: Path) -> None:
    """Its warmup may be longer than the epochs of the others, but not than what compute gives it."""

    def check(**equal: Any) -> None:
        arms = PRETRAINED | {"equal": {"compute_of": "pretrained", **equal}}
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(STUDY | {"arms": arms, "measures": ["finetune"]}))
        study = read_study(tmp_path / "tiny.yaml", "map_vision.studies")
        refuse_impossible_runs(study, DOMAIN, tmp_path / "none", [])
        resolve_compute(study, DOMAIN, tmp_path / "none")

    check(finetune={"training.warmup_epochs": 2})
    with pytest.raises(
        UserError, match=r"study tiny, finetune: .*warmup_epochs must be below epochs \(\d+\); got 9"
    ):
        check(finetune={"training.warmup_epochs": 99})
    with pytest.raises(
        UserError, match=r"study tiny, finetune: training.batch_size must be at least 1; got 0"
    ):
        check(finetune={"training.batch_size": 0})


def test_arms_are_pretrained_on_the_same_data(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("base: pretrain_digits\ndata: {augmentation: none}\n")
    recipe = {"recipe": str(tmp_path / "other.yaml")}
    arms = {"a": {"pretrain": {"objective.attention": "map"}}, "b": {"pretrain": recipe}, "scratch": {}}
    values = STUDY | {"arms": arms}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    study = read_study(tmp_path / "tiny.yaml", "map_vision.studies")
    message = (
        r"arms a and b of study tiny are pretrained with data.augmentation '\w+' and 'none', but all arms share data: "
        r"set data.augmentation in pretrain of the study"
    )
    with pytest.raises(UserError, match=message):
        check_preconditions(study, DOMAIN, tmp_path / "none", [])
    values = values | {"pretrain": STUDY["pretrain"] | {"data": {"augmentation": "none"}}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    check_preconditions(
        read_study(tmp_path / "tiny.yaml", "map_vision.studies"), DOMAIN, tmp_path / "none", []
    )


@pytest.mark.parametrize("start", ["pretrained", "given"])
def test_arms_are_finetuned_on_inputs_of_the_same_normalisation(tmp_path: Path, start: str) -> None:
    """Weights bring theirs as defaults; a run from scratch has its recipe's."""
    file, normalization = tmp_path / "tiny.yaml", {"data.mean": [0.1], "data.std": [0.7]}
    arm: dict[str, Any] = {"pretrain": {}}
    values = STUDY | {"measures": ["finetune"], "pretrain": STUDY["pretrain"] | normalization}
    if start == "given":
        size: dict[str, Any] = {
            "img_size": 8,
            "patch_size": 2,
            "in_chans": 1,
            "embed_dim": 16,
            "num_heads": 4,
        }
        model = ModelConfig("hybridnet_tiny_patch16_224", layout="MT", **size)
        description = MODELS.describe(model) | {"mean": [0.1], "std": [0.7]}
        save_weights(tmp_path / "w.safetensors", create_backbone(model).state_dict(), description)
        arm = {"init": str(tmp_path / "w.safetensors")}
    values["arms"] = {"map": arm, "scratch": {}}
    file.write_text(yaml.safe_dump(values))
    study = read_study(file, "map_vision.studies")
    message = (
        r"arms map and scratch of study tiny differ in data.mean and data.std of finetune \(data.mean is \[0.1\] and "
        r"\[0.3\d*\]\), which weights bring with them: set data.mean and data.std in finetune of"
    )
    with pytest.raises(UserError, match=message):
        check_preconditions(study, DOMAIN, tmp_path / "none", [])
    file.write_text(yaml.safe_dump(values | {"finetune": STUDY["finetune"] | normalization}))
    check_preconditions(read_study(file, "map_vision.studies"), DOMAIN, tmp_path / "none", [])


def test_settings_that_no_run_can_take_are_those_of_the_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, arguments = tmp_path / "tiny.yaml", ["--out", str(tmp_path / "out"), "--dry_run", "true"]
    nowhere = STUDY["finetune"] | {"data.source": "folder", "data.root": str(tmp_path / "none")}
    for finetune, fault in (
        (nowhere, "none"),
        ({"recipe": "finetune_digits", "training": None}, "--training must be a YAML file"),
    ):
        for arms in ({"scratch": {}}, STUDY["arms"]):
            values = STUDY | {"arms": arms, "finetune": finetune, "measures": ["finetune"]}
            file.write_text(yaml.safe_dump(values))
            command = ["study", "--study", str(file), *arguments]
            assert main("map-vision", COMMANDS, "map_vision.recipes", command) == UserError.status
            error = capsys.readouterr().err
            assert "study tiny, finetune: " in error
            assert fault in error
            assert error.endswith("; this run's settings come from the study's file\n")


def test_a_dry_run_refuses_what_a_run_would_and_what_only_a_run_uses(
    study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "study", "--study", str(study_file), "--out", str(tmp_path / "out"), "--dry_run", "true",
    ]  # fmt: skip
    for option, value, message in (
        ("--jobs", "0", "--jobs must be at least 1; got 0"),
        ("--cluster", "slrum", "--cluster must be one of slurm, local"),
        *(
            (option, value, f"{name} has no effect with --dry_run true, which starts no run: leave it out")
            for option, value, name in (
                ("--cluster", "local", "cluster local"),
                ("--cluster_settings", "slurm.yaml", "cluster_settings slurm.yaml"),
                ("--budget_minutes", "5", "budget_minutes 5.0"),
            )
        ),
    ):
        command = [*arguments, option, value]
        assert main("map-vision", COMMANDS, "map_vision.recipes", command) == UserError.status
        assert message in capsys.readouterr().err


def test_statistics_and_skipped_samples_identify_a_recipe(tmp_path: Path) -> None:
    recipe, statistics = tmp_path / "mine.yaml", tmp_path / "statistics.json"

    def identity(data: dict[str, Any]) -> str:
        recipe.write_text(yaml.safe_dump({"base": "finetune_cifar10", "data": data}))
        return recipe_identity(DOMAIN.recipes, str(recipe))

    statistics.write_text("one")
    (tmp_path / "copy.json").write_text("one")
    plain, with_file = identity({}), identity({"statistics": str(statistics)})
    assert identity({"statistics": str(tmp_path / "copy.json")}) == with_file != plain
    statistics.write_text("other")
    assert identity({"statistics": str(statistics)}) not in (plain, with_file)
    assert identity({"statistics": None, "on_error": "raise", "root": "elsewhere"}) == plain
    assert identity({"on_error": "skip"}) != plain


def test_a_recipe_that_changes_between_runs_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a run's recipe sets is identified when it starts, bases included; settings that change no result are not."""
    recipe, file = tmp_path / "mine.yaml", tmp_path / "tiny.yaml"
    base = tmp_path / "base.yaml"
    base.write_text("base: finetune_digits\ntraining.weight_decay: 0.1\n")
    recipe.write_text("base: base.yaml\ntraining: {log_steps: 5}\n")
    finetune = TINY | {"recipe": str(recipe)}
    values = {
        "name": "tiny",
        "arms": {"a": {}, "b": {}},
        "finetune": finetune,
        "labels": {64: {}},
        "seeds": [0],
    }
    file.write_text(yaml.safe_dump(values | {"measures": ["finetune"]}))
    study = read_study(file, "map_vision.studies")
    out = tmp_path / "out"
    location = StudyLocation("map_vision", out, out / "results.jsonl")
    arguments = ["study", "--study", str(file), "--out", str(out), "--budget_minutes"]

    results = run_study(replace(study, arms=study.arms[:1]), location, recipes=DOMAIN.recipes, progress=False)
    identity = recipe_identity(DOMAIN.recipes, str(recipe))
    assert [result.facts["recipe_identity"] for result in results] == [identity]
    recipe.write_text("base: base.yaml\ntraining: {log_steps: 7}\ndata: {root: /elsewhere}\nout: runs/here\n")
    assert recipe_identity(DOMAIN.recipes, str(recipe)) == identity
    base.write_text("base: finetune_digits\ntraining.weight_decay: 0.2\n")
    assert main("map-vision", COMMANDS, "map_vision.recipes", [*arguments, "1"]) == UserError.status
    message = f"recipe {recipe} has changed since a/seed0/finetune_64 ran: put it back as it was (config.yaml"
    assert message in capsys.readouterr().err

    # also that of a later stage, and not for the sake of an arm that is gone
    later = replace(study, arms=study.arms[1:])
    refuse_changed_recipes(later, results, DOMAIN.recipes)
    assert recipe_facts(next_runs(later, results)[0], later, results, DOMAIN.recipes) != results[0].facts
    pretrained = replace(study.arms[1], pretrain={"recipe": "pretrain_digits", **TINY})
    assert next_runs(replace(study, arms=(study.arms[0], pretrained)), results)[0].stage == "pretrain"
    with pytest.raises(UserError, match="has changed since a/seed0/finetune_64 ran"):
        refuse_changed_recipes(replace(study, arms=(study.arms[0], pretrained)), results, DOMAIN.recipes)

    changed = {"recipe_identity": recipe_identity(DOMAIN.recipes, str(recipe))}
    merged = [*results, replace(results[0], key="b/seed0/finetune_64", arm="b", facts=changed)]
    with pytest.raises(
        UserError, match=r"holds a/seed0/finetune_64 and b/seed0/fin.*, between which recipe .* changed"
    ):
        planned_results(study, merged, location)
    earlier_version = [*results, replace(merged[1], facts={})]
    assert planned_results(study, earlier_version, location) == earlier_version


def test_a_dry_run_plans_over_no_results_that_the_study_refuses(
    finished_study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(STUDY | {"pretrain": STUDY["pretrain"] | {"data.subset": 96}}))
    results = str(finished_study / "results.jsonl")
    arguments = ["study", "--study", str(file), "--out", str(tmp_path / "out"), "--results", results]
    assert (
        main("map-vision", COMMANDS, "map_vision.recipes", [*arguments, "--dry_run", "true"])
        == UserError.status
    )
    message = (
        "holds pretrained/seed0/pretrain with other settings (data.subset was 64 and is 96): give the changed"
    )
    assert message in capsys.readouterr().err


def test_rates_are_not_chosen_on_the_samples_that_arms_are_compared_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tiny.yaml"
    arguments = ["study", "--study", str(file), "--out", str(tmp_path / "out")]
    for settings, message in (
        (
            {"recipe": "finetune_folder"},
            r"measures finetune on data.holdout (0.1), on which its learning rates",
        ),
        ({"recipe": str(tmp_path / "own.yaml")}, "its recipe names data.eval_split val: name it in finetune"),
    ):
        (tmp_path / "own.yaml").write_text("base: finetune_digits\ndata: {eval_split: val}\n")
        study = STUDY | {"finetune": settings, "measures": ["finetune"], "learning_rates": [0.1]}
        file.write_text(yaml.safe_dump(study))
        assert main("map-vision", COMMANDS, "map_vision.recipes", arguments) == UserError.status
        assert message in capsys.readouterr().err
    named = {"recipe": str(tmp_path / "own.yaml"), "data": {"eval_split": "val"}}
    file.write_text(yaml.safe_dump(study | {"finetune": named}))
    refuse_rates_chosen_on_measured(read_study(file, "map_vision.studies"), DOMAIN, tmp_path / "none")


def test_a_killed_study_resumes_to_the_same_results(finished_study: Path, tmp_path: Path) -> None:
    """Also if it continues with settings for another machine, which its results name."""
    out, study_file = tmp_path / "out", tmp_path / "tiny.yaml"
    one_arm = {name: arm for name, arm in STUDY["arms"].items() if name == "pretrained"}
    study_file.write_text(yaml.safe_dump(STUDY | {"arms": one_arm, "measures": ["finetune"]}))
    process = warm.Program(*command(study_file, out))
    deadline = time.monotonic() + 300
    while not (out / "results.jsonl").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    runs = [f"pretrained/seed0/{stage}" for stage in ("pretrain", "finetune_64")]
    expected = {run: scores(finished_study)[run] for run in runs}
    assert 0 < len(scores(out)) < len(expected)
    machine_settings = {"training.workers": 1, "training.log_steps": 1}
    (tmp_path / "here.yaml").write_text(yaml.safe_dump(machine_settings))
    warm.run(*command(study_file, out, "--run_settings", str(tmp_path / "here.yaml")))
    assert scores(out) == pytest.approx(expected)
    results = read_results(out / "results.jsonl")
    assert [result.facts.get("run_settings") for result in results] == [None, machine_settings]
    assert not any("training.workers" in result.settings for result in results)


def test_a_terminated_study_takes_its_runs_with_it(study_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = warm.Program(*command(study_file, out))
    deadline = time.monotonic() + 120
    while not (children := psutil.Process(process.pid).children()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert not any(child.is_running() for child in children)
