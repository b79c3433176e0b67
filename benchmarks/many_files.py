"""How long a folder of many files takes to open, before anything is read: ``python benchmarks/many_files.py``.

The files are hard links to one picture per folder, made below ``--place`` and removed afterwards.
"""

import argparse
import os
import shutil
import time
from pathlib import Path
from typing import Any

from PIL import Image
from results_file import save_results
from timing import with_resident_peak

from map_vision.data import DataConfig, load_image_data
from map_vision.data.listing import list_folder


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
    is_there = arguments.place.exists()
    if is_there and not arguments.keep:
        parser.error(f"--place {arguments.place} exists: name a folder to make and remove, or add --keep")
    rows = []
    try:
        if not is_there:
            make(arguments.place / "train", arguments.folders, arguments.files)
        for _ in range(arguments.rounds):
            row, megabytes = with_resident_peak(lambda: measure(arguments.place))
            rows.append(row | {"megabytes": round(megabytes, 0)})
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
    start = time.perf_counter()
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
    }


if __name__ == "__main__":
    main()
