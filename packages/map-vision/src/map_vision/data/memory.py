"""Images decoded once and kept in memory, each at its own size, for data sets of small images."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from map_core.errors import UserError
from map_core.runs.progress import track
from map_core.training.plan import Shuffled
from map_vision.data.decoding import UnreadableImageError, unreadable
from map_vision.data.sources import ImageSource

PROBES = 64


@dataclass(frozen=True)
class MemoryImages(ImageSource):
    """Pixels of all images end to end; image i holds ``shape[i]`` = (h, w) pixels from ``start[i]``.

    Tensors, because loader workers share their storage whether they are forked or spawned.
    """

    source: ImageSource
    mode: str
    pixels: UInt8[Tensor, " bytes"]
    start: Int64[Tensor, " n"]
    shape: Int64[Tensor, "n 2"]

    def name(self, index: int) -> str:
        return self.source.name(index)

    def shuffled(self, indices: np.ndarray) -> Shuffled | None:
        return self.source.shuffled(indices)

    @property
    def identity(self) -> Mapping[str, Any]:
        return self.source.identity

    def image(self, index: int, mode: str) -> Image.Image:
        # of an array: reading a number of a tensor takes longer
        height, width = self.shape.numpy()[index].tolist()
        if not height:
            raise unreadable(self.name(index), "it could not be decoded when it was cached")
        channels = len(self.mode)
        start = int(self.start.numpy()[index])
        flat = self.pixels.numpy()[start : start + height * width * channels]
        image = Image.fromarray(flat.reshape((height, width, channels) if channels > 1 else (height, width)))
        return image if mode == self.mode else image.convert(mode)


def cache_images(
    source: ImageSource, indices: np.ndarray, mode: str, *, skip_unreadable: bool
) -> MemoryImages:
    """Decode the images ``indices`` of ``source``; reading another index is an error.

    Raises:
        UserError: they would not fit in the free memory.
        UnreadableImageError: the first unreadable image, unless they are skipped.
    """
    _check_memory(source, indices, mode)
    pixels = bytearray()
    start = torch.zeros(len(source), dtype=torch.int64)
    shape = torch.zeros(len(source), 2, dtype=torch.int64)
    for index in track(indices.tolist(), total=len(indices), title="reading into memory", unit="image"):
        try:
            image = source.image(index, mode)
            assert isinstance(image, Image.Image)  # stored values are not cached, see load_image_data
        except UnreadableImageError:
            if not skip_unreadable:
                raise
            continue
        start[index] = len(pixels)
        shape[index] = torch.tensor((image.height, image.width))
        pixels += image.tobytes()
    flat = torch.frombuffer(pixels, dtype=torch.uint8) if pixels else torch.zeros(0, dtype=torch.uint8)
    return MemoryImages(source.labels, source.classes, source, mode, flat, start, shape)


def _check_memory(source: ImageSource, indices: np.ndarray, mode: str) -> None:
    probes = indices[:: max(1, len(indices) // PROBES)]
    sizes = []
    for index in probes.tolist():
        try:
            image = source.image(index, mode)
            assert isinstance(image, Image.Image)
        except UnreadableImageError:
            continue
        sizes.append(image.height * image.width * len(mode))
    needed = len(indices) * sum(sizes) / max(1, len(sizes))
    free = free_memory()
    if needed > 0.8 * free:
        raise UserError(
            f"cache 'memory' needs about {needed / 1e9:.1f} GB for {len(indices)} images, and "
            f"{free / 1e9:.1f} GB are free: pass --data.cache none"
        )


def free_memory() -> int:
    """Return the bytes of memory that a process may still allocate, as far as the system reports them.

    Cached files count as free; the limit of a control group, as in containers, is respected.
    """
    limits = [limit for limit in (_available(), _available_in_cgroup()) if limit is not None]
    return min(limits, default=2**63)


def _available(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
        return int(match[1]) * 1024 if match else None
    except OSError:
        pass  # not Linux
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _available_in_cgroup(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Limit minus usage, for cgroup version 2 or 1; inactive file pages can be reclaimed."""
    for limit_file, usage_file, stat_file, inactive_key in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        try:
            limit, usage = int((root / limit_file).read_text()), int((root / usage_file).read_text())
            inactive = re.search(rf"^{inactive_key} (\d+)", (root / stat_file).read_text(), re.MULTILINE)
        except (OSError, ValueError):  # absent, or "max"
            continue
        return max(0, limit - usage + (int(inactive[1]) if inactive else 0))
    return None
