"""Layer decay for a model with a hybrid backbone: the nearer a layer is to the image, the slower it learns.

The depth of a parameter counts layers, Mamba and Transformer alike: the patch embedding and positions have depth 0,
layer i of n (from 0) has i + 1, and everything after the last layer (final norm, pyramid, heads) n + 1. The learning
rate is ``rate ** (n + 1 - depth)`` times the base rate (BEiT, section 3.2 of arXiv 2106.08254; ViTDet, arXiv
2203.16527).
"""

import re
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from map_core.errors import UserError
from map_core.initialization import undecayed_parameters
from map_dense.settings import check_count

_LAYER = re.compile(r"(?:^|\.)blocks\.(\d+)\.")
_STEM = re.compile(r"(?:^|\.)(?:patch_embed|position)(?:\.|$)")
_FINAL_NORM = re.compile(r"(?:^|\.)norm\.[^.]+$")


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters of one depth, either all with weight decay or all without."""

    name: str
    depth: int
    lr_scale: float
    weight_decay: float
    parameters: dict[str, nn.Parameter] = field(repr=False)

    @property
    def count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters.values())


def backbone_depth(name: str, num_layers: int) -> int:
    """Depth of the backbone's parameter ``name``, between 0 and ``num_layers`` + 1.

    Raises:
        UserError: the name matches no layer, stem or final norm.
    """
    layer = _LAYER.search(name)
    if layer:
        return int(layer[1]) + 1
    if _STEM.search(name):
        return 0
    if _FINAL_NORM.search(name):
        return num_layers + 1
    raise UserError(
        f"layer decay knows no depth for the backbone's parameter {name!r}; it knows blocks.N, patch_embed, "
        "position and norm"
    )


def rescaled_rate(rate: float, num_layers: int, reference_layers: int | None) -> float:
    """The rate per layer that damps layer 0 of ``num_layers`` as much as ``rate`` damps that of ``reference_layers``.

    A rate chosen for 24 layers becomes ``rate ** (24 / 32)`` for 32; None leaves ``rate`` as it is.

    Raises:
        UserError: ``reference_layers`` is not a whole number of at least 1.
    """
    check_count("reference_layers", reference_layers, "to leave decay_rate as it is")
    return rate if reference_layers is None else rate ** (reference_layers / num_layers)


def layer_decay_groups(
    model: nn.Module,
    *,
    decay_rate: float,
    weight_decay: float,
    reference_layers: int | None = None,
) -> list[ParameterGroup]:
    """Split the trainable parameters of ``model`` into groups by depth, each parameter into exactly one.

    Vectors (biases, norms, Mamba's D), Mamba's A, and positions are not decayed.

    Args:
        model: A model whose ``backbone`` is a hybrid one (it has ``num_layers``).
        decay_rate: Factor from one layer to the one before it, in (0, 1]; 1 only exempts from weight decay.
        weight_decay: Weight decay of the parameters that are not exempt.
        reference_layers: Depth of the network that ``decay_rate`` was chosen for, see :func:`rescaled_rate`.

    Returns:
        Groups from the image to the heads; at each depth, the one with weight decay first.

    Raises:
        UserError: a rate outside (0, 1], ``reference_layers`` below 1, a model without such a backbone, or a layer
            without any parameter (the rate would silently do nothing).
    """
    if not 0 < decay_rate <= 1:
        raise UserError(f"decay_rate must be above 0 and at most 1; got {decay_rate}")
    backbone = getattr(model, "backbone", None)
    if backbone is None or not hasattr(backbone, "num_layers"):
        raise UserError(
            f"layer decay needs a model whose backbone tells num_layers, as HybridNet's does; "
            f"{type(model).__name__}.backbone is {type(backbone).__name__}"
        )
    num_layers: int = backbone.num_layers
    rate = rescaled_rate(decay_rate, num_layers, reference_layers)
    undecayed = {f"backbone.{name}" for name in undecayed_parameters(backbone)}
    depths: set[int] = set()
    groups: dict[tuple[int, bool], ParameterGroup] = {}
    for name, parameter in model.named_parameters():
        depth = num_layers + 1
        if name.startswith("backbone."):
            depth = backbone_depth(name.removeprefix("backbone."), num_layers)
            depths.add(depth)
        if not parameter.requires_grad:
            continue
        exempt = parameter.ndim <= 1 or name in undecayed
        if (depth, exempt) not in groups:
            groups[depth, exempt] = ParameterGroup(
                _group_name(depth, num_layers) + (", no decay" if exempt else ""),
                depth,
                rate ** (num_layers + 1 - depth),
                0.0 if exempt else weight_decay,
                {},
            )
        groups[depth, exempt].parameters[name] = parameter
    missing = set(range(1, num_layers + 1)) - depths
    if missing:
        raise UserError(
            f"layer decay finds no parameter of layer(s) {sorted(depth - 1 for depth in missing)} of the "
            f"backbone's {num_layers}; it looks for names with blocks.N"
        )
    return [groups[key] for key in sorted(groups)]


def _group_name(depth: int, num_layers: int) -> str:
    if depth == 0:
        return "embedding"
    return "heads" if depth > num_layers else f"layer {depth - 1}"


def render_groups(groups: list[ParameterGroup]) -> str:
    """A text table with one line per group: name, depth, learning-rate scale, weight decay, tensors, parameters."""
    rows = [("group", "depth", "lr scale", "weight decay", "tensors", "parameters")]
    for group in groups:
        scale, decay = f"{group.lr_scale:.4f}", f"{group.weight_decay:g}"
        tensors = str(len(group.parameters))
        rows.append((group.name, str(group.depth), scale, decay, tensors, f"{group.count:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        f"{name:<{widths[0]}}"
        + "".join(f"  {cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))
        for name, *rest in rows
    )


def optimizer_groups(groups: list[ParameterGroup], lr: float) -> list[dict[str, Any]]:
    """The groups as PyTorch optimizers take them, each with its ``lr``, ``lr_scale`` and ``weight_decay``."""
    return [
        {
            "params": list(group.parameters.values()),
            "lr": lr * group.lr_scale,
            "lr_scale": group.lr_scale,
            "weight_decay": group.weight_decay,
        }
        for group in groups
    ]
