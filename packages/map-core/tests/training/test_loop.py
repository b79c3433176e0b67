"""What a run of one process does, step by step, and what it leaves behind."""

import copy
import json
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from PIL import Image
from toy_task import ToyTask, metrics_without_times, toy_config

from map_core import UserError
from map_core.errors import Diverged
from map_core.training import loop, state, train
from map_core.training.finite import FiniteGuard
from map_core.training.plan import RunPlan
from map_core.training.processes import Peers
from map_core.training.schedule import Schedule


def test_a_run_is_adamw_on_the_clipped_mean_gradient_with_a_moving_average(tmp_path):
    """Against a loop written out by hand, on the samples that the engine passed to its task."""
    task = ToyTask(dropout=0)
    model = copy.deepcopy(task.model)
    config = toy_config(max_steps=6, clip_grad=0.3, ema_decay=0.8, weight_decay=0.0, accumulation_steps=2)
    train(task, config, tmp_path / "run")

    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.95), weight_decay=0.0)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    norms = []
    for step in range(6):
        halves = [image for draw, image in task.loss_inputs if draw.step == step]
        draws = [draw for draw, _ in task.loss_inputs if draw.step == step]
        assert [draw.samples for draw in draws] == [slice(0, 8), slice(8, 16)]
        optimizer.param_groups[0]["lr"] = Schedule.of(config, 4)(step)
        optimizer.zero_grad()
        classes = [labels_of(config, draw) for draw in draws]
        losses = [
            torch.nn.functional.cross_entropy(model(x), y) for x, y in zip(halves, classes, strict=True)
        ]
        ((losses[0] + losses[1]) / 2).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3).item())
        optimizer.step()
        for name, value in model.state_dict().items():
            average[name] = 0.8 * average[name] + 0.2 * value
    assert max(norms) > 0.3, "nothing was clipped"
    raw = torch.load(tmp_path / "run/raw.pt", weights_only=True)
    ema = torch.load(tmp_path / "run/ema.pt", weights_only=True)
    torch.testing.assert_close(raw, model.state_dict(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ema, average, rtol=1e-4, atol=1e-6)
    assert task.exported == ["raw", "ema"]


def test_a_run_decays_matrices_alone(tmp_path):
    """By a loop written out by hand."""
    task = ToyTask(dropout=0)
    model = copy.deepcopy(task.model)
    config = toy_config(max_steps=6, clip_grad=None, weight_decay=0.1)
    train(task, config, tmp_path / "run")

    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95))
    for step, (draw, images) in enumerate(task.loss_inputs):
        for group in optimizer.param_groups:
            group["lr"] = Schedule.of(config, 4)(step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels_of(config, draw)).backward()
        optimizer.step()
    raw = torch.load(tmp_path / "run/raw.pt", weights_only=True)
    torch.testing.assert_close(raw, model.state_dict(), rtol=1e-4, atol=1e-6)


def test_a_group_of_parameters_learns_at_its_scale(tmp_path):
    task = ToyTask(dropout=0)
    held, *others = task.model.parameters()
    before = held.detach().clone()
    task.parameter_groups = lambda config: [{"params": others}, {"params": [held], "lr_scale": 0.0}]
    train(task, toy_config(max_steps=2), tmp_path / "run")
    assert torch.equal(held, before)


def test_every_step_and_micro_batch_draws_anew(tmp_path):
    drawn = []

    class Drawing(ToyTask):
        def loss(self, model, batch, draw):
            drawn.append(torch.rand(()).item())
            return super().loss(model, batch, draw)

    train(Drawing(), toy_config(accumulation_steps=2, max_steps=3), tmp_path / "run")
    assert len(set(drawn)) == len(drawn) == 6


def labels_of(config, draw):
    plan = RunPlan.of(config, 70, 1, 0)
    order = plan.epoch_order(draw.step // plan.steps_per_epoch)
    first = draw.step % plan.steps_per_epoch * plan.batch_size
    return order[first + draw.samples.start : first + draw.samples.stop] % 3


def test_max_steps_stops_early_on_the_schedule_of_the_whole_run(tmp_path):
    train(ToyTask(), toy_config(max_steps=7, log_steps=1), tmp_path / "short")
    train(ToyTask(), toy_config(log_steps=1, epochs=4), tmp_path / "long")
    short = [line for line in metrics_without_times(tmp_path / "short") if line["kind"] == "train"]
    long = [line for line in metrics_without_times(tmp_path / "long") if line["kind"] == "train"]
    assert len(short) == 7
    assert short == long[:7]
    resumed = train(ToyTask(), toy_config(log_steps=1), tmp_path / "short", resume="auto")
    assert resumed["samples"] == 16 * 16  # including those before the resume


def test_a_run_directory_explains_itself(tmp_path, curves_drawn):
    out, config = tmp_path / "run", toy_config(ema_decay=0.9, tensorboard=True)
    with curves_drawn():
        summary = train(ToyTask(), config, out, run_config={"data": {"root": out}})
    assert yaml.safe_load((out / "config.yaml").read_text()) == {"data": {"root": str(out)}}
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["task"] == "toy"
    assert summary["processes"] == 1
    assert summary["interrupted"] is False
    assert {"torch", "timm", "accelerate", "map-core", "python"} <= summary["versions"].keys()
    assert min(summary[key] for key in ("seconds", "samples_per_second", "peak_memory_bytes")) > 0
    lines = metrics_without_times(out)
    train_lines = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in train_lines] == [5, 10, 15, 16]
    assert {"loss", "lr", "grad_norm", "accuracy", "epoch"} <= train_lines[0].keys()
    assert [line["epoch"] for line in lines if line["kind"] == "evaluation"] == [1, 2, 3, 4]
    assert summary["loss"] == train_lines[-1]["loss"]
    assert summary["ema_test_output"] == lines[-1]["ema_test_output"]
    assert list((out / "tensorboard").iterdir())
    picture = np.asarray(Image.open(out / "curves.png").convert("L"))
    assert picture.std() > 5, "curves.png is blank"


def test_bf16_keeps_float32_weights_and_a_separate_moving_average(tmp_path):
    dtypes = set()

    class SpyTask(ToyTask):
        def loss(self, model, batch, draw):
            dtypes.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
            return super().loss(model, batch, draw)

    task = SpyTask(dropout=0)
    train(task, toy_config(precision="bf16", ema_decay=0.5), tmp_path / "run")
    assert dtypes == {torch.bfloat16}
    raw = torch.load(tmp_path / "run/raw.pt", weights_only=True)
    assert {value.dtype for value in raw.values()} == {torch.float32}
    last = [line for line in metrics_without_times(tmp_path / "run") if line["kind"] == "evaluation"][-1]
    assert last["test_output"] != last["ema_test_output"]
    dtypes.clear()
    train(SpyTask(), toy_config(max_steps=1), tmp_path / "fp32")  # another precision in the same process
    assert dtypes == {None}


def test_weights_that_are_not_float32_are_refused(tmp_path):
    task = ToyTask(dropout=0)
    task.model.bfloat16()
    with pytest.raises(
        TypeError, match=r"parameter 0.weight is torch.bfloat16; master weights must be float32"
    ):
        train(task, toy_config(), tmp_path / "run")


def test_fsdp_on_a_cpu_is_refused_rather_than_turned_into_ddp(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(
        UserError, match=r"FSDP was asked for, but Accelerate does not shard on cpu .* without FSDP"
    ):
        train(ToyTask(), toy_config(), tmp_path / "run")


@pytest.mark.parametrize(
    ("variable", "engine"),
    [("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"), ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM")],
)
def test_another_engine_of_the_launcher_is_refused(tmp_path, monkeypatch, variable, engine):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(
        UserError, match=rf"{engine} is not supported \({variable} is true\); launch with DDP"
    ):
        train(ToyTask(), toy_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_compilation_by_the_launcher_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(
        UserError, match=r"ACCELERATE_DYNAMO_BACKEND is INDUCTOR.* set --training\.compile blocks"
    ):
        train(ToyTask(), toy_config(), tmp_path / "run")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")  # what accelerate launch sets by itself
    train(ToyTask(), toy_config(max_steps=1), tmp_path / "run")


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_a_launcher_s_accumulation_divides_no_gradient(tmp_path, monkeypatch, accumulation_steps):
    config = toy_config(accumulation_steps=accumulation_steps, max_steps=4, clip_grad=None)
    train(ToyTask(), config, tmp_path / "without")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    train(ToyTask(), config, tmp_path / "with")
    assert metrics_without_times(tmp_path / "with") == metrics_without_times(tmp_path / "without")


def test_an_error_of_the_main_process_keeps_its_kind_and_its_cause():
    cause = OSError("disk")

    def fail():
        raise Diverged("at step 3") from cause

    with pytest.raises(Diverged, match="at step 3") as error_info:
        Peers().on_main(fail)
    assert error_info.value.__cause__ is cause
    assert error_info.traceback[-1].name == "fail"


def test_a_device_that_the_launcher_would_not_use_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match=r"training.device is cuda, but Accelerate was told to use the CPU"):
        train(ToyTask(), toy_config(device="cuda"), tmp_path / "run")


class Streamed(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield torch.zeros(1)


def test_a_stream_of_samples_is_refused_before_a_run_is_begun(tmp_path):
    task = ToyTask()
    task.train_data = Streamed()
    with pytest.raises(UserError, match=r"training data must be map-style, .*; Streamed is not"):
        train(task, toy_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_budget_of_samples_is_what_a_run_trains_on(tmp_path):
    summary = train(ToyTask(), toy_config(sample_budget=140, log_steps=1), tmp_path / "run")
    lines = [line for line in metrics_without_times(tmp_path / "run") if line["kind"] == "train"]
    assert (lines[-1]["step"], lines[-1]["epoch"]) == (8, 2.0)
    assert summary["interrupted"] is False


def test_a_signal_is_noticed_after_its_step_where_nothing_else_reads_the_device(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "FiniteGuard", partial(FiniteGuard, waits=False))
    config = toy_config(log_steps=1000, checkpoint_epochs=4, evaluate_epochs=4)
    assert train(ToyTask(signal_at=2), config, tmp_path / "run")["stopped_by"] == "SIGTERM"
    assert (tmp_path / "run/checkpoints/step_00000003").is_dir()


def test_a_model_that_cannot_be_sharded_says_why(monkeypatch):
    monkeypatch.setattr(state, "is_sharded", lambda accelerator: True)
    task = ToyTask()
    task.model.reason_not_to_shard = "this one moves a copy"
    with pytest.raises(UserError, match=r"^this one moves a copy; train without FSDP"):
        state.TrainingState(task, toy_config(), Accelerator(cpu=True))
