"""Tables of the results of benchmarks/peers.py and of GPUs, which docs/tables.py writes into docs/performance.md."""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from map_core.study.report import short_commit

LAB = Path(__file__).parent / "lab"
Row = dict[str, Any]
IMAGENET = 1_281_167
STEPS = "steps (run 3: benchmarks/gpu_check.sh steps, out of time after five)"
GRAPH_STEPS, CUDA_GRAPH = "steps (run 2)", "one CUDA graph of forward and backward, a fixed draw"


def read_results() -> dict[str, Any]:
    """The results of benchmarks/peers.py."""
    return json.loads((LAB / "peers.json").read_text())


def select_rows(part: str, **conditions: Any) -> list[Row]:
    """The rows of a part that meet the conditions, a value for each key."""
    rows = [row for row in read_results()["cases"] if row["part"] == part]
    return [row for row in rows if all(row[key] == value for key, value in conditions.items())]


def number(value: float) -> str:
    """A number with three significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def milliseconds(row: Row) -> str:
    """A cell: the median, or what is known about a pass that exceeded the cap."""
    if "failed" in row:
        return "fails"
    if "over" in row:
        cap = f"> {1e3 * read_results()['cap_s']:.0f}"
        return f"{row['first']:.0f} (once)" if "first" in row else cap
    return number(row["ms"])


def markdown(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def grid(part: str, precision: str, cell: Callable[[Row], str] = milliseconds) -> str:
    """A table of contenders by tokens; each cell has forward and forward + backward."""
    rows = select_rows(part, precision=precision)
    sizes = list(dict.fromkeys((row["tokens"], row["batch"]) for row in rows))
    lines = []
    for what in dict.fromkeys(row["what"] for row in rows):
        contender_rows = [row for row in rows if row["what"] == what]
        parameters = next(row["parameters"] for row in contender_rows if "parameters" in row)
        line = [what, f"{parameters / 1e6:.2f}M"]
        for tokens, batch in sizes:
            passes = {
                row["kind"]: row for row in contender_rows if (row["tokens"], row["batch"]) == (tokens, batch)
            }
            line.append(
                " / ".join(cell(passes[kind]) if kind in passes else "-" for kind in ("forward", "both"))
            )
        lines.append(line)
    heading = [f"{tokens:,} x {batch}" for tokens, batch in sizes]
    return markdown(["tokens x sequences", "parameters", *heading], lines)


def machine() -> str:
    """Where and how the numbers were measured."""
    results = read_results()
    versions = ", ".join(
        f"{name} {results['versions'][name]}" for name in ("torch", "timm", "mambapy", "transformers")
    )
    commits = ", ".join(map(short_commit, results["commits"]))
    commits = f"commit{'s' if len(results['commits']) > 1 else ''} {commits}"
    return (
        f"`{results['command']}`, {results['date']}, {commits}: one core of an "
        f"{results['processor']} ({results['core']}, {results['isa']}), {versions}.\n"
    )


def blocks() -> str:
    """Blocks of one width: time in both precisions, memory."""
    memory = grid("blocks", "fp32", lambda row: f"{row['MB']:.0f}" if "MB" in row else "-")
    return (
        f"\n{machine()}\nfloat32, milliseconds, forward / forward + backward:\n\n{grid('blocks', 'fp32')}\n"
        f"bf16 (autocast):\n\n{grid('blocks', 'bf16')}\n"
        f"Memory in float32, MB by which the process grew in the first pass:\n\n{memory}\n"
    )


def crossover(what: str, kind: str) -> str:
    """From how many tokens on a model is faster than the Vision Transformer, interpolated between measured lengths."""
    ms_by_tokens = {}
    for name in (what, "ViT (timm)"):
        rows = select_rows("models", what=name, kind=kind, precision="fp32")
        ms_by_tokens[name] = {
            row["tokens"]: row.get("ms", row.get("first", math.nan)) / row["batch"] for row in rows
        }
    ratios = [
        (tokens, math.log(time / ms_by_tokens["ViT (timm)"][tokens]))
        for tokens, time in ms_by_tokens[what].items()
    ]
    for (shorter, before), (longer, after) in itertools.pairwise(ratios):
        if before > 0 >= after:
            fraction = before / (before - after)
            crossing = math.exp(math.log(shorter) + fraction * math.log(longer / shorter))
            return f"from about {round(crossing, -1):,.0f} tokens on"
    return "at every length" if ratios[0][1] <= 0 else "at none of these lengths"


def models() -> str:
    """Encoders of equal parameters, and where they cross."""
    crossovers = [
        f"{what}: {crossover(what, 'forward')} (forward), {crossover(what, 'both')} (forward + backward)."
        for what in ("hybrid", "Mamba")
    ]
    faster = "Faster than the Vision Transformer, in float32, between the lengths measured: " + " ".join(
        crossovers
    )
    return f"\nfloat32, milliseconds, forward / forward + backward:\n\n{grid('models', 'fp32')}\n{faster}\n\n"


def inference() -> str:
    """Latency of classifiers, and images per second of the classifiers and of the commands."""
    lines = []
    for what in dict.fromkeys(row["what"] for row in select_rows("inference")):
        alone, many = (select_rows("inference", what=what, batch=batch)[0] for batch in (1, 32))
        line = [
            what,
            f"{alone['parameters'] / 1e6:.2f}M",
            milliseconds(alone),
            milliseconds(many),
            number(32e3 / many["ms"]),
        ]
        for command in ("predict", "features"):
            rows = select_rows("commands", what=what, kind=command)
            line.append(number(1e3 * rows[0]["batch"] / rows[0]["ms"]) if rows else "-")
        lines.append(line)
    heading = ["", "parameters", "1 image, ms", "32 images, ms", "images/s", "`predict`, images/s"]
    return f"\n{markdown([*heading, '`features`, images/s'], lines)}\n"


def cost_fit() -> tuple[np.ndarray, float]:
    """c, a, b of ms = depth * (c + batch * (a * tokens + b * tokens^2)), and the largest relative error."""
    rows = select_rows("cost")
    depth, batch, tokens, ms = (
        np.array([row[key] for row in rows], float) for key in ("depth", "batch", "tokens", "ms")
    )
    terms = np.stack([depth, depth * batch * tokens, depth * batch * tokens**2], axis=1)
    fit = np.linalg.lstsq(terms / ms[:, None], np.ones_like(ms), rcond=None)[0]
    return fit, float(np.abs(terms @ fit / ms - 1).max())


def memory_fit() -> tuple[float, float]:
    """Kilobytes of memory per token and block of the training pass, and constant MB."""
    rows = select_rows("cost")
    block_tokens = np.array([row["tokens"] * row["batch"] * row["depth"] for row in rows], float)
    slope, constant = np.polyfit(block_tokens, [row["MB"] for row in rows], 1)
    return 1024 * slope, constant


def cost() -> str:
    """The fitted laws of time and memory."""
    (fixed, linear, quadratic), error = cost_fit()
    kilobytes, constant = memory_fit()
    break_even = linear / quadratic
    return (
        f"\nmilliseconds = depth x ({fixed:.1f} + {linear:.4f} x batch x tokens x (1 + tokens / {break_even:,.0f})), "
        f"within {100 * error:.0f} %: attention, which grows with the square, is as much as the rest at "
        f"{break_even:,.0f} tokens. Memory: {kilobytes:.1f} KB a token and block, and {constant:.0f} MB.\n\n"
    )


def gpu_results(card: str) -> dict[str, Any]:
    """The results of one card."""
    return json.loads((LAB / f"gpu_{card}.json").read_text())


def imagenet() -> str:
    """How long 1,600 epochs of ImageNet would take on eight cards, from one card's steps."""
    eager = [("H100, as they are", row) for row in gpu_results("h100")[STEPS]]
    captured = [
        ("H200, one CUDA graph", row) for row in gpu_results("h200")[GRAPH_STEPS] if row["how"] == CUDA_GRAPH
    ]
    lines = []
    for how, row in [*eager, *captured]:
        if row["task"] == "pretrain" and row.get("convolution") != "before":
            days = 1600 * IMAGENET / (8 * row["images/s"]) / 86400
            lines.append([row["model"], how, number(row["images/s"]), f"{days:.1f}"])
    return f"\n{markdown(['model', 'steps', 'images/s, one card', 'days on eight (estimate)'], lines)}\n"


def gpu_steps() -> str:
    """Whole steps on one H200, launched normally and captured in CUDA graphs."""
    lines = []
    for run in ("steps (run 1)", GRAPH_STEPS):
        for row in gpu_results("h200")[run]:
            how = row["how"] + (f"; convolution {row['convolution']}" if "convolution" in row else "")
            busy = [str(row[key]) if key in row else "" for key in ("device busy ms", "launches")]
            what, speed = [row["task"], row["model"], str(row["batch"]), how], number(1e3 * row["s a step"])
            lines.append([*what, speed, str(row["images/s"]), *busy, number(row["s until the third step"])])
    heading = ["task", "model", "batch", "how", "ms a step", "images/s", "device busy, ms", "launches"]
    return f"\n{markdown([*heading, 's until the third step'], lines)}\n"


def gpu_scans() -> str:
    """The Triton scan on one H200, two timings of each."""
    ((_, rows),) = ((key, rows) for key, rows in gpu_results("h200").items() if key.startswith("scans"))
    lines = [
        [f"{row['length']}, {row['batch']}"]
        + [" to ".join(number(ms) for ms in sorted(row[key])) for key in ("forward ms", "both ms")]
        + [str(row["MB"])]
        for row in rows
    ]
    return f"\n{markdown(['tokens, batch', 'forward, ms', 'forward + backward, ms', 'MB'], lines)}\n"


def gpu_convolutions() -> str:
    """Tilings of the Triton convolution on one H200: microseconds forward / backward."""
    runs = [rows for key, rows in gpu_results("h200").items() if key.startswith("convolutions")]
    shapes = list(dict.fromkeys(row["shape"] for row in runs[0]))
    lines = []
    for run, rows in enumerate(runs, start=2):
        for kernels in {str(row["kernels"]): row["kernels"] for row in rows}.values():
            by_shape = {row["shape"]: row for row in rows if row["kernels"] == kernels}
            cut = kernels if isinstance(kernels, str) else ", ".join(map(str, kernels.values()))
            cells = [
                f"{by_shape[shape]['forward us']:.0f} / {by_shape[shape]['backward us']:.0f}"
                for shape in shapes
            ]
            lines.append([str(run), cut, *cells])
    return f"\n{markdown(['run', 'channels, ahead, programs', *shapes], lines)}\n"


TABLES = {
    "blocks": blocks, "models": models, "inference": inference, "cost": cost, "imagenet": imagenet,
    "gpu_steps": gpu_steps, "gpu_scans": gpu_scans, "gpu_convolutions": gpu_convolutions,
}  # fmt: skip
