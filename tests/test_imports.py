"""``import map_vision`` is cheap, and timm knows the models whichever of the two is imported first."""

import os
import subprocess
import sys

import pytest
import warm

# the forked process has imported timm already, so it removes it
WITHOUT_TIMM = (
    "import sys; [sys.modules.pop(name) for name in [*sys.modules] if name.partition('.')[0] == 'timm']"
)
MODELS_ARE_REGISTERED = (
    "assert timm.is_model('hybridnet_tiny_patch16_224') and timm.is_model('map_mambavision_tiny')"
)


def run_python(code):
    """Run code in a fresh interpreter; return what it printed."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    "imports",
    [
        "import map_vision, timm",
        "import timm, map_vision",
        "import map_vision, map_core.blocks, timm",
        "import map_vision; from map_vision.mambavision import MambaVision; import timm",
        "import map_vision; from timm.models import create_model; import timm",
    ],
)
def test_timm_knows_the_models_whatever_is_imported_first(imports):
    create = "timm.create_model('hybridnet_tiny_patch16_224', num_classes=2)"
    warm.run("-c", f"{WITHOUT_TIMM}; {imports}; {MODELS_ARE_REGISTERED}; {create}")


@pytest.mark.parametrize("package", ["map_core", "map_vision", "map_points"])
def test_a_package_waits_for_nothing(package):
    assert (
        run_python(f"import sys, {package}; print({{'torch', 'timm', 'accelerate'}} & sys.modules.keys())")
        == "set()\n"
    )


@pytest.mark.parametrize("package", ["map_core", "map_vision", "map_points"])
def test_public_names_are_there_and_load_no_optional_package(package):
    optional = {"mamba_ssm", "causal_conv1d", "sklearn", "mmcv", "mmengine", "trimesh", "tifffile", "laspy"}
    optional |= set() if package == "map_points" else {"h5py"}
    output = warm.run(
        "-c",
        f"import sys, {package}; [getattr({package}, name) for name in {package}.__all__]; "
        f"from {package} import *; print({optional} & sys.modules.keys())",
    )
    assert output == "set()\n"


@pytest.mark.parametrize("package", ["map_vision", "map_points"])
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["nonsense"]], ids=lambda value: value[0])
def test_a_program_that_only_talks_imports_no_torch(package, arguments):
    code = f"import sys; sys.argv[1:] = {arguments}; from {package}.cli import main; main()"
    output = run_python(f"{code}; print({{'torch', 'timm', 'sklearn', 'h5py'}} & sys.modules.keys())")
    assert output.splitlines()[-1] == "set()"
