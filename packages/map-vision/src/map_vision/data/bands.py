"""Images with any number of channels, at the values stored in their files: .npy arrays, multi-band TIFF, pictures."""

import importlib
import math
import os
import struct
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from map_vision.data.image_files import File, FileInMemory, RefusedImageError

BANDS = "bands:"  # prefix of the mode of stored values, followed by the number of channels
EIGHT_BIT_MODES = ("L", "LA", "RGB", "RGBA")  # Pillow's modes with 8 bits per channel
MAX_VALUES = 2**30  # in one image
MAX_PAGES = 4096  # in a TIFF file whose pages may be channels
MAX_EXPANSION = 10_000  # values per byte of a compressed file
SAMPLES, ROWS, COLUMNS = "S", "Y", "X"  # tifffile's names of the axes
PALETTE = 3  # one of TIFF's photometric interpretations


def bands_mode(channels: int) -> str:
    """The mode of stored values with ``channels`` channels, in addition to Pillow's modes."""
    return f"{BANDS}{channels}"


def bands_of(mode: str) -> int | None:
    """The number of channels in a mode from :func:`bands_mode`; None for one of Pillow's modes."""
    return int(mode.removeprefix(BANDS)) if mode.startswith(BANDS) else None


def as_bands(values: np.ndarray, channels: int | None) -> Float[Tensor, "c h w"]:
    """Values [h, w, c] or [h, w] as float32, channels first.

    Raises:
        RefusedImageError: another number of channels, values that are not plain numbers, or not finite.
    """
    if values.ndim == 2:
        values = values[..., None]
    check_shape(values.shape, channels)
    if values.dtype.kind not in "uifb":
        raise RefusedImageError(f"it holds {values.dtype}, not plain numbers")
    with np.errstate(over="ignore", invalid="ignore"):  # overflow to infinity is reported below
        pixels = torch.from_numpy(np.moveaxis(values, -1, 0).astype(np.float32))
    invalid = ~torch.isfinite(pixels)
    if invalid.any():
        channel = int(invalid.flatten(1).any(1).int().argmax())
        raise RefusedImageError(
            f"{int(invalid.sum())} of its values are NaN, infinite or beyond float32, the first in channel {channel}: "
            "fill them"
        )
    return pixels


def check_shape(shape: tuple[int, ...], channels: int | None) -> None:
    """Check that an image is [h, w, c], not empty, and has ``channels`` channels unless that is None.

    Raises:
        RefusedImageError: any other shape.
    """
    if len(shape) != 3 or not all(shape):
        raise RefusedImageError(f"its shape is {shape}: an image is (height, width, channels)")
    if channels is None or shape[2] == channels:
        return
    if shape[0] == channels:
        raise RefusedImageError(f"its shape is {shape}, channels first: save it as (height, width, channels)")
    raise RefusedImageError(
        f"it has {shape[2]} channel{'s' if shape[2] > 1 else ''}, the model takes {channels}: give images that have "
        f"{channels}, or, to a new model, --model.in_chans {shape[2]} (to statistics, --channels {shape[2]})"
    )


def open_array(file: File) -> np.ndarray:
    """An array of plain numbers, memory-mapped where the file is on disk.

    Raises:
        RefusedImageError: the file is not one, or its header claims more than the file holds.
    """
    try:
        return np.load(file, mmap_mode=None if isinstance(file, FileInMemory) else "r", allow_pickle=False)
    except ValueError as error:  # numpy's advice is for its callers
        raise RefusedImageError("it is not a complete .npy file of plain numbers") from error


def read_tiff(file: File, channels: int | None) -> np.ndarray:
    """The first picture of a TIFF file as [h, w, c]; equal pages of one channel each are its channels, unless
    ``channels`` is another number.

    Raises:
        RefusedImageError: tifffile is not installed, the picture is too large, or its samples are palette indices.
    """
    try:
        tifffile = importlib.import_module("tifffile")
    except ImportError as error:
        raise RefusedImageError("stored values of TIFF files need tifffile: pip install tifffile") from error
    with tifffile.TiffFile(file) as tiff:
        _check_pages(tiff)
        page = tiff.pages[0]
        if page.photometric == PALETTE:
            raise RefusedImageError("its samples are places in a palette: save it with one value per channel")
        pages = len(tiff.pages)
        file_size = file.getbuffer().nbytes if isinstance(file, FileInMemory) else os.path.getsize(file)
        _check_size(math.prod(page.shape) * pages, file_size)
        if page.axes == ROWS + COLUMNS and pages > 1 and channels in (None, pages):
            equal_pages = [p for p in tiff.pages if p.shape == page.shape and p.dtype == page.dtype]
            if len(equal_pages) == pages:
                return np.stack([p.asarray() for p in tiff.pages], axis=-1)
        values = page.asarray()
    if page.axes == SAMPLES + ROWS + COLUMNS:
        return np.moveaxis(values, 0, -1)
    if page.axes not in (ROWS + COLUMNS, ROWS + COLUMNS + SAMPLES):
        raise RefusedImageError(f"its axes are {page.axes}: save one picture of rows, columns and samples")
    return values


def check_depth(image: Image.Image) -> None:
    """Check that Pillow will return the samples of an opened picture as stored, not scaled to 8 or 16 bits.

    Raises:
        RefusedImageError: it would scale them.
    """
    for codec, _, _, arguments in getattr(image, "tile", ()):
        raw_mode, *rest = arguments if isinstance(arguments, tuple) else (arguments,)
        max_value = rest[0] if rest and codec in ("ppm", "ppm_plain") else None
        packed = image.format in ("BMP", "PNG", "TIFF") and ";" in str(raw_mode)
        if (image.mode in EIGHT_BIT_MODES and (packed or max_value not in (None, 255))) or (
            image.mode == "I" and max_value not in (None, 65535)
        ):
            raise RefusedImageError(
                "its samples would be scaled, as they have neither 8 bits nor, in gray, 16: save it as TIFF or .npy"
            )


def picture_values(image: Image.Image) -> np.ndarray:
    """The values of a picture, [h, w] or [h, w, c].

    Raises:
        RefusedImageError: its samples are palette indices or single bits.
    """
    if image.mode in ("P", "PA", "1"):
        raise RefusedImageError(f"its mode is {image.mode}, whose samples are not values of channels")
    return np.asarray(image)


def _check_pages(tiff: Any) -> None:
    """Refuse an endless or implausibly long chain of pages: tifffile compares each page with all the others."""
    pointer, layout, file = 8 if tiff.is_bigtiff else 4, tiff.tiff, tiff.filehandle

    def read_int(offset: int, size: int, struct_format: str) -> int:
        file.seek(offset)
        data = file.read(size)
        return int(struct.unpack(struct_format, data)[0]) if len(data) == size else 0

    for _ in range(MAX_PAGES + 1):
        page = read_int(pointer, layout.offsetsize, layout.offsetformat)
        if not page:
            return
        num_tags = read_int(page, layout.tagnosize, layout.tagnoformat)
        pointer = page + layout.tagnosize + num_tags * layout.tagsize
    raise RefusedImageError(f"it has more than {MAX_PAGES:,} pages: save one picture per file")


def _check_size(values: int, file_size: int) -> None:
    limit = min(MAX_VALUES, MAX_EXPANSION * file_size)
    if values > limit:
        raise RefusedImageError(f"it claims {values:,} values, more than {limit:,}")
