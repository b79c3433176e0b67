"""Parametric shapes made with trimesh, so that everything runs without a download."""

import functools
from typing import Any

import numpy as np

from map_core.errors import UserError
from map_core.randomness import derive_seed
from map_points.data.clouds import ArrayClouds, Clouds

CLASSES = ("annulus", "box", "capsule", "cone", "cylinder", "sphere", "tetrahedron", "torus")
POINTS = 1024
TEST_PER_CLASS = 25


@functools.cache
def read_shapes(split: str, per_class: int) -> Clouds:
    """Make clouds of 1024 points on the surfaces of shapes of random proportions, turned about the z axis.

    Every cloud depends on its split, class and number alone, so adding more never changes the others.

    Raises:
        UserError: trimesh is not installed.
    """
    count = per_class if split == "train" else TEST_PER_CLASS
    clouds = [make_shape(name, split, number) for name in CLASSES for number in range(count)]
    labels = np.repeat(np.arange(len(CLASSES)), count)
    return ArrayClouds(labels, CLASSES, np.stack(clouds), f"embedded shapes ({split})")


def make_shape(name: str, split: str, number: int) -> np.ndarray:
    """Make the points (1024, 3) of one shape, float32."""
    trimesh = require_trimesh()
    rng = np.random.Generator(np.random.PCG64(derive_seed(0, "shape", split, name, number)))
    mesh = _mesh(trimesh, name, rng.uniform(0.4, 1.0, 3))
    points, _ = trimesh.sample.sample_surface(mesh, POINTS, seed=rng)
    turn = trimesh.transformations.rotation_matrix(rng.uniform(0, 2 * np.pi), [0, 0, 1])[:3, :3]
    return (np.asarray(points) @ turn.T).astype(np.float32)


def require_trimesh() -> Any:
    """Import trimesh.

    Raises:
        UserError: it is not installed.
    """
    try:
        import trimesh
    except ImportError as error:
        raise UserError(
            "the embedded shapes need trimesh: pip install trimesh, or give --data.source and --data.root"
        ) from error
    return trimesh


def _mesh(trimesh: Any, name: str, size: np.ndarray) -> Any:
    creation = trimesh.creation
    a, b, c = size
    if name == "annulus":
        return creation.annulus(r_min=0.5 * a, r_max=a, height=0.6 * c)
    if name == "box":
        return creation.box(extents=size)
    if name == "capsule":
        return creation.capsule(height=1.5 * c, radius=0.5 * a)
    if name == "cone":
        return creation.cone(radius=0.6 * a, height=1.5 * c)
    if name == "cylinder":
        return creation.cylinder(radius=0.6 * a, height=1.5 * c)
    if name == "sphere":
        return creation.icosphere(subdivisions=3, radius=a)
    if name == "torus":
        return creation.torus(major_radius=a, minor_radius=0.3 * b)
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * size
    return trimesh.Trimesh(corners, [[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]])
