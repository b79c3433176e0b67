"""Loads samples that never arrive, in two processes whose ids it writes to a file."""

import multiprocessing
import sys
import threading
import time
from pathlib import Path

import torch

from map_core.training.loading import batches_in_order


class Endless:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        time.sleep(3600)


def write_children(path):
    while len(children := multiprocessing.active_children()) < 2:
        time.sleep(0.05)
    time.sleep(1)  # for them to start loading
    partial = path.with_suffix(".partial")
    partial.write_text(" ".join(str(child.pid) for child in children))
    partial.rename(path)


threading.Thread(target=write_children, args=(Path(sys.argv[1]),), daemon=True).start()
list(batches_in_order(Endless(), batch_size=1, workers=2, device=torch.device("cpu")))
