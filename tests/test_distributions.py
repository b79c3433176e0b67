"""Distributions contain every file of their package."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
VERSION = (ROOT / "packages/VERSION").read_text().strip()


def package_files(package: str, folder: str) -> set[str]:
    """Files below a folder of a package, except leftovers of a build."""
    base = ROOT / "packages" / package / folder
    skipped = {"__pycache__", f"{package.replace('-', '_')}.egg-info"}
    files = (file.relative_to(base) for file in base.rglob("*") if file.is_file())
    return {file.as_posix() for file in files if not skipped & {*file.parts} and file.suffix != ".so"}


def build(kind: str, package: str, folder: Path) -> Path:
    """Build a copy of a package: what an earlier build left beside it would be packed, and this one leaves nothing."""
    source, out = folder / "packages" / package, folder / "out"
    leftovers = shutil.ignore_patterns("build", "*.egg-info", "__pycache__", "*.so")
    shutil.copytree(ROOT / "packages" / package, source, ignore=leftovers)
    shutil.copy(ROOT / "packages/VERSION", source.parent)
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(out)]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    (artifact,) = out.iterdir()
    return artifact


@pytest.mark.parametrize(
    ("package", "base"), [("map-vision", "map-core"), ("map-points", "map-core"), ("map-dense", "map-vision")]
)
def test_a_wheel_holds_its_package_and_needs_its_base_of_the_same_version(
    package: str, base: str, tmp_path: Path
) -> None:
    with zipfile.ZipFile(build("wheel", package, tmp_path)) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("/METADATA"))
        (licence,) = (archive.read(name) for name in names if name.endswith("/licenses/LICENSE"))
    assert {name for name in names if ".dist-info/" not in name} == package_files(package, "src")
    assert licence == (ROOT / "LICENSE").read_bytes()
    assert f"\nVersion: {VERSION}\n" in metadata
    assert re.findall(r"(?m)^Requires-Dist: (map-.*)$", metadata) == [f"{base}=={VERSION}"]


def test_a_source_distribution_knows_its_version_outside_the_repository(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", "map-points", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    command = [sys.executable, "setup.py", "--version"]
    folder = tmp_path / f"map_points-{VERSION}"
    output = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    assert output.splitlines()[-1] == VERSION


def test_the_sources_of_the_kernels_can_be_compiled_elsewhere(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", "map-core", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"native/{file}" for file in package_files("map-core", "native")} <= names
    assert {f"src/{file}" for file in package_files("map-core", "src")} <= names
    assert "setup.py" in names
