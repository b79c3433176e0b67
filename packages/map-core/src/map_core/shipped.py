"""The weights that the repository ships in its folder ``weights``, one folder a model; installed packages have none."""

from pathlib import Path

MODEL, DESCRIPTION = "model.safetensors", "model.json"
HERE = Path(__file__).resolve()


def repository() -> Path | None:
    """The repository that this code runs from: a clone, or an editable installation of one."""
    root = HERE.parents[min(4, len(HERE.parents) - 1)]  # root/packages/map-core/src/map_core/shipped.py
    here = root / "packages" / "map-core" / "src" / "map_core" / HERE.name
    return root if here == HERE else None


def folder_of_weights(name: str) -> Path | None:
    """The folder of a model's weights, or None where the repository or the weights are not there.

    Args:
        name: A registered model's.
    """
    root = repository()
    folder = None if root is None else root / "weights" / name
    return folder if folder is not None and (folder / MODEL).is_file() else None


def not_here(name: str) -> str:
    """Say that a model has no weights here, and which ways there are to some."""
    root = repository()
    where = (
        "this package was installed without the repository"
        if root is None
        else f"{root / 'weights'} has none"
    )
    return (
        f"no pretrained weights of {name} are here ({where}): run from a clone of the repository whose folder "
        f"weights/{name} holds {MODEL}, name a repository of the Hub (hf-hub:USER/NAME), or leave pretrained out"
    )
