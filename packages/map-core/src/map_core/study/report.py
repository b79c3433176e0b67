"""A study's results as tables, a plot and a page; no number in it is typed by hand."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from map_core.runs.files import explaining_disk_errors, save_text
from map_core.runs.pictures import save_picture
from map_core.study.definition import Arm, Study
from map_core.study.measures import TRAINED_MEASURES, title_of
from map_core.study.plan import is_trial_of
from map_core.study.results import Result
from map_core.study.statistics import estimate, verdict


def scores(results: Sequence[Result], arm: str, stage: str, labels: int | None) -> dict[int, float]:
    """The score of each seed."""
    if stage == "heldout_loss":  # which the pretraining measured
        return {
            r.seed: r.measures[stage]
            for r in results
            if (r.arm, r.stage) == (arm, "pretrain") and stage in r.measures
        }
    return {r.seed: r.score for r in results if (r.arm, r.stage, r.labels) == (arm, stage, labels)}


def columns(study: Study) -> list[tuple[str, int | None]]:
    """The columns of a table: measures and numbers of labels."""
    return [
        (stage, labels)
        for stage in study.measures
        for labels in (study.labels if stage in TRAINED_MEASURES else [None])
    ]


def decimals(stage: str) -> int:
    """How many decimals a measure is written with: more for losses, which are below 1, than for percentages."""
    return 4 if stage == "heldout_loss" else 2


def title(stage: str, labels: int | None) -> str:
    """Heading of a column."""
    return title_of(stage) + ("" if labels is None else f", {labels} labels")


def table(study: Study, results: Sequence[Result]) -> str:
    """Mean ± standard deviation over seeds, one row per arm; a dash where nothing was measured."""
    headings = [title(*column) for column in columns(study)]
    lines = ["| arm | " + " | ".join(headings) + " |", "|---" * (len(headings) + 1) + "|"]
    for arm in study.arms:
        cells = []
        for stage, labels in columns(study):
            values = list(scores(results, arm.name, stage, labels).values())
            missing = f" ({len(values)} of {len(study.seeds)} seeds)"
            cell = estimate(values).text(decimals(stage)) if values else "-"
            cells.append(cell + (missing if 0 < len(values) < len(study.seeds) else ""))
        lines.append(f"| {arm.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def comparisons(study: Study, results: Sequence[Result]) -> str:
    """Paired differences with 95 % intervals: from each arm's baseline, then from every other arm from scratch."""
    baselines = {arm.name: baseline_of(study, arm) for arm in study.arms}
    tables = []
    for baseline in study.arms:
        compared = [arm for arm in study.arms if baselines[arm.name] is baseline]
        tables.append(differences(study, results, compared, baseline))
    by_name = {arm.name: arm for arm in study.arms}
    for arm in study.arms:
        if not is_pretrained(arm):  # such as one with the whole compute of a pretrained arm of the same model
            model = by_name[arm.compute_of or arm.name].model
            pretrained = [other for other in study.arms if is_pretrained(other) and other.model == model]
            compared = [other for other in pretrained if baselines[other.name] is not arm]
            tables.append(differences(study, results, compared, arm))
    return "\n\n".join(table for table in tables if table)


def is_pretrained(arm: Arm) -> bool:
    """Whether an arm starts from weights, pretrained by the study or from elsewhere."""
    return arm.pretrain is not None or arm.init is not None


def scratch_arm_for(study: Study, arm: Arm) -> Arm | None:
    """The last arm from scratch with the same ``model``; None for one that is from scratch itself."""
    from_scratch = [other for other in study.arms if not is_pretrained(other) and other.compute_of is None]
    if arm in from_scratch:
        return None
    return next((other for other in reversed(from_scratch) if other.model == arm.model), None)


def baseline_of(study: Study, arm: Arm) -> Arm | None:
    """The last arm from scratch with the same ``model``, or else the study's last arm.

    None where that is ``arm`` itself, or is compared with ``arm``.
    """
    if (scratch := scratch_arm_for(study, arm)) is not None:
        return scratch
    last = study.arms[-1]
    return None if arm in (last, scratch_arm_for(study, last)) else last


def pairs(study: Study, results: Sequence[Result]) -> str:
    """Paired differences between all pretrained arms of one ``model``, but for those that :func:`comparisons` has.

    Empty where no seed has two.
    """
    pretrained = [arm for arm in study.arms if is_pretrained(arm)]
    baselines = {arm.name: baseline_of(study, arm) for arm in pretrained}
    rows = [
        row
        for index, arm in enumerate(pretrained)
        for other in pretrained[index + 1 :]
        if arm.model == other.model and baselines[arm.name] != other and baselines[other.name] != arm
        for row in difference_rows(study, results, arm, other, f"{arm.name} | {other.name}")
    ]
    if not rows:
        return ""
    header = ["| arm | minus | measure | difference [95 % interval] |", "|---|---|---|---|"]
    return "\n".join(["Between pretrained arms:", "", *header, *rows])


def differences(study: Study, results: Sequence[Result], arms: Sequence[Arm], baseline: Arm) -> str:
    """Each of ``arms`` minus ``baseline``, by seed; empty where no seed has both."""
    rows = [row for arm in arms for row in difference_rows(study, results, arm, baseline, arm.name)]
    header = [f"| arm minus {baseline.name} | measure | difference [95 % interval] |", "|---|---|---|"]
    return "\n".join([*header, *rows]) if rows else ""


def difference_rows(
    study: Study, results: Sequence[Result], arm: Arm, baseline: Arm, cells: str
) -> list[str]:
    """Rows that begin with ``cells``: the difference of two arms in each column where a seed has both.

    Held-out losses are left out: they may be of different objectives.
    """
    rows = []
    for stage, labels in columns(study):
        if stage == "heldout_loss":
            continue
        arm_scores, baseline_scores = (
            scores(results, name, stage, labels) for name in (arm.name, baseline.name)
        )
        if shared := sorted(arm_scores.keys() & baseline_scores.keys()):
            difference = verdict(
                [arm_scores[seed] - baseline_scores[seed] for seed in shared], decimals(stage)
            )
            rows.append(f"| {cells} | {title(stage, labels)} | {difference} |")
    return rows


def plot(study: Study, results: Sequence[Result], path: Path) -> bool:
    """Draw every measure, by arms or over numbers of labels; return False and leave no picture without any."""
    stages = [
        s
        for s in study.measures
        if any(scores(results, a.name, s, n) for a in study.arms for n in (*study.labels, None))
    ]
    if not stages:
        path.unlink(missing_ok=True)
        return False
    figure = Figure(figsize=(4.6 * len(stages), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, stage in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
        counts = [
            count
            for count in (study.labels if stage in TRAINED_MEASURES else [None])
            if any(scores(results, arm.name, stage, count) for arm in study.arms)
        ]
        values_by_arm = {
            arm.name: [list(scores(results, arm.name, stage, count).values()) for count in counts]
            for arm in study.arms
        }
        if len(counts) == 1:
            draw_arms(axis, {name: values for name, (values,) in values_by_arm.items()})
        else:
            draw_label_counts(axis, values_by_arm)
            axis.set_xticks(range(len(counts)), ["all" if count is None else str(count) for count in counts])
            axis.set_xlim(-0.5, len(counts) - 0.5)
        axis.set_title(title(stage, counts[0] if len(counts) == 1 else None), loc="left", fontsize=10)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    save_picture(figure, path, dpi=120)
    return True


def draw_arms(axis: Axes, values: Mapping[str, Sequence[float]]) -> None:
    """Draw one row per arm that has values, the first on top: its mean, and a point per seed."""
    colors = {name: f"C{number}" for number, name in enumerate(values)}  # an arm's is the same in every plot
    names = [name for name in values if values[name]]
    for row, name in enumerate(names):
        axis.plot(estimate(values[name]).mean, row, "o", color=colors[name], markersize=6)
        axis.plot(values[name], [row] * len(values[name]), ".", color=colors[name], alpha=0.5)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.xaxis.set_major_locator(MaxNLocator(5))


def draw_label_counts(axis: Axes, values: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Draw one line per arm over the numbers of labels: its means, and a point per seed, the arms side by side."""
    for number, (name, by_count) in enumerate(values.items()):
        offset = 0.06 * (number - (len(values) - 1) / 2)
        positions = [i for i, count_values in enumerate(by_count) if count_values]
        means = [estimate(by_count[i]).mean for i in positions]
        (line,) = axis.plot([i + offset for i in positions], means, "o-", markersize=5, label=name)
        for i in positions:
            axis.plot([i + offset] * len(by_count[i]), by_count[i], ".", color=line.get_color(), alpha=0.5)
    axis.set_xlabel("labels")
    axis.legend(fontsize=8, frameon=False)


def rates(study: Study, results: Sequence[Result]) -> str:
    """What each arm scored at the learning rates that it tried, and the rate chosen; empty where none was tried."""
    rows = []
    for arm in study.arms:
        for stage, labels in columns(study):
            arm_results = [r for r in results if (r.arm, r.labels) == (arm.name, labels) and r.lr]
            trials = [r for r in arm_results if is_trial_of(r, stage)]
            chosen = {f"{r.lr:g}" for r in arm_results if r.stage == stage}
            if trials or chosen:
                trials.sort(key=lambda r: r.lr or 0)
                held_out = ", ".join(trial_score(r) for r in trials)
                chosen_cell = ", ".join(lr + edge_mark(lr, trials) for lr in sorted(chosen))
                label_count = "all" if labels is None else labels
                rows.append(f"| {arm.name} | {stage} | {label_count} | {held_out} | {chosen_cell or '-'} |")
    header = ["| arm | measure | labels | held out (%), by learning rate | taken |", "|---|---|---|---|---|"]
    return "\n".join([*header, *rows]) if rows else ""


def edge_mark(lr: str, trials: Sequence[Result]) -> str:
    """What says that a better rate than ``lr`` may lie beyond the grid of ``trials``, which ascend; else empty."""
    edges = {f"{r.lr:g}": r.score for r in ((trials[0], trials[-1]) if len(trials) > 1 else ())}
    if lr in edges:
        return ", an edge"
    best = max((r.score for r in trials), default=None)
    return ", no better than an edge" if best in edges.values() else ""


def trial_score(trial: Result) -> str:
    """A learning rate and its score."""
    return f"{trial.lr:g}: " + ("diverged" if "diverged" in trial.facts else f"{trial.score:.2f}")


def costs(study: Study, results: Sequence[Result]) -> str:
    """What one run of each arm costs: samples seen in training, and operations where they were counted."""
    measured = {(r.arm, r.stage, r.labels): r for r in results if r.samples}
    counted = [column for column in columns(study) if any(key[1:] == column for key in measured)]
    rows = []
    for arm in study.arms:
        cells = [cost_of_run(measured.get((arm.name, *column))) for column in (("pretrain", None), *counted)]
        if arm.init is not None:
            cells[0] = f"given, `{arm.init}`: one for all seeds, not counted here"
        if any(cell != "-" for cell in cells):
            rows.append(f"| {arm.name} | {' | '.join(cells)} |")
    headings = " | ".join(("pretraining", *(title(*column) for column in counted)))
    header = [f"| cost of a run | {headings} |", "|---" * (len(counted) + 2) + "|"]
    return "\n".join([*header, *rows]) if rows else ""


def cost_of_run(result: Result | None) -> str:
    """The samples and operations of a run's training; a dash without one."""
    if result is None:
        return "-"
    return f"{result.samples:,} samples" + (f", {result.flops / 1e12:.3g} TFLOP" if result.flops else "")


def page(study: Study, results: Sequence[Result], command: str) -> str:
    """A Markdown page: question, table, differences, learning rates tried, cost, and how to run the study."""
    devices = sorted({str(r.facts.get("device")) for r in results if r.facts.get("device")})
    commits = sorted({short_commit(str(r.facts["commit"])) for r in results if r.facts.get("commit")})
    trained = [r for r in results if r.stage != "knn" and "diverged" not in r.facts]
    operations = [r.flops for r in trained]  # 0 where they were not counted
    counted = f", {sum(operations) / 1e12:.1f} TFLOP" if operations and all(operations) else ""
    seconds, seeds = sum(r.seconds for r in results), sorted({r.seed for r in results})
    tried = rates(study, results)
    parts = [
        f"# {study.name}",
        study.question,
        table(study, results),
        "Mean ± standard deviation over seeds. Paired differences by seed with their 95 % intervals, of which one in "
        "twenty excludes 0 by chance:",
        comparisons(study, results),
        pairs(study, results),
        tried,
        tried
        and "Rates are chosen by all labels of a held-out part of the training split, which come on top of those "
        "that a column names.",
        costs(study, results),
        f"{len(results)} runs ({sum(r.stage == 'trial' for r in results)} trials of learning rates on a held-out "
        f"part), {seconds / 3600:.2f} hours of runs{counted}, seeds {', '.join(map(str, seeds))} of "
        f"{', '.join(map(str, study.seeds))}; "
        f"commit {', '.join(commits) or 'unknown'}; {', '.join(devices) or 'hardware unknown'}. Run it with\n\n"
        f"```\n{command}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def short_commit(commit: str) -> str:
    """An abbreviated commit, with its mark if the tree had uncommitted changes."""
    number, _, mark = commit.partition("-")
    return number[:12] + (f"-{mark}" if mark else "")


def write_report(study: Study, results: Sequence[Result], out: Path, command: str) -> Path:
    """Write ``report.md``, ``report.png`` and ``report.json`` into ``out``; return the page's path.

    Raises:
        UserError: the disk refuses one of them.
    """
    numbers = {
        f"{arm.name}/{stage}/{labels or 'all'}": scores(results, arm.name, stage, labels)
        for arm in study.arms
        for stage, labels in columns(study)
    }
    path = out / "report.md"
    with explaining_disk_errors(f"write the report {path}", then="write it with study-report"):
        out.mkdir(parents=True, exist_ok=True)
        picture = "\n![the measures](report.png)\n" if plot(study, results, out / "report.png") else ""
        save_text(out / "report.json", json.dumps(numbers, indent=1) + "\n")
        save_text(path, page(study, results, command) + picture)
    return path
