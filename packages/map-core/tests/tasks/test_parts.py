"""Results in parts: any number of processes writes what one does, and a killed command resumes."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from processes import TOYS, run_several, start, wait_for
from torch import nn
from toy_domain import DOMAIN, ToySamples

from map_core import UserError
from map_core.commands import results
from map_core.commands.listing import standard_commands
from map_core.commands.program import main
from map_core.runs.lock import RunLock
from map_core.tasks import parts
from map_core.tasks.evaluation import EvaluationConfig, collect
from map_core.tasks.parts import MOST_ROWS, is_intact, job_of, part_file, results_in_parts, rows_of_a_part

TRAINING = ("epochs=1", "batch_size=8", "warmup_epochs=0", "workers=0", "device=cpu", "tensorboard=false")
RUNNING = [f"--evaluation.{setting}" for setting in ("workers=0", "device=cpu", "progress=false")]
SETTINGS = EvaluationConfig(batch_size=3, workers=0, device="cpu", progress=False)
CPU = torch.device("cpu")


def run(*arguments):
    commands = standard_commands(DOMAIN, sample="toy")
    return main("map-toy", commands, DOMAIN.recipes, [str(part) for part in arguments])


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "finetune"
    training = [f"--training.{setting}" for setting in (*TRAINING, "progress=false")]
    assert run("finetune", *training, "--out", out) == 0
    return out


def arguments_of(classifier, command, out, batch_size=3):
    """Arguments of a command over 25 training samples and 10 others, in uneven shards; predict over 7 files."""
    arguments = [
        command,
        *RUNNING,
        f"--evaluation.batch_size={batch_size}",
        "--init",
        classifier,
        "--out",
        out,
    ]
    return arguments + (["--toys", *map(str, range(7))] if command == "predict" else ["--data.count=25"])


def result(out):
    """What a command wrote, without what depends on its time, memory and threads."""
    if out.suffix == ".npz":
        score = json.loads(out.with_suffix(".json").read_text())
        del score["peak_memory_bytes"], score["device"]  # which says how many threads there were
        return {name: value.tolist() for name, value in np.load(out).items()}, score
    if out.suffix == ".csv":
        return out.read_bytes()
    summary = json.loads((out / "summary.json").read_text())
    return {key: value for key, value in summary.items() if key.startswith("test_") or key == "toys"}


@pytest.mark.parametrize(
    ("command", "name", "processes"),
    [("features", "f.npz", 3), ("predict", "p.csv", 2), ("evaluate", "e", 2)],
)
def test_several_processes_write_what_one_does(tmp_path, classifier, command, name, processes):
    """To the last bit: a part holds whole batches, so that every batch is one that a single process has, too."""
    one, several = tmp_path / "one" / name, tmp_path / "several" / name
    assert run(*arguments_of(classifier, command, one)) == 0
    arguments = arguments_of(classifier, command, several)
    printed = run_several(TOYS / "toy_program.py", *arguments, processes=processes)
    assert result(several) == result(one)
    assert printed.count(f"-> {several}") == 1, "more than one process printed, or none"
    assert sorted(path.name for path in several.parent.iterdir()) == sorted(
        path.name for path in one.parent.iterdir()
    )


@pytest.mark.parametrize(
    ("command", "name"), [("features", "f.npz"), ("predict", "p.csv"), ("evaluate", "e")]
)
def test_a_killed_command_goes_on_after_its_last_finished_part(tmp_path, classifier, capsys, command, name):
    arguments = arguments_of(classifier, command, tmp_path / name, batch_size=1)
    uninterrupted = arguments_of(classifier, command, tmp_path / "whole" / name, batch_size=1)
    parts = tmp_path / f"{name}.parts"
    process = start("slow_program.py", *arguments)
    wait_for(lambda: len(list(parts.rglob("0*.npz"))) >= 3, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finished = {path: path.stat().st_mtime_ns for path in parts.rglob("0*.npz")}
    assert not (tmp_path / name).exists()
    assert run(*arguments) == 0
    assert f": {len(finished)} of " in capsys.readouterr().err
    assert not parts.exists()
    assert run(*uninterrupted) == 0
    assert result(tmp_path / name) == result(tmp_path / "whole" / name)


class Counting(ToySamples):
    """Records which samples are read."""

    def __init__(self, count, **options):
        super().__init__(count, **options)
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


def function(inputs):
    return inputs.flatten(1)


def config_of(classifier, **sections):
    return SimpleNamespace(init=str(classifier), evaluation=SETTINGS, **sections)


class Killed(Exception):
    pass


def begin(out, config, samples, stop_at):
    """Be killed when sample ``stop_at`` is reached."""

    def stopping(inputs):
        if stop_at in samples.read:
            raise Killed
        return function(inputs)

    with pytest.raises(Killed), results_in_parts(out, config) as parts:
        parts.collector("x")(stopping, samples, SETTINGS, CPU)


@pytest.fixture
def plain(monkeypatch):
    """Configurations of these tests are simple namespaces."""
    monkeypatch.setattr(
        "map_core.tasks.parts.to_serializable", lambda config: vars(config) | {"evaluation": {}}
    )


def test_only_what_is_missing_or_damaged_is_read_again(tmp_path, classifier, plain):
    """Samples 0 to 8 were finished; the part of 3 to 5 is cut off then."""
    out, config = tmp_path / "f.npz", config_of(classifier)
    begin(out, config, Counting(20), stop_at=9)
    folder = tmp_path / "f.npz.parts/x_00000"
    assert sorted(path.name for path in folder.glob("*.npz")) == [f"{part:08}.npz" for part in range(3)]
    damaged = part_file(folder, 1)
    damaged.write_bytes(damaged.read_bytes()[:-30])
    samples = Counting(20)
    with results_in_parts(out, config) as parts:
        values, labels = parts.collector("x")(function, samples, SETTINGS, CPU)
        assert parts.computed == 14
    assert samples.read == [3, 4, 5, *range(9, 20)]
    expected = collect(function, ToySamples(20), SETTINGS, CPU)
    assert torch.equal(values, expected[0])
    assert torch.equal(labels, expected[1])
    assert not folder.parent.exists()


def test_a_flipped_bit_is_noticed(tmp_path, classifier, plain):
    out, config = tmp_path / "f.npz", config_of(classifier)
    begin(out, config, Counting(20), stop_at=9)
    file = part_file(tmp_path / "f.npz.parts/x_00000", 0)
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    file.write_bytes(content)
    samples = Counting(20)
    with results_in_parts(out, config) as parts:
        parts.collector("x")(function, samples, SETTINGS, CPU)
    assert samples.read == [0, 1, 2, *range(9, 20)]


def test_a_part_that_counts_as_whole_holds_what_was_written(tmp_path):
    """A flipped bit makes a part be computed again, unless it lies where no value does (in a date, say)."""
    file, arrays = tmp_path / "part.npz", {"values": np.arange(6.0), "labels": np.arange(3)}
    np.savez(file, **arrays)
    content = file.read_bytes()
    for offset in range(len(content)):
        for bit in (0, 3, 6):
            file.write_bytes(content[:offset] + bytes([content[offset] ^ 1 << bit]) + content[offset + 1 :])
            if is_intact(file):
                with np.load(file) as part:
                    assert all(np.array_equal(part[name], array) for name, array in arrays.items())


@pytest.mark.parametrize("difference", ["setting", "weights", "description", "count", "names"])
def test_parts_of_another_command_are_not_reused(tmp_path, classifier, plain, capsys, difference):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    out = tmp_path / "f.npz"
    begin(out, config_of(weights, data=1), Counting(20), stop_at=9)
    if difference == "weights":
        weights.write_bytes(b"two")
    if difference == "description":  # where a model's heads are, of which the weights know nothing
        weights.with_suffix(".json").write_text('{"arguments": {"num_heads": 4}}')
    samples = Counting(19 if difference == "count" else 20, first=difference == "names")
    with results_in_parts(out, config_of(weights, data=2 if difference == "setting" else 1)) as parts:
        values, _ = parts.collector("x")(function, samples, SETTINGS, CPU)
    assert samples.read == list(range(len(samples)))
    assert len(values) == len(samples)
    assert (
        "x_00000 holds parts of other settings, weights or samples: they are replaced"
        in capsys.readouterr().err
    )


def test_parts_are_reused_under_settings_that_do_not_change_them(tmp_path, classifier, plain):
    out = tmp_path / "f.npz"
    begin(out, config_of(classifier, top=1, neighbors=5), Counting(20), stop_at=9)
    samples = Counting(20)
    with results_in_parts(out, config_of(classifier, top=3, neighbors=7)) as parts:
        parts.collector("x")(function, samples, SETTINGS, CPU)
    assert samples.read == list(range(9, 20))


def test_other_files_stay(tmp_path, classifier, plain):
    folder = tmp_path / "f.npz.parts/x_00000"
    folder.mkdir(parents=True)
    (folder / "mine").write_text("precious")
    with (
        pytest.raises(
            UserError, match=r"x_00000 holds files that are not parts of results; choose another --out"
        ),
        results_in_parts(tmp_path / "f.npz", config_of(classifier)) as parts,
    ):
        parts.collector("x")(function, ToySamples(20), SETTINGS, CPU)
    assert (folder / "mine").read_text() == "precious"


@pytest.mark.parametrize(
    "names",
    [
        (),
        (".unfinished_manifest.json",),
        ("00000000.npz", "values.npy"),
        (".nfs000000000012", "labels.npy", "manifest.json"),
    ],
)
def test_what_a_kill_left_of_a_pass_is_replaced(tmp_path, classifier, plain, names):
    """The kill may have come while the pass was begun or removed."""
    folders = [tmp_path / "f.npz.parts" / name for name in ("x_00000", "y_00000", ".removing_z_00000")]
    for folder in folders:
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_text("half")
    samples = Counting(20)
    with results_in_parts(tmp_path / "f.npz", config_of(classifier)) as parts:
        values, _ = parts.collector("x")(function, samples, SETTINGS, CPU)
    assert samples.read == list(range(20))
    assert torch.equal(values, collect(function, ToySamples(20), SETTINGS, CPU)[0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["shutil.rmtree", "pathlib.Path.rename"])
def test_a_finished_command_succeeds_where_its_parts_cannot_be_removed(
    tmp_path, classifier, plain, monkeypatch, place
):
    """As on a network file system, while their values are mapped into memory."""

    def refuse(path, target=None, ignore_errors=False, **options):
        if not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    out, config = tmp_path / "f.npz", config_of(classifier)
    with monkeypatch.context() as patch, results_in_parts(out, config) as parts:
        parts.collector("x")(function, ToySamples(20), SETTINGS, CPU)
        patch.setattr(place, refuse)
    samples = Counting(20)
    with results_in_parts(out, config) as parts:  # whatever stayed is in nobody's way
        parts.collector("x")(function, samples, SETTINGS, CPU)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_somebody_else_among_the_parts_stays(tmp_path, classifier, plain):
    folder = tmp_path / "f.npz.parts/notes_2026"
    folder.mkdir(parents=True)
    (folder / "mine").write_text("precious")
    with results_in_parts(tmp_path / "f.npz", config_of(classifier)) as parts:
        parts.collector("x")(function, ToySamples(20), SETTINGS, CPU)
    assert [path.name for path in folder.parent.iterdir()] == ["notes_2026"]
    assert (folder / "mine").read_text() == "precious"


def test_a_second_command_at_the_same_place_is_refused(tmp_path, classifier):
    with RunLock(tmp_path / "f.npz.parts") as lock:
        lock.acquire()
        process = start("toy_program.py", *arguments_of(classifier, "features", tmp_path / "f.npz"))
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "f.npz.parts is in use by process" in errors


@pytest.fixture
def small_disk():
    """Limits the size of files, such as to what a part needs but the whole exceeds."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_keeps_the_finished_parts_and_the_command_resumes(
    tmp_path, classifier, capsys, small_disk
):
    """Parts fit; their merged file does not."""
    out = tmp_path / "f.npz"
    arguments = arguments_of(classifier, "features", out)
    small_disk(800)
    assert run(*arguments) == 2
    small_disk(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("map-toy: error: cannot write results ([Errno 27] File too large")
    assert message.endswith(
        f"the parts that were finished are kept in {out}.parts: check that disk, then give the same command again, "
        "which goes on from them"
    )
    assert not out.exists()
    assert len(list(tmp_path.rglob("0*.npz"))) == 9
    assert run(*arguments) == 0
    assert "train_00000: 9 of 9 parts are there already" in capsys.readouterr().err
    assert run(*arguments_of(classifier, "features", tmp_path / "whole.npz")) == 0
    assert result(out) == result(tmp_path / "whole.npz")


@pytest.mark.parametrize("exists", [False, True])
def test_a_disk_that_is_full_at_an_evaluation_s_summary_keeps_its_parts(
    tmp_path, classifier, capsys, monkeypatch, exists
):
    out = tmp_path / "e"
    if exists:
        out.mkdir()

    def refuse(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(results, "write_summary", refuse)
        assert run(*arguments_of(classifier, "evaluate", out)) == 2
    assert capsys.readouterr().err.startswith("map-toy: error: the disk is full")
    assert run(*arguments_of(classifier, "evaluate", out)) == 0
    assert "evaluation_00000: 4 of 4 parts are there already" in capsys.readouterr().err
    assert result(out)["toys"] == 10
    assert [path.name for path in tmp_path.iterdir()] == ["e"]
    assert [path.name for path in out.iterdir()] == ["summary.json"]


@pytest.mark.parametrize("command", ["predict", "features"])
def test_a_full_disk_is_reported_in_one_sentence(tmp_path, classifier, capsys, small_disk, command):
    out = tmp_path / "x"
    small_disk(500)  # less than a part
    assert run(*arguments_of(classifier, command, out)) == 2
    small_disk(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert capsys.readouterr().err.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(("place", "name"), [(Path, "mkdir"), (Path, "rename")])
def test_a_disk_that_refuses_the_folder_of_a_pass_is_reported(tmp_path, monkeypatch, place, name):
    folder = tmp_path / "out.csv.parts" / "predictions_00000"
    parts.begin(folder, {"job": "one"}, [range(2)])

    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(place, name, refuse)
    message = (
        rf"cannot write results \(.*Read-only.*\); .* kept in {folder.parent}: check that disk, then give the"
    )
    with pytest.raises(UserError, match=message):
        parts.begin(folder, {"job": "another"}, [range(2)])


def test_work_that_fails_before_its_first_part_leaves_nothing(tmp_path, classifier):
    def refuse(inputs):
        raise UserError("an unreadable file")

    out = tmp_path / "here/f.npz"
    with (
        pytest.raises(UserError, match="an unreadable file"),
        results_in_parts(out, config_of(classifier)) as parts,
    ):
        parts.collector("x")(refuse, ToySamples(20), SETTINGS, CPU)
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("count", [1, 5, 127, 128, 129, 33_000, 1_281_167])
@pytest.mark.parametrize("batch_size", [1, 3, 128, 10_000])
def test_parts_hold_whole_batches_and_fit_into_memory(count, batch_size):
    rows = rows_of_a_part(count, batch_size)
    assert rows % batch_size == 0
    assert rows <= max(MOST_ROWS, batch_size)
    assert -(-count // rows) <= max(513, count / MOST_ROWS * 2)


def test_a_result_for_a_pipe_has_its_parts_elsewhere(tmp_path, classifier):
    """Nothing is left beside ``/dev/stdout``."""
    command = [
        sys.executable,
        str(TOYS / "toy_program.py"),
        *arguments_of(classifier, "predict", "/dev/stdout"),
    ]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert process.returncode == 0, process.stderr[-3000:]
    header, *rows = process.stdout.splitlines()
    assert header.startswith("toy,class_1")
    assert [row.count(",") for row in rows] == [header.count(",")] * len(rows), "more than the table"
    assert f"{len(rows)} toys -> /dev/stdout" in process.stderr
    assert [path for path in tmp_path.iterdir() if path.name.startswith("tmp")] == []
    assert not Path("/dev/stdout.parts").exists()


def test_values_are_memory_mapped(tmp_path, classifier, plain):
    with results_in_parts(tmp_path / "f.npz", config_of(classifier)) as parts:
        values, _ = parts.collector("x")(nn.Flatten(), ToySamples(20), SETTINGS, CPU)
        maps = Path("/proc/self/maps").read_text()
        assert str(tmp_path / "f.npz.parts/x_00000/values.npy") in maps
    assert values.shape == (20, 48)


def test_a_file_of_labels_or_statistics_counts_by_its_content(tmp_path):
    @dataclass
    class Data:
        labels: str | None
        statistics: str | None = None

    files = {name: tmp_path / f"{name}.csv" for name in ("one", "same", "other")}
    for name, file in files.items():
        file.write_text("b" if name == "other" else "a")
    jobs = {name: job_of({"data": Data(str(file), str(file))}) for name, file in files.items()}
    assert jobs["one"] == jobs["same"] != jobs["other"]
    unread = {"labels": None, "statistics": "none.json"}  # which no command of files reads
    assert job_of({"data": Data(**unread)}) == {"data": unread}


@pytest.mark.parametrize(
    ("setting", "value", "counts"),
    [
        ("precision", "bf16", True),
        ("batch_size", 7, True),
        ("protocol", "vote_10", True),  # of clouds, like the seed
        ("seed", 1, True),
        ("workers", 2, False),
        ("progress", True, False),
    ],
)
def test_parts_are_of_the_evaluation_s_settings_that_change_results(setting, value, counts):
    evaluation = {
        "batch_size": 3,
        "workers": 0,
        "precision": "fp32",
        "progress": False,
        "protocol": "no_vote",
        "seed": 0,
    }
    jobs = [job_of({"evaluation": settings}) for settings in (evaluation, evaluation | {setting: value})]
    assert (jobs[0] != jobs[1]) is counts


def test_parts_of_an_earlier_command_s_other_passes_are_removed_with_the_result(tmp_path, classifier, plain):
    out, config = tmp_path / "f.npz", config_of(classifier)
    begin(out, config, Counting(20), stop_at=9)
    with results_in_parts(out, config) as parts:
        parts.collector("y")(function, ToySamples(20), SETTINGS, CPU)
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_full_keeps_no_parts_and_says_so(tmp_path, classifier, capsys, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run(*arguments_of(classifier, "predict", "/dev/full")) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("map-toy: error: the disk is full")
    assert message.endswith("parts are kept only beside a file: check that disk, then start anew")
    assert list(tmp_path.iterdir()) == []
