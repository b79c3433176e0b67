"""Time and memory of one case, in a process of its own that is forked after everything was imported."""

import contextlib
import ctypes
import gc
import io
import math
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cpu.cases import Case
from cpu.contenders import make, model_config
from PIL import Image

import map_vision.cli
from map_core.tasks.evaluation import autocast
from map_core.tasks.weights import save_weights
from map_vision.factory import MODELS, create_model, input_size

Row = dict[str, Any]
CAP = 10.0  # seconds a pass: what takes longer is not repeated
LEAST_RUNS, LEAST_SECONDS, MOST_RUNS = 5, 0.4, 30
GIGABYTES = 10  # a case that wants more fails


def measure(case: Case) -> Row:
    """Run a case in a child: the first pass for memory and to warm up, then at least five.

    Returns:
        ``ms`` (the median), ``least`` and ``runs``, ``MB`` (growth of the peak resident set in the first pass) and
        ``parameters``; or ``over``, that a pass takes longer than the cap; or ``failed``, why.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(case, there))
    child.start()
    there.close()
    row: Row = {}
    with contextlib.suppress(EOFError):  # it died
        for limit in (2 * CAP, (LEAST_RUNS + 1) * CAP):
            if not here.poll(limit):
                row["over"] = True
                break
            row |= here.recv()
            if "over" in row or "failed" in row:
                break
    child.kill()
    child.join()
    if not row:
        row["failed"] = f"ended with {child.exitcode}"
    return row


def _child(case: Case, to: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (GIGABYTES * 2**30, GIGABYTES * 2**30))
    try:
        if case.part == "commands":
            with prepared_command(case) as run:
                _repeat(run, to, {})
            return
        run, parameters = prepared_pass(case)
        _repeat(run, to, {"parameters": parameters})
    except Exception as error:
        to.send({"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]})


def _repeat(run: Callable[[], object], to: Connection, known: Row) -> None:
    first, megabytes = first_pass(run)
    row = known | {"first": round(1e3 * first, 3), "MB": round(megabytes, 1)}
    if first > CAP:
        to.send(row | {"over": True})
        return
    to.send(row)
    seconds: list[float] = []
    while len(seconds) < LEAST_RUNS or (sum(seconds) < LEAST_SECONDS and len(seconds) < MOST_RUNS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    to.send(
        {
            "ms": round(1e3 * statistics.median(seconds), 3),
            "least": round(1e3 * min(seconds), 3),
            "runs": len(seconds),
        }
    )


def prepared_pass(case: Case) -> tuple[Callable[[], None], int]:
    """A pass of a case, and how many parameters its module has."""
    module, inputs = make(case)
    device = torch.device("cpu")
    both = case.kind == "both"
    module.train(both)
    inputs.requires_grad_(both and case.part == "blocks")

    def run() -> None:
        with torch.set_grad_enabled(both), autocast(device, case.precision):
            y = module(inputs)
        if both:
            y.float().sum().backward()
            module.zero_grad(set_to_none=True)
            inputs.grad = None

    return run, sum(parameter.numel() for parameter in module.parameters())


@contextlib.contextmanager
def prepared_command(case: Case) -> Iterator[Callable[[], None]]:
    """A command that reads JPEG files and writes its results, as from a shell but for Python's start."""
    config = model_config(case.what)
    _, height, width = input_size(config)
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index in range(case.batch):
            coarse = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            image.save(folder / f"{index:04}.jpg")
        classes = [f"class {index}" for index in range(10)]
        description = MODELS.describe(
            config, task="finetune", holds="classifier", weights="model", classes=classes
        )
        torch.manual_seed(0)
        save_weights(
            folder / "model.safetensors", create_model(config, len(classes)).state_dict(), description
        )
        count = 0

        def run() -> None:
            nonlocal count
            count += 1
            sys.argv = ["map-vision", case.kind, "--init", str(folder / "model.safetensors")]
            sys.argv += ["--images", str(folder), "--out", str(folder / f"out{count}.{SUFFIX[case.kind]}")]
            sys.argv += ["--evaluation.batch_size", "32", "--evaluation.workers", "0"]
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                code = map_vision.cli.main()
            if code:
                raise RuntimeError(said.getvalue().strip()[-200:])

        yield run


SUFFIX = {"predict": "csv", "features": "npz"}


def first_pass(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a pass, and megabytes by which the peak of the resident set grew in it (nan off Linux)."""
    gc.collect()
    before = math.nan
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        before = resident("VmRSS")
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    return seconds, (resident("VmHWM") - before) / 1024 if before == before else math.nan


def resident(field: str) -> float:
    """Kilobytes of the process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field))
