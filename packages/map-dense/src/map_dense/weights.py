"""Load weights of map-vision into a dense backbone: what may differ, what is refused, what was not used."""

import contextlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from timm.layers import resample_patch_embed
from torch import Tensor, nn

from map_core.errors import UserError
from map_core.layout import expand_layout
from map_core.tasks.families import family_of
from map_core.tasks.initial_weights import format_keys, other_guesses, refuse_other_invisible_settings
from map_core.tasks.weights import read_description, read_weights, weights_file
from map_dense.backbone import MODEL_OPTIONS, HybridBackbone
from map_dense.mambavision import MODEL_OPTIONS as MAMBAVISION_OPTIONS
from map_dense.mambavision import MambaVisionBackbone
from map_vision.checkpoints import FAMILIES
from map_vision.domain import preprocessing_of
from map_vision.factory import (
    INVISIBLE_SETTINGS,
    SETTINGS_OF_LAYERS,
    ModelConfig,
    read_model_config,
    resolved,
)
from map_vision.registry import MODEL_NAMES
from map_vision.weights import without_unused

PATCHES = "patch_embed.proj.weight"
POSITIONS = "encoder.position.table"
# what is loaded with all its tensors, or not at all
LAYER_PREFIX = re.compile(r"(?:.*\.)?blocks\.\d+\.|encoder\.position\.")
SEMANTIC_SETTINGS = (*INVISIBLE_SETTINGS, "bidirectional")  # the weights make no sense under other values
SHAPING_SETTINGS = (
    *("embed_dim", "layout", "depths", "mlp_ratio", "stem_dim"),
    *("in_chans", "position", "bidirectional", "layer_scale"),
)


@dataclass(frozen=True)
class BackboneReport:
    """The result of loading: the file, how many tensors were loaded, every key that was not used, and warnings."""

    source: Path
    used: int
    unused: tuple[str, ...]
    resampled: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.source}: {self.used} tensors loaded into the backbone"
        if self.resampled:
            text += f"; resampled: {', '.join(self.resampled)}"
        return "; ".join(
            [text, f"{len(self.unused)} not used: {', '.join(self.unused) or 'none'}", *self.notes]
        )


@dataclass(frozen=True)
class BackboneState:
    """The tensors of a file under the backbone's names, and what no file says about them, one sentence each."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def load_backbone(
    backbone: HybridBackbone, path: str | Path, *, resample_patches: bool = False
) -> BackboneReport:
    """Load a run of map-vision (pretraining, finetuning, probing), its weights file, or a ViT of timm's.

    Positions of another grid are resampled. Registers, neck, head, final norm and layers after the last of
    ``out_indices`` are not used.

    Args:
        backbone: The backbone to load into.
        path: The directory of a run, or a weights file.
        resample_patches: Resample the patch embedding if the patches in the file have another size
            (FlexiViT's pseudo-inverse, arXiv 2212.08013, section 3.4).

    Raises:
        UserError: no key of the file fits; another width, depth or layout; weights trained with settings that change
            their meaning; another patch size without ``resample_patches``; a parameter that is missing, has another
            shape or does not exist in the backbone's layers.
    """
    file = weights_file(path)
    expected = backbone.model.state_dict()
    source = read_state(backbone.model, file)
    state = source.tensors
    if not set(state) & set(expected):
        raise UserError(
            f"{file} has none of the backbone's {len(expected)} keys (it begins with {', '.join(list(state)[:3])}; the "
            f"backbone with {', '.join(list(expected)[:3])}); give a run of map-vision or its model.safetensors"
        )
    _check_architecture(backbone, state, path)
    refuse_other_settings(backbone.config, path)
    resampled = tuple(
        key
        for key in (PATCHES, POSITIONS)
        if key in expected and key in state and state[key].shape != expected[key].shape
    )
    if PATCHES in state:
        state[PATCHES] = _fit_patches(state[PATCHES], expected[PATCHES], file, resample=resample_patches)
    refuse_misfits(state, expected, file, resampled=(POSITIONS,))
    backbone.model.load_state_dict({key: state[key] for key in expected})
    unused = tuple(key for key in state if key not in expected)
    return BackboneReport(file, len(expected), unused, resampled, source.notes)


def load_mambavision(backbone: MambaVisionBackbone, path: str | Path) -> BackboneReport:
    """Load a run of map-vision, its weights file, or a published checkpoint of MambaVision.

    Head, final norm and stages after the last of ``out_indices`` are not used; the norms of the maps start afresh.

    Raises:
        UserError: a parameter is missing, has another shape or does not exist in the backbone's stages; or the run
            was trained with settings that change the meaning of its weights, except the window size.
    """
    file, expected = weights_file(path), backbone.model.state_dict()
    options, may_differ = MAMBAVISION_OPTIONS, ("window_size",)  # larger images need larger windows
    source = read_state(backbone.model, file, options=options, may_differ=may_differ)
    state = source.tensors
    refuse_misfits(state, expected, file, options=options)
    refuse_other_settings(backbone.config, path, options=options, may_differ=may_differ)
    backbone.model.load_state_dict({key: state[key] for key in expected})
    unused = tuple(key for key in state if key not in expected)
    return BackboneReport(file, len(expected), unused, (), source.notes)


def other_normalisation(
    path: str | Path, mean: Sequence[float] | None, std: Sequence[float] | None
) -> str | None:
    """Say how images are normalised otherwise than those that weights were trained on; None if nothing shows that.

    Args:
        path: A run or weights file; one without a description of its images goes with any normalisation.
        mean: ``model.data_preprocessor.mean`` of a config, of pixels in 0..255: one number per channel, or one for all;
            None where the images are not normalised there.
        std: ``model.data_preprocessor.std``, likewise.
    """
    trained = None
    with contextlib.suppress(UserError):  # a JSON file beside the weights that is none of ours
        trained = preprocessing_of(read_description(path))
    if trained is None or mean is None or std is None:
        return None
    scale = 255.0 if trained.pixels == "scaled" else 1.0
    trained_values = [[scale * value for value in values] for values in (trained.mean, trained.std)]
    config_values = [list(values) * (trained.channels if len(values) == 1 else 1) for values in (mean, std)]
    if all(map(_are_close, trained_values, config_values)):
        return None
    mean_text, std_text = map(_format_numbers, trained_values)
    config_mean, config_std = map(_format_numbers, config_values)
    return (
        f"{path} was trained on images that were normalised by mean {mean_text} and std {std_text}, but "
        f"model.data_preprocessor has mean {config_mean} and std {config_std}: set "
        f"model.data_preprocessor.mean={mean_text} and model.data_preprocessor.std={std_text}"
    )


def read_state(
    model: nn.Module,
    file: Path,
    *,
    options: Sequence[str] = MODEL_OPTIONS,
    may_differ: tuple[str, ...] = (),
) -> BackboneState:
    """Read a weights file and convert it if it is another project's.

    Args:
        model: The backbone's model.
        file: Weights of map-vision, or of a family that it knows.
        options: Settings that the backbone takes.
        may_differ: Settings that may differ from the published ones on purpose.

    Raises:
        UserError: another project's weights, which would compute something else in ``model``.
    """
    state = read_weights(file)
    # our own files have a description
    family = None if "name" in read_description(file) else family_of(state, FAMILIES)
    if family is None:
        return BackboneState(without_unused(state, model))
    converted, cure = family.convert_file_state(state, file), partial(option_of_backbone, options)
    refuse_other_invisible_settings(model, converted, file, family, cure=cure)
    notes = {
        name: f"no file says {guess.what}: {guess.value!r}, as published"
        for name, guess in converted.guessed_settings.items()
    } | other_guesses(model, converted, cure=cure)
    return BackboneState(
        without_unused(converted.state, model), tuple(notes[name] for name in notes if name not in may_differ)
    )


def option_of_backbone(options: Sequence[str], name: str, value: Any) -> str:
    """The end of a message: how a backbone that takes ``options`` gets another value of a setting."""
    if name not in options:
        return f"a backbone has no {name}: give other weights"
    return f"set model.backbone.{name}={value}"


def refuse_misfits(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    file: Path,
    *,
    options: Sequence[str] = MODEL_OPTIONS,
    resampled: tuple[str, ...] = (),
) -> None:
    """Refuse a file whose tensors do not match the layers and positions of a backbone.

    Args:
        state: Tensors of the file; it may also hold other layers, registers, head and final norm.
        expected: Tensors of the backbone.
        file: For the message.
        options: Settings that the backbone takes.
        resampled: Keys of tensors that may have another shape.

    Raises:
        UserError: naming the keys that are missing, have another shape, or do not exist in the backbone.
    """
    prefixes = {"encoder.position."} | {prefix for key in expected if (prefix := _layer_prefix(key))}
    faults = {
        "missing": [key for key in expected if key not in state],
        "shapes": [
            f"{key} {tuple(state[key].shape)} for {tuple(value.shape)}"
            for key, value in expected.items()
            if key in state and state[key].shape != value.shape and key not in resampled
        ],
        "without a place": [key for key in state if key not in expected and _layer_prefix(key) in prefixes],
    }
    if any(faults.values()):
        settings = ", ".join(name for name in SHAPING_SETTINGS if name in options)
        raise UserError(
            f"{file} does not fit the backbone: {format_keys(faults)}; set model.backbone as the run's model was "
            f"(name, {settings})"
        )


def refuse_other_settings(
    config: ModelConfig,
    path: str | Path,
    *,
    options: Sequence[str] = MODEL_OPTIONS,
    may_differ: tuple[str, ...] = (),
) -> None:
    """Refuse a run that was trained with other settings, where those change the meaning of its weights.

    Args:
        config: Config of the backbone.
        path: A run or weights file; one without a description is accepted unchecked.
        options: Settings that the backbone takes.
        may_differ: Settings that may differ on purpose.

    Raises:
        UserError: a setting differs; the message has both values.
    """
    run_config = read_model_config(path)
    if run_config is None or run_config.name not in MODEL_NAMES:
        return
    run_settings, backbone_settings = resolved(run_config), resolved(config)
    for name in SEMANTIC_SETTINGS:
        run_value, backbone_value = run_settings.get(name), backbone_settings.get(name)
        # where only one has such layers, the names of the weights show it
        is_revealed = name in SETTINGS_OF_LAYERS and None in (run_value, backbone_value)
        if run_value != backbone_value and not is_revealed and name not in may_differ:
            raise UserError(
                f"{path} was trained with {name} {run_value}, the backbone has {backbone_value}; "
                f"{option_of_backbone(options, name, run_value)}"
            )


def _check_architecture(backbone: HybridBackbone, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuse another width, depth or layout; the message has both values."""
    architecture = backbone.architecture
    if PATCHES in state and state[PATCHES].shape[0] != backbone.embed_dim:
        raise UserError(
            f"{path} has width {state[PATCHES].shape[0]}, the backbone {backbone.embed_dim}; "
            "set model.backbone.name (or embed_dim) to the pretrained model's"
        )
    layers = {int(match[1]) for key in state if (match := re.match(r"encoder\.blocks\.(\d+)\.", key))}
    depth = max(layers, default=-1) + 1
    if depth != backbone.depth:
        raise UserError(
            f"{path} has {depth} layers, the backbone {backbone.depth} (layout {architecture['layout']!r}); "
            "set model.backbone.name (or layout) to the pretrained model's"
        )
    config = read_model_config(path)
    if config is None or config.name not in MODEL_NAMES:  # the layout is then seen in the keys, but not named
        return
    layout = resolved(config)["layout"]
    if expand_layout(layout)[: backbone.num_layers] != backbone.layout:
        raise UserError(
            f"{path} has layout {layout!r}, the backbone {architecture['layout']!r}; "
            "set model.backbone.name (or layout) to the pretrained model's"
        )


def _are_close(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether numbers are equal up to rounding."""
    return len(one) == len(other) and all(map(partial(math.isclose, rel_tol=1e-3), one, other))


def _format_numbers(values: Sequence[float]) -> str:
    """A list as ``--cfg-options`` takes it."""
    return f"[{','.join(f'{value:.6g}' for value in values)}]"


def _layer_prefix(key: str) -> str | None:
    """The prefix of the block that a tensor belongs to, or of the positions; None for anything else."""
    match = LAYER_PREFIX.match(key)
    return match[0] if match else None


def _fit_patches(weight: Tensor, backbone_weight: Tensor, file: Path, *, resample: bool) -> Tensor:
    if weight.shape[2:] == backbone_weight.shape[2:]:
        return weight
    if not resample:
        (h, w), (oh, ow) = weight.shape[2:], backbone_weight.shape[2:]
        # a backbone's patches are square
        same_size = f"model.backbone.patch_size={h} and model.neck.patch_size={h}, or " if h == w else ""
        raise UserError(
            f"{file} has patches of {h}x{w} pixels, the backbone of {oh}x{ow}: set {same_size}"
            "model.backbone.init_cfg.resample_patches=True to resample the patch embedding"
        )
    return resample_patch_embed(weight, list(backbone_weight.shape[2:]))
