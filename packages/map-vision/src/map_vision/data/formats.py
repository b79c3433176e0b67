"""The only image formats that are read: Pillow on its own would run PostScript through an external program."""

import contextlib
import functools
import importlib

from PIL import Image

EXTENSIONS_OF_FORMAT = {
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "HEIF": (".heic", ".heif"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
ARRAYS = (".npy",)  # read as images in folders without pictures


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Return the listed formats that this installation decodes; AVIF, HEIF and WebP depend on it."""
    Image.init()
    with contextlib.suppress(ImportError):  # HEIF needs a package of its own
        importlib.import_module("pillow_heif").register_heif_opener()
    format_of = Image.registered_extensions()  # a format that is not built in has an opener, but no extension
    return tuple(
        name for name, suffixes in EXTENSIONS_OF_FORMAT.items() if format_of.get(suffixes[0]) == name
    )


@functools.cache
def readable_extensions() -> frozenset[str]:
    """Return the file name extensions, lower case with their dot, of :func:`readable_formats`."""
    return frozenset(suffix for name in readable_formats() for suffix in EXTENSIONS_OF_FORMAT[name])


def missing_decoder(extensions: frozenset[str]) -> str:
    """Name the package that would read one of ``extensions`` that this installation cannot read, or ''."""
    unreadable = extensions - readable_extensions()
    if unreadable & {*EXTENSIONS_OF_FORMAT["HEIF"]}:
        return "pip install pillow-heif to read .heic"
    if unreadable & {*EXTENSIONS_OF_FORMAT["AVIF"]}:
        return "pip install -U pillow to read .avif"
    return ""
