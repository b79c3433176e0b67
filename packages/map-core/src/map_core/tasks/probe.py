"""A linear classifier on frozen features."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from map_core.tasks.evaluation import pooled_features


class LinearProbe(nn.Module):
    """Batch normalisation without affine weights and a linear layer on a frozen backbone's pooled features.

    Source: MAE's linear-probing protocol (arXiv 2111.06377, appendix A.1).

    Args:
        backbone: Gives pooled features; never trained, always in evaluation mode.
        num_classes: Classes.
    """

    def __init__(self, backbone: nn.Module, num_classes: int) -> None:
        super().__init__()
        width: Any = backbone.head_hidden_size
        self.backbone = backbone.requires_grad_(False).eval()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.head = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    @property
    def features(self) -> Callable[[Tensor], Tensor]:
        return pooled_features(self.backbone)

    def train(self, mode: bool = True) -> "LinearProbe":
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, inputs: Tensor) -> Float[Tensor, "b k"]:
        with torch.no_grad():
            features = self.features(inputs)
        return self.head(self.norm(features.float()))

    @torch.no_grad()
    def write_into(self, classifier: nn.Module) -> None:
        """Fold the normalisation into the linear layer: a classifier with a linear head and equal outputs."""
        state = self.backbone.state_dict()
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None
        assert variance is not None
        weight = self.head.weight / (variance + self.norm.eps).sqrt()
        state["head.weight"] = weight
        state["head.bias"] = self.head.bias - weight @ mean
        classifier.load_state_dict(state)
