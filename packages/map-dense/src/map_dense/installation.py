"""What is wrong with an OpenMMLab installation, told before it fails in a way that nobody understands."""

import importlib
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

from map_core.errors import UserError

DISTRIBUTIONS = {  # the maintained distribution -> upstream's, which installs the same modules
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
    """The version of an installed distribution, None without it."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def check_distributions(installed: Callable[[str], str | None] = installed_version) -> None:
    """Refuse an environment where two distributions have written the same modules.

    Raises:
        UserError: an upstream distribution and its maintained fork are both installed.
    """
    for maintained, upstream in DISTRIBUTIONS.items():
        both = [name for name in upstream if installed(name)]
        if installed(maintained) and both:
            names = " ".join([*both, maintained])
            raise UserError(
                f"{maintained} {installed(maintained)} and {both[0]} {installed(both[0])} are installed together and "
                f"overwrite each other's modules: pip uninstall -y {names}, then install one of them"
            )


def check_operators(load: Callable[[str], object] = importlib.import_module) -> None:
    """Refuse an mmcv without its compiled operators: a detector needs NMS and RoIAlign, and mmdet imports them.

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
    """Check what a toolbox needs, ``mmseg`` or ``mmdet``, but for compiled operators, which segmentation does without.

    Raises:
        UserError: it is not installed, or as :func:`check_distributions` says.
    """
    check_distributions()
    if not any(map(installed_version, distributions)):
        raise UserError(
            f"{toolbox} is not installed (one of {', '.join(distributions)}): in the repository, "
            f"pip install -c constraints.txt './packages/map-dense[{toolbox}]'"
        )
