"""Weights of map-vision for a dense backbone: what may differ, what is refused, and what was not used."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from timm.layers import resample_patch_embed
from torch import Tensor

from map_core.errors import UserError
from map_core.tasks.weights import read_weights, told_keys, weights_file
from map_dense.backbone import HybridBackbone
from map_vision.factory import UNSEEN, ModelConfig, described_model, resolved
from map_vision.registry import MODEL_NAMES
from map_vision.weights import convert_state

PATCHES = "patch_embed.proj.weight"
POSITIONS = "encoder.position.table"
PART = re.compile(
    r"(?:.*\.)?blocks\.\d+\.|encoder\.position\."
)  # what is kept with all that it has, or left out
MEANING = (*UNSEEN, "bidirectional")  # without these settings the weights mean nothing


@dataclass(frozen=True)
class BackboneReport:
    """What loading did: the file, how many tensors the backbone took, and every key that it did not use."""

    source: Path
    used: int
    unused: tuple[str, ...]
    resampled: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.source}: {self.used} tensors loaded into the backbone"
        if self.resampled:
            text += f"; resampled: {', '.join(self.resampled)}"
        return text + f"; {len(self.unused)} not used: {', '.join(self.unused) or 'none'}"


def load_backbone(
    backbone: HybridBackbone, path: str | Path, *, resample_patches: bool = False
) -> BackboneReport:
    """Start a backbone from a run of map-vision (pretraining, finetuning, probing), its weights file, or timm's ViT.

    Positions of another grid are resampled. Registers, neck, head, final norm and layers behind the last of
    ``out_indices`` are not used.

    Args:
        backbone: Takes the weights.
        path: A run's directory or a weights file.
        resample_patches: Resample the patch embedding if the file's patches have another size
            (FlexiViT's pseudo-inverse, arXiv 2212.08013, section 3.4).

    Raises:
        UserError: no key of the file fits; another width, depth or layout; a run whose description says that its
            weights mean something else; another patch size without ``resample_patches``; a parameter that is
            missing, has another shape or is one that the backbone's layers lack.
    """
    file = weights_file(path)
    own = backbone.model.state_dict()
    state = convert_state(read_weights(path), backbone.model)
    if not set(state) & set(own):
        raise UserError(
            f"{file} has none of the backbone's {len(own)} keys (it begins with {', '.join(list(state)[:3])}; the "
            f"backbone with {', '.join(list(own)[:3])}); give a run of map-vision or its model.safetensors"
        )
    _check_architecture(backbone, state, path)
    refuse_other_settings(backbone.config, path)
    resampled = tuple(
        key
        for key in (PATCHES, POSITIONS)
        if key in own and key in state and state[key].shape != own[key].shape
    )
    if PATCHES in state:
        state[PATCHES] = _fitting_patches(state[PATCHES], own[PATCHES], file, resample=resample_patches)
    refuse_misfits(state, own, file, resampled=(POSITIONS,))
    backbone.model.load_state_dict({key: state[key] for key in own})
    return BackboneReport(file, len(own), tuple(key for key in state if key not in own), resampled)


def refuse_misfits(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], file: Path, *, resampled: tuple[str, ...] = ()
) -> None:
    """Refuse a file whose tensors are not those of a backbone's layers and positions.

    Args:
        state: Tensors of the file; those of other layers, of registers, head and final norm may be there too.
        own: Those of the backbone.
        file: Named in the message.
        resampled: Those that may have another shape.

    Raises:
        UserError: naming what is missing, of another shape, or without a place in the backbone.
    """
    kept = {"encoder.position."} | {part for key in own if (part := _part(key))}
    faults = {
        "missing": [key for key in own if key not in state],
        "shapes": [
            f"{key} {tuple(state[key].shape)} for {tuple(value.shape)}"
            for key, value in own.items()
            if key in state and state[key].shape != value.shape and key not in resampled
        ],
        "without a place": [key for key in state if key not in own and _part(key) in kept],
    }
    if any(faults.values()):
        raise UserError(
            f"{file} does not fit the backbone: {told_keys(faults)}; set model.backbone as the run's model was "
            "(name, layout, mlp_ratio, in_chans, position, bidirectional, ...)"
        )


def refuse_other_settings(config: ModelConfig, path: str | Path, *, may_differ: tuple[str, ...] = ()) -> None:
    """Compare a backbone with the description of a run: whatever its weights mean nothing without.

    Args:
        config: Of the backbone.
        path: A run or weights file; one without description is taken as it is.
        may_differ: Settings whose difference is meant.

    Raises:
        UserError: a setting differs, with both values.
    """
    described = described_model(path)
    if described is None or described.name not in MODEL_NAMES:
        return
    theirs, own = resolved(described), resolved(config)
    for name in MEANING:
        trained, has = theirs.get(name), own.get(name)
        if trained != has and name not in may_differ:
            raise UserError(
                f"{path} was trained with {name} {trained}, the backbone has {has}; "
                f"set model.backbone.{name}={trained}"
            )


def _check_architecture(backbone: HybridBackbone, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuse another width, depth or layout, each with both values."""
    own = backbone.architecture
    if PATCHES in state and state[PATCHES].shape[0] != backbone.embed_dim:
        raise UserError(
            f"{path} has width {state[PATCHES].shape[0]}, the backbone {backbone.embed_dim}; "
            "set model.backbone.name (or embed_dim) to the pretrained model's"
        )
    layers = {int(found[1]) for key in state if (found := re.match(r"encoder\.blocks\.(\d+)\.", key))}
    depth = max(layers, default=-1) + 1
    if depth != backbone.depth:
        raise UserError(
            f"{path} has {depth} layers, the backbone {backbone.depth} (layout {own['layout']!r}); "
            "set model.backbone.name (or layout) to the pretrained model's"
        )


def _part(key: str) -> str | None:
    """The block that a tensor is of, or the positions; None for all else."""
    found = PART.match(key)
    return found[0] if found else None


def _fitting_patches(theirs: Tensor, own: Tensor, file: Path, *, resample: bool) -> Tensor:
    if theirs.shape[2:] == own.shape[2:]:
        return theirs
    if not resample:
        (h, w), (oh, ow) = theirs.shape[2:], own.shape[2:]
        raise UserError(
            f"{file} has patches of {h}x{w} pixels, the backbone of {oh}x{ow}: set model.backbone.patch_size={h}, "
            "or model.backbone.init_cfg.resample_patches=True to resample the patch embedding"
        )
    return resample_patch_embed(theirs, list(own.shape[2:]))
