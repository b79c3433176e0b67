"""Train toys with and without compilation and compare; a script, because the shape checker of tests does not compile.

python compiled.py BACKEND FOLDER
"""

import json
import sys
from pathlib import Path

import torch

from map_core import Draw
from map_core.objectives.contrastive import Contrastive
from map_core.testing import GridBackbone, toy_encoder, toy_objective
from map_core.training import Task, TrainingConfig, compilation, train

compilation.BACKEND, FOLDER = sys.argv[1], Path(sys.argv[2])
STEPS = 12  # more than PyTorch's limit on recompilations of a function


class Grids:
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.randn(4, 4, 4) + index


class ToyPretraining(Task):
    name = "toy"

    def __init__(self):
        torch.manual_seed(0)
        self.model, self.train_data = toy_objective(), Grids()

    def loss(self, model, batch, draw):
        return model(batch, draw)

    def export(self, model, directory, weights):
        torch.save(model.state_dict(), directory / "model.pt")


def run(name, **changes):
    """The loss of every step."""
    settings = {"epochs": 6, "batch_size": 4, "warmup_epochs": 1.0, "lr": 1e-2, "workers": 0, "log_steps": 1}
    settings |= {"tensorboard": False, "progress": False, "device": "cpu"}
    resume = "auto" if (FOLDER / name).exists() else None
    train(ToyPretraining(), TrainingConfig(**settings | changes), FOLDER / name, resume=resume)
    lines = [json.loads(line) for line in (FOLDER / name / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def weights(name):
    return torch.load(FOLDER / name / "model.pt")


plain = run("plain")
assert len(plain) == STEPS
graphs = torch._dynamo.utils.counters["stats"]
assert not graphs
for part in ("model", "blocks"):
    torch._dynamo.reset()
    before = graphs["unique_graphs"]
    losses = run(part, compile=part, ema_decay=0.9)
    assert 0 < graphs["unique_graphs"] - before < STEPS, "a step compiles what an earlier one compiled"
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(plain), rtol=1e-5, atol=0)
    assert weights(part).keys() == weights("plain").keys()
    if part == "model":  # exact resume
        run("resumed", compile=part, ema_decay=0.9, max_steps=5, checkpoint_steps=5)
        assert run("resumed", compile=part, ema_decay=0.9) == losses
        assert all(torch.equal(value, weights(part)[name]) for name, value in weights("resumed").items())

# the momentum of contrastive learning's copy depends on the step, whose number must not be compiled in
torch._dynamo.reset()
contrastive, compiled = Contrastive(GridBackbone(4, toy_encoder(16)), "v3", hidden_dim=8, out_dim=8), []


def counting(graph, inputs):
    compiled.append(graph)
    return graph.forward


contrastive.compile(dynamic=False, backend=counting)
contrastive.begin(STEPS)
counts = set()
for step in range(STEPS):
    contrastive(torch.randn(3, 2, 4, 4, 4), Draw(0, step, slice(0, 3), 3)).loss.backward()
    counts.add(len(compiled))
assert len(counts) == 1, counts
