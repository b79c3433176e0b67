"""The models registered with timm; ``import map_vision`` makes ``timm.create_model`` know them."""

from collections.abc import Callable
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from map_vision.model import HybridNet
from map_vision.weights import convert_state

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
MAMBA_LAYOUTS = {"tiny": "Mx24", "small": "Mx24", "base": "Mx24", "large": "Mx48"}
VIT_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 192, "layout": "Tx12", "num_heads": 3},
    "small": {"embed_dim": 384, "layout": "Tx12", "num_heads": 6},
    "base": {"embed_dim": 768, "layout": "Tx12", "num_heads": 12},
    "large": {"embed_dim": 1024, "layout": "Tx24", "num_heads": 16},
}
VIT_FORM: dict[str, Any] = {
    "mlp_ratio": 4.0,
    "num_registers": 1,
    "spread_registers": False,
    "neck_reduction": 1,
    "final_norm": "layer",
    "norm_eps": 1e-6,
}


def _default_cfg(img_size: int) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, img_size, img_size),
        "pool_size": None,
        "crop_pct": 0.875 if img_size == 224 else 1.0,
        "interpolation": "bicubic",
        "fixed_input_size": False,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }


def _architectures() -> dict[str, tuple[int, dict[str, Any]]]:
    """Name -> image size and model arguments, for every registered model."""
    table: dict[str, tuple[int, dict[str, Any]]] = {}
    for size, arguments in HYBRID_SIZES.items():
        for img_size in (224, 384):
            table[f"hybridnet_{size}_patch16_{img_size}"] = (img_size, arguments)
        table[f"mambar_{size}_patch16_224"] = (224, {**arguments, "layout": MAMBA_LAYOUTS[size]})
        table[f"map_vit_{size}_patch16_224"] = (224, {**VIT_SIZES[size], **VIT_FORM})
    return table


ARCHITECTURES = _architectures()
MODEL_NAMES = tuple(ARCHITECTURES)
default_cfgs = generate_default_cfgs(
    {name: _default_cfg(img_size) for name, (img_size, _) in ARCHITECTURES.items()}
)


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    img_size, arguments = ARCHITECTURES[name]

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:  # a wrapper with features_only
        return build_model_with_cfg(
            HybridNet,
            name,
            pretrained,
            pretrained_filter_fn=convert_state,
            feature_cfg={"out_indices": 3, "feature_cls": "getter"},
            **{"img_size": img_size, **arguments, **kwargs},
        )

    create.__name__ = create.__qualname__ = name
    create.__module__ = __name__
    create.__doc__ = f"{name}: {arguments['layout']} of width {arguments['embed_dim']} at {img_size} px."
    return create


for _name in MODEL_NAMES:  # timm reads entry points and default_cfgs from the module that defines them
    globals()[_name] = register_model(_entrypoint(_name))
