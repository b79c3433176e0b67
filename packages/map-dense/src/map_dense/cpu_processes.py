"""Several processes without GPUs, which mmengine's runner cannot start: it asks for a CUDA device first."""

import os
from typing import Any

import torch
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from map_core.errors import UserError


@RUNNERS.register_module()
class CpuProcessesRunner(Runner):
    """mmengine's runner, with gloo where there is no GPU; a config selects it by ``runner_type``.

    Without a launcher, or with a GPU, it behaves as mmengine's.

    Raises:
        UserError: a launcher other than ``pytorch`` where there is no GPU.
    """

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """Start gloo first; mmengine then skips its initialisation, which asks for a CUDA device."""
        if self.distributed and not torch.cuda.is_available():
            if self.launcher != "pytorch":
                raise UserError(f"without GPUs only --launcher pytorch is supported; got {self.launcher!r}")
            torch.distributed.init_process_group("gloo")
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: Any) -> Any:
        """Wrap the model without device ids, which do not exist on a CPU."""
        if self.distributed and not torch.cuda.is_available():
            os.environ.setdefault("LOCAL_RANK", "0")
            model_wrapper_cfg = {
                "device_ids": None,
                "broadcast_buffers": False,
                "find_unused_parameters": self.cfg.get("find_unused_parameters", False),
                **(model_wrapper_cfg or {}),
            }
        return super().wrap_model(model_wrapper_cfg, model)
