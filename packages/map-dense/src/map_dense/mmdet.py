"""Registers with mmdet the names that its configs use: backbones, pyramid, the norm of the heads, loops, layer decay.

A config sets ``custom_imports = dict(imports=["map_dense.mmdet"])`` and may then use ``type="HybridNet"``,
``"MambaR"``, ``"MapViT"``, ``"MapVim"`` or ``"MambaVision"`` (backbone), ``type="SimpleFeaturePyramid"`` (neck),
``norm_cfg=dict(type="LN2d")`` (LayerNorm over channels, in any head),
``constructor="HybridLayerDecayOptimWrapperConstructor"``, the loops of :mod:`map_dense.loops`, the hook of
:mod:`map_dense.stopping` and the runner of :mod:`map_dense.cpu_processes`. ``type="CocoDataset"`` is then
:class:`map_dense.coco.CheckedCocoDataset`, and checkpoints are read by :mod:`map_dense.checkpoints`.
"""

from map_dense.installation import check_installation, check_operators

check_installation("mmdet", ["onedl-mmdetection", "mmdet"])
check_operators()

from mmdet.registry import DATASETS, MODELS  # noqa: E402
from mmengine.registry import MODELS as ROOT_MODELS  # noqa: E402
from timm.layers import LayerNorm2d  # noqa: E402

import map_dense.checkpoints  # noqa: E402
import map_dense.cpu_processes  # noqa: E402
import map_dense.loops  # noqa: E402
import map_dense.openmmlab  # noqa: E402
import map_dense.optim  # noqa: E402
import map_dense.repeated  # noqa: E402
import map_dense.stopping  # noqa: E402, F401
from map_dense.coco import CheckedCocoDataset  # noqa: E402
from map_dense.pyramid import SimpleFeaturePyramid  # noqa: E402

# under mmdet's name, so that nobody's config swaps classes
DATASETS.register_module(name="CocoDataset", module=CheckedCocoDataset, force=True)
MODELS.register_module(module=SimpleFeaturePyramid)
ROOT_MODELS.register_module(name="LN2d", module=LayerNorm2d, force=True)  # where mmcv looks norms up
