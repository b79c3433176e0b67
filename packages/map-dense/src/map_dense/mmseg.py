"""Registers with mmseg what its configs name: backbones, pyramid, loops, layer decay.

A config says ``custom_imports = dict(imports=["map_dense.mmseg"])`` and may then use ``type="HybridNet"``, ``"MambaR"``
or ``"MapViT"`` (backbone), ``type="UperNetPyramid"`` (neck),
``constructor="HybridLayerDecayOptimWrapperConstructor"``, the loops of :mod:`map_dense.data_root` and the runner of
:mod:`map_dense.cpu_processes`.
"""

from map_dense.installation import check_installation

check_installation("mmseg", ["onedl-mmsegmentation", "mmsegmentation"])

from mmseg.registry import MODELS  # noqa: E402

import map_dense.cpu_processes  # noqa: E402
import map_dense.data_root  # noqa: E402
import map_dense.openmmlab  # noqa: E402
import map_dense.optim  # noqa: E402, F401
from map_dense.pyramid import UperNetPyramid  # noqa: E402

MODELS.register_module(module=UperNetPyramid)
