"""Pictures as files: under exactly the requested name, complete or absent."""

from pathlib import Path
from typing import TYPE_CHECKING

from map_core.errors import UserError
from map_core.runs.files import naming_file, replacing, require_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # takes half a second to import, so only where something is drawn

FORMATS = ("png", "jpg", "jpeg", "webp", "tif", "tiff", "svg", "pdf")


def picture_format(path: Path) -> str:
    """The format that a picture's name asks for; PNG where it has no ending.

    Raises:
        UserError: the ending is not a known format.
    """
    ending = path.suffix.removeprefix(".").lower() or "png"
    if ending not in FORMATS:
        endings = ", ".join(f".{name}" for name in FORMATS)
        raise UserError(f"{path}: {path.suffix} is not a picture format; use one of {endings}")
    return ending


def require_picture(out: Path) -> None:
    """Check, before any work, that a picture can be written to a file.

    Raises:
        UserError: it cannot, or its name asks for an unknown format.
    """
    picture_format(out)
    require_file(out)


def save_picture(figure: "Figure", path: Path, *, dpi: int) -> None:
    """Write a figure in the format that the name asks for.

    Raises:
        UserError: the name asks for an unknown format.
    """
    file_format = picture_format(path)
    with naming_file(path), replacing(path) as partial:
        figure.savefig(partial, dpi=dpi, format=file_format)
