"""The hybrid encoder of point models: its position embedding is added before every block."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from map_core.encoder import HybridEncoder


class PointEncoder(HybridEncoder):
    """A :class:`~map_core.encoder.HybridEncoder` that adds the position before every block, not once."""

    def _stack(self, x: Tensor, position: Tensor) -> Iterator[Tensor]:
        embedded = self.position(position, None).to(x.dtype)
        if self.registers is not None:
            own = self.registers.position.to(x.dtype).expand(x.shape[0], -1, -1)
            embedded = torch.cat([own, embedded], dim=1)
        for i, block in enumerate(self.blocks):
            x = x + embedded if i > 0 else x  # the first addition is the base class's
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, x, position, use_reentrant=False)
            else:
                x = block(x, position)
            yield x
