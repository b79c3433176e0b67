"""Layer decay as mmengine's optimizer wrapper constructor; importing this module registers it."""

from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from map_core.errors import UserError, unknown_name
from map_dense.layer_decay import ParameterGroup, layer_decay_groups, optimizer_groups, render_groups

_OPTIONS = ("decay_rate", "reference_layers")


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class HybridLayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """The groups of :func:`map_dense.layer_decay.layer_decay_groups`, printed as a table when training starts.

    ``paramwise_cfg`` takes ``decay_rate`` and optionally ``reference_layers``, the depth that the rate was chosen for::

        optim_wrapper = dict(
            optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05),
            constructor="HybridLayerDecayOptimWrapperConstructor",
            paramwise_cfg=dict(decay_rate=0.92, reference_layers=24),
        )

    Raises:
        UserError: no decay rate, an unknown option, or an optimizer without lr and weight_decay.
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        for option in self.paramwise_cfg:
            if option not in _OPTIONS:
                raise unknown_name("paramwise_cfg option", option, _OPTIONS)
        if "decay_rate" not in self.paramwise_cfg:
            raise UserError("layer decay needs paramwise_cfg=dict(decay_rate=...); 1.0 means no decay")
        if self.base_lr is None or self.base_wd is None:
            raise UserError("layer decay needs lr and weight_decay in optim_wrapper.optimizer")

    def groups(self, module: nn.Module) -> list[ParameterGroup]:
        """The groups of ``module``, the whole model."""
        return layer_decay_groups(module, weight_decay=self.base_wd, **self.paramwise_cfg)

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, **_: Any) -> None:
        """Append the groups of ``module``, the whole model."""
        groups = self.groups(module)
        print_log("parameter groups:\n" + render_groups(groups), logger="current")
        params.extend(optimizer_groups(groups, self.base_lr))
