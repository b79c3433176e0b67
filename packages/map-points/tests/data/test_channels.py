"""Clouds whose points have more than coordinates: names, files, augmentation, patches."""

import math
import struct
from dataclasses import replace

import laspy
import numpy as np
import pytest
import torch

from map_core.commands.standard import configs
from map_core.errors import UserError
from map_core.runs.saved_state import refuse_another_run
from map_core.tasks.classification import FinetuneTask, LinearProbeTask
from map_core.tasks.weights import save_weights
from map_points.cli import COMMANDS
from map_points.data import CloudSamples, PointDataConfig, choose_clouds, measure, read_cloud_files
from map_points.data.cloud_files import read_cloud
from map_points.data.pcd import expand
from map_points.data.transforms import rotate, scale_translate
from map_points.domain import DOMAIN, data_defaults, describe_channels, open_data, open_files
from map_points.factory import MODELS, PointModelConfig, create_backbone
from map_points.tokenizer import tokenize_clouds

N = 40
RNG = np.random.default_rng(0)
XYZ = RNG.normal(size=(N, 3)).astype(np.float32)
NORMAL = RNG.normal(size=(N, 3)).astype(np.float32)
INTENSITY = RNG.integers(0, 256, N).astype(np.uint8)
NORMALS = ("normal_x", "normal_y", "normal_z")
VELOCITY = ("velocity_x", "velocity_y", "velocity_z")
COLORS = ("red", "green", "blue")
EVERYTHING = np.column_stack([XYZ, NORMAL, INTENSITY / 255])
FIELDS = "x y z normal_x normal_y normal_z intensity"


def pcd(form):
    header = (
        f"# .PCD v0.7\nVERSION 0.7\nFIELDS {FIELDS} _\nSIZE 4 4 4 4 4 4 1 1\nTYPE F F F F F F U U\n"
        f"COUNT 1 1 1 1 1 1 1 3\nWIDTH {N}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {N}\nDATA {form}\n"
    ).encode()
    rows = list(zip(XYZ.tolist(), NORMAL.tolist(), INTENSITY.tolist(), strict=True))
    if form == "ascii":
        lines = [" ".join(map(repr, [*p, *n])) + f" {i} 0 0 0\n" for p, n, i in rows]
        return header + "".join(lines).encode()
    if form == "binary":
        return header + b"".join(struct.pack("<6fB3x", *p, *n, i) for p, n, i in rows)
    columns = [XYZ.T, NORMAL.T, INTENSITY, np.zeros(3 * N, np.uint8)]
    plain = b"".join(np.ascontiguousarray(column).tobytes() for column in columns)
    packed = b"".join(
        bytes([len(plain[i : i + 32]) - 1]) + plain[i : i + 32] for i in range(0, len(plain), 32)
    )
    return header + struct.pack("<II", len(packed), len(plain)) + packed


def ply(form):
    names = "".join(f"property float {name}\n" for name in ("x", "y", "z", "nx", "ny", "nz"))
    header = (
        f"ply\nformat {form} 1.0\nelement vertex {N}\n{names}property uchar intensity\nend_header\n".encode()
    )
    rows = list(zip(XYZ.tolist(), NORMAL.tolist(), INTENSITY.tolist(), strict=True))
    if form == "ascii":
        return header + "".join(" ".join(map(repr, [*p, *n, i])) + "\n" for p, n, i in rows).encode()
    return header + b"".join(struct.pack("<6fB", *p, *n, i) for p, n, i in rows)


def write_las(path):
    cloud = laspy.create(point_format=3)
    cloud.header.scales = [1e-6] * 3
    cloud.x, cloud.y, cloud.z = XYZ.T.astype(np.float64)
    cloud.intensity = INTENSITY.astype(np.uint16) * 257
    for axis, values in zip("xyz", NORMAL.T, strict=True):
        cloud.add_extra_dim(laspy.ExtraBytesParams(f"normal_{axis}", np.float32))
        cloud[f"normal_{axis}"] = values
    cloud.write(path)


def write(path, form=None):
    """The same cloud in any format."""
    ending = path.suffix
    if ending == ".pcd":
        path.write_bytes(pcd(form))
    elif ending == ".ply":
        path.write_bytes(ply(form))
    elif ending in (".las", ".laz"):
        write_las(path)
    elif ending == ".npz":
        np.savez(path, points=XYZ, normal=NORMAL, intensity=INTENSITY, note="a sphere")
    elif ending == ".npy":
        np.save(path, EVERYTHING)
    else:
        separator = "," if ending == ".csv" else " "
        np.savetxt(path, EVERYTHING, delimiter=separator, header=separator.join(FIELDS.split()), comments="")
    return path


FORMS = [
    ("a.pcd", "ascii"),
    ("a.pcd", "binary"),
    ("a.pcd", "binary_compressed"),
    ("a.ply", "ascii"),
    ("a.ply", "binary_little_endian"),
    ("a.las", None),
    ("a.laz", None),
    ("a.npz", None),
    ("a.csv", None),
    ("a.txt", None),
    ("a.xyz", None),
]


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_channels_are_found_by_name_in_every_format(tmp_path, name, form):
    path = write(tmp_path / name, form)
    cloud = read_cloud(path, (*NORMALS, "intensity"))
    np.testing.assert_allclose(cloud[:, :6], EVERYTHING[:, :6], atol=1e-6)
    np.testing.assert_allclose(cloud[:, 6], EVERYTHING[:, 6], atol=1e-6)
    np.testing.assert_array_equal(read_cloud(path, ("intensity",))[:, 3], cloud[:, 6])
    points = read_cloud_files(str(path)).points(0)
    assert points.shape == (N, 3)
    np.testing.assert_allclose(points, XYZ, atol=1e-6)
    with pytest.raises(UserError, match=rf"{name} has no 'velocity', only .*intensity"):
        read_cloud(path, ("velocity",))


@pytest.mark.parametrize("ending", ["npy", "txt", "pts", "csv"])
def test_columns_without_names_are_named_by_a_setting(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    shuffled = EVERYTHING[:, [6, 0, 1, 2, 3, 4, 5]]
    if ending == "npy":
        np.save(path, shuffled)
    else:
        np.savetxt(path, shuffled, delimiter=",")
    columns = ("intensity", *"xyz", *NORMALS)
    cloud = read_cloud(path, ("normal_y", "intensity"), columns)
    np.testing.assert_allclose(cloud, EVERYTHING[:, [0, 1, 2, 4, 6]], rtol=1e-12)
    with pytest.raises(UserError, match=r"does not name its columns: say what they are, .*--data.columns"):
        read_cloud(path, ("intensity",))
    with pytest.raises(UserError, match=r"has shape \(40, 7\), and data.columns names 4 columns"):
        read_cloud(path, ("intensity",), ("x", "y", "z", "intensity"))


def test_packed_colours_become_three(tmp_path):
    colors = np.arange(9, dtype=np.uint32).reshape(3, 3) * 20
    packed = (colors[:, 0] << 16 | colors[:, 1] << 8 | colors[:, 2]).astype("<u4")
    header = b"FIELDS x y z rgb\nSIZE 4 4 4 4\nTYPE F F F F\nPOINTS 3\nDATA binary\n"
    rows = b"".join(struct.pack("<3fI", *XYZ[i].tolist(), packed[i]) for i in range(3))
    (tmp_path / "a.pcd").write_bytes(header + rows)
    np.testing.assert_allclose(
        read_cloud(tmp_path / "a.pcd", ("red", "green", "blue"))[:, 3:], colors / 255, rtol=1e-12
    )


def test_references_of_a_compressed_block(tmp_path):
    """abc, then 6 bytes from 3 back (which overlap), then 12 by the long form."""
    packed = b"\x02abc" + bytes([4 << 5, 2]) + bytes([7 << 5, 3, 8])
    assert expand(packed, 21, tmp_path) == b"abc" * 7
    for broken, size in ((packed, 20), (packed[:-1], 21), (b"\x02ab", 3), (bytes([4 << 5, 2]), 6)):
        with pytest.raises(UserError, match=r"its compressed block is broken; copy it again"):
            expand(broken, size, tmp_path)


@pytest.mark.parametrize("distance", [1, 2, 7, 31, 32])
@pytest.mark.parametrize("length", [3, 8, 9, 31, 32, 33, 264])
def test_references_give_what_a_copy_byte_by_byte_gives(tmp_path, distance, length):
    expected = bytearray(RNG.bytes(32))
    packed = b"\x1f" + expected  # 32 literals
    for _ in range(length):
        expected.append(expected[-distance])
    packed += bytes([length - 2 << 5] if length < 9 else [7 << 5, length - 9]) + bytes([distance - 1])
    assert expand(packed, 32 + length, tmp_path) == expected


@pytest.mark.parametrize("begin", ["OFF\n4 1 0\n", "OFF4 1 0\n", "OFF 4 1 0\n", "OFF # a mesh\n\n4 1 0\n"])
def test_off_files_are_their_vertices(tmp_path, begin):
    rows = "".join(" ".join(map(repr, row)) + "\n" for row in XYZ[:4].tolist())
    (tmp_path / "a.off").write_text(f"{begin}{rows}3 0 1 2\n")
    np.testing.assert_allclose(read_cloud(tmp_path / "a.off"), XYZ[:4], rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.off", b"ply\n", r"is not an OFF file: it does not begin with OFF"),
        ("a.off", b"OFF\nmany\n", r"has the counts 'many'; expected vertices, faces and edges"),
        ("a.off", b"OFF\n2 0 0\n0 0 1\n", r"cannot be read \(1 of 2 vertices\); is it cut off"),
        ("a.off", b"OFF\n1 0 0\n0 zero 1\n", r"its vertices cannot be read"),
        ("a.off", b"OFF\n1 0 0\n0 0\n", r"its vertices cannot be read \(cannot reshape"),
        ("a.pcd", b"ply\nformat\n", r"is not a PCD file: its header has the line 'ply'"),
        ("a.pcd", b"", r"is not a PCD file: its header has the line ''"),
        ("a.pcd", b"FIELDS x y z\nDATA ascii\n", r"its header lacks SIZE, TYPE, POINTS"),
        (
            "a.pcd",
            b"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nPOINTS 99999999\nDATA binary\n123",
            r"ends within its points: 3 of 1199999988 bytes",
        ),
        (
            "a.pcd",
            b"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nPOINTS 2\nDATA ascii\n1 2 3\n1 2\n",
            r"point 1 has 2 values, expected 3; is it cut off",
        ),
        ("a.pcd", b"FIELDS x y\nSIZE 4 4 4\nTYPE F F F\nPOINTS 1\nDATA ascii\n1\n", r"do not fit together"),
        ("a.pcd", b"FIELDS x x z\nSIZE 4 4 4\nTYPE F F F\nPOINTS 1\nDATA ascii\n1\n", r"a field comes twice"),
        ("a.pcd", b"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nPOINTS -1\nDATA ascii\n1\n", r"POINTS is '-1'"),
        (
            "a.pcd",
            b"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nPOINTS 1\nDATA zip\n1\n",
            r"has DATA 'zip'; known: ascii",
        ),
        (
            "a.pcd",
            b"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nPOINTS 1\nDATA binary_compressed\n\x01\0\0\0\x0c\0\0\0",
            r"its compressed block is cut off or of another size",
        ),
        (
            "a.pcd",
            b"FIELDS \x01 y z\nSIZE 4 4 4\nTYPE F F F\nPOINTS 1\nDATA ascii\n1 2 3\n",
            r"has no 'x', only \?, y, z: known names: \\x01, y, z$",
        ),
        ("a.las", b"LASF", r"cannot read .*a.las"),
        ("a.laz", b"nothing", r"cannot read .*a.laz"),
        ("a.npz", b"PK", r"cannot read .*a.npz"),
    ],
)
def test_broken_files_are_reported_in_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as excinfo:
        read_cloud_files(str(tmp_path / name)).points(0)
    assert name in str(excinfo.value)
    assert "\n" not in str(excinfo.value)


def test_one_of_several_arrays_must_have_a_name_for_points(tmp_path):
    np.savez(tmp_path / "a.npz", cloud=XYZ, other=XYZ)
    with pytest.raises(UserError, match=r"holds 2 arrays; one must be \(points, 3\) and called points, xyz"):
        read_cloud(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", anything=XYZ)
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.npz"), XYZ)


def test_arrays_called_like_coordinates_are_labels_beside_points(tmp_path):
    """PyTorch Geometric calls points pos, and labels y."""
    np.savez(tmp_path / "a.npz", pos=XYZ, x=INTENSITY, y=np.arange(N), z=np.arange(N), normal=NORMAL)
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.npz"), XYZ)
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.npz", NORMALS), np.column_stack([XYZ, NORMAL]))


@pytest.mark.parametrize(
    ("array", "channels"),
    [
        ("normal", NORMALS),
        ("normals", NORMALS),
        ("velocity", VELOCITY),
        ("velocities", VELOCITY),
        ("color", COLORS),
        ("colors", COLORS),
        ("rgb", COLORS),
    ],
)
def test_arrays_of_vectors_have_the_names_of_channels(tmp_path, array, channels):
    np.savez(tmp_path / "a.npz", points=XYZ, **{array: NORMAL})
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.npz", channels)[:, 3:], NORMAL)


def test_colours_of_an_array_are_scaled_as_those_of_other_files(tmp_path):
    colors = RNG.integers(0, 256, (N, 3)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", points=XYZ, colors=colors)
    np.testing.assert_allclose(read_cloud(tmp_path / "a.npz", COLORS)[:, 3:], colors / 255, rtol=1e-12)


@pytest.mark.parametrize("name", ["b.csv", "b.npz"])
@pytest.mark.parametrize("text", ["Clouds of a street.\n", "", "a b c\n", "# a comment\n"])
def test_a_text_without_points_hides_no_clouds(tmp_path, name, text):
    write(tmp_path / name)
    (tmp_path / "README.txt").write_text(text)
    clouds = read_cloud_files(str(tmp_path))
    assert [path.name for path in clouds.paths] == [name]
    assert [(entry.kind, entry.count) for entry in clouds.ignored] == [(".txt", 1)]


@pytest.mark.parametrize("name", ["b.csv", "b.npz"])
def test_predictions_and_features_beside_clouds_are_results(tmp_path, name):
    write(tmp_path / name)
    assert [path.name for path in read_cloud_files(str(tmp_path)).paths] == [name]
    write(tmp_path / "a.npy")
    clouds = read_cloud_files(str(tmp_path))
    assert [path.name for path in clouds.paths] == ["a.npy"]
    assert [(entry.kind, entry.count) for entry in clouds.ignored] == [(name[1:], 1)]


@pytest.mark.parametrize("kind", ["normal", "velocity"])
@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_rotating_a_cloud_and_its_vectors_commutes(kind, axis):
    """Vectors between points turn as the points do: p + v before and after."""
    channels = ("intensity", *(f"{kind}_{part}" for part in "zxy"))  # in any order
    points, vector = torch.randn(9, 3), torch.randn(9, 3)
    cloud = torch.cat([points, torch.ones(9, 1), vector[:, [2, 0, 1]]], dim=1)
    torch.manual_seed(1)
    turned = rotate(cloud, axis, channels)
    torch.manual_seed(1)
    tips = rotate(points + vector, axis)
    torch.testing.assert_close(turned[:, :3] + turned[:, [5, 6, 4]], tips)
    assert torch.equal(turned[:, 3], cloud[:, 3])


def test_scaled_normals_stay_at_right_angles_to_the_surface():
    tangent, other = torch.randn(5, 3), torch.randn(5, 3)
    normal = torch.linalg.cross(tangent, other)
    scaled = []
    for start in (tangent, other):  # ends of tangents, from the origin
        torch.manual_seed(2)
        scaled.append(scale_translate(torch.cat([start, normal], dim=1), (0.5, 2.0), 0.0, NORMALS))
    result = scaled[0][:, 3:]
    for moved in scaled:
        torch.testing.assert_close((moved[:, :3] * result).sum(1), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(result.norm(dim=1), normal.norm(dim=1))


def test_points_alone_are_augmented_as_before():
    points = torch.randn(9, 3)
    torch.manual_seed(3)
    plain = scale_translate(points, (0.5, 2.0), 0.3)
    torch.manual_seed(3)
    with_channel = scale_translate(torch.cat([points, torch.ones(9, 1)], dim=1), (0.5, 2.0), 0.3, ("a",))
    assert torch.equal(with_channel[:, :3], plain)
    assert torch.equal(with_channel[:, 3], torch.ones(9))


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", np.random.default_rng(i).normal(size=(N, 4)))
    return tmp_path


def config_of(folder, **changes):
    settings = {"channels": ("height",), "columns": ("x", "y", "z", "height"), "num_points": 32, **changes}
    return PointDataConfig("folder", str(folder), **settings)


@pytest.mark.parametrize("training", [False, True])
def test_samples_keep_points_and_channels_together(folder, training):
    samples = CloudSamples(
        choose_clouds(config_of(folder, unit_sphere=False), evaluate=False).train,
        config_of(folder, unit_sphere=False),
        training=training,
    )
    stored = np.load(folder / "2.npy").astype(np.float32)
    rows = {tuple(row) for row in stored.tolist()}
    sample, _ = samples[2]
    assert sample.shape == (32, 4)
    assert {tuple(row) for row in sample.tolist()} <= rows


def test_channels_are_dropped_in_training_alone(folder):
    config = config_of(folder, channel_dropout=0.5)
    clouds = choose_clouds(config, evaluate=False).train
    training = CloudSamples(clouds, config, training=True)
    dropped = [not bool(training[0][0][:, 3].any()) for _ in range(60)]
    assert 10 < sum(dropped) < 50
    assert bool(training[0][0][:, :3].any())
    plain = CloudSamples(clouds, config, training=False)
    assert all(bool(plain[0][0][:, 3].any()) for _ in range(20))


def test_channels_reach_the_embedding_and_no_target(tiny_model):
    model = create_backbone(PointModelConfig(**{**vars(tiny_model), "in_chans": 5})).eval()
    clouds = torch.randn(2, 64, 5)
    tokens = model.tokenize(clouds, targets=True)
    changed = clouds.clone()
    changed[..., 4] += 1
    other = model.tokenize(changed, targets=True)
    assert torch.equal(tokens.target, other.target)
    assert tokens.target.shape[-1] == 3
    assert torch.equal(tokens.position, other.position)
    assert not torch.equal(tokens.embedding, other.embedding)


def test_channels_stay_with_their_points(tiny_model):
    """Coordinates again as channels, less those of the centre, are what the patch has: both halves see the same."""
    model = create_backbone(PointModelConfig(**{**vars(tiny_model), "in_chans": 6})).eval()
    inputs = []
    model.patch_embed.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    points = torch.randn(2, 64, 3)
    tokens = tokenize_clouds(
        torch.cat([points, points], dim=-1), model.patch_embed, num_patches=8, patch_size=4, order="hilbert"
    )
    torch.testing.assert_close(inputs[0][..., 3:] - tokens.position.unsqueeze(2), inputs[0][..., :3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": ("x",)}, r"data.channels has 'x': name what files hold beside x, y and z"),
        ({"channels": ("nx", "ny", "nz")}, r"data.channels has 'nx': say normal_x, which also finds .* nx"),
        ({"channels": ("intensity", "r")}, r"data.channels has 'r': say red"),
        ({"channels": ("normals_x", "normals_y", "normals_z")}, r"has 'normals_x': say normal_x, which also"),
        ({"channels": ("velocities_y",)}, r"has 'velocities_y': say velocity_y, which also"),
        ({"channels": ("colors_x",)}, r"has 'colors_x': say red, which also"),
        ({"channels": ("rgb_z",)}, r"has 'rgb_z': say blue, which also"),
        ({"channels": ("a", "a")}, r"data.channels has 'a' twice"),
        ({"channels": ("normal_x", "normal_z")}, r"has normal_x, normal_z alone; a vector turns .*normal_y"),
        (
            {"columns": ("x", "y", "height")},
            r"data.columns must name every column once, x, y and z among them",
        ),
        ({"columns": ("x", "y", "z", "z")}, r"data.columns must name every column once"),
        ({"channel_dropout": 1.0}, r"data.channel_dropout must lie in \[0, 1\); got 1.0"),
        ({"channels": None, "channel_dropout": 0.5}, r"of which there are none"),
    ],
)
def test_what_channels_cannot_be(folder, changes, message):
    with pytest.raises(UserError, match=message):
        config_of(folder, **changes).validate()


def test_channels_are_of_folders(folder):
    with pytest.raises(UserError, match=r"data.channels is for data.source 'folder', not 'hdf5'"):
        PointDataConfig("hdf5", str(folder), channels=("intensity",)).validate()


def test_the_model_takes_as_many_values_as_the_data_have(folder, tiny_model):
    with pytest.raises(
        UserError,
        match=r"names 1 channels beside x, y and z, and model.in_chans is 3: leave --data.channels out, or, .* "
        r"give --model.in_chans 4",
    ):
        open_data(config_of(folder), tiny_model, "pretrain")
    wider = PointModelConfig(**{**vars(tiny_model), "in_chans": 5})
    with pytest.raises(
        UserError, match=r"model.in_chans is 5: name 2 with --data.channels, or, without --init"
    ):
        open_data(config_of(folder), wider, "pretrain")
    data = open_data(config_of(folder), PointModelConfig(**{**vars(tiny_model), "in_chans": 4}), "pretrain")
    assert data.preprocessing == {"channels": ["height"], "preparation": config_of(folder).preparation}
    with pytest.raises(UserError, match=r"points have 4 values, the model takes in_chans=3: x, y and z"):
        create_backbone(tiny_model)(data.train[0][0].unsqueeze(0))
    with pytest.raises(UserError, match=r"model.in_chans must be at least 3, for x, y and z; got 2"):
        PointModelConfig(in_chans=2).validate()


def test_a_non_finite_channel_is_reported(folder):
    broken = np.load(folder / "1.npy")
    broken[7, 3] = np.nan
    np.save(folder / "1.npy", broken)
    clouds = choose_clouds(config_of(folder), evaluate=False).train
    with pytest.raises(UserError, match=r"1.npy has NaN or infinite values at point 7 \(1 of 40 points\)"):
        clouds.points(1)


MOVING = ("intensity", *VELOCITY, *NORMALS)


@pytest.fixture
def moving(tmp_path):
    """Six clouds with intensities far from 0, velocities and normals, and their rows together."""
    rows = []
    for number in range(6):
        values = np.random.default_rng(number).normal(size=(30 + number, 10))
        values[:, 3] = 5000 + 40 * values[:, 3]
        values[:, 4:7] *= 25
        (tmp_path / "moving").mkdir(exist_ok=True)
        np.save(tmp_path / "moving" / f"{number}.npy", values)
        rows.append(values)
    config = PointDataConfig(
        "folder", str(tmp_path / "moving"), channels=MOVING, columns=("x", "y", "z", *MOVING), num_points=30
    )
    return config, np.concatenate(rows)


def test_statistics_are_those_of_all_points_at_once(moving):
    config, rows = moving
    statistics = measure(config)
    assert (statistics.channels, statistics.clouds) == (MOVING, 6)
    np.testing.assert_allclose(statistics.mean, [rows[:, 3].mean(), *[0] * 6], rtol=1e-12)
    speed = np.sqrt(np.square(rows[:, 4:7]).mean())
    np.testing.assert_allclose(statistics.std, [rows[:, 3].std(), *[speed] * 3, *[1] * 3], rtol=1e-12)
    assert measure(replace(config, subset=2)).clouds == 2
    scaled = replace(config, channel_mean=statistics.mean, channel_std=statistics.std)
    assert measure(scaled) == statistics, "it measured what another measurement had made of the clouds"


def test_clouds_are_scaled_as_the_file_says_and_coordinates_are_not(moving, tmp_path):
    config, rows = moving
    statistics = measure(config)
    statistics.save(tmp_path / "s.json")
    clouds = choose_clouds(replace(config, statistics=str(tmp_path / "s.json")), evaluate=False).train
    points = np.concatenate([clouds.points(index) for index in range(6)])
    np.testing.assert_array_equal(points[:, :3], rows[:, :3])
    np.testing.assert_allclose(points[:, 3].mean(), 0, atol=1e-9)
    np.testing.assert_allclose(points[:, 3].std(), 1)
    np.testing.assert_allclose(np.square(points[:, 4:7]).mean(), 1)
    np.testing.assert_array_equal(points[:, 7:], rows[:, 7:])


def test_later_commands_scale_as_the_run_did(moving, tmp_path, tiny_model):
    config, _ = moving
    model = PointModelConfig(**{**vars(tiny_model), "in_chans": 10})
    statistics = measure(config)
    statistics.save(tmp_path / "s.json")
    trained = open_data(replace(config, statistics=str(tmp_path / "s.json")), model, "pretrain")
    description = describe_channels(replace(config, statistics=str(tmp_path / "s.json")))
    assert description == {
        "channels": list(MOVING),
        "channel_mean": list(statistics.mean),
        "channel_std": list(statistics.std),
    }
    assert trained.preprocessing == {**description, "preparation": config.preparation}
    values = data_defaults({"root": config.root, "statistics": "gone.json"}, description, {})
    assert values == {"root": config.root, **description}
    scaling = {name: tuple(value) for name, value in description.items()}
    later = replace(config, **scaling)
    again = open_data(later, model, "pretrain")
    assert torch.equal(again.plain_train[2][0], trained.plain_train[2][0])
    assert torch.equal(open_files(config.root, later, model)[2][0], trained.plain_train[2][0])
    options = {"data.statistics": "new.json"}
    assert data_defaults({"statistics": "new.json"}, description, options) == {
        "statistics": "new.json",
        "channels": list(MOVING),
    }


@pytest.mark.parametrize("purpose", ["pretrain", "finetune", "evaluate", "features", "files"])
def test_channels_of_other_names_or_in_another_order_are_not_those_of_the_training(
    moving, tiny_model, purpose
):
    config, _ = moving
    model = PointModelConfig(**{**vars(tiny_model), "in_chans": 10})
    trained = open_data(config, model, "pretrain").preprocessing

    def open_again(channels):
        later = replace(config, channels=channels, holdout=0.5)
        if purpose == "files":
            return open_files(config.root, later, model, trained)
        return open_data(later, model, purpose, trained)

    if purpose != "finetune":  # these clouds have no classes
        open_again(MOVING)
    swapped, other = (*MOVING[1:], MOVING[0]), ("height", *MOVING[1:])
    for channels in (swapped, other):
        message = (
            rf"data.channels is \['{channels[0]}', .*, and the model was trained with \['intensity', 'velocity_x', "
            r".*\], in this order: leave --data.channels out, or give those"
        )
        config = replace(config, columns=("x", "y", "z", *channels))
        with pytest.raises(UserError, match=message):
            open_again(channels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channel_mean": (0.0,)}, r"channel_mean and data.channel_std belong together"),
        (
            {"channel_mean": (0.0,) * 2, "channel_std": (1.0,) * 2},
            r"one finite number per channel, .* names 1; got",
        ),
        (
            {"channel_mean": (math.nan,), "channel_std": (1.0,)},
            r"data.channel_mean must be one finite number",
        ),
        ({"channel_mean": (0.0,), "channel_std": (0.0,)}, r"data.channel_std must be above 0; got 0.0"),
        ({"statistics": " "}, r"data.statistics is empty: name a file"),
        (
            {"channels": None, "statistics": "s.json"},
            r"data.statistics is of data.channels, of which there are none",
        ),
    ],
)
def test_a_scaling_that_cannot_be(folder, changes, message):
    with pytest.raises(UserError, match=message):
        config_of(folder, **changes).validate()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"s.json is not valid JSON: name a file that map-points statistics wrote"),
        (
            '{"mean": [0], "std": [1], "clouds": 1}',
            r"s.json has no channels, mean, std and clouds: name a file",
        ),
        (
            '{"channels": ["height"], "mean": [0], "std": [0], "clouds": 1}',
            r"std must be one positive number",
        ),
        (
            '{"channels": ["red"], "mean": [0], "std": [1], "clouds": 1}',
            r"is of channels \['red'\], data.channels names \['height'\]: measure these",
        ),
        (
            '{"channels": ["height"], "mean": [0, 0], "std": [1, 1], "clouds": 1}',
            r"is of channels \['height'\]",
        ),
    ],
)
def test_files_that_are_no_statistics(folder, tmp_path, text, message):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(UserError, match=message):
        choose_clouds(config_of(folder, statistics=str(tmp_path / "s.json")), evaluate=False)


def test_there_must_be_channels_to_measure(folder):
    with pytest.raises(UserError, match=r"data.channels names nothing to measure: name channels"):
        measure(config_of(folder, channels=None))


@pytest.mark.parametrize("channels", [("curvature", "intensity"), ("intensity", "height"), ("height",)])
def test_the_scaling_of_channels_is_of_these_in_their_order(channels):
    trained = {"channels": ["height", "intensity"], "channel_mean": [1.0, 5.0], "channel_std": [2.0, 3.0]}
    run = {"statistics": "s.json", "holdout": 0.1}
    assert data_defaults(run, trained, {"data.channels": str(channels)}) == {
        "channels": ["height", "intensity"],  # which those of the command line replace
        "holdout": 0.1,
    }
    same = {"data.channels": "('height', 'intensity')"}
    assert data_defaults(run, trained, same) == {**trained, "holdout": 0.1}


@pytest.fixture
def labelled(tmp_path, tiny_model, short_training):
    """Makes configurations of training on clouds with two channels, from weights of [height, intensity]."""
    for number, name in enumerate(("train/a/1", "train/a/2", "train/b/3", "train/b/4", "val/a/5", "val/b/6")):
        path = tmp_path / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.random.default_rng(number).normal(size=(N, 5)))
    model = PointModelConfig(**{**vars(tiny_model), "in_chans": 5})
    description = MODELS.describe(
        model,
        holds="encoder",
        channels=["height", "intensity"],
        channel_mean=[1.0, 5.0],
        channel_std=[2.0, 3.0],
    )
    save_weights(tmp_path / "model.safetensors", create_backbone(model).state_dict(), description)

    def configure(*channels):
        data = config_of(tmp_path, channels=channels, columns=("x", "y", "z", *channels))
        init = str(tmp_path / "model.safetensors")
        return configs(DOMAIN).finetune(data=data, model=model, training=short_training, init=init)

    return configure


@pytest.mark.parametrize("channels", [("intensity", "height"), ("height", "curvature")])
def test_a_frozen_encoder_reads_its_own_channels_and_a_trained_one_says_that_others_are_new(
    labelled, channels, capsys
):
    difference = (
        rf"data.channels is \['{channels[0]}', .*, and the model was trained with \['height', 'intensity'\]"
    )
    with pytest.raises(UserError, match=rf"{difference}, in this order: a frozen encoder reads only what it"):
        LinearProbeTask(DOMAIN, labelled(*channels))
    assert "the model was trained with" not in capsys.readouterr().out
    FinetuneTask(DOMAIN, labelled(*channels))
    assert "in this order: training goes on from its weights with other inputs" in capsys.readouterr().out


@pytest.mark.parametrize("task", [LinearProbeTask, FinetuneTask])
def test_the_channels_of_the_training_are_taken_without_a_word(labelled, task, capsys):
    task(DOMAIN, labelled("height", "intensity"))
    assert "the model was trained with" not in capsys.readouterr().out


def test_pretraining_goes_on_with_the_channels_of_its_start(labelled):
    command = next(command for command in COMMANDS if command.name == "pretrain")
    start = {"init": labelled("height", "intensity").init}
    scaling = {"data.channel_mean": (1.0, 5.0), "data.channel_std": (2.0, 3.0)}
    assert command.other_defaults(start) == {"data.channels": ("height", "intensity"), **scaling}
    assert "data.channel_mean" not in command.other_defaults({**start, "data.channels": "('a', 'b')"})
    assert command.other_defaults({}) == {}


def test_a_run_that_did_not_save_how_its_clouds_were_prepared_is_resumed(labelled, tmp_path):
    """Runs of earlier versions have no such entry, and settings that they left to their source as null."""
    now = {
        f"data.{name}": value
        for name, value in FinetuneTask(DOMAIN, labelled("height", "intensity")).data_settings().items()
    }
    assert (now["data.unit_sphere"], now["data.up_axis"]) == (None, None)
    saved = {name: value for name, value in now.items() if name != "data.preparation"}
    refuse_another_run(saved, now, tmp_path)


@pytest.mark.parametrize("ending", ["ply", "pcd"])
def test_a_cloud_of_named_columns_may_have_fewer_points_than_columns(tmp_path, ending):
    """Its columns are named, so it is not transposed."""
    names = ("x", "y", "z", *NORMALS, "intensity")
    rows = "".join(" ".join(map(repr, row)) + "\n" for row in EVERYTHING[:5].tolist())
    properties = "".join(f"property float {name}\n" for name in names)
    header = {
        "ply": f"ply\nformat ascii 1.0\nelement vertex 5\n{properties}end_header\n",
        "pcd": f"FIELDS {' '.join(names)}\nSIZE{' 4' * 7}\nTYPE{' F' * 7}\nPOINTS 5\nDATA ascii\n",
    }
    path = tmp_path / f"a.{ending}"
    path.write_text(header[ending] + rows)
    points = read_cloud_files(str(path), channels=(*NORMALS, "intensity")).points(0)
    np.testing.assert_allclose(points, EVERYTHING[:5], atol=1e-6)
    np.save(tmp_path / "b.npy", EVERYTHING[:5])
    with pytest.raises(
        UserError, match=r"b.npy has shape \(5, 7\), more columns than points; .*transpose it"
    ):
        read_cloud_files(str(tmp_path / "b.npy")).points(0)


def test_a_table_without_points_beside_npz_clouds_is_none(tmp_path):
    write(tmp_path / "a.npz")
    write(tmp_path / "b.csv")
    (tmp_path / "predictions.csv").write_text("cloud,class,probability\na.npz,chair,0.5\n")
    clouds = read_cloud_files(str(tmp_path))
    assert [path.name for path in clouds.paths] == ["a.npz", "b.csv"]
    assert [(entry.kind, entry.count) for entry in clouds.ignored] == [(".csv", 1)]
