"""CamVid's street scenes in 11 classes, as a data set for mmseg."""

from typing import Any, ClassVar

from mmseg.datasets import BaseSegDataset

COLORS = {
    "sky": [128, 128, 128],
    "building": [128, 0, 0],
    "pole": [192, 192, 128],
    "road": [128, 64, 128],
    "pavement": [60, 40, 222],
    "tree": [128, 128, 0],
    "sign": [192, 128, 128],
    "fence": [64, 64, 128],
    "car": [64, 0, 128],
    "pedestrian": [64, 64, 0],
    "bicyclist": [0, 128, 192],
}
VOID = 11


class CamVid(BaseSegDataset):
    """Scenes with labels 0 to 10, and 11 for void, which is ignored.

    Args:
        **settings: See mmseg's ``BaseSegDataset``.
    """

    METAINFO: ClassVar[dict[str, Any]] = {"classes": tuple(COLORS), "palette": list(COLORS.values())}

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"img_suffix": ".jpg", "ignore_index": VOID, **settings})
