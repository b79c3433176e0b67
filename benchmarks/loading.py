"""Processor time of loading small images, a batch at a time and one by one: ``python benchmarks/loading.py``.

One by one, every sample keeps and restores the states of the global generators; a batch does so once.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from results_file import save_results

from map_core.training.plan import SampleKey
from map_core.training.sampling import KeyedDataset
from map_vision.data import DataConfig, load_image_data


def main() -> None:
    """Read the same digits in both ways, by turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keys = [SampleKey(0, index, 0) for index in range(arguments.samples)]
    batches = [keys[start : start + arguments.batch] for start in range(0, len(keys), arguments.batch)]
    rows = []
    for augmentation in ("none", "shift", "crop_flip"):
        config = DataConfig(augmentation=augmentation)
        data = load_image_data(config, img_size=(8, 8), in_chans=1, purpose="pretrain").train
        keyed = KeyedDataset(data, 0)
        ways: dict[str, Callable[[], Any]] = {
            "batches": lambda keyed=keyed: [keyed.__getitems__(batch) for batch in batches],
            "one by one": lambda keyed=keyed: [keyed[key] for key in keys],
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _, (way, read) in itertools.product(range(arguments.rounds), ways.items()):
            start = time.process_time()
            read()
            seconds[way].append(time.process_time() - start)
        cost = {way: 1e6 * statistics.median(values) / len(keys) for way, values in seconds.items()}
        rows.append(
            {
                "augmentation": augmentation,
                "microseconds a sample, in batches": round(cost["batches"]),
                "microseconds a sample, one by one": round(cost["one by one"]),
                "ratio": round(cost["one by one"] / cost["batches"], 2),
            }
        )
        print(rows[-1], flush=True)
    save_results(arguments.out, rows)


if __name__ == "__main__":
    main()
