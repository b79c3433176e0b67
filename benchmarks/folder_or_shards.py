"""Start-up and reading of a folder of images against its shards: ``python benchmarks/folder_or_shards.py FOLDER``.

Files are in the system's cache, so that the program is measured, not the disk.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from map_core.shards import parse_size, write_shards
from map_vision.data import DataConfig, load_image_data
from map_vision.data.samples import ImageSamples
from map_vision.data.sharding import files_by_split


def main() -> None:
    """Write the shards, then print a line for each round and layout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="50MB", help="of a shard")
    parser.add_argument("--images", type=int, default=10_000, help="to read in each round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        shards, start = Path(place) / "shards", time.perf_counter()
        splits = files_by_split(DataConfig(root=str(arguments.folder)))
        write_shards(splits, shards, size=parse_size(arguments.size, "size"))
        count = sum(len(files.names) for files in splits.values())
        print(f"{count} images written to shards in {time.perf_counter() - start:.1f} s")
        for _ in range(arguments.rounds):
            for name, root in (("folder", arguments.folder), ("shards", shards)):
                print(f"{name}: {', '.join(measured(root, arguments.images))}", flush=True)


def measured(root: Path, images: int) -> Iterator[str]:
    """Time the start, and one thread that reads images in a random order."""
    start = time.perf_counter()
    data = load_image_data(DataConfig(root=str(root)), img_size=(32, 32), in_chans=3, purpose="pretrain")
    yield f"start {time.perf_counter() - start:.2f} s"
    samples = data.train
    assert isinstance(samples, ImageSamples)
    numbers = np.random.default_rng(0).permutation(len(samples))[:images].tolist()
    start = time.perf_counter()
    for number in numbers:
        samples.image(number)
    yield f"{len(numbers) / (time.perf_counter() - start):.0f} decoded images/s"


if __name__ == "__main__":
    main()
