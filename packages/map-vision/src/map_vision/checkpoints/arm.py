"""ARM's finetuned classifiers: four scans per layer, one class token in the middle; they read the mean patch."""

from collections.abc import Mapping

from torch import Tensor

from map_core.errors import UserError
from map_core.tasks.families import Converted, Family, depth
from map_vision.checkpoints import mamba
from map_vision.checkpoints.description import (
    PATCHES,
    class_names,
    imagenet_preprocessing,
    nearest_model,
    sizes,
)

FOUR_WAYS = {"": "row_forward", "_b": "row_backward", "_c": "column_forward", "_c_b": "column_backward"}
LAYER = tuple(
    f"{part}.{kind}"
    for part in ("norm1", "norm2", "mlp.w1", "mlp.w2", "mlp.w3")
    for kind in ("weight", "bias")
)
KEYS = (
    "cls_token",
    "pos_embed",
    PATCHES,
    "patch_embed.proj.bias",
    "norm_f.weight",
    "norm_f.bias",
    *mamba.HEAD,
    *(f"layers.#.{part}" for part in LAYER),
    *(f"layers.#.mixer.{name}" for name in mamba.PROJECTIONS),
    *(f"layers.#.mixer.{name.format(suffix)}" for suffix in FOUR_WAYS for name in mamba.DIRECTION.values()),
)


def convert_arm(state: Mapping[str, Tensor]) -> Converted:
    """Scans along rows and columns, both ways.

    Raises:
        UserError: patches that do not form a square grid, or an odd number of them.
    """
    tokens = mamba.with_middle_class_token(state)
    rows = len(tokens["encoder.position.table"])
    if rows % 2:
        raise UserError(
            f"ARM reads the mean of two means, of the patches before and behind its class token; of {rows} x "
            f"{rows} patches these are not equally many, which this project does not compute"
        )
    parameters = mamba.matching(state, r"patch_embed\.|head\.") | tokens
    parameters["encoder.norm.weight"] = state["norm_f.weight"]
    parameters["encoder.norm.bias"] = state["norm_f.bias"]
    for i in range(depth(state, "layers.")):
        source, target = f"layers.{i}.", f"encoder.blocks.{i}."
        parameters |= {f"{target}{part}": state[f"{source}{part}"] for part in LAYER}
        parameters |= mamba.mixer(state, f"{source}mixer.", f"{target}mixer.", FOUR_WAYS)
    return Converted(
        parameters,
        nearest_model("map_arm_", layout=f"Fx{depth(state, 'layers.')}", **sizes(state, rows)),
        holds="classifier",
        invisible_settings={"order": "row", "patch_stride": None, "pool_norm": False},
        classes=class_names(len(state["head.bias"])),
        preprocessing=imagenet_preprocessing(state),
    )


ARM = Family("ARM, finetuned", KEYS, (), convert_arm)
