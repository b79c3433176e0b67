"""A study's results as tables, a plot and a page; no number in it is typed by hand."""

import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from map_core.runs.files import save_text
from map_core.runs.pictures import save_picture
from map_core.study.definition import Arm, Study
from map_core.study.measures import TRAINED, title_of
from map_core.study.plan import tries
from map_core.study.results import Result
from map_core.study.statistics import estimate, verdict


def scores(results: Sequence[Result], arm: str, stage: str, labels: int | None) -> dict[int, float]:
    """Score by seed."""
    if stage == "heldout_loss":  # which the pretraining measured
        return {
            r.seed: r.measures[stage]
            for r in results
            if (r.arm, r.stage) == (arm, "pretrain") and stage in r.measures
        }
    return {r.seed: r.score for r in results if (r.arm, r.stage, r.labels) == (arm, stage, labels)}


def columns(study: Study) -> list[tuple[str, int | None]]:
    """Measures and numbers of labels, a column each."""
    return [
        (stage, labels)
        for stage in study.measures
        for labels in (study.labels if stage in TRAINED else [None])
    ]


def title(stage: str, labels: int | None) -> str:
    """Heading of a column."""
    return title_of(stage) + ("" if labels is None else f", {labels} labels")


def table(study: Study, results: Sequence[Result]) -> str:
    """Mean ± standard deviation over seeds, an arm a row; a dash where nothing was measured."""
    heads = [title(*column) for column in columns(study)]
    lines = ["| arm | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for arm in study.arms:
        cells = []
        for stage, labels in columns(study):
            values = list(scores(results, arm.name, stage, labels).values())
            missing = f" ({len(values)} of {len(study.seeds)} seeds)"
            cell = str(estimate(values)) if values else "-"
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
        if not is_pretrained(arm):  # such as one with the whole compute of pretrained ones of the same model
            model = by_name[arm.compute_of or arm.name].model
            trained = [one for one in study.arms if is_pretrained(one) and one.model == model]
            alike = [one for one in trained if baselines[one.name] is not arm]
            tables.append(differences(study, results, alike, arm))
    return "\n\n".join(table for table in tables if table)


def is_pretrained(arm: Arm) -> bool:
    """Whether an arm starts from weights, of the study or given."""
    return arm.pretrain is not None or arm.init is not None


def baseline_of(study: Study, arm: Arm) -> Arm | None:
    """The arm from scratch that has the same ``model``, or else the last one; None where that is compared with it."""
    scratch = [one for one in study.arms if not is_pretrained(one) and one.compute_of is None]

    def of_the_same_model(one: Arm) -> Arm | None:
        alike = [] if one in scratch else [other for other in scratch if other.model == one.model]
        return alike[-1] if alike else None

    last = study.arms[-1]
    return of_the_same_model(arm) or (None if arm in (last, of_the_same_model(last)) else last)


def pairs(study: Study, results: Sequence[Result]) -> str:
    """Paired differences between pretrained arms of one ``model``, each with each; empty where no seed has two.

    Not of their own losses, which may be of different objectives.
    """
    trained = [arm for arm in study.arms if is_pretrained(arm)]
    measured = [column for column in columns(study) if column[0] != "heldout_loss"]
    rows = [
        row
        for place, arm in enumerate(trained)
        for other in trained[place + 1 :]
        if arm.model == other.model
        for row in rows_of(measured, results, arm, other, f"{arm.name} | {other.name}")
    ]
    if not rows:
        return ""
    head = ["| arm | minus | measure | difference [95 % interval] |", "|---|---|---|---|"]
    return "\n".join(["Between pretrained arms:", "", *head, *rows])


def differences(study: Study, results: Sequence[Result], arms: Sequence[Arm], baseline: Arm) -> str:
    """Each of ``arms`` minus ``baseline``, by seed; empty where no seed has both."""
    rows = [row for arm in arms for row in rows_of(columns(study), results, arm, baseline, arm.name)]
    head = [f"| arm minus {baseline.name} | measure | difference [95 % interval] |", "|---|---|---|"]
    return "\n".join([*head, *rows]) if rows else ""


def rows_of(
    measured: Sequence[tuple[str, int | None]],
    results: Sequence[Result],
    arm: Arm,
    baseline: Arm,
    cells: str,
) -> list[str]:
    """Rows that begin with ``cells``: the difference of two arms in each measure that a seed has of both."""
    rows = []
    for stage, labels in measured:
        one, other = (scores(results, name, stage, labels) for name in (arm.name, baseline.name))
        if shared := sorted(one.keys() & other.keys()):
            told = verdict([one[seed] - other[seed] for seed in shared])
            rows.append(f"| {cells} | {title(stage, labels)} | {told} |")
    return rows


def plot(study: Study, results: Sequence[Result], path: Path) -> bool:
    """Draw every measure over numbers of labels, a point a seed; without any, say so and leave no picture."""
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
        counts = list(study.labels) if stage in TRAINED else [None]
        names = ["all" if count is None else str(count) for count in counts]
        for number, arm in enumerate(study.arms):
            offset = 0.06 * (number - (len(study.arms) - 1) / 2)
            by_count = [list(scores(results, arm.name, stage, count).values()) for count in counts]
            places = [i for i, values in enumerate(by_count) if values]
            means = [estimate(by_count[i]).mean for i in places]
            (line,) = axis.plot([i + offset for i in places], means, "o-", markersize=5, label=arm.name)
            for i in places:
                axis.plot(
                    [i + offset] * len(by_count[i]), by_count[i], ".", color=line.get_color(), alpha=0.5
                )
        axis.set_xticks(range(len(counts)), names)
        axis.set(xlabel="labels", title=title_of(stage))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, frameon=False)
    save_picture(figure, path, dpi=120)
    return True


def rates(study: Study, results: Sequence[Result]) -> str:
    """What each arm scored at the learning rates that it tried, and the one taken; empty where none was tried."""
    rows = []
    for arm in study.arms:
        for stage, labels in columns(study):
            own = [r for r in results if (r.arm, r.labels) == (arm.name, labels) and r.lr]
            tried = [r for r in own if tries(r, stage)]
            taken = {f"{r.lr:g}" for r in own if r.stage == stage}
            if tried or taken:
                tried.sort(key=lambda r: r.lr or 0)
                held_out = ", ".join(trial_score(r) for r in tried)
                edges = {f"{r.lr:g}" for r in (tried[:1] + tried[-1:] if len(tried) > 1 else [])}
                told = ", ".join(f"{lr}, an edge" if lr in edges else lr for lr in sorted(taken))
                count = "all" if labels is None else labels
                rows.append(f"| {arm.name} | {stage} | {count} | {held_out} | {told or '-'} |")
    head = ["| arm | measure | labels | held out (%), by learning rate | taken |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows]) if rows else ""


def trial_score(trial: Result) -> str:
    """A learning rate and what came of it."""
    return f"{trial.lr:g}: " + ("diverged" if "diverged" in trial.facts else f"{trial.score:.2f}")


def page(study: Study, results: Sequence[Result], command: str) -> str:
    """A Markdown page: question, table, differences, rates that were tried, budget, how to run it."""
    devices = sorted({str(r.facts.get("device")) for r in results if r.facts.get("device")})
    commits = sorted({short(str(r.facts["commit"])) for r in results if r.facts.get("commit")})
    operations = [r.flops for r in results if r.stage != "knn"]  # 0 where an earlier version did not count
    counted = f", {sum(operations) / 1e12:.1f} TFLOP" if operations and all(operations) else ""
    seconds, begun = sum(r.seconds for r in results), sorted({r.seed for r in results})
    parts = [
        f"# {study.name}",
        study.question,
        table(study, results),
        "Mean ± standard deviation over seeds. Paired differences by seed with their 95 % intervals, of which one in "
        "twenty leaves out 0 by chance:",
        comparisons(study, results),
        pairs(study, results),
        rates(study, results),
        f"{len(results)} runs ({sum(r.stage == 'trial' for r in results)} trials of learning rates on a held-out "
        f"part), {seconds / 3600:.2f} hours of runs{counted}, seeds {', '.join(map(str, begun))} of "
        f"{', '.join(map(str, study.seeds))}; "
        f"commit {', '.join(commits) or 'unknown'}; {', '.join(devices) or 'hardware unknown'}. Run it with\n\n"
        f"```\n{command}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def short(commit: str) -> str:
    """A commit as a page names it, with the mark of a tree that had changes beside it."""
    number, _, mark = commit.partition("-")
    return number[:12] + (f"-{mark}" if mark else "")


def write_report(study: Study, results: Sequence[Result], out: Path, command: str) -> Path:
    """Write ``report.md`` with ``report.png`` and ``report.json`` into ``out``; return the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    picture = "\n![the measures](report.png)\n" if plot(study, results, out / "report.png") else ""
    numbers = {
        f"{arm.name}/{stage}/{labels or 'all'}": scores(results, arm.name, stage, labels)
        for arm in study.arms
        for stage, labels in columns(study)
    }
    save_text(out / "report.json", json.dumps(numbers, indent=1) + "\n")
    path = out / "report.md"
    save_text(path, page(study, results, command) + picture)
    return path
