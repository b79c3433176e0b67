"""The models registered with timm; ``import map_vision`` makes ``timm.create_model`` know them.

It imports nothing but timm until a model is created, because it runs while timm is being imported.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from map_core.shipped import folder_of_weights
from map_vision.pretrained import refuse_changed_settings, require_source, shipped_cfg, with_description

# Sizes that fit the paper's parameter counts: 12M, 37M, 128M, 443M.
HYBRID_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "embed_dim": 192,
        "layout": "(MMMT)x8",
        "num_heads": 12,
        "mlp_ratio": 2.0,
        "num_registers": 12,
        "neck_reduction": 1,
    },
    "small": {
        "embed_dim": 384,
        "layout": "(MMMT)x8",
        "num_heads": 12,
        "mlp_ratio": 2.0,
        "num_registers": 12,
        "neck_reduction": 2,
    },
    "base": {
        "embed_dim": 768,
        "layout": "(MMMT)x8",
        "num_heads": 12,
        "mlp_ratio": 1.0,
        "num_registers": 12,
        "neck_reduction": 4,
    },
    "large": {
        "embed_dim": 1024,
        "layout": "(MMMT)x16",
        "num_heads": 16,
        "mlp_ratio": 1.0,
        "num_registers": 16,
        "neck_reduction": 8,
    },
}
# For images of 32 px such as CIFAR-10's, with its 10 classes by default; trained by recipe pretrain_cifar10.
NANO: dict[str, Any] = {
    "patch_size": 4,
    "embed_dim": 128,
    "layout": "(MMMT)x2",
    "num_heads": 4,
    "mlp_ratio": 2.0,
    "num_registers": 0,
    "global_pool": "avg",
}
MAMBA_LAYOUTS = {"tiny": "Mx24", "small": "Mx24", "base": "Mx24", "large": "Mx48"}
VIT_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 192, "layout": "Tx12", "num_heads": 3},
    "small": {"embed_dim": 384, "layout": "Tx12", "num_heads": 6},
    "base": {"embed_dim": 768, "layout": "Tx12", "num_heads": 12},
    "large": {"embed_dim": 1024, "layout": "Tx24", "num_heads": 16},
    "huge": {"embed_dim": 1280, "layout": "Tx32", "num_heads": 16, "patch_size": 14},
}
VIM_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 192},
    "small": {"embed_dim": 384},
    "base": {"embed_dim": 768},
}
VIM_FORM: dict[str, Any] = {"layout": "Mx24", "num_registers": 1, "neck_reduction": 1}
ARM_SIZES: dict[str, dict[str, Any]] = {
    "base": {"embed_dim": 768, "layout": "Fx12"},
    "large": {"embed_dim": 1024, "layout": "Fx24"},
    "huge": {"embed_dim": 1536, "layout": "Fx24"},
}
ARM_FORM: dict[str, Any] = {"num_registers": 1, "final_norm": "layer", "global_pool": "avg"}
VIT_FORM: dict[str, Any] = {
    "mlp_ratio": 4.0,
    "num_registers": 1,
    "spread_registers": False,
    "neck_reduction": 1,
    "final_norm": "layer",
    "norm_eps": 1e-6,
}
# Stem, width of the last stage, blocks, and heads of the two stages that have any, as MambaVision publishes them.
PYRAMID_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"stem_dim": 32, "embed_dim": 640, "depths": (1, 3, 8, 4), "num_heads": (8, 16)},
    "tiny2": {"stem_dim": 32, "embed_dim": 640, "depths": (1, 3, 11, 4), "num_heads": (8, 16)},
    "small": {"stem_dim": 64, "embed_dim": 768, "depths": (3, 3, 7, 5), "num_heads": (8, 16)},
    "base": {
        "stem_dim": 64,
        "embed_dim": 1024,
        "depths": (3, 3, 10, 5),
        "num_heads": (8, 16),
        "layer_scale": 1e-5,
    },
    "large": {
        "stem_dim": 64,
        "embed_dim": 1568,
        "depths": (3, 3, 10, 5),
        "num_heads": (16, 32),
        "layer_scale": 1e-5,
    },
    "large2": {
        "stem_dim": 64,
        "embed_dim": 1568,
        "depths": (3, 3, 12, 5),
        "num_heads": (16, 32),
        "layer_scale": 1e-5,
    },
}
CROP = 0.875  # for evaluation at 224 pixels; Mamba-R, and models of other sizes, see whole images
PYRAMID_CROPS = {"tiny2": 0.98, "small": 0.93}  # the others see whole images


def _default_cfg(
    img_size: int, *, first_conv: str, crop_pct: float, num_classes: int = 1000
) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": num_classes,
        "input_size": (3, img_size, img_size),
        "pool_size": None,
        "crop_pct": crop_pct,
        "interpolation": "bicubic",
        "fixed_input_size": False,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": first_conv,
        "classifier": "head",
    }


def _architectures() -> dict[str, tuple[int, dict[str, Any]]]:
    """Name -> image size and model arguments, for every registered HybridNet."""
    table: dict[str, tuple[int, dict[str, Any]]] = {"hybridnet_nano_patch4_32": (32, NANO)}
    for size, arguments in HYBRID_SIZES.items():
        for img_size in (224, 384):
            table[f"hybridnet_{size}_patch16_{img_size}"] = (img_size, arguments)
        table[f"mambar_{size}_patch16_224"] = (224, {**arguments, "layout": MAMBA_LAYOUTS[size]})
    for size, arguments in VIM_SIZES.items():
        table[f"map_vim_{size}_patch16_224"] = (224, {**arguments, **VIM_FORM})
    for size, arguments in ARM_SIZES.items():
        table[f"map_arm_{size}_patch16_224"] = (224, {**arguments, **ARM_FORM})
    for size, arguments in VIT_SIZES.items():
        patch = arguments.get("patch_size", 16)
        table[f"map_vit_{size}_patch{patch}_224"] = (224, {**arguments, **VIT_FORM})
    return table


ARCHITECTURES = _architectures()
PYRAMIDS = {f"map_mambavision_{size}": arguments for size, arguments in PYRAMID_SIZES.items()}
MODEL_NAMES = (*ARCHITECTURES, *PYRAMIDS)
default_cfgs = generate_default_cfgs(
    {
        name: _default_cfg(
            img_size,
            first_conv="patch_embed.proj",
            crop_pct=CROP if img_size == 224 and not name.startswith("mambar_") else 1.0,
            num_classes=10 if img_size == 32 else 1000,
        )
        | shipped_cfg(folder_of_weights(name), img_size)
        for name, (img_size, _) in ARCHITECTURES.items()
    }
    | {
        f"map_mambavision_{size}": _default_cfg(
            224, first_conv="patch_embed.conv_down.0", crop_pct=PYRAMID_CROPS.get(size, 1.0)
        )
        for size in PYRAMID_SIZES
    }
)


def model_class(name: str) -> type[nn.Module]:
    """The class of a registered model."""
    from map_vision.mambavision import MambaVision
    from map_vision.model import HybridNet

    return MambaVision if name in PYRAMIDS else HybridNet


def named_settings(name: str) -> dict[str, Any]:
    """The settings that a registered model's name stands for."""
    if name in PYRAMIDS:
        return PYRAMIDS[name]
    img_size, arguments = ARCHITECTURES[name]
    return {"img_size": img_size, **arguments}


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    defaults = named_settings(name)
    if name in PYRAMIDS:
        summary = f"{name}: stages of {defaults['depths']} blocks, the last {defaults['embed_dim']} wide."
        feature_cfg: dict[str, Any] = {"out_indices": (0, 1, 2, 3), "feature_cls": "getter"}
    else:
        summary = (
            f"{name}: {defaults['layout']} of width {defaults['embed_dim']} at {defaults['img_size']} px."
        )
        feature_cfg = {"out_indices": 3, "feature_cls": "getter"}

    # nn.Module: with features_only timm wraps the model
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        from map_vision.factory import check_arguments
        from map_vision.weights import pretrained_state

        check_arguments(kwargs)
        # a run's description may say it; a model that timm creates keeps its registers anyway
        if name not in PYRAMIDS and kwargs.get("keep_registers"):
            del kwargs["keep_registers"]
        if pretrained:
            require_source(name, kwargs)
            refuse_changed_settings(name, kwargs)
            kwargs = with_description(name, kwargs)
        return build_model_with_cfg(
            model_class(name),
            name,
            pretrained,
            pretrained_filter_fn=partial(pretrained_state, with_head=not kwargs.get("features_only")),
            feature_cfg=dict(feature_cfg),  # timm pops entries from it
            **{**defaults, **kwargs},
        )

    create.__name__ = create.__qualname__ = name
    create.__module__ = __name__
    create.__doc__ = summary
    return create


for _name in MODEL_NAMES:  # timm reads entry points and default_cfgs from the module that defines them
    globals()[_name] = register_model(_entrypoint(_name))
