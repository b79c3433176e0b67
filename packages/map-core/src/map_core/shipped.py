"""Weights that the repository ships in its folder ``weights``, one folder per model; installed packages have none."""

from pathlib import Path

MODEL, DESCRIPTION = "model.safetensors", "model.json"
THIS_FILE = Path(__file__).resolve()


def repository() -> Path | None:
    """The repository that this code runs from, be it a clone or an editable installation of one; None otherwise."""
    parents = THIS_FILE.parents  # of root/packages/map-core/src/map_core/shipped.py
    root = parents[min(4, len(parents) - 1)]
    expected = root / "packages" / "map-core" / "src" / "map_core" / THIS_FILE.name
    return root if expected == THIS_FILE else None


def folder_of_weights(name: str) -> Path | None:
    """The folder with a model's weights, or None if the repository or the weights are missing.

    Args:
        name: Name of a registered model.
    """
    root = repository()
    folder = None if root is None else root / "weights" / name
    return folder if folder is not None and (folder / MODEL).is_file() else None


def missing_weights_message(name: str) -> str:
    """A message that a model's weights are missing, and how to get some."""
    root = repository()
    reason = (
        "this package was installed without the repository"
        if root is None
        else f"{root / 'weights'} has none"
    )
    return (
        f"no pretrained weights of {name} are here ({reason}): run from a clone of the repository whose folder "
        f"weights/{name} holds {MODEL}, name a repository of the Hub (hf-hub:USER/NAME), or leave pretrained out"
    )
