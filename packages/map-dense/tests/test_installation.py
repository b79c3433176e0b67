"""Faults of an OpenMMLab installation: each error tells how to fix it."""

import pytest
import warm

from map_core.errors import UserError
from map_dense.installation import BUILD_OPERATORS, check_distributions, check_installation, check_operators

WITHOUT_OPERATORS = """
import sys
sys.modules["mmcv._ext"] = None
import torch
import map_dense.mmseg
from map_core.errors import UserError
from map_dense import catalogue
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

config = catalogue.read_config(catalogue.config_path("upernet_hybridnet-mini_cpu_camvid"))
with DefaultScope.overwrite_default_scope(config.default_scope):
    model = MODELS.build(config.model)
samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.zeros(1, 64, 64).long())) for _ in range(2)]
sum(value.mean() for value in model.train().loss(torch.randn(2, 3, 64, 64), samples).values()).backward()
assert all(parameter.grad is not None for parameter in model.parameters())
try:
    import map_dense.mmdet
except UserError as error:
    print(error)
"""


def test_segmentation_learns_without_compiled_operators_and_detection_asks_for_them() -> None:
    assert warm.run("-c", WITHOUT_OPERATORS).splitlines()[-1].startswith("mmcv has no compiled operators")


def test_this_environment_serves_both_toolboxes() -> None:
    check_installation("mmseg", ["onedl-mmsegmentation"])
    check_installation("mmdet", ["onedl-mmdetection"])
    check_operators()


@pytest.mark.parametrize(
    ("maintained", "upstream"),
    [
        ("onedl-mmcv", "mmcv"),
        ("onedl-mmcv", "mmcv-lite"),
        ("onedl-mmengine", "mmengine"),
        ("onedl-mmdetection", "mmdet"),
        ("onedl-mmsegmentation", "mmsegmentation"),
    ],
)
def test_two_distributions_of_the_same_modules_are_refused(maintained: str, upstream: str) -> None:
    installed = {maintained: "2.0", upstream: "1.0"}
    message = (
        f"{maintained} 2.0 and {upstream} 1.0 are installed together and overwrite each other's modules: "
        f"pip uninstall -y {upstream} {maintained}"
    )
    with pytest.raises(UserError, match=message):
        check_distributions(installed.get)


@pytest.mark.parametrize("only", ["onedl-mmcv", "mmcv"])
def test_either_distribution_alone_is_fine(only: str) -> None:
    check_distributions({only: "2.0"}.get)


def test_mmcv_without_its_operators_says_how_to_build_them() -> None:
    def load(name: str) -> object:
        raise ModuleNotFoundError(f"No module named {name!r}")

    with pytest.raises(
        UserError, match=r"mmcv has no compiled operators \(No module named 'mmcv._ext'\)"
    ) as caught:
        check_operators(load)
    assert BUILD_OPERATORS in str(caught.value)


def test_a_toolbox_that_is_not_installed_names_its_extra() -> None:
    with pytest.raises(
        UserError,
        match=r"mmnothing is not installed .*: in the repository, pip install .* './packages/map-dense\[mmnothing\]'",
    ):
        check_installation("mmnothing", ["onedl-mmnothing"])
