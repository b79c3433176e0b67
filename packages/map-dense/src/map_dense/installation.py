"""Checks of an OpenMMLab installation, before it fails with an error that nobody understands."""

import importlib
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

from map_core.errors import UserError

DISTRIBUTIONS = {  # maintained distribution -> upstream ones, which install the same modules
    "onedl-mmengine": ("mmengine",),
    "onedl-mmcv": ("mmcv", "mmcv-full", "mmcv-lite"),
    "onedl-mmdetection": ("mmdet",),
    "onedl-mmsegmentation": ("mmsegmentation",),
    "onedl-mim": ("openmim",),
}
BUILD_OPERATORS = (
    "MMCV_WITH_OPS=1 pip install --force-reinstall --no-deps --no-cache-dir --no-build-isolation "
    "onedl-mmcv==2.3.6"
)


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def check_distributions(installed: Callable[[str], str | None] = installed_version) -> None:
    """Refuse an environment where two distributions have overwritten each other's modules.

    Raises:
        UserError: an upstream distribution and its maintained fork are both installed.
    """
    for maintained, upstream in DISTRIBUTIONS.items():
        conflicting = [name for name in upstream if installed(name)]
        if installed(maintained) and conflicting:
            names = " ".join([*conflicting, maintained])
            raise UserError(
                f"{maintained} {installed(maintained)} and {conflicting[0]} {installed(conflicting[0])} are installed "
                f"together and overwrite each other's modules: pip uninstall -y {names}, then install one of them"
            )


def check_operators(load: Callable[[str], object] = importlib.import_module) -> None:
    """Refuse an mmcv without compiled operators: a detector needs NMS and RoIAlign, and mmdet imports them.

    Raises:
        UserError: mmcv._ext is missing or cannot be loaded.
    """
    try:
        load("mmcv._ext")
    except ImportError as error:
        raise UserError(
            f"mmcv has no compiled operators ({error}): install setuptools, wheel, ninja, psutil and torch, then "
            f"build them with {BUILD_OPERATORS} (about 10 minutes on 2 cores)"
        ) from error


def check_installation(toolbox: str, distributions: Sequence[str]) -> None:
    """Check the installation of ``mmseg`` or ``mmdet``, except compiled operators, which segmentation does not need.

    Raises:
        UserError: the toolbox is not installed, or as for :func:`check_distributions`.
    """
    check_distributions()
    if not any(map(installed_version, distributions)):
        raise UserError(
            f"{toolbox} is not installed (one of {', '.join(distributions)}): in the repository, "
            f"pip install -c constraints.txt './packages/map-dense[{toolbox}]'"
        )
