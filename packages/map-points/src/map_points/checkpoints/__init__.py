"""Checkpoints of other projects that point models start from, one module per project."""

from map_points.checkpoints.mamba3d import MAMBA3D
from map_points.checkpoints.part_segmentation import POINT_MAE_PARTS
from map_points.checkpoints.point_mae import POINT_MAE, POINT_MAE_PRETRAINING
from map_points.checkpoints.point_mamba import POINT_MAMBA, POINT_MAMBA_PRETRAINING

FAMILIES = (
    POINT_MAE,
    POINT_MAE_PRETRAINING,
    POINT_MAE_PARTS,
    MAMBA3D,
    POINT_MAMBA,
    POINT_MAMBA_PRETRAINING,
)

__all__ = ["FAMILIES"]
