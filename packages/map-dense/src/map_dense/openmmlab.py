"""The backbones under the names that OpenMMLab's configs use, with ``init_cfg``; importing this module registers them.

They are registered with mmengine, the root of mmseg's and mmdet's registries, so both toolboxes find them.
"""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from mmengine.analysis import complexity_analysis
from mmengine.logging import print_log
from mmengine.registry import MODELS

from map_core.errors import UserError, unknown_name
from map_core.ops import jit_flop_handles
from map_dense.backbone import HybridBackbone
from map_dense.mambavision import MambaVisionBackbone
from map_dense.settings import check_switch
from map_dense.weights import BackboneReport, load_backbone, load_mambavision

# mmengine has no public way to make its get_flops count the scan.
complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS.update(jit_flop_handles())
PRETRAINED_OPTIONS = ("type", "checkpoint", "resample_patches")


class PretrainedBackbone(HybridBackbone):
    """A backbone that OpenMMLab's runner initialises by ``init_cfg``.

    Args:
        name: A model of the family; the tiny one when None.
        init_cfg: ``dict(type="Pretrained", checkpoint=PATH)`` with a run or weights file of map-vision, and
            ``resample_patches=True`` to accept another patch size; None starts from scratch.
        **options: See :class:`map_dense.backbone.HybridBackbone`.

    Raises:
        UserError: a model of another family, or an ``init_cfg`` of another form.
    """

    family: ClassVar[str]

    def __init__(
        self, name: str | None = None, *, init_cfg: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        name = name or f"{self.family}_tiny_patch16_224"
        if not str(name).startswith(f"{self.family}_"):
            raise UserError(
                f"{type(self).__name__} takes models {self.family}_*; got {name!r}: change type or name"
            )
        super().__init__(name, **options)
        self.init_cfg = init_cfg
        if init_cfg:
            check_init_cfg(init_cfg, PRETRAINED_OPTIONS)

    def init_weights(self) -> None:
        """Load the checkpoint of ``init_cfg``, and log every key that was not used."""
        if self.init_cfg:
            report = load_backbone(
                self,
                self.init_cfg["checkpoint"],
                resample_patches=self.init_cfg.get("resample_patches", False),
            )
            log_report(report)


def log_report(report: BackboneReport) -> None:
    """Log how many tensors were loaded, every key that was not used, and what no file says."""
    is_warning = bool(report.unused or report.notes)
    print_log(str(report), logger="current", level=logging.WARNING if is_warning else logging.INFO)


def check_init_cfg(init_cfg: Mapping[str, Any], options: tuple[str, ...]) -> None:
    """Refuse an ``init_cfg`` that is not ``dict(type="Pretrained", checkpoint=PATH)``, with further ``options``.

    Raises:
        UserError: naming the option.
    """
    for option in init_cfg:
        if option not in options:
            raise unknown_name("init_cfg option", option, options)
    check_switch("init_cfg.resample_patches", init_cfg.get("resample_patches", False))
    if init_cfg.get("type", "Pretrained") != "Pretrained":
        raise UserError(
            f"init_cfg of a backbone must be dict(type='Pretrained', checkpoint=PATH); got type {init_cfg['type']!r}"
        )
    checkpoint = init_cfg.get("checkpoint")
    if not checkpoint:
        raise UserError(f"init_cfg.checkpoint is {checkpoint!r}; give a run, or leave init_cfg out")
    if "://" in str(checkpoint):
        raise UserError(
            f"init_cfg.checkpoint ({checkpoint}) is not on this machine; download it and give the path of a run of "
            "map-vision or its model.safetensors"
        )


@MODELS.register_module()
class HybridNet(PretrainedBackbone):
    """Mamba and Transformer blocks: ``hybridnet_{tiny,small,base,large}_patch16_{224,384}``."""

    family = "hybridnet"


@MODELS.register_module()
class MambaR(PretrainedBackbone):
    """Mamba blocks only: ``mambar_{tiny,small,base,large}_patch16_224``."""

    family = "mambar"


@MODELS.register_module()
class MapViT(PretrainedBackbone):
    """Transformer blocks only: ``map_vit_{tiny,small,base,large}_patch16_224``."""

    family = "map_vit"


@MODELS.register_module()
class MapVim(PretrainedBackbone):
    """Mamba blocks only, as in Vim: ``map_vim_{tiny,small,base}_patch16_224``."""

    family = "map_vim"


@MODELS.register_module()
class MambaVision(MambaVisionBackbone):
    """A pyramid of convolutions, Mamba mixers and attention: ``map_mambavision_{tiny,tiny2,small,base,large,large2}``.

    Args:
        name: The model; the tiny one when None.
        init_cfg: ``dict(type="Pretrained", checkpoint=PATH)`` with a run or weights file of map-vision or a published
            checkpoint; None starts from scratch.
        **options: See :class:`map_dense.mambavision.MambaVisionBackbone`.

    Raises:
        UserError: as there, or an ``init_cfg`` of another form.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        init_cfg: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(name, **options)
        self.init_cfg = init_cfg
        if init_cfg:
            check_init_cfg(init_cfg, PRETRAINED_OPTIONS[:2])

    def init_weights(self) -> None:
        """Load the checkpoint of ``init_cfg``, and log every key that was not used."""
        if self.init_cfg:
            log_report(load_mambavision(self, self.init_cfg["checkpoint"]))
