"""How long a folder of many files takes to open, before anything is read: ``python benchmarks/many_files.py``.

The files are hard links to one picture per folder, made below ``--place`` and removed afterwards.
"""

import argparse
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from results_file import save_results

from map_core.runs.summary import peak_memory_bytes
from map_vision.data import DataConfig, load_image_data
from map_vision.data.listing import list_folder

MEGABYTE = 2**20


def main() -> None:
    """Make the folder, open it as pretraining does, remove it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--place", type=Path, default=Path("build/many_files"))
    parser.add_argument("--folders", type=int, default=1000)
    parser.add_argument("--files", type=int, default=1000, help="of each folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--keep", action="store_true", help="leave the folder, and take it as it is if it is there"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    if not (arguments.keep and arguments.place.exists()):
        make(arguments.place / "train", arguments.folders, arguments.files)
    rows = []
    try:
        for _ in range(arguments.rounds):
            rows.append(measure(arguments.place))
            print(rows[-1], flush=True)
    finally:
        if not arguments.keep:
            shutil.rmtree(arguments.place)
    save_results(arguments.out, rows)


def make(root: Path, folders: int, files: int) -> None:
    """Make folders in ImageNet's layout."""
    for number in range(folders):
        folder = root / f"n{number:08}"
        folder.mkdir(parents=True)
        first = folder / f"{folder.name}_00000.JPEG"
        Image.new("RGB", (8, 8)).save(first, "JPEG")
        for index in range(1, files):
            os.link(first, folder / f"{folder.name}_{index:05}.JPEG")


def measure(root: Path) -> dict[str, Any]:
    """Time the listing alone, then everything that happens before the first image."""
    before, start = peak_memory_bytes(torch.device("cpu")), time.perf_counter()
    files = len(list_folder(root).images)
    listing_seconds, start = time.perf_counter() - start, time.perf_counter()
    config = DataConfig(source="folder", root=str(root))
    data = load_image_data(config, img_size=(224, 224), in_chans=3, purpose="pretrain")
    opening_seconds = time.perf_counter() - start
    assert len(data.train) == files
    return {
        "files": files,
        "listing_seconds": round(listing_seconds, 2),
        "opening_seconds": round(opening_seconds, 2),
        "megabytes": round((peak_memory_bytes(torch.device("cpu")) - before) / MEGABYTE),
    }


if __name__ == "__main__":
    main()
