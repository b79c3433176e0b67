"""A broken step never reaches the weights: noticed at once, or at the next check where checking would wait."""

import json
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from toy_task import ToyTask, metrics_without_times, toy_config

from map_core import UserError
from map_core.training import loop, train
from map_core.training.finite import FiniteGuard

FIRST_BROKEN = (
    r"the loss is not finite at step 8 \(loss nan.*rate 0.00\d+\).*\(--out\) with a lower --training.lr,"
)


@pytest.fixture
def deferred_checks(monkeypatch):
    """Check the run only now and then, as on a GPU."""
    monkeypatch.setattr(loop, "FiniteGuard", partial(FiniteGuard, waits=False))


def optimizer_of(parameter, **options):
    return torch.optim.AdamW([parameter], lr=0.1, **({"fused": True} | options))


def descend(guard, optimizer, parameter, step, *, loss=1.0, gradient=None):
    """One step downhill; ``loss`` and ``gradient`` may be broken."""
    parameter.grad = parameter.detach().clone() if gradient is None else torch.full_like(parameter, gradient)
    scalars = {"loss": torch.tensor(loss), "grad_norm": parameter.grad.norm()}
    guard.watch(step, 0.1, scalars)
    optimizer.step()


# ---- the guard alone


@pytest.mark.parametrize(
    "broken",
    [{"loss": float("nan")}, {"loss": float("inf")}, {"gradient": float("nan")}, {"gradient": float("inf")}],
    ids=str,
)
def test_weights_stay_as_they_were_before_the_first_broken_step(broken):
    """Also in the unbroken steps that follow it, until the next check."""
    parameter = nn.Parameter(torch.ones(3))
    guard = FiniteGuard(Accelerator(cpu=True), optimizer_of(parameter), waits=False)
    optimizer = guard._optimizer
    for step in range(3):
        descend(guard, optimizer, parameter, step)
    before = parameter.detach().clone()
    assert (before < 1).all()
    descend(guard, optimizer, parameter, 3, **broken)
    for step in (4, 5):
        descend(guard, optimizer, parameter, step)
    assert torch.equal(parameter, before)
    with pytest.raises(UserError, match="the loss is not finite at step 4 "):
        guard.raise_if_broken()


def test_whole_steps_are_those_of_an_optimizer_without_a_guard():
    guarded, plain = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer, other = optimizer_of(guarded), optimizer_of(plain)
    guard = FiniteGuard(Accelerator(cpu=True), optimizer, waits=False)
    for step in range(5):
        descend(guard, optimizer, guarded, step)
        plain.grad = plain.detach().clone()
        other.step()
    guard.raise_if_broken()
    assert torch.equal(guarded, plain)


def test_the_message_gives_the_numbers_of_the_first_broken_step():
    parameter = nn.Parameter(torch.ones(4))
    optimizer = optimizer_of(parameter)
    guard = FiniteGuard(Accelerator(cpu=True), optimizer, waits=False)
    descend(guard, optimizer, parameter, 0)
    descend(guard, optimizer, parameter, 1, loss=float("inf"), gradient=3.0)
    descend(guard, optimizer, parameter, 2, loss=float("nan"))
    with pytest.raises(
        UserError, match=r"at step 2 \(loss inf, gradient norm 6.0, learning rate 0.1\); no checkpoint"
    ):
        guard.raise_if_broken()


def test_looking_at_once_raises_before_the_optimizer_steps():
    parameter = nn.Parameter(torch.ones(3))
    guard = FiniteGuard(Accelerator(cpu=True), optimizer_of(parameter))
    assert guard.waits
    with pytest.raises(UserError, match="the loss is not finite at step 1 "):
        descend(guard, guard._optimizer, parameter, 0, loss=float("nan"))
    assert torch.equal(parameter, torch.ones(3))


@pytest.mark.parametrize(("device", "waits"), [("cpu", True), ("cuda", False), ("mps", True)])
def test_only_cuda_leaves_the_weights_to_a_flag(monkeypatch, device, waits):
    """Fused optimizers on mps ignore it."""
    monkeypatch.setattr(Accelerator, "device", torch.device(device))
    with FakeTensorMode():  # tensors on devices that this machine lacks
        guard = FiniteGuard(Accelerator(cpu=True), optimizer_of(nn.Parameter(torch.ones(3))))
    assert guard.waits == waits


# ---- in a run


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_stops_at_the_step_and_spoils_nothing(tmp_path, workers):
    task = ToyTask(nan_at=7)
    config = toy_config(checkpoint_steps=3, workers=workers)
    with pytest.raises(UserError, match=FIRST_BROKEN):
        train(task, config, tmp_path / "run")
    assert task.loss_inputs[-1][0].step == 7
    assert_unspoiled(tmp_path / "run", config)


def test_without_an_absolute_rate_the_message_names_base_lr(tmp_path):
    with pytest.raises(UserError, match=r"with a lower --training.base_lr,"):
        train(ToyTask(nan_at=0), toy_config(lr=None), tmp_path / "run")


@pytest.mark.usefixtures("deferred_checks")
def test_a_run_that_looks_seldom_stops_at_the_next_look_and_spoils_nothing(tmp_path):
    """Step 8 is broken, the next checkpoint is due after step 9, the next line after step 11."""
    task = ToyTask(nan_at=7)
    config = toy_config(checkpoint_steps=3, checkpoint_epochs=3, evaluate_epochs=3, log_steps=11)
    with pytest.raises(UserError, match=FIRST_BROKEN):
        train(task, config, tmp_path / "run")
    assert task.loss_inputs[-1][0].step == 8
    assert_unspoiled(tmp_path / "run", config)


def assert_unspoiled(out, config):
    """Nothing is exported, the last checkpoint is from before, and a run resumed from it ends with finite weights."""
    assert not (out / "raw.pt").exists()
    assert not (out / "summary.json").exists()
    assert max(path.name for path in (out / "checkpoints").iterdir()) == "step_00000006"
    assert all(line["step"] <= 7 for line in metrics_without_times(out))
    train(ToyTask(), config, out, resume="auto")
    assert all(value.isfinite().all() for value in torch.load(out / "raw.pt", weights_only=True).values())


def test_looking_seldom_changes_no_number(tmp_path, monkeypatch):
    settings = {"ema_decay": 0.9, "checkpoint_steps": 6, "accumulation_steps": 2}
    train(ToyTask(), toy_config(**settings), tmp_path / "often")
    monkeypatch.setattr(loop, "FiniteGuard", partial(FiniteGuard, waits=False))
    train(ToyTask(), toy_config(**settings), tmp_path / "seldom")
    assert metrics_without_times(tmp_path / "often") == metrics_without_times(tmp_path / "seldom")
    for file in ("model.safetensors", "ema.safetensors"):
        every_step, deferred = (
            load_file(tmp_path / run / "checkpoints/step_00000016" / file) for run in ("often", "seldom")
        )
        assert all(torch.equal(every_step[name], deferred[name]) for name in every_step)


@pytest.mark.usefixtures("deferred_checks")
def test_a_signal_is_heeded_at_the_next_look_where_several_processes_ask_each_other(tmp_path, monkeypatch):
    """It arrives in step 2; the next line is due after step 5. A run of one process would end after step 2."""
    monkeypatch.setattr(loop.Run, "signal_received", False)
    config = toy_config(log_steps=5, checkpoint_epochs=4, evaluate_epochs=4)
    summary = train(ToyTask(signal_at=1), config, tmp_path / "run")
    assert summary["interrupted"]
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step_00000005"]
    state = json.loads((tmp_path / "run/checkpoints/step_00000005/state.json").read_text())
    assert state["step"] == 5
