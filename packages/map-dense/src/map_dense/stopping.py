"""Checkpoints at SIGTERM, by which schedulers and studies ask a training to stop."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from mmengine.dist import is_distributed
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS


def keep_workers_until_parent_ends(loader: Any) -> None:
    """Make a loader's workers ignore SIGTERM unless their parent sends it; this changes the loader in place.

    A scheduler's reaches the whole process group. The parent's must end them: multiprocessing sends it when the parent
    exits, and then waits for them. Workers that are still starting are not protected yet.
    """
    loader.worker_init_fn = partial(_init_worker, seed_worker=loader.worker_init_fn)


def _init_worker(worker: int, *, seed_worker: Callable[[int], None] | None) -> None:
    if sys.platform == "linux":  # elsewhere nothing tells who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_at_sigterm_of_parent, daemon=True).start()
    if seed_worker is not None:  # mmengine's
        seed_worker(worker)


def _exit_at_sigterm_of_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)  # as PyTorch does then


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
        previous_file = self.last_ckpt
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if self.stop_requested:
            # else the file of this iteration is complete, and a second write could break it
            if self.last_ckpt == previous_file:
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
