"""Compare start-up and reading of an image folder with its shards: ``python benchmarks/folder_or_shards.py FOLDER``.

Files are in the system's cache, so that the program is measured, not the disk. Rounds alternate between the two.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from results_file import save_results

from map_core.shards import parse_size, write_shards
from map_vision.data import DataConfig, load_image_data
from map_vision.data.samples import ImageSamples
from map_vision.data.sharding import files_by_split


def main() -> None:
    """Write the shards, then measure both layouts in each round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="50MB", help="of a shard")
    parser.add_argument("--images", type=int, default=10_000, help="to read in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        shards, start = Path(folder) / "shards", time.perf_counter()
        splits = files_by_split(DataConfig(root=str(arguments.folder)))
        write_shards(splits, shards, size=parse_size(arguments.size, "size"))
        count, seconds = sum(len(files.names) for files in splits.values()), time.perf_counter() - start
        rows.append({"what": "write shards", "images": count, "seconds": round(seconds, 2)})
        print(rows[-1], flush=True)
        for _ in range(arguments.rounds):
            for name, root in (("folder", arguments.folder), ("shards", shards)):
                rows.append({"what": name} | measure(root, arguments.images))
                print(rows[-1], flush=True)
    save_results(arguments.out, rows)


def measure(root: Path, images: int) -> dict[str, Any]:
    """Time the start, and reading images in random order in one thread."""
    start = time.perf_counter()
    data = load_image_data(DataConfig(root=str(root)), img_size=(32, 32), in_chans=3, purpose="pretrain")
    start_seconds = time.perf_counter() - start
    samples = data.train
    assert isinstance(samples, ImageSamples)
    indices = np.random.default_rng(0).permutation(len(samples))[:images].tolist()
    start = time.perf_counter()
    for index in indices:
        samples.image(index)
    return {
        "images": len(samples),
        "start_seconds": round(start_seconds, 3),
        "decoded_images_per_second": round(len(indices) / (time.perf_counter() - start)),
    }


if __name__ == "__main__":
    main()
