"""Shapes of two parts made with trimesh, written in ShapeNetPart's layout, to try segmentation without a download."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from map_core.errors import UserError
from map_core.paths import expand_user
from map_core.randomness import derive_seed
from map_points.data.shapenetpart import CATEGORY_LIST
from map_points.data.shapes import require_trimesh

CATEGORIES = ("hammer", "lamp", "lollipop", "mug", "table")
FIRST_SYNSET = 90000001  # none of ShapeNet's


def write_part_shapes(
    root: Path, *, train: int = 60, val: int = 6, test: int = 20, points: int = 1500, seed: int = 0
) -> None:
    """Write shapes of five categories and two parts each: txt files of seven columns and their lists.

    Every shape has its own proportions and is turned about the y axis, which points up. Part labels run
    on through the categories, as ShapeNetPart's do.

    Args:
        root: Folder to create; it must not hold anything.
        train, val, test: Shapes of each category.
        points: Points of each shape.
        seed: Seed of everything random.

    Raises:
        UserError: the folder is not empty, a count is below 1, or trimesh is not installed.
    """
    root = expand_user(root)
    trimesh = require_trimesh()
    counts = {"train": train, "val": val, "test": test}
    for name, count in {**counts, "points": points}.items():
        if count < 1:
            raise UserError(f"{name} must be at least 1; got {count}")
    if root.is_file() or (root.is_dir() and any(root.iterdir())):
        raise UserError(f"{root} exists and is not empty; choose another folder")
    lists: dict[str, list[str]] = {split: [] for split in counts}
    for label, category in enumerate(CATEGORIES):
        synset = str(FIRST_SYNSET + label)
        (root / synset).mkdir(parents=True)
        for split, count in counts.items():
            for number in range(count):
                name = f"{split}_{number:04d}"
                rng = np.random.Generator(
                    np.random.PCG64(derive_seed(seed, "parts", split, category, number))
                )
                rows = _sample(trimesh, category, 2 * label, points, rng)
                np.savetxt(root / synset / f"{name}.txt", rows, fmt=["%.6f"] * 6 + ["%.1f"])
                lists[split].append(f"shape_data/{synset}/{name}")
    (root / "train_test_split").mkdir()
    for split, items in lists.items():
        (root / "train_test_split" / f"shuffled_{split}_file_list.json").write_text(json.dumps(items))
    names = "".join(f"{name}\t{FIRST_SYNSET + label}\n" for label, name in enumerate(CATEGORIES))
    (root / CATEGORY_LIST).write_text(names)


def _sample(
    trimesh: Any, category: str, first_part: int, points: int, rng: np.random.Generator
) -> np.ndarray:
    """Rows x y z, normal, part of one shape; points fall on both parts by their areas."""
    meshes = _two_parts(trimesh, category, rng.uniform(0.6, 1.0, 3))
    whole = trimesh.util.concatenate(meshes)
    turn = trimesh.transformations.rotation_matrix(rng.uniform(0, 2 * np.pi), [0, 0, 1])[:3, :3]
    turn = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]]) @ turn  # made with z up, written with y up
    xyz, face = trimesh.sample.sample_surface(whole, points, seed=rng)
    part = first_part + (face >= len(meshes[0].faces))
    return np.column_stack([np.asarray(xyz) @ turn.T, whole.face_normals[face] @ turn.T, part])


def _two_parts(trimesh: Any, category: str, size: np.ndarray) -> list[Any]:
    creation = trimesh.creation
    a, b, c = size
    if category == "hammer":  # head, handle
        head = creation.box(extents=[0.9 * a, 0.35 * b, 0.35 * b])
        head.apply_translation([0, 0, 0.7 * c])
        return [head, creation.cylinder(radius=0.09 * b, height=1.4 * c)]
    if category == "lamp":  # shade, pole
        shade = creation.cone(radius=0.5 * a, height=0.6 * b)
        shade.apply_translation([0, 0, 0.5 * c])
        return [shade, creation.cylinder(radius=0.08 * b, height=1.2 * c)]
    if category == "lollipop":  # ball, stick
        ball = creation.icosphere(subdivisions=3, radius=0.4 * a)
        ball.apply_translation([0, 0, 0.8 * c])
        return [ball, creation.cylinder(radius=0.06 * b, height=1.5 * c)]
    if category == "mug":  # body, handle
        handle = creation.torus(major_radius=0.25 * b, minor_radius=0.07 * b)
        handle.apply_transform(trimesh.transformations.rotation_matrix(np.pi / 2, [1, 0, 0]))
        handle.apply_translation([0.5 * a, 0, 0])
        return [creation.cylinder(radius=0.45 * a, height=c), handle]
    top = creation.box(extents=[a, b, 0.12])  # table: top, leg
    top.apply_translation([0, 0, 0.45 * c])
    return [top, creation.cylinder(radius=0.12 * b, height=0.9 * c)]
