"""Registers with mmseg the names that its configs use: backbones, pyramid, loops, layer decay.

A config sets ``custom_imports = dict(imports=["map_dense.mmseg"])`` and may then use ``type="HybridNet"``,
``"MambaR"``, ``"MapViT"``, ``"MapVim"`` or ``"MambaVision"`` (backbone), ``type="UperNetPyramid"`` (neck),
``type="LoadLabelMap"`` (transform), ``type="CamVid"`` (data set),
``constructor="HybridLayerDecayOptimWrapperConstructor"``, the loops of :mod:`map_dense.loops`, the hook of
:mod:`map_dense.stopping` and the runner of :mod:`map_dense.cpu_processes`. ``type="EncoderDecoder"`` is then the class
of :mod:`map_dense.segmentor`, and checkpoints are read by :mod:`map_dense.checkpoints`.
"""

from map_dense.installation import check_installation

check_installation("mmseg", ["onedl-mmsegmentation", "mmsegmentation"])

from mmseg.registry import DATASETS, MODELS, TRANSFORMS  # noqa: E402

import map_dense.checkpoints  # noqa: E402
import map_dense.cpu_processes  # noqa: E402
import map_dense.loops  # noqa: E402
import map_dense.openmmlab  # noqa: E402
import map_dense.optim  # noqa: E402
import map_dense.stopping  # noqa: E402, F401
from map_dense.camvid import CamVid  # noqa: E402
from map_dense.label_maps import LoadLabelMap  # noqa: E402
from map_dense.pyramid import UperNetPyramid  # noqa: E402
from map_dense.segmentor import WholePatchEncoderDecoder  # noqa: E402

DATASETS.register_module(module=CamVid)
TRANSFORMS.register_module(module=LoadLabelMap)
MODELS.register_module(module=UperNetPyramid)
# under mmseg's name, so that padding shifts labels in nobody's config
MODELS.register_module(name="EncoderDecoder", module=WholePatchEncoderDecoder, force=True)
