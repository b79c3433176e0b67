"""Time and memory of cases, each in a process of its own that is forked after everything was imported."""

import contextlib
import ctypes
import gc
import io
import math
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
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
CAP, ONCE = (
    10.0,
    900.0,
)  # seconds a pass: what takes longer (of the core) is not repeated, or (by the clock) given up
LEAST_RUNS, LEAST_SECONDS, MOST_RUNS = 5, 2.0, 15
GIGABYTES = 10  # a case that wants more fails


class Child:
    """A process that runs one case, a pass whenever it is told to."""

    def __init__(self, case: Case, cap: float) -> None:
        self.cap = cap
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(case, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.row = self.ask("first", ONCE)
        self.passes: list[tuple[float, float]] = []  # seconds, and those that it had the core

    def ask(self, what: str, limit: float) -> Row:
        """Have it do something, and wait for the answer; or for so many seconds, and end it."""
        try:
            self.pipe.send(what)
            for _ in range(round(limit)):  # second by second: one in which all was suspended counts as one
                if self.pipe.poll(1):
                    answer: Row = self.pipe.recv()
                    return answer
        except (EOFError, OSError):  # it died
            self.process.join()
            return {"failed": f"ended with {self.process.exitcode}"}
        self.process.kill()
        return {"over": True}

    @property
    def repeats(self) -> bool:
        """Whether its passes are short enough to be repeated, and run."""
        return "first" in self.row and self.row["first"] <= 1e3 * self.cap

    def run(self) -> None:
        """Run a pass."""
        answer = self.ask("again", ONCE)
        if "seconds" in answer:
            self.passes.append((answer["seconds"], answer["core"]))
        else:
            self.row |= answer
            self.row.pop("first", None)

    def end(self) -> Row:
        """What was measured."""
        self.process.kill()
        self.process.join()
        if self.repeats:
            clock, core = zip(*self.passes, strict=True)
            self.row |= {
                "ms": round(1e3 * statistics.median(core), 3),
                "least": round(1e3 * min(core), 3),
                "clock": round(1e3 * statistics.median(clock), 3),
                "runs": len(core),
            }
        elif "first" in self.row:
            self.row["over"] = True
        return self.row


def measure(cases: Sequence[Case], cap: float = CAP) -> list[Row]:
    """Run cases alternately, each in a child: a first pass for memory and to warm up, then at least five.

    Returns:
        For each ``ms``, the median time that a pass had the core, which is what an idle machine's clock shows of one
        thread; ``least`` of it; ``clock``, the median by the clock; ``runs``; ``first``, of the first pass, and ``MB``,
        by which the peak of the resident set grew in it; ``parameters``. Or ``over``, that a pass takes longer than
        the cap (and ``first`` where it was waited for); or ``failed``, why.
    """
    children = [Child(case, cap) for case in cases]
    start = time.monotonic()
    for rounds in range(MOST_RUNS):
        running = [child for child in children if child.repeats]
        if rounds >= LEAST_RUNS and time.monotonic() - start > LEAST_SECONDS:
            break
        for child in running:
            child.run()
    return [child.end() for child in children]


def _serve(case: Case, pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (GIGABYTES * 2**30, GIGABYTES * 2**30))
    with contextlib.ExitStack() as stack:
        try:
            if case.part == "commands":
                run, known = stack.enter_context(prepared_command(case)), {}
            else:
                run, known = prepared_pass(case)
            parent = os.getppid()
            while True:
                if not pipe.poll(1):
                    if os.getppid() != parent:
                        return  # it was killed; later children hold this pipe open
                    continue
                if pipe.recv() == "first":
                    seconds, megabytes = first_pass(run)
                    pipe.send(known | {"first": round(1e3 * seconds, 3), "MB": round(megabytes, 1)})
                    continue
                seconds, core = time.perf_counter(), time.process_time()
                run()
                pipe.send({"seconds": time.perf_counter() - seconds, "core": time.process_time() - core})
        except Exception as error:
            pipe.send({"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]})


def prepared_pass(case: Case) -> tuple[Callable[[], None], Row]:
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

    return run, {"parameters": sum(parameter.numel() for parameter in module.parameters())}


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
    """Core seconds of a pass, and megabytes by which the peak of the resident set grew in it (nan off Linux)."""
    gc.collect()
    before = math.nan
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        before = resident("VmRSS")
    start = time.process_time()
    run()
    seconds = time.process_time() - start
    return seconds, (resident("VmHWM") - before) / 1024 if before == before else math.nan


def resident(field: str) -> float:
    """Kilobytes of the process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field))
