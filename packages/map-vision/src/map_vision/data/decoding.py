"""Decode a file to upright 8-bit pixels or to its stored values, or say in one sentence why that fails."""

import os
import re
import stat
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from map_core.errors import UserError
from map_vision.data.bands import as_bands, check_depth, open_array, picture_values, read_tiff
from map_vision.data.formats import readable_formats
from map_vision.data.image_files import File, FileInMemory, RefusedImageError, is_array, is_tiff

CURE = ": replace or remove it, or pass --data.on_error skip"
UNREAD_TIFF = (
    "a TIFF whose samples are not those of a picture, which --data.pixels stored may read, or that is damaged"
)
Pixels = Image.Image | Tensor  # an 8-bit picture, or stored values [c h w]
# Tags of TIFF and EXIF, and the transpositions that turn the stored pixels upright.
BITS_PER_SAMPLE, PHOTOMETRIC, ORIENTATION, PLANAR, SAMPLE_FORMAT = 258, 262, 274, 284, 339
WHITE_IS_ZERO, SEPARATE, SIGNED = 0, 2, 2
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(UserError):
    """One image cannot be decoded.

    An exception in a loader worker is raised again with its traceback as the message; only the sentence is kept.
    """

    def __init__(self, message: str) -> None:
        sentence = re.search(r"UnreadableImageError: (.*)\s*\Z", message)
        super().__init__(sentence[1] if sentence else message)

    @property
    def fact(self) -> str:
        """The message without its advice, for users who already skip unreadable images."""
        return str(self).removesuffix(CURE)


def decode(file: Any, mode: str, *, name: str) -> Image.Image:
    """Decode a path or open file to ``mode`` ("RGB" or "L"), turned upright as its EXIF orientation says.

    Of several pictures the first is used, transparency is dropped, and samples of more than 8 bits are scaled to 8.

    Raises:
        UnreadableImageError: names the image.
    """
    try:
        if isinstance(file, str | os.PathLike | FileInMemory):
            check_file(file)
        if is_array(file):
            return _array_picture(file).convert(mode)
        with Image.open(file, formats=readable_formats()) as image:
            _check_strips(image)
            _check_planes(image)
            image.load()
            _check_samples(image)
            pixels = _eight_bits(image) if _is_deep(image) else image
            transpose = UPRIGHT.get(_orientation(image))
            pixels = pixels.convert(mode)
            return pixels if transpose is None else pixels.transpose(transpose)
    except UnidentifiedImageError as error:
        raise unreadable(name, UNREAD_TIFF if _begins_as_tiff(file) else error) from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more
        raise unreadable(name, error) from error


def stored_values(file: File, channels: int | None, *, name: str) -> Float[Tensor, "c h w"]:
    """Read the values of ``channels`` channels (any number if None) as stored; a photograph is turned upright.

    Raises:
        UnreadableImageError: names the image.
    """
    try:
        check_file(file)
        return _stored(file, channels)
    except Exception as error:  # as in decode
        raise unreadable(name, error) from error


def _stored(file: File, channels: int | None) -> Float[Tensor, "c h w"]:
    if is_array(file):
        return as_bands(open_array(file), channels)
    if is_tiff(file):
        return as_bands(read_tiff(file, channels), channels)
    with Image.open(file, formats=readable_formats()) as image:
        check_depth(image)
        image.load()
        transpose = UPRIGHT.get(_orientation(image))
        return as_bands(picture_values(image if transpose is None else image.transpose(transpose)), channels)


def _array_picture(file: File) -> Image.Image:
    """Convert an array of 8-bit gray or RGB values to a picture."""
    values = open_array(file)
    shape = values.shape[:2] if values.ndim == 3 and values.shape[2] == 1 else values.shape
    if values.dtype != np.uint8 or not all(shape) or not (len(shape) == 2 or shape[2:] == (3,)):
        raise RefusedImageError(
            f"it holds {values.dtype} of shape {values.shape}, and without --data.pixels stored an array is (height, "
            "width, 1 or 3) of 8 bits"
        )
    return Image.fromarray(np.array(values).reshape(shape))


def unreadable(name: str, error: Exception | str) -> UnreadableImageError:
    """Say which image, why, and what to do."""
    reason = " ".join(_reason(error).split())
    return UnreadableImageError(f"cannot read image {name} ({reason}){CURE}")


def _reason(error: Exception | str) -> str:
    if isinstance(error, str | RefusedImageError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return f"its content is none of {', '.join(readable_formats())}"
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return f"it claims more than {limit:,} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}"


def check_file(file: File) -> None:
    """Refuse anything but a regular file before opening it: opening a FIFO waits for its writer.

    Raises:
        RefusedImageError: the file is not regular, or empty.
        OSError: the file does not exist or is not accessible.
    """
    if isinstance(file, FileInMemory):
        if not file.getbuffer().nbytes:
            raise RefusedImageError("the file is empty")
        return
    status = os.stat(file)
    if stat.S_ISDIR(status.st_mode):
        raise RefusedImageError("it is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise RefusedImageError("it is not a regular file, but a FIFO, socket or device")
    if not status.st_size:
        raise RefusedImageError("the file is empty")


def _check_strips(image: Image.Image) -> None:
    """Refuse a TIFF whose strips or tiles do not cover its size: the rest would be black."""
    boxes = [tile[1] for tile in getattr(image, "tile", ()) if tile[1] is not None]
    covered = sum((right - left) * (lower - upper) for left, upper, right, lower in boxes)
    if image.format == "TIFF" and boxes and covered < image.width * image.height:
        raise RefusedImageError(f"it holds {covered} of its {image.width} x {image.height} pixels")


def _check_planes(image: Image.Image) -> None:
    """Refuse a TIFF whose deep samples in planes Pillow would read as twice as many 8-bit samples."""
    bits = max(_tag(image, BITS_PER_SAMPLE), default=8)
    in_planes = SEPARATE in _tag(image, PLANAR) and len(image.getbands()) > 1
    if in_planes and bits > 8 and any(tile[0] == "raw" for tile in getattr(image, "tile", ())):
        raise RefusedImageError(
            f"its channels of {bits} bits lie in planes: save it interleaved, or read it with --data.pixels stored"
        )


def _begins_as_tiff(file: Any) -> bool:
    """Whether a path or open file begins like a TIFF file."""
    if isinstance(file, str | os.PathLike):
        with open(file, "rb") as stream:
            return stream.read(4) in TiffImagePlugin.PREFIXES
    file.seek(0)
    return file.read(4) in TiffImagePlugin.PREFIXES


def _check_samples(image: Image.Image) -> None:
    """Refuse samples without a known white: only whoever made the file knows which value that is."""
    if not image.width or not image.height:
        raise RefusedImageError(f"it has {image.width} x {image.height} pixels")
    if SIGNED in _tag(image, SAMPLE_FORMAT):
        raise RefusedImageError("its samples are signed integers: save it with unsigned ones of 8 or 16 bits")
    if image.mode == "I" and max(_tag(image, BITS_PER_SAMPLE), default=16) > 16:
        raise RefusedImageError(
            "its samples have 32 bits, of which none is known as white: save it with 8 or 16"
        )


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale gray samples of 9 to 16 bits, or floating-point ones between 0 and 1, to 0..255."""
    with np.errstate(invalid="ignore"):  # NaN is refused below
        values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        white = 1.0
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):  # false for NaN, too
            raise RefusedImageError(
                f"its floating-point samples are in {low:.4g}..{high:.4g}: scale them to 0..1"
            )
    else:
        white = 2.0 ** max(_tag(image, BITS_PER_SAMPLE), default=16) - 1
    if WHITE_IS_ZERO in _tag(image, PHOTOMETRIC):
        values = white - values
    return Image.fromarray(np.rint(values * (255 / white)).clip(0, 255).astype(np.uint8))


def _tag(image: Image.Image, tag: int) -> tuple[int, ...]:
    """Return the values of a TIFF tag; () for other formats and absent tags."""
    values = getattr(image, "tag_v2", {}).get(tag, ()) if image.format == "TIFF" else ()
    return values if isinstance(values, tuple) else (values,)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # broken EXIF data do not make the picture unreadable
        return 1
