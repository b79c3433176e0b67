"""Images of any number of channels at the values that their files hold: .npy arrays, multi-band TIFF, and pictures."""

import importlib
import io
import math
import os
import struct
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from .formats import ARRAYS

TIFF = (".tif", ".tiff")
BANDS = "bands:"  # begins the mode of images of so many channels at stored values
SHALLOW = ("L", "LA", "RGB", "RGBA")  # Pillow's modes of 8 bits a channel
LARGEST = 2**30  # values of one image
MOST_PAGES = 4096  # of a TIFF file whose pages may be channels
EXPANSION = 10_000  # values that a byte of a compressed file may stand for
SAMPLES, ROWS, COLUMNS = "S", "Y", "X"  # as tifffile names the axes
PALETTE = 3  # of TIFF's photometric interpretations


class FileInMemory(io.BytesIO):
    """The content of a file that lies in no folder, such as a sample of a shard; the name's ending says what it is."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


File = str | os.PathLike[str] | FileInMemory


class RefusedImageError(Exception):
    """What is wrong with an image, in words that need no name of an exception before them."""


def bands_mode(channels: int) -> str:
    """The mode of images of so many channels at stored values, beside Pillow's names of modes."""
    return f"{BANDS}{channels}"


def bands_of(mode: str) -> int | None:
    """The channels of :func:`bands_mode`; None for a mode of Pillow's."""
    return int(mode.removeprefix(BANDS)) if mode.startswith(BANDS) else None


def is_array(file: Any) -> bool:
    """Whether a file is named as an array."""
    return ending_of(file) in ARRAYS


def is_tiff(file: Any) -> bool:
    """Whether a file is named as a TIFF file."""
    return ending_of(file) in TIFF


def ending_of(file: Any) -> str:
    """The ending of a file's name, lower case with its dot; "" of what has no name."""
    name = file.name if isinstance(file, FileInMemory) else file
    return os.path.splitext(name)[1].lower() if isinstance(name, str | os.PathLike) else ""


def as_bands(values: np.ndarray, channels: int | None) -> Float[Tensor, "c h w"]:
    """Values [h, w, c] or [h, w] as float32, channels first.

    Raises:
        RefusedImageError: another number of channels, no plain numbers, or some that are not finite.
    """
    if values.ndim == 2:
        values = values[..., None]
    check_shape(values.shape, channels)
    if values.dtype.kind not in "uifb":
        raise RefusedImageError(f"it holds {values.dtype}, no plain numbers")
    with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is told below
        pixels = torch.from_numpy(np.moveaxis(values, -1, 0).astype(np.float32))
    broken = ~torch.isfinite(pixels)
    if broken.any():
        channel = int(broken.flatten(1).any(1).int().argmax())
        raise RefusedImageError(
            f"{int(broken.sum())} of its values are NaN, infinite or beyond float32, the first in channel {channel}: "
            "fill them"
        )
    return pixels


def check_shape(shape: tuple[int, ...], channels: int | None) -> None:
    """Check that an image is [h, w, c], not empty, with ``channels`` channels unless that is None.

    Raises:
        RefusedImageError: it is not.
    """
    if len(shape) != 3 or not all(shape):
        raise RefusedImageError(f"its shape is {shape}: an image is (height, width, channels)")
    if channels is None or shape[2] == channels:
        return
    if shape[0] == channels:
        raise RefusedImageError(f"its shape is {shape}, channels first: save it as (height, width, channels)")
    raise RefusedImageError(
        f"it has {shape[2]} channel{'s' if shape[2] > 1 else ''}, the model takes {channels}: give --model.in_chans "
        f"{shape[2]} (to statistics, --channels {shape[2]}), or convert it"
    )


def open_array(file: File) -> np.ndarray:
    """An array of plain numbers, mapped, not read.

    Raises:
        RefusedImageError: it is none, or its header claims more than the file holds.
    """
    try:
        return np.load(file, mmap_mode=None if isinstance(file, FileInMemory) else "r", allow_pickle=False)
    except ValueError as error:  # numpy's advice is to its callers
        raise RefusedImageError("it is no whole .npy file of plain numbers") from error


def read_tiff(file: File, channels: int | None) -> np.ndarray:
    """The first picture of a TIFF file as [h, w, c]; pages of one channel are the channels, where they are as many.

    Raises:
        RefusedImageError: tifffile is not installed, the picture is too large, or its samples are places in a palette.
    """
    try:
        tifffile = importlib.import_module("tifffile")
    except ImportError as error:
        raise RefusedImageError("stored values of TIFF files need tifffile: pip install tifffile") from error
    with tifffile.TiffFile(file) as tiff:
        _check_pages(tiff)
        page = tiff.pages[0]
        if page.photometric == PALETTE:
            raise RefusedImageError("its samples are places in a palette: save it with a value a channel")
        pages = len(tiff.pages)
        held = file.getbuffer().nbytes if isinstance(file, FileInMemory) else os.path.getsize(file)
        _check_size(math.prod(page.shape) * pages, held)
        if page.axes == ROWS + COLUMNS and pages > 1 and channels in (None, pages):
            same = [p for p in tiff.pages if p.shape == page.shape and p.dtype == page.dtype]
            if len(same) == pages:
                return np.stack([p.asarray() for p in tiff.pages], axis=-1)
        values = page.asarray()
    if page.axes == SAMPLES + ROWS + COLUMNS:
        return np.moveaxis(values, 0, -1)
    if page.axes not in (ROWS + COLUMNS, ROWS + COLUMNS + SAMPLES):
        raise RefusedImageError(f"its axes are {page.axes}: save one picture of rows, columns and samples")
    return values


def check_depth(image: Image.Image) -> None:
    """Check that Pillow will give the samples of a picture that it opened as they are, not scaled to 8 or 16 bits.

    Raises:
        RefusedImageError: it will not.
    """
    for codec, _, _, arguments in getattr(image, "tile", ()):
        raw, *more = arguments if isinstance(arguments, tuple) else (arguments,)
        white = more[0] if more and codec in ("ppm", "ppm_plain") else None
        packed = image.format in ("BMP", "PNG", "TIFF") and ";" in str(raw)
        if (image.mode in SHALLOW and (packed or white not in (None, 255))) or (
            image.mode == "I" and white not in (None, 65535)
        ):
            raise RefusedImageError(
                "its samples would be scaled, as they have neither 8 bits nor, in gray, 16: save it as TIFF or .npy"
            )


def picture_values(image: Image.Image) -> np.ndarray:
    """What a picture holds, [h, w] or [h, w, c].

    Raises:
        RefusedImageError: its samples are places in a palette, or single bits.
    """
    if image.mode in ("P", "PA", "1"):
        raise RefusedImageError(f"its mode is {image.mode}: what it holds are no values of channels")
    return np.asarray(image)


def _check_pages(tiff: Any) -> None:
    """Refuse a chain of pages that is endless, or so long that no image has it: the reader compares each with all."""
    place, form, file = 8 if tiff.is_bigtiff else 4, tiff.tiff, tiff.filehandle

    def number(at: int, size: int, layout: str) -> int:
        file.seek(at)
        data = file.read(size)
        return int(struct.unpack(layout, data)[0]) if len(data) == size else 0

    for _ in range(MOST_PAGES + 1):
        page = number(place, form.offsetsize, form.offsetformat)
        if not page:
            return
        tags = number(page, form.tagnosize, form.tagnoformat)
        place = page + form.tagnosize + tags * form.tagsize
    raise RefusedImageError(f"it has more than {MOST_PAGES:,} pages: save one picture a file")


def _check_size(values: int, held: int) -> None:
    most = min(LARGEST, EXPANSION * held)
    if values > most:
        raise RefusedImageError(f"it claims {values:,} values, more than {most:,}")
