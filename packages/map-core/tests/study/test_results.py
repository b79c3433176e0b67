"""Results are lines that are written whole or not at all; statistics and tables show what they hold."""

import json
import math
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import yaml
from matplotlib.figure import Figure

from map_core.errors import UserError
from map_core.study.definition import read_study
from map_core.study.forms import STUDY_FILES
from map_core.study.report import (
    comparisons,
    draw_arms,
    draw_label_counts,
    page,
    pairs,
    rates,
    table,
    write_report,
)
from map_core.study.results import Result, append_result, read_results
from map_core.study.statistics import T95, estimate, t_quantile, verdict

RESULT = Result("s", "map/seed0/finetune", "map", 0, None, "finetune", 0.001, {"recipe": "r"}, 81.5)


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "below" / "results.jsonl"
    other = replace(RESULT, key="map/seed1/finetune", seed=1)
    append_result(file, RESULT)
    append_result(file, other)
    assert read_results(file, "s") == [RESULT, other]


def test_concatenated_files_hold_each_run_once(tmp_path: Path) -> None:
    one, two, both = tmp_path / "1", tmp_path / "2", tmp_path / "both"
    append_result(one, RESULT)
    append_result(two, replace(RESULT, score=90.0))
    append_result(two, replace(RESULT, key="other"))
    both.write_text(one.read_text() + two.read_text())
    assert {(r.key, r.score) for r in read_results(both)} == {("map/seed0/finetune", 90.0), ("other", 81.5)}


def test_blank_lines_between_results_are_none(tmp_path: Path) -> None:
    append_result(tmp_path / "r", RESULT)
    (tmp_path / "r").write_text(f"\n{(tmp_path / 'r').read_text()}\n \n")
    assert read_results(tmp_path / "r") == [RESULT]


def test_results_of_another_study_are_refused(tmp_path: Path) -> None:
    append_result(tmp_path / "r", RESULT)
    with pytest.raises(UserError, match=r"results of the study 's' \(line 1\), not of 'mine'"):
        read_results(tmp_path / "r", "mine")


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    append_result(tmp_path / "r", RESULT)
    (tmp_path / "r").write_text((tmp_path / "r").read_text() + '{"study": "s"}\n')
    with pytest.raises(UserError, match="broken in line 2"):
        read_results(tmp_path / "r")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"score": float("nan")}, "score holds nan, which is not a finite number"),
        ({"score": float("inf")}, "score holds inf"),
        ({"lr": 10**400}, "lr holds 1000"),
        ({"measures": {"loss": "low"}}, r"measures holds {'loss': 'low'}, which is not a finite number"),
        ({"measures": {"loss": [1]}}, "measures holds"),
        ({"seed": "0"}, "seed must be int, not '0'"),
    ],
)
def test_a_number_that_no_table_can_show_is_named(
    tmp_path: Path, changes: dict[str, Any], fault: str
) -> None:
    (tmp_path / "r").write_text(json.dumps({**asdict(RESULT), **changes}) + "\n")
    with pytest.raises(UserError, match=rf"r is broken in line 1 \({fault}"):
        read_results(tmp_path / "r")


@pytest.mark.parametrize(
    ("make", "fault"), [(os.mkfifo, "it is a pipe, socket or device"), (os.mkdir, "Is a directory")]
)
def test_results_must_be_a_regular_file(tmp_path: Path, make: Callable[[Path], None], fault: str) -> None:
    make(tmp_path / "r")
    with pytest.raises(UserError, match=rf"r holds no results that can be read \({fault}"):
        read_results(tmp_path / "r")


def test_a_line_after_one_without_its_end_is_one_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "r").write_text(json.dumps(asdict(RESULT)))
    append_result(tmp_path / "r", replace(RESULT, key="other"))
    assert [result.key for result in read_results(tmp_path / "r")] == [RESULT.key, "other"]


def test_a_disk_that_fills_up_within_a_line_leaves_the_lines_before(tmp_path: Path) -> None:
    append_result(tmp_path / "r", RESULT)
    size = (tmp_path / "r").stat().st_size
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, hard))
    try:
        with pytest.raises(
            UserError, match=r"cannot add to the results in .*r \(.*\); .*, then start the study"
        ):
            append_result(tmp_path / "r", replace(RESULT, key="other"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert read_results(tmp_path / "r") == [RESULT]


@pytest.mark.parametrize("degrees", sorted(T95))
def test_quantiles_are_students(degrees: int) -> None:
    assert t_quantile(degrees) == pytest.approx(scipy.stats.t.ppf(0.975, degrees), abs=6e-5)


@pytest.mark.parametrize("degrees", [12, 17, 25, 31, 200])
def test_quantiles_between_tabulated_ones_err_on_the_wide_side(degrees: int) -> None:
    assert t_quantile(degrees) >= scipy.stats.t.ppf(0.975, degrees)


def test_an_estimate_is_mean_sample_deviation_and_interval() -> None:
    result = estimate([1.0, 2.0, 4.0])
    low, high = scipy.stats.t.interval(0.95, 2, loc=result.mean, scale=scipy.stats.sem([1.0, 2.0, 4.0]))
    assert result.mean == pytest.approx(7 / 3)
    assert result.sd == pytest.approx(math.sqrt(7 / 3))
    assert (result.mean - result.half_width, result.mean + result.half_width) == pytest.approx(
        (low, high), abs=2e-3
    )


@pytest.mark.parametrize(
    ("differences", "expected"),
    [([1.0, 1.1, 0.9], True), ([1.0, -1.0, 0.5], False), ([2.0, 2.0, 2.1], True), ([-0.2, 0.1], False)],
)
def test_arms_are_told_apart_only_where_the_interval_excludes_zero(
    differences: list[float], expected: bool
) -> None:
    assert ("not told apart" not in verdict(differences)) == expected


def test_one_seed_has_no_interval() -> None:
    assert "no interval" in verdict([3.0])


def test_the_report_holds_every_number_of_the_results(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    arms = {"map": {"pretrain": {"recipe": "pretrain_digits"}}, "scratch": {}}
    values = {
        "name": "s",
        "arms": arms,
        "finetune": {"recipe": "finetune_digits"},
        "seeds": [0, 1],
        "measures": ["finetune"],
    }
    file.write_text(yaml.safe_dump(values))
    study = read_study(file, "map_core.study")
    scores = {("map", 0): 80.0, ("map", 1): 82.0, ("scratch", 0): 70.0, ("scratch", 1): 72.5}
    results = [
        replace(
            RESULT,
            key=f"{arm}{seed}",
            arm=arm,
            seed=seed,
            score=score,
            facts={"device": "cpu", "commit": "0123456789abcdef-dirty"},
        )
        for (arm, seed), score in scores.items()
    ]
    assert "| map | 81.00 ± 1.41 |" in table(study, results)
    assert "| scratch | 71.25 ± 1.77 |" in table(study, results)
    assert "+9.75 [" in comparisons(study, results)
    assert "| scratch | 70.00 (1 of 2 seeds) |" in table(study, results[:-1])
    assert "commit 0123456789ab-dirty; cpu." in page(study, results, "command")
    assert "map-vision study --study s" in page(study, results, "map-vision study --study s")
    path = write_report(study, results, tmp_path / "report", "command")
    assert {file.name for file in path.parent.iterdir()} < set(STUDY_FILES)
    assert json.loads((path.parent / "report.json").read_text())["map/finetune/all"] == {"0": 80.0, "1": 82.0}


def test_a_plot_has_a_row_per_measured_arm_in_a_color_of_its_own() -> None:
    axis, fewer = Figure().subplots(2)
    draw_arms(axis, {"map": [80.0, 82.0], "mae": [79.0], "scratch": [70.0]})
    draw_arms(fewer, {"map": [], "mae": [3.0], "scratch": [2.0]})
    assert [label.get_text() for label in fewer.get_yticklabels()] == ["mae", "scratch"]
    means, seeds = axis.lines[0], axis.lines[1]
    assert (list(means.get_xdata()), list(seeds.get_xdata())) == ([81.0], [80.0, 82.0])
    assert [fewer.lines[row].get_color() for row in (0, 2)] == [axis.lines[row].get_color() for row in (2, 4)]
    assert axis.yaxis_inverted()  # the first arm is on top


def test_a_plot_over_labels_leaves_out_what_an_arm_lacks() -> None:
    axis = Figure().subplots()
    draw_label_counts(axis, {"map": [[1.0, 3.0], [4.0]], "scratch": [[], [2.0]]})
    means = [line for line in axis.lines if line.get_marker() == "o"]
    assert [list(line.get_ydata()) for line in means] == [[2.0, 4.0], [2.0]]
    assert [round(line.get_xdata()[-1]) for line in means] == [1, 1]


@pytest.mark.parametrize(
    ("scores", "taken"),
    [
        ([7, 8, 7], "0.002"),
        ([7, 7, 8], "0.004, an edge"),
        ([8, 7, 7], "0.001, an edge"),
        ([7, 8, 8], "0.002, no better than an edge"),
        ([8, 7, 8], "0.001, an edge"),
        ([8, 8, 7], "0.001, an edge"),
        ([8], "0.001"),
    ],
)
def test_a_rate_beyond_which_a_better_one_may_lie_is_marked(
    tmp_path: Path, scores: list[float], taken: str
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        "name: s\narms: {map: {}}\nfinetune: {recipe: finetune_digits}\nmeasures: [finetune]\nseeds: [0]\n"
    )
    trials = [
        replace(RESULT, key=f"map/trials/finetune_lr{lr:g}", stage="trial", lr=lr, score=float(score))
        for lr, score in zip([0.001, 0.002, 0.004], scores, strict=False)
    ]
    best = max(trials, key=lambda trial: trial.score)
    assert rates(read_study(file, "map_core.study"), [*trials, replace(RESULT, lr=best.lr)]).endswith(
        f"| {taken} |"
    )


def test_a_report_that_the_disk_refuses_is_reported_in_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        "name: s\narms: {one: {}, other: {}}\nfinetune: {recipe: finetune_digits}\nmeasures: [finetune]\nseeds: [0]\n"
    )
    study = read_study(file, "map_core.study")
    (tmp_path / "report.md").mkdir()  # in the report's place
    message = (
        r"^cannot write the report .*report.md \(.+\); check that disk, then write it with study-report$"
    )
    with pytest.raises(UserError, match=message):
        write_report(study, [], tmp_path, "command")


def test_arms_are_compared_at_equal_compute_as_well(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    pretrained = {"pretrain": {"recipe": "pretrain_digits"}}
    arms = {"map": pretrained, "mae": pretrained, "longer": {"compute_of": "map"}, "scratch": {}}
    values = {"name": "s", "arms": arms, "finetune": {"recipe": "finetune_digits"}, "measures": ["finetune"]}
    file.write_text(yaml.safe_dump({**values, "seeds": [0, 1]}, sort_keys=False))
    scores = {"map": (80.0, 82.0), "mae": (79.0, 83.0), "longer": (78.0, 80.5), "scratch": (70.0, 72.5)}
    results = [
        replace(RESULT, key=f"{arm}{seed}", arm=arm, seed=seed, score=score)
        for arm, by_seed in scores.items()
        for seed, score in enumerate(by_seed)
    ]
    scratch_table, compute_table = comparisons(read_study(file, "map_core.study"), results).split("\n\n")
    assert [line.split("|")[1].strip() for line in scratch_table.splitlines()[2:]] == ["map", "mae", "longer"]
    assert [line.split("|")[1].strip() for line in compute_table.splitlines()[2:]] == ["map", "mae"]
    assert compute_table.startswith("| arm minus longer |")
    assert "| +1.75 [" in compute_table.splitlines()[2]
    values["arms"] = {"other": pretrained | {"model": {"layout": "Mx4"}}, "mine": {}, **arms}
    file.write_text(yaml.safe_dump({**values, "seeds": [0, 1]}, sort_keys=False))
    other_results = [
        replace(r, key=f"{arm}{r.seed}", arm=arm)
        for r in results
        if r.arm == "mae"
        for arm in ("other", "mine")
    ]
    assert comparisons(read_study(file, "map_core.study"), [*results, *other_results]).endswith(compute_table)
    values["arms"] = {name: arms[name] for name in ("map", "mae", "longer")}
    file.write_text(yaml.safe_dump({**values, "seeds": [0, 1]}, sort_keys=False))
    assert comparisons(read_study(file, "map_core.study"), results) == compute_table
    file.write_text(yaml.safe_dump({**values, "arms": arms, "seeds": [0, 1]}, sort_keys=False))
    unfinished = [r for r in results if r.arm != "longer"]
    assert comparisons(read_study(file, "map_core.study"), unfinished).count("arm minus") == 1


def test_arms_are_compared_with_those_of_the_same_model(tmp_path: Path) -> None:
    start, wide = {"pretrain": {"recipe": "pretrain_digits"}}, {"model": {"embed_dim": 64}}
    arms = {
        "wide, map": start | wide,
        "wide, mae": start | wide,
        "wide, scratch": wide,
        "map": start,
        "given": {"init": "weights"},
        "other": start | {"model": {"embed_dim": 8}},
        "scratch": {},
    }
    values = {"name": "s", "arms": arms, "finetune": {"recipe": "finetune_digits"}, "measures": ["finetune"]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**values, "seeds": [0, 1]}, sort_keys=False))
    study = read_study(tmp_path / "study.yaml", "map_core.study")
    results = [
        replace(RESULT, key=f"{arm}{seed}", arm=arm, seed=seed, score=80.0 + 3 * index + seed)
        for index, arm in enumerate(arms)
        for seed in (0, 1)
    ]

    def arms_in_rows(table: str) -> list[tuple[str, ...]]:
        return [
            tuple(cell.strip() for cell in line.split("|")[1:-2])[:-1]
            for line in table.splitlines()
            if "[+" in line or "[-" in line
        ]

    wide_table, last_table = comparisons(study, results).split("\n\n")
    assert wide_table.startswith("| arm minus wide, scratch |")
    assert arms_in_rows(wide_table) == [("wide, map",), ("wide, mae",)]
    assert "| wide, map | finetuned accuracy (%) | -6.00 [-6.00, -6.00] |" in wide_table
    assert last_table.startswith("| arm minus scratch |")
    assert arms_in_rows(last_table) == [("wide, scratch",), ("map",), ("given",), ("other",)]
    assert arms_in_rows(pairs(study, results)) == [("wide, map", "wide, mae"), ("map", "given")]
    assert "| map | given | finetuned accuracy (%) | -3.00 [-3.00, -3.00] |" in page(study, results, "c")
    assert pairs(study, [r for r in results if r.arm in ("map", "scratch")]) == ""


def test_arms_from_scratch_of_other_lengths_are_each_compared_with_given_weights(tmp_path: Path) -> None:
    arms = {"given": {"init": "weights"}, "longer": {"finetune": {"training.epochs": 9}}, "scratch": {}}
    values = {"name": "s", "arms": arms, "finetune": {"recipe": "finetune_digits"}, "measures": ["finetune"]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**values, "seeds": [0]}, sort_keys=False))
    results = [replace(RESULT, key=arm, arm=arm) for arm in arms]
    tables = comparisons(read_study(tmp_path / "study.yaml", "map_core.study"), results)
    headers = [part.splitlines()[0] for part in tables.split("\n\n")]
    assert headers == [
        f"| arm minus {baseline} | measure | difference [95 % interval] |"
        for baseline in ("scratch", "longer")
    ]
    assert tables.count("| given |") == 2


def test_losses_of_two_objectives_are_not_compared(tmp_path: Path) -> None:
    arms = {name: {"pretrain": {"recipe": "pretrain_digits"}} for name in ("map", "mae", "ar")}
    values = {"name": "s", "arms": arms, "seeds": [0], "measures": ["knn", "heldout_loss"]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    study = read_study(tmp_path / "study.yaml", "map_core.study")
    results = [
        replace(RESULT, key=f"{arm}/{stage}", arm=arm, stage=stage, measures={"heldout_loss": 0.5})
        for arm in arms
        for stage in ("pretrain", "knn")
    ]
    assert "| map | 81.50 | 0.5000 |" in table(study, results)
    assert "| map | mae | nearest neighbours (%) |" in pairs(study, results)
    assert "loss" not in pairs(study, results)
    assert "| map | nearest neighbours (%) |" in comparisons(study, results)
    assert "loss" not in comparisons(study, results)


def test_a_difference_from_the_baseline_is_not_repeated_between_pretrained_arms(tmp_path: Path) -> None:
    arms = {name: {"pretrain": {"recipe": "pretrain_digits"}} for name in ("map", "mae", "ar")}
    values = {"name": "s", "finetune": {"recipe": "finetune_digits"}, "measures": ["finetune"], "seeds": [0]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**values, "arms": arms}, sort_keys=False))
    study = read_study(tmp_path / "study.yaml", "map_core.study")
    results = [replace(RESULT, key=arm, arm=arm) for arm in arms]
    assert [line.split("|")[1] for line in comparisons(study, results).splitlines()[2:]] == [" map ", " mae "]
    assert [line.split("|")[1:3] for line in pairs(study, results).splitlines()[4:]] == [[" map ", " mae "]]
    assert pairs(study, [result for result in results if result.arm != "map"]) == ""


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        ({"map": "trained", "scratch": "", "longer": "map"}, ["scratch: map, longer", "longer: map"]),
        ({"scratch": "", "mae": "trained", "map": "trained"}, ["scratch: mae, map"]),
        ({"map": "trained", "longer": "map"}, ["longer: map"]),
        ({"mae": "trained", "map": "trained"}, ["map: mae"]),
    ],
)
def test_two_arms_are_compared_once_whatever_their_order(
    tmp_path: Path, arms: dict[str, str], expected: list[str]
) -> None:
    forms: dict[str, Any] = {"trained": {"pretrain": {"recipe": "pretrain_digits"}}, "": {}}
    values = {"name": "s", "finetune": {"recipe": "finetune_digits"}, "measures": ["finetune"], "seeds": [0]}
    values["arms"] = {name: forms.get(form, {"compute_of": form}) for name, form in arms.items()}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    results = [replace(RESULT, key=arm, arm=arm) for arm in arms]
    compared = []
    for part in comparisons(read_study(tmp_path / "study.yaml", "map_core.study"), results).split("\n\n"):
        header, _, *rows = part.splitlines()
        baseline = header.split("|")[1].strip().removeprefix("arm minus ")
        compared.append(f"{baseline}: " + ", ".join(row.split("|")[1].strip() for row in rows))
    assert compared == expected


def test_the_report_says_what_every_rate_scored_and_which_was_taken(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    values = {"name": "s", "arms": {"map": {}, "late": {}}, "finetune": {"recipe": "finetune_digits"}}
    file.write_text(yaml.safe_dump({**values, "measures": ["finetune"], "seeds": [0]}, sort_keys=False))
    trials = [
        replace(RESULT, key=f"{arm}/trials/finetune_lr{lr:g}", arm=arm, stage="trial", lr=lr, score=score)
        for arm, lr, score in (("map", 0.01, 70.0), ("map", 0.001, 71.5), ("late", 0.01, 60.0))
    ]
    trials[0] = replace(trials[0], score=0.0, facts={"diverged": "the loss is nan"})
    text = page(read_study(file, "map_core.study"), [*trials, RESULT], "command")
    assert "| map | finetune | all | 0.001: 71.50, 0.01: diverged | 0.001, an edge |" in text
    inner_results = [
        *trials,
        replace(trials[1], key="map/trials/finetune_lr0.0001", lr=0.0001, score=70.0),
        RESULT,
    ]
    inner_text = page(read_study(file, "map_core.study"), inner_results, "command")
    assert "| 0.0001: 70.00, 0.001: 71.50, 0.01: diverged | 0.001 |" in inner_text
    assert "| late | finetune | all | 0.01: 60.00 | - |" in text
    assert "by learning rate" not in page(read_study(file, "map_core.study"), [], "command")


def test_the_report_says_what_a_run_of_each_arm_costs(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    arms = {"map": {"pretrain": {}}, "given": {"init": "runs/long"}, "scratch": {}, "never run": {}}
    recipes = {"pretrain": {"recipe": "pretrain_digits"}, "finetune": {"recipe": "finetune_digits"}}
    values = {"name": "s", "arms": arms, **recipes, "measures": ["finetune"], "seeds": [0]}
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    results = [
        replace(RESULT, key="map/seed0/pretrain", stage="pretrain", samples=59_904, flops=4.5967e12),
        *(replace(RESULT, key=arm, arm=arm, samples=9_600) for arm in ("map", "given", "scratch")),
    ]
    table = page(read_study(file, "map_core.study"), results, "command")
    assert (
        "| cost of a run | pretraining | finetuned accuracy (%) |\n|---|---|---|\n"
        "| map | 59,904 samples, 4.6 TFLOP | 9,600 samples |\n"
        "| given | given, `runs/long`: one for all seeds, not counted here | 9,600 samples |\n"
        "| scratch | - | 9,600 samples |\n\n"
    ) in table


def test_differences_are_between_runs_of_one_seed(tmp_path: Path) -> None:
    """Whatever their order, and with a seed that one arm lacks."""
    values = {
        "name": "s",
        "arms": {"map": {"pretrain": {"recipe": "pretrain_digits"}}, "scratch": {}},
        "finetune": {"recipe": "finetune_digits"},
        "measures": ["finetune"],
        "seeds": [0, 1, 2],
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    scores = {("map", 2): 85.0, ("map", 0): 80.0, ("scratch", 0): 70.0, ("scratch", 1): 50.0}
    scores |= {("scratch", 2): 76.0}
    results = [
        replace(RESULT, key=f"{arm}/seed{seed}/finetune", arm=arm, seed=seed, score=score)
        for (arm, seed), score in scores.items()
    ]
    assert "| +9.50 [" in comparisons(read_study(tmp_path / "study.yaml", "map_core.study"), results)
