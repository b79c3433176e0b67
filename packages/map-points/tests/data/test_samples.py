"""What the model sees of a cloud."""

import numpy as np
import pytest
import torch

from map_core.errors import UserError
from map_core.training.sampling import Collate, Failure
from map_points.data import CloudSamples, PointDataConfig, collate_clouds, transforms
from map_points.data.clouds import ArrayClouds
from map_points.data.shapes import CLASSES, make_shape
from map_points.data.transforms import (
    farthest,
    farthest_indices,
    rotate,
    scale_translate,
    take_points,
    to_unit_sphere,
)
from map_points.domain import open_data
from map_points.factory import PointModelConfig
from map_points.patches.sampling import farthest_point_sample


def samples(n=64, training=False, **changes):
    points = np.random.default_rng(0).normal(size=(3, n, 3)).astype(np.float32)
    clouds = ArrayClouds(np.arange(3), ("a", "b", "c"), points, "test")
    config = PointDataConfig(**{"num_points": 64, **changes})
    return CloudSamples(clouds, config, training=training), torch.from_numpy(points)


def open_clouds(purpose, **settings):
    return open_data(PointDataConfig(**settings), PointModelConfig(), purpose)


def test_the_unit_sphere():
    points = to_unit_sphere(torch.randn(50, 3) * 7 + 3)
    torch.testing.assert_close(points.mean(0), torch.zeros(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(points.norm(dim=-1).max(), torch.ones(()))
    assert (to_unit_sphere(torch.ones(4, 3)) == 0).all()


def test_evaluation_keeps_whole_clouds_and_takes_farthest_points_of_larger_ones():
    data, points = samples(unit_sphere=False)
    assert torch.equal(data[1][0], points[1])
    data, points = samples(n=100, unit_sphere=False)
    assert torch.equal(data[1][0], points[1][farthest_point_sample(points[1:2], 64)[0]])


def test_training_takes_a_random_part_of_the_farthest_points():
    data, points = samples(n=100, training=True, unit_sphere=False)
    farthest_points = points[0][farthest_point_sample(points[:1], 75)[0]]
    result = data[0][0]
    assert result.shape == (64, 3)
    assert {tuple(p) for p in result.tolist()} < {tuple(p) for p in farthest_points.tolist()}
    assert not torch.equal(result, data[0][0])


def test_points_in_the_order_of_picking_are_taken_from_the_front(monkeypatch):
    points = torch.randn(200, 3)
    ordered = points[farthest_point_sample(points.unsqueeze(0), 200)[0]]
    expected = farthest(points, 60)
    counts = []
    monkeypatch.setattr(
        transforms, "farthest_indices", lambda p, n: counts.append(n) or farthest_indices(p, n)
    )
    assert torch.equal(farthest(ordered, 60), expected)
    assert counts == [16]


@pytest.mark.parametrize(
    "move",
    [
        lambda p: p,
        lambda p: p.round(),  # ties
        lambda p: p[torch.arange(150) // 3],  # points that repeat
        lambda p: 0 * p,
        lambda p: p / 50 + 1000,  # far from the origin, where float32 rounds
        lambda p: 1e25 * p,  # squares are infinite
        lambda p: p.double(),
    ],
    ids=["spread", "ties", "repeated", "equal", "rounded", "infinite", "float64"],
)
@pytest.mark.parametrize("count", [1, 40, 150])
def test_the_fast_farthest_points_of_a_cloud_are_the_farthest_points(move, count):
    points = move(torch.randn(150, 3))
    expected = farthest_point_sample(points.unsqueeze(0), count)[0]
    assert torch.equal(torch.from_numpy(farthest_indices(points.numpy(), count)), expected)


def test_a_seed_decides_the_sample():
    data, _ = samples(training=True, augmentation="scale_translate")
    torch.manual_seed(5)
    first = data[2][0]
    torch.manual_seed(5)
    assert torch.equal(first, data[2][0])
    assert not torch.equal(first, data[2][0])
    plain, _ = samples(augmentation="scale_translate")
    assert torch.equal(plain[2][0], plain[2][0])


@pytest.mark.parametrize(("axis", "index"), [("x", 0), ("y", 1), ("z", 2)])
def test_a_rotation_keeps_height_and_distances(axis, index):
    points = torch.randn(20, 3)
    turned = rotate(points, axis)
    assert torch.equal(turned[:, index], points[:, index])
    torch.testing.assert_close(torch.cdist(turned, turned), torch.cdist(points, points), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(turned, points)


def test_rotations_are_of_a_whole_turn():
    turned = torch.stack([rotate(torch.eye(3), "z")[0, :2] for _ in range(60)])
    assert {(x > 0, y > 0) for x, y in turned.tolist()} == {
        (True, True),
        (True, False),
        (False, True),
        (False, False),
    }


def test_scale_and_shift_stay_within_their_ranges():
    points = torch.eye(3)
    for _ in range(50):
        moved = scale_translate(points, (0.5, 2.0), 0.2)
        shift = torch.stack([moved[1, 0], moved[0, 1], moved[0, 2]])
        factor = moved.diagonal() - shift
        assert (shift.abs() <= 0.2).all()
        assert ((factor > 0.49) & (factor < 2.01)).all()
        assert factor.std() > 1e-3  # each axis by its own


def test_a_cloud_of_too_few_points_is_named():
    message = (
        r"has 10 points, fewer than data.num_points \(11\); add points to it, or lower that or remove it "
        r"\(a run that trains on it then starts anew, with another --out\)"
    )
    with pytest.raises(UserError, match=f"some.npy {message}"):
        take_points(torch.randn(10, 3), 11, training=False, surplus=True, name="some.npy")


def test_embedded_shapes():
    pytest.importorskip("trimesh")
    data = open_clouds("finetune", shapes_per_class=2)
    assert data.classes == CLASSES
    assert len(data.train) == 2 * len(CLASSES)
    points, label = data.evaluation[-1 + len(data.evaluation)]
    assert points.shape == (1024, 3)
    assert label == len(CLASSES) - 1
    assert torch.isfinite(points).all()
    np.testing.assert_array_equal(make_shape("torus", "train", 1), make_shape("torus", "train", 1))
    assert not np.array_equal(make_shape("torus", "train", 1), make_shape("torus", "test", 1))


def test_clouds_of_different_sizes_make_no_batch():
    with pytest.raises(UserError, match="a batch holds clouds of 4, 5 points; take the same number of each"):
        collate_clouds([(torch.zeros(4, 3), 0), (torch.zeros(5, 3), 1)])
    failure = Collate(collate_clouds)(
        [(torch.zeros(4, 3), 0), (torch.zeros(5, 3), 1)]
    )  # in a loading process
    assert isinstance(failure, Failure)
    assert "a batch holds clouds of 4, 5 points" in failure.message
    points, labels = collate_clouds([(torch.zeros(4, 3), 0), (torch.zeros(4, 3), 1)])
    assert points.shape == (2, 4, 3)
    assert labels.tolist() == [0, 1]


def test_settings_that_cannot_be_are_refused():
    for changes, message in (
        ({"num_points": 0}, "num_points must be a whole number of at least 1"),
        ({"scale": (0.0, 1.0)}, "scale must satisfy"),
        ({"translate": -1.0}, "translate must be 0 or more"),
        ({"root": "x"}, "the embedded shapes have no folder"),
    ):
        with pytest.raises(UserError, match=message):
            open_clouds("pretrain", **changes)


def sample(points, **changes):
    clouds = ArrayClouds(np.zeros(1, dtype=np.int64), ("a",), points[None], "made up")
    config = PointDataConfig(**{"num_points": len(points), **changes})
    return CloudSamples(clouds, config, training=False)[0][0]


def test_far_from_the_origin_a_cloud_keeps_its_shape():
    points = np.random.default_rng(0).normal(size=(64, 3))
    near = sample(points)
    assert near.dtype == torch.float32
    utm = points + np.array([500_000, 4_649_776, 120])
    far = sample(utm)
    torch.testing.assert_close(far, near, rtol=0, atol=1e-7)
    in_float32 = sample(utm.astype(np.float32))
    assert (in_float32 - near).abs().max() > 0.01  # what is lost in the file cannot come back
    with pytest.raises(
        UserError, match=r"made up, cloud 0 is .* from the origin, too far for float32; centre it"
    ):
        sample(utm, unit_sphere=False)


@pytest.mark.parametrize("unit_sphere", [True, False])
@pytest.mark.parametrize(
    ("points", "message"),
    [
        (
            np.full((64, 3), 0.1),
            "made up, cloud 0: its 64 points are all the same, and a cloud needs a shape; repair it, or remove it "
            r"\(a run that trains on it then starts anew, with another --out\)",
        ),
        (np.zeros((64, 3)), "made up, cloud 0: its 64 points are all the same"),
        (np.full((64, 3), 0.1) * (1 + 1e-16 * np.arange(64)[:, None]), "its 64 points are all the same"),
        (
            np.full((64, 3), 1e200) * np.arange(64)[:, None],
            r"made up, cloud 0 has coordinates up to 6.3e\+201",
        ),
    ],
)
def test_clouds_without_a_shape_are_refused(points, message, unit_sphere):
    with pytest.raises(UserError, match=message):
        sample(points, unit_sphere=unit_sphere)


def test_a_stray_point_that_would_hide_the_others_is_named():
    points = np.random.default_rng(0).normal(size=(64, 3))
    points[17] = 1e20
    with pytest.raises(
        UserError, match=r"made up, cloud 0: point 17 lies 1.73e\+20 from .* within .*; remove that point$"
    ):
        sample(points)
    points[17] = 100
    assert sample(points).isfinite().all()


def test_points_that_repeat_are_no_reason_to_refuse_a_cloud():
    points = np.random.default_rng(0).normal(size=(64, 3))
    points[20:] = points[20]
    assert sample(points).norm(dim=-1).max() == pytest.approx(1)


def test_rotation_comes_before_scaling_and_shifting():
    data, _ = samples(training=True, augmentation="rotate_scale_translate")
    plain, _ = samples(training=True)
    torch.manual_seed(5)
    both = data[1][0]
    torch.manual_seed(5)
    expected = scale_translate(rotate(plain[1][0], "z"), (2 / 3, 3 / 2), 0.2)
    assert torch.equal(both, expected)


def test_clouds_are_writable_whatever_they_were_read_from():
    points = np.random.default_rng(0).normal(size=(1, 64, 3))
    points.flags.writeable = False
    clouds = ArrayClouds(np.zeros(1, dtype=np.int64), ("a",), points, "made up")
    clouds.points(0)[:] = 0
    assert (points != 0).all()


@pytest.mark.parametrize(
    ("changes", "index"),
    [({"up_axis": "x"}, 0), ({"up_axis": "y"}, 1), ({"source": "hdf5"}, 1), ({"source": "folder"}, 2)],
    ids=str,
)
def test_clouds_turn_about_the_axis_that_points_up(changes, index):
    turned, upright = (samples(training=True, augmentation=kind, **changes)[0] for kind in ("rotate", "none"))
    torch.manual_seed(5)
    after = turned[1][0]
    torch.manual_seed(5)
    before = upright[1][0]
    assert torch.equal(after[:, index], before[:, index])
    assert not torch.allclose(after, before)


def test_the_ranges_of_scale_and_shift_are_the_settings():
    settings = {"augmentation": "scale_translate", "scale": (3.0, 3.0), "translate": 0.0}
    enlarged, plain = samples(training=True, **settings)[0], samples(training=True)[0]
    torch.manual_seed(5)
    after = enlarged[1][0]
    torch.manual_seed(5)
    torch.testing.assert_close(after, 3 * plain[1][0])


def test_training_may_take_any_point_of_a_cloud():
    """Not only one of the farthest: in 30 draws of 64 of 100 points each point comes."""
    data, points = samples(n=100, training=True, unit_sphere=False, train_sampling="random")
    drawn = {tuple(point) for _ in range(30) for point in data[0][0].tolist()}
    assert drawn == {tuple(point) for point in points[0].tolist()}
