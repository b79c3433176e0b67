"""Checkpoints: no code in them runs, and what mmengine writes is read back bit for bit."""

import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from processes import wait_for
from torch import nn

import map_dense.checkpoints
import map_dense.loops
from map_core.errors import UserError
from map_dense.checkpoints import load_from_local
from map_dense.stopping import StoppableCheckpointHook


class CallOnUnpickling:
    """An attacker's object: unpickling it would call a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class NumpyPickle:
    """Pickles as a numpy data type with a state of the attacker's choice."""

    def __init__(self, name: str, state: tuple[Any, ...]) -> None:
        self.parts = (np.dtype, (name, False, True), state)

    def __reduce__(self) -> Any:
        return self.parts


class Regression(BaseModel):
    """The smallest model that a runner can train."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 1)

    def forward(self, inputs: list[torch.Tensor], mode: str = "tensor") -> Any:
        return {"loss": self.layer(torch.stack(inputs)).square().mean()}


class Numbers:
    """Eight samples, with a ``data_root`` that is never read."""

    def __init__(self, data_root: str) -> None:
        self.data_root = data_root

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"inputs": torch.full((2,), float(index))}


def runner(
    folder: Path, iterations: int, *, hook: type[Hook] = CheckpointHook, workers: int = 0, **settings: Any
) -> Runner:
    return Runner(
        Regression(),
        str(folder),
        train_dataloader=dict(
            batch_size=2,
            dataset=dict(type=Numbers, data_root="nowhere"),
            sampler=dict(type=DefaultSampler, shuffle=False),
            num_workers=workers,
        ),
        train_cfg=dict(type="DataRootIterBasedTrainLoop", max_iters=iterations),
        optim_wrapper=dict(optimizer=dict(type="AdamW", lr=0.1)),
        param_scheduler=dict(type="PolyLR", by_epoch=False, begin=0, end=8),
        default_hooks=dict(
            checkpoint=dict(type=hook, by_epoch=False, interval=2),
            logger=dict(type="LoggerHook", interval=1),
        ),
        randomness=dict(seed=0),
        experiment_name=f"{folder.name}_{iterations}",
        cfg=Config(dict(a=1)),
        **settings,
    )


def test_a_resumed_run_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    undisturbed = runner(tmp_path / "whole", 8)
    undisturbed.train()
    runner(tmp_path / "half", 4).train()
    resumed = runner(tmp_path / "resumed", 8, load_from=str(tmp_path / "half" / "iter_4.pth"), resume=True)
    resumed.train()
    assert resumed.iter == 8
    for one, other in zip(undisturbed.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    whole, again = (r.message_hub.get_scalar("train/loss") for r in (undisturbed, resumed))
    assert type(again) is HistoryBuffer
    for one, other in zip(whole.data, again.data, strict=True):
        assert type(other) is np.ndarray
        np.testing.assert_array_equal(one[-4:], other[-4:])
        np.testing.assert_array_equal(one, other)


class Terminate(Hook):
    """Sends this process SIGTERM in its fourth iteration."""

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if batch_idx == 3:
            os.kill(os.getpid(), signal.SIGTERM)


class AwaitSignal(Hook):
    """Writes a file in the third iteration, then waits until the training is asked to stop."""

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if batch_idx == 2:
            Path(runner.work_dir, "ready").touch()
            while not any(getattr(hook, "stop_requested", False) for hook in runner.hooks):
                time.sleep(0.01)
            time.sleep(0.5)  # PyTorch's error for a killed loading process would be raised here


def train_until_signalled(folder: Path) -> None:
    runner(folder, 8, hook=StoppableCheckpointHook, workers=1, custom_hooks=[AwaitSignal()]).train()


def test_sigterm_to_the_group_saves_the_iteration_in_progress_from_which_a_run_resumes(
    tmp_path: Path,
) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    imported_from = [str(Path(file).parent) for file in (__file__, warm.__file__)]
    code = (
        f"import sys, pathlib; sys.path += {imported_from!r}\n"
        "import test_checkpoints\n"
        "test_checkpoints.train_until_signalled(pathlib.Path(sys.argv[1]))"
    )
    stopped = warm.Program("-c", code, tmp_path / "stopped")
    wait_for((tmp_path / "stopped" / "ready").exists, stopped)
    os.killpg(stopped.pid, signal.SIGTERM)
    _, errors = stopped.communicate(timeout=60)
    assert stopped.returncode == 128 + signal.SIGTERM, errors
    checkpoint = (tmp_path / "stopped" / "last_checkpoint").read_text()
    assert Path(checkpoint).name == "iter_3.pth"
    resumed = runner(tmp_path / "resumed", 8, hook=StoppableCheckpointHook, load_from=checkpoint, resume=True)
    undisturbed = runner(tmp_path / "undisturbed", 8)
    for run in (resumed, undisturbed):
        run.train()
    for one, other in zip(undisturbed.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert signal.getsignal(signal.SIGTERM) == handler


def test_sigterm_in_an_iteration_that_is_saved_anyway_writes_its_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, written, save = signal.getsignal(signal.SIGTERM), [], Runner.save_checkpoint

    def save_and_note(self: Runner, out_dir: str, filename: str, *arguments: Any, **settings: Any) -> None:
        written.append(filename)
        save(self, out_dir, filename, *arguments, **settings)

    monkeypatch.setattr(Runner, "save_checkpoint", save_and_note)
    stopped = runner(tmp_path, 8, hook=StoppableCheckpointHook, custom_hooks=[Terminate()])
    with pytest.raises(SystemExit) as error:
        stopped.train()
    assert error.value.code == 128 + signal.SIGTERM
    assert written == ["iter_2.pth", "iter_4.pth"]
    assert signal.getsignal(signal.SIGTERM) == handler


@pytest.mark.parametrize(
    "value",
    [
        np.float64(0.25),
        np.float32(-1.5),
        np.int64(-7),
        np.bool_(True),
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.array([], dtype=np.float32),
        np.array(3.0),
        np.arange(3, dtype=">i4"),
        {"nested": [np.arange(2), {"deep": np.float32(1.0)}]},
        ("classes", 1, None, True, 2.5),
        {1, 2},
    ],
    ids=repr,
)
def test_plain_values_come_back_as_they_were(tmp_path: Path, value: Any) -> None:
    torch.save({"state_dict": {"w": torch.ones(1)}, "value": value}, tmp_path / "file.pth")
    loaded = load_from_local(str(tmp_path / "file.pth"))["value"]
    assert type(loaded) is type(value)
    np.testing.assert_equal(loaded, value)
    if isinstance(value, np.ndarray):
        assert loaded.dtype == value.dtype
        assert loaded.flags.writeable


def test_a_log_buffer_without_values_comes_back(tmp_path: Path) -> None:
    torch.save({"hub": HistoryBuffer()}, tmp_path / "file.pth")
    buffer = load_from_local(str(tmp_path / "file.pth"))["hub"]
    buffer.update(2.0)
    assert buffer.mean() == 2.0


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("resume", [False, True], ids=["load_from", "resume"])
def test_a_file_that_would_run_a_command_is_refused_by_name(
    tmp_path: Path, resume: bool, legacy: bool
) -> None:
    marker, file = tmp_path / "marker", tmp_path / "evil.pth"
    payload = CallOnUnpickling(os.system, f"touch {marker}")
    torch.save(
        {"state_dict": {}, "meta": {"x": payload}, "message_hub": {}},
        file,
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(
        UserError, match=rf"{file} was not loaded: .* holds posix\.system, which could run code"
    ):
        runner(tmp_path / "work", 1, load_from=str(file), resume=resume).train()
    assert not marker.exists()


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (eval, ("1",)),
        (getattr, (HistoryBuffer, "__init__")),
        (np.load, ("file",)),
        (Config.fromstring, ("a=1", ".py")),
    ],
    ids=["eval", "getattr", "numpy.load", "Config"],
)
def test_no_other_function_is_called(tmp_path: Path, function: Any, arguments: tuple[Any, ...]) -> None:
    torch.save({"x": CallOnUnpickling(function, *arguments)}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"evil\.pth (was not loaded|cannot be read)"):
        load_from_local(str(tmp_path / "evil.pth"))


PLAIN_STATE = (3, "<", None, None, None, -1, -1, 0)


@pytest.mark.parametrize(
    "number",
    [
        NumpyPickle("O8", (3, "|", None, None, None, -1, -1, 63)),
        NumpyPickle("i8", (3, "<", None, None, None, -1, -1, 63)),
        NumpyPickle("i8", (3, "<", None, None, None, 1 << 40, -1, 0)),
        NumpyPickle("V8", (3, "|", (np.dtype("i4"), (2,)), None, None, 8, 1, 0)),
        NumpyPickle("i8", (3, "<", None, ("a",), {"a": (np.dtype("i8"), 0)}, 8, 1, 16)),
        NumpyPickle("M8[s]", PLAIN_STATE),
    ],
    ids=["objects", "object flag", "size", "subarray", "fields", "times"],
)
def test_numpys_data_types_are_not_rebuilt_by_the_file(tmp_path: Path, number: NumpyPickle) -> None:
    torch.save({"x": number}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"evil\.pth was not loaded: besides weights it holds "):
        load_from_local(str(tmp_path / "evil.pth"))


def test_an_array_of_objects_is_refused(tmp_path: Path) -> None:
    torch.save({"x": np.array([{}, []], dtype=object)}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"evil\.pth was not loaded: .*data type 'O8'"):
        load_from_local(str(tmp_path / "evil.pth"))


def test_a_log_buffers_statistics_are_mmengines(tmp_path: Path) -> None:
    """A file that names another method for the mean does not change the mean of every buffer in the process."""
    torch.save({"hub": HistoryBuffer([1.0, 2.0], [1, 1])}, tmp_path / "file.pth")
    changed = HistoryBuffer([1.0, 2.0], [1, 1])
    changed._statistics_methods = {"mean": HistoryBuffer.max}
    torch.save({"hub": changed}, tmp_path / "evil.pth")
    for name in ("evil.pth", "file.pth"):
        assert load_from_local(str(tmp_path / name))["hub"].statistics("mean") == 1.5


def test_an_array_larger_than_its_bytes_is_refused(tmp_path: Path) -> None:
    class Large:
        def __reduce__(self) -> Any:
            make, arguments, state = np.arange(2).__reduce__()[:3]
            return make, arguments, (state[0], (1 << 40,), *state[2:])

    torch.save({"x": Large()}, tmp_path / "evil.pth")
    with pytest.raises(
        UserError, match=r"evil\.pth cannot be read as a checkpoint \(cannot reshape array of size 2"
    ):
        load_from_local(str(tmp_path / "evil.pth"))


def test_python_in_the_checkpoints_meta_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    runner(tmp_path / "half", 2).train()
    file = tmp_path / "half" / "iter_2.pth"
    checkpoint = load_from_local(str(file))
    checkpoint["meta"]["config"] = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n"
    torch.save(checkpoint, file)
    runner(tmp_path / "resumed", 4, load_from=str(file), resume=True).train()
    assert not marker.exists()


def test_every_way_of_mmengine_leads_here(tmp_path: Path) -> None:
    loaders = set(CheckpointLoader._schemes.values())
    assert loaders == {map_dense.checkpoints.load_from_local, map_dense.checkpoints.load_from_elsewhere}
    torch.save(CallOnUnpickling(os.system, f"touch {tmp_path / 'marker'}"), tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"holds posix\.system"):
        load_checkpoint(Regression(), str(tmp_path / "evil.pth"))


@pytest.mark.parametrize(
    "address", ["https://host/a.pth", "s3://bucket/a.pth", "openmmlab://name", "torchvision://x"]
)
def test_nothing_is_downloaded(address: str) -> None:
    with pytest.raises(UserError, match=f"checkpoint {address} is not on this machine; download it"):
        CheckpointLoader.load_checkpoint(address)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<!DOCTYPE html>",
        b"version https://git-lfs",
        pickle.dumps(1)[:3],
        b"PK\x03\x04cut",
        b"\x80\x02}q\x00",
    ],
    ids=["empty", "page", "pointer", "pickle", "zip", "cut off"],
)
def test_a_broken_file_is_reported_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.pth (cannot be read as a checkpoint|was not loaded)"):
        load_from_local(str(tmp_path / "broken.pth"))


def test_a_missing_file_is_reported_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint at .*nowhere\.pth; give a file that mim train wrote"):
        load_from_local(str(tmp_path / "nowhere.pth"))
