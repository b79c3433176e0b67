"""Run as two processes: save a fully sharded model and its optimizer, load them, compare."""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from map_core.runs.checkpoint import Checkpoints, read_pickle, read_tensors, write_pickle, write_tensors
from map_core.training.optimizer import default_parameter_groups
from map_core.training.state_dicts import gather_model, gather_optimizer, scatter_model, scatter_optimizer


def build(seed, *, sharded):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.LayerNorm(10), nn.Linear(10, 3))
    groups = default_parameter_groups(model, 0.05)
    if sharded:
        for layer in (model[0], model[3], model):
            fully_shard(layer)
        assert isinstance(model[0].weight, DTensor)
        groups = default_parameter_groups(model, 0.05)
    return model, torch.optim.AdamW(groups, lr=1e-2)


def step(model, optimizer, seed):
    inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))  # the same on both processes
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    optimizer.step()


def whole(model):
    return [
        (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach()
        for parameter in model.parameters()
    ]


def load(model, optimizer, path):
    scatter_optimizer(model, optimizer, read_pickle(path / "optimizer.pt"), str(path))
    scatter_model(model, read_tensors(path / "model.safetensors"), str(path))


def main(directory):
    torch.distributed.init_process_group("gloo")
    model, optimizer = build(0, sharded=True)
    for seed in range(3):
        step(model, optimizer, seed)
    weights, state = gather_model(model), gather_optimizer(model, optimizer)
    checkpoints = Checkpoints(directory, keep=1)
    if torch.distributed.get_rank() == 0:
        checkpoints.write(
            3, {"model.safetensors": write_tensors(weights), "optimizer.pt": write_pickle(state)}
        )
    else:
        assert not weights, "only the main process gathers"
    torch.distributed.barrier()
    path = directory / "step_00000003"
    expected = whole(model)
    step(model, optimizer, 3)
    for sharded in (True, False):
        other, other_optimizer = build(1, sharded=sharded)
        load(other, other_optimizer, path)
        assert all(torch.equal(a, b) for a, b in zip(whole(other), expected, strict=True))
        step(other, other_optimizer, 3)
        torch.testing.assert_close(whole(other), whole(model), rtol=1e-6, atol=1e-7)
    torch.distributed.barrier()  # passed when every process found its shards equal
    if torch.distributed.get_rank() == 0:
        print(f"equal on {torch.distributed.get_world_size()} processes")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
