"""Checkpoints at SIGTERM, by which schedulers and studies ask a training to stop."""

import signal
import sys
import threading
from typing import Any

from mmengine.dist import is_distributed
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class StoppableCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, which at SIGTERM saves once more and ends the process with status 143.

    Only in training by iterations, which resumes after any of them, and in one process: several would have to agree on
    the last one. During a validation it ends the process without saving, as other hooks may have swapped the weights.

    Args:
        **settings: See mmengine's hook.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.stop_requested = False
        self.previous_handler: Any = None

    def before_train(self, runner: Any) -> None:
        super().before_train(runner)
        is_main_thread = threading.current_thread() is threading.main_thread()
        if is_main_thread and not self.by_epoch and not is_distributed():
            self.previous_handler = signal.signal(signal.SIGTERM, self._request_stop)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if self.stop_requested:
            self._save_checkpoint(runner)
            self._exit()

    def after_val_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if self.stop_requested:
            self._exit()

    def after_train(self, runner: Any) -> None:
        super().after_train(runner)
        if self.previous_handler is not None:
            signal.signal(signal.SIGTERM, self.previous_handler)

    def _request_stop(self, number: int, frame: object) -> None:
        self.stop_requested = True

    def _exit(self) -> None:
        signal.signal(signal.SIGTERM, self.previous_handler)
        sys.exit(128 + signal.SIGTERM)
