"""Time and memory of cases, each in a separate process, forked after everything was imported."""

import contextlib
import io
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
from timing import core_seconds, with_resident_peak

import map_vision.cli
from map_core.tasks.evaluation import autocast
from map_core.tasks.weights import save_weights
from map_vision.factory import MODELS, create_model, input_size

Row = dict[str, Any]
CAP = 10.0  # core seconds: a longer pass is not repeated
GIVE_UP = 900.0  # seconds by the clock: a longer pass is killed
MIN_RUNS, MIN_SECONDS, MAX_RUNS = 5, 2.0, 15
GIGABYTES = 10  # a case that needs more fails


class Child:
    """A process that runs one case, one pass per request."""

    def __init__(self, case: Case, cap: float) -> None:
        self.cap = cap
        context = multiprocessing.get_context("fork")
        self.pipe, child_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(case, child_end), daemon=True)
        self.process.start()
        child_end.close()
        self.row = self.ask("first", GIVE_UP)
        self.passes: list[tuple[float, float]] = []  # seconds by the clock, seconds on the core

    def ask(self, what: str, limit: float) -> Row:
        """Send a request and wait for the answer; kill the process after ``limit`` seconds."""
        try:
            self.pipe.send(what)
            for _ in range(round(limit)):  # second by second: a suspension of the machine counts as one
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
        """Whether its passes run, and are short enough to be repeated."""
        return "first" in self.row and self.row["first"] <= 1e3 * self.cap

    def run(self) -> None:
        """Run a pass."""
        answer = self.ask("again", GIVE_UP)
        if "seconds" in answer:
            self.passes.append((answer["seconds"], answer["core"]))
        else:
            self.row |= answer
            self.row.pop("first", None)

    def end(self) -> Row:
        """End the process and return its measurements."""
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
    """Run cases alternately, each in a child: a first pass that warms up and measures memory, then at least five.

    Returns:
        For each case ``ms``, the median core time of a pass, which for one thread is the clock time on an idle machine;
        ``least``, the shortest core time; ``clock``, the median clock time; ``runs``; ``first``, the core time of the
        first pass; ``MB``, by which the peak of the resident set grew in it; ``parameters``. Or ``over``: a pass takes
        longer than the cap (with ``first`` if it ended at all); or ``failed``: the reason.
    """
    children = [Child(case, cap) for case in cases]
    start = time.monotonic()
    for round_number in range(MAX_RUNS):
        running = [child for child in children if child.repeats]
        if round_number >= MIN_RUNS and time.monotonic() - start > MIN_SECONDS:
            break
        for child in running:
            child.run()
    return [child.end() for child in children]


def _serve(case: Case, pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (GIGABYTES * 2**30, GIGABYTES * 2**30))
    with contextlib.ExitStack() as stack:
        try:
            if case.part == "commands":
                run, facts = stack.enter_context(prepare_command(case)), {}
            else:
                run, facts = prepare_pass(case)
            parent = os.getppid()
            while True:
                if not pipe.poll(1):
                    if os.getppid() != parent:
                        return  # the parent was killed; later children hold this pipe open
                    continue
                if pipe.recv() == "first":
                    seconds, megabytes = with_resident_peak(lambda: core_seconds(run))
                    pipe.send(facts | {"first": round(1e3 * seconds, 3), "MB": round(megabytes, 1)})
                    continue
                seconds, core = time.perf_counter(), time.process_time()
                run()
                pipe.send({"seconds": time.perf_counter() - seconds, "core": time.process_time() - core})
        except Exception as error:
            pipe.send({"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]})


def prepare_pass(case: Case) -> tuple[Callable[[], None], Row]:
    """A pass of a case, and the number of parameters of its module."""
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
def prepare_command(case: Case) -> Iterator[Callable[[], None]]:
    """A command that reads JPEG files and writes its results, as from a shell except for Python's start-up."""
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
            output = io.StringIO()
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                code = map_vision.cli.main()
            if code:
                raise RuntimeError(output.getvalue().strip()[-200:])

        yield run


SUFFIX = {"predict": "csv", "features": "npz"}
