"""What is built for upload holds every file of its package."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def tracked(package: str, folder: str) -> set[str]:
    """Files below a folder of a package that are no leftovers of a build."""
    base = ROOT / "packages" / package / folder
    skipped = {"__pycache__", f"{package.replace('-', '_')}.egg-info"}
    files = (file.relative_to(base) for file in base.rglob("*") if file.is_file())
    return {file.as_posix() for file in files if not skipped & {*file.parts} and file.suffix != ".so"}


def build(kind: str, package: str, out: Path) -> Path:
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(out)]
    subprocess.run([*command, str(ROOT / "packages" / package)], check=True, capture_output=True)
    (made,) = out.iterdir()
    return made


@pytest.mark.parametrize("package", ["map-vision", "map-points", "map-dense"])
def test_a_wheel_holds_its_package(package: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(build("wheel", package, tmp_path)) as archive:
        assert tracked(package, "src") <= set(archive.namelist())


def test_the_sources_of_the_kernels_can_be_compiled_elsewhere(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", "map-core", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"native/{file}" for file in tracked("map-core", "native")} <= names
    assert {f"src/{file}" for file in tracked("map-core", "src")} <= names
    assert "setup.py" in names
