"""The commands that only images have."""

from dataclasses import fields
from typing import Any

from map_core.commands.options import Option, config_class
from map_core.paths import expand_user
from map_core.ranges import check, refuse_without_effect
from map_core.runs.files import explaining_disk_errors, require_file
from map_core.runs.notes import tell
from map_core.shards import index_shards, parse_size, read_index, write_shards
from map_core.shards.sizes import written_size
from map_vision.data import DataConfig
from map_vision.data.formats import ARRAYS, readable_extensions
from map_vision.data.sharding import files_by_split
from map_vision.data.statistics import measure
from map_vision.data.statistics_file import save_statistics

StatisticsConfig = config_class(
    "StatisticsConfig",
    "Mean and deviation of every channel of the images that training would read, for --data.statistics.",
    data=Option(DataConfig, "Images; --data.subset 1000 measures that many of them."),
    channels=Option(
        int | None,
        "Channels of the images; by default those of the first one (3 for scaled pictures).",
        None,
    ),
    workers=Option(int, "Loading processes.", 2),
    progress=Option(bool, "Show a progress bar.", True),
    out=Option(str, "JSON file to write.", "statistics.json"),
)


def statistics(config: Any) -> None:
    """Measure images and write the file that recipes name."""
    check("", config, at_least_one=("channels",), not_negative=("workers",))
    out = expand_user(config.out)
    require_file(out)
    measured = measure(
        config.data, channels=config.channels, workers=config.workers, progress=config.progress
    )
    with explaining_disk_errors(f"write {out}", then="repeat the command"):
        out.parent.mkdir(parents=True, exist_ok=True)
        save_statistics(out, measured)
    for name in ("mean", "std"):
        tell(f"{name:5} {' '.join(f'{value:.6g}' for value in getattr(measured, name))}")
    channels = len(measured.mean)
    tell(
        f"{measured.images} images of {channels} channel{'s' if channels > 1 else ''}, {measured.pixels} -> {out} "
        f"(--model.in_chans {channels} --data.statistics {out})"
    )


ShardConfig = config_class(
    "ShardConfig",
    "Tar shards of a folder of images, or an index of tar files that are there already, for --data.source shards.",
    data=Option(DataConfig, "The folder: root, its splits, and labels where a CSV file has them."),
    size=Option(str, "Largest size of a shard, such as 250MB; a single image may be larger.", "250MB"),
    seed=Option(int, "Seed for spreading images over the shards.", 0),
    index=Option(
        str | None, "Folder of tar files in WebDataset's layout: write their index, and nothing else.", None
    ),
    progress=Option(bool, "Show a progress bar.", True),
    out=Option(str, "Folder to create.", "shards"),
)


# the data settings that say which images go into shards, of which some are refused for reasons of their own
CHOICE_OF_IMAGES = ("source", "root", "labels", "train_split", "eval_split", "holdout", "subset")


def shard(config: Any) -> None:
    """Write shards, or the index of existing ones."""
    data_settings = [entry.name for entry in fields(DataConfig)]
    if config.index is not None:
        refuse_without_effect("", config, "size", "seed", "out", because="--index")
        refuse_without_effect("data", config.data, *data_settings, because="--index")
        folder = expand_user(config.index)
        counts = index_shards(
            folder, readable_extensions(), fallback=frozenset(ARRAYS), progress=config.progress
        )
    else:
        others = [name for name in data_settings if name not in CHOICE_OF_IMAGES]
        refuse_without_effect("data", config.data, *others, because="shards, which hold files as they are")
        folder, splits = expand_user(config.out), files_by_split(config.data)
        size = parse_size(config.size, "size")
        write_shards(splits, folder, size=size, seed=config.seed, progress=config.progress)
        counts = {name: len(files.names) for name, files in splits.items()}
    for split, count in counts.items():
        index = read_index(folder / split)
        size_in_bytes = sum(shard.bytes for shard in index.shards)
        tell(
            f"{folder / split}: {count} images of {len(index.classes) or 'no'} classes in {len(index.shards)} shards, "
            f"{written_size(size_in_bytes)}"
        )
    tell(f"read them with --data.root {folder}")
