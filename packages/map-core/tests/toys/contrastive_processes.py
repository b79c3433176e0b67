"""One step of contrastive learning in several processes; the main one prints how far it is from that of a single one.

``python -m torch.distributed.run --nproc_per_node=2 contrastive_processes.py VERSION``
"""

import json
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from map_core import Draw
from map_core.objectives.contrastive import Contrastive
from map_core.testing import GridBackbone, toy_encoder

BATCH = 6


def objective(version):
    """Without batch normalisation, whose statistics are those of each process."""
    torch.manual_seed(0)
    model = Contrastive(GridBackbone(4, toy_encoder(16)), version, hidden_dim=8, out_dim=8, queue=10)
    torch.manual_seed(1)
    for owner in (model, model.slow):
        projector = nn.Linear(16, 8)
        owner.projector = projector if owner is model else projector.requires_grad_(False)
    if version == "v3":
        model.predictor = nn.Linear(8, 8)
    return model


def step(model, views, draw):
    """The loss, and the gradient of every parameter that learns."""
    terms = model(views, draw)
    terms.loss.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    return terms.loss.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def main(version):
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    views = torch.randn(BATCH, 2, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    part = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
    model = objective(version)
    loss, gradient = step(DistributedDataParallel(model), views[part], Draw(0, 0, part, BATCH))
    dist.all_reduce(loss)
    queue = model.queue.keys if model.queue is not None else torch.zeros(1)
    dist.destroy_process_group()
    if rank == 0:
        single = objective(version)
        expected_loss, expected = step(single, views, Draw.of_batch(BATCH))
        expected_queue = single.queue.keys if single.queue is not None else queue
        print(
            json.dumps(
                {
                    "loss": (loss / size - expected_loss).abs().item(),
                    "gradient": ((gradient - expected).abs().max() / expected.abs().max()).item(),
                    "queue": (queue - expected_queue).abs().max().item(),
                }
            )
        )


if __name__ == "__main__":
    main(sys.argv[1])
