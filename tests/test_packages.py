"""Dependencies of each package, from the installed metadata, and what documentation and hints say about them."""

import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
OURS = {"map-core", "map-vision", "map-points", "map-dense"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(package: str) -> set[str]:
    """All distributions that installing ``package`` without extras pulls in, itself included."""
    names: set[str] = set()
    queue = [(package, frozenset[str]())]
    while queue:
        name, extras = queue.pop()
        if canonical(name) in names:
            continue
        names.add(canonical(name))
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # not installed here (another platform's)
        for requirement in map(Requirement, requirements):
            environments = [{"extra": extra} for extra in (*extras, "")]
            if requirement.marker is None or any(
                requirement.marker.evaluate(extra) for extra in environments
            ):
                queue.append((requirement.name, frozenset(requirement.extras)))
    return names


@pytest.mark.parametrize(
    ("package", "ours"),
    [
        ("map-core", {"map-core"}),
        ("map-vision", {"map-core", "map-vision"}),
        ("map-points", {"map-core", "map-points"}),
        ("map-dense", {"map-core", "map-vision", "map-dense"}),
    ],
)
def test_a_package_pulls_in_only_what_it_builds_on(package: str, ours: set[str]) -> None:
    assert closure(package) & OURS == ours


@pytest.mark.parametrize("package", sorted(OURS))
def test_no_package_needs_a_cuda_build_or_another_domains_tools(package: str) -> None:
    dependencies = closure(package)
    assert not dependencies & {
        "mamba-ssm",
        "causal-conv1d",
        "pointnet2-ops",
        "knn-cuda",
        "onedl-mmcv",
        "mmcv",
    }
    if package != "map-points":
        assert not dependencies & {"h5py", "trimesh"}
    assert "scikit-learn" not in dependencies


def test_constraints_pin_everything_that_is_pulled_in() -> None:
    pinned = {
        canonical(line.split("==")[0])
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    installed = {canonical(d.metadata["Name"]) for d in importlib.metadata.distributions()}
    dependencies = set().union(*(closure(package) for package in OURS)) & installed
    assert dependencies - OURS <= pinned, "add to constraints.txt"


def test_the_readme_names_the_tested_versions() -> None:
    readme = " ".join((ROOT / "README.md").read_text().split())
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    assert f"pip install torch=={pinned['torch']} torchvision=={pinned['torchvision']} --index-url" in readme
    assert (
        f"CUDA {pinned['cuda-toolkit'].partition('.')[0]} and Triton, 1.2 torch {pinned['torch']} itself"
        in readme
    )
    for project in ROOT.glob("packages/*/pyproject.toml"):
        (least,) = re.findall(r'requires-python = ">=([\d.]+)"', project.read_text())
        assert f"Python {least} or newer" in readme


def test_hints_do_not_install_our_packages_from_an_index() -> None:
    hints = [
        hint
        for file in ROOT.glob("packages/*/src/**/*.py")
        for hint in re.findall(r"pip\W*install[^)]*", file.read_text())
    ]
    assert len(hints) > 5
    for hint in hints:
        assert not re.search(r"(?<!packages/)\bmap-(core|vision|points|dense)\b", hint), hint


def test_no_file_is_named_for_nothing() -> None:
    vague = {"utils.py", "helpers.py", "common.py", "misc.py"}
    assert not [path for path in (ROOT / "packages").rglob("*.py") if path.name in vague]
