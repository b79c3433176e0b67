"""mmengine's ``RepeatDataset`` with an end; importing this module registers it as ``Repeated``."""

from typing import Any

from mmengine.dataset import RepeatDataset
from mmengine.registry import DATASETS


@DATASETS.register_module(name="Repeated")
class Repeated(RepeatDataset):
    """A data set that is read ``times`` times per epoch.

    mmengine's class returns a sample for every index, so tools that iterate over it, such as ``browse_dataset``, never
    end.
    """

    def __getitem__(self, idx: int) -> Any:
        if idx >= len(self):
            raise IndexError(f"sample {idx} of {len(self)}")
        return super().__getitem__(idx)
