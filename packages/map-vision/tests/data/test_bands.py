"""Images with any number of channels at their stored values, from file to tensor."""

import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from map_core.errors import UserError
from map_vision.data import DataConfig, Preprocessing, UnreadableImageError, load_image_data, load_images
from map_vision.data.decoding import stored_values
from map_vision.data.preprocessing import resolve_preprocessing
from map_vision.data.statistics import measure
from map_vision.data.statistics_file import Statistics, read_statistics, save_statistics
from map_vision.data.transforms import evaluation_transform, training_transform

DTYPES = ("uint8", "uint16", "int16", "uint32", "int32", "float32", "float64")


def values(channels: int, dtype: str = "float32", size: tuple[int, int] = (9, 7)) -> np.ndarray:
    generator = np.random.default_rng(channels)
    low, high = (0, 200) if dtype == "uint8" else (0, 60000) if dtype == "uint16" else (-30000, 30000)
    return generator.integers(max(low, 0) if dtype[0] == "u" else low, high, (*size, channels)).astype(dtype)


def stored(channels: int, **settings: Any) -> DataConfig:
    return DataConfig(mean=(100.0,) * channels, std=(50.0,) * channels, **settings)


@pytest.mark.parametrize("channels", [1, 3, 4, 13])
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_keep_their_values(tmp_path: Path, channels: int, dtype: str) -> None:
    expected = values(channels, dtype)
    np.save(tmp_path / "a.npy", expected)
    pixels = stored_values(tmp_path / "a.npy", channels, name="a")
    assert pixels.dtype == torch.float32
    np.testing.assert_array_equal(pixels.numpy(), np.moveaxis(expected.astype(np.float32), -1, 0))


@pytest.mark.parametrize("channels", [1, 4, 13])
@pytest.mark.parametrize("layout", ["contig", "separate", "pages"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_tiff_files_keep_their_values(tmp_path: Path, channels: int, layout: str, dtype: str) -> None:
    expected, path = values(channels, dtype), tmp_path / "a.tif"
    first = np.moveaxis(expected, -1, 0)
    if layout == "contig" and channels > 1:
        tifffile.imwrite(path, expected, photometric="minisblack", planarconfig="contig")
    elif layout == "separate" and channels > 1:
        tifffile.imwrite(path, first, photometric="minisblack", planarconfig="separate")
    else:
        with tifffile.TiffWriter(path) as tiff:
            for page in first:
                tiff.write(page, photometric="minisblack", contiguous=False)
    pixels = stored_values(path, channels, name="a")
    np.testing.assert_array_equal(pixels.numpy(), first.astype(np.float32))


def test_pictures_serve_at_their_stored_values(tmp_path: Path) -> None:
    expected = values(4, "uint8")
    Image.fromarray(expected).save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        stored_values(tmp_path / "a.png", 4, name="a").numpy(), np.moveaxis(expected, -1, 0)
    )
    deep = values(1, "uint16")[..., 0]
    Image.fromarray(deep).save(tmp_path / "b.png")
    np.testing.assert_array_equal(stored_values(tmp_path / "b.png", 1, name="b").numpy()[0], deep)


def png(pixels: bytes, *, bits: int, colour: int) -> bytes:
    """A PNG of one row of two pixels: Pillow can read more kinds than it writes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rgb.png", png(struct.pack(">6H", *[5000] * 6), bits=16, colour=2)),
        ("gray_alpha.png", png(struct.pack(">4H", *[5000] * 4), bits=16, colour=4)),
        ("rgba.png", png(struct.pack(">8H", *[5000] * 8), bits=16, colour=6)),
        ("gray_2.png", png(b"\x10", bits=2, colour=0)),
        ("a.pgm", b"P5 2 1 4095\n" + struct.pack(">2H", 4000, 7)),
        ("text.pgm", b"P2 2 1 100\n1 2\n"),
        ("text_12.pgm", b"P2 2 1 4095\n1 2\n"),
        ("a.ppm", b"P6 2 1 65535\n" + struct.pack(">6H", *[5000] * 6)),
        ("text.ppm", b"P3 2 1 65535\n1 2 3 4 5 6\n"),
    ],
    ids=range(9),
)
def test_pictures_that_would_be_scaled_have_no_stored_values(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        UnreadableImageError, match=r"its samples would be scaled, .*: save it as TIFF or .npy"
    ):
        stored_values(tmp_path / name, None, name=name)


def test_a_tiff_of_16_bits_in_colour_by_another_name_would_be_scaled(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values(3, "uint16"), photometric="rgb")
    (tmp_path / "a.tif").rename(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match=r"its samples would be scaled"):
        stored_values(tmp_path / "a.png", 3, name="a")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(bytes([0, 9, 200, 255, 1, 2]), bits=8, colour=2), [[0, 255], [9, 1], [200, 2]]),
        (png(struct.pack(">2H", 5000, 9), bits=16, colour=0), [[5000, 9]]),
        (b"P5 2 1 65535\n" + struct.pack(">2H", 4000, 7), [[4000, 7]]),
        (b"P5 2 1 255\n\x07\x09", [[7, 9]]),
        (b"P2 2 1 65535\n4000 7\n", [[4000, 7]]),
        (b"P3 2 1 255\n1 2 3 4 5 6\n", [[1, 4], [2, 5], [3, 6]]),
    ],
    ids=range(6),
)
def test_pictures_that_are_read_as_they_are(tmp_path: Path, content: bytes, expected: list) -> None:
    (tmp_path / "a.png").write_bytes(content)
    assert stored_values(tmp_path / "a.png", None, name="a")[:, 0].tolist() == expected


def test_places_in_the_palette_of_a_tiff_are_no_values(tmp_path: Path) -> None:
    Image.fromarray(values(3, "uint8")).quantize(8).save(tmp_path / "a.tif")
    with pytest.raises(
        UnreadableImageError, match=r"its samples are places in a palette: save it with one value"
    ):
        stored_values(tmp_path / "a.tif", None, name="a")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            values(3),
            r"it has 3 channels, the model takes 4: give images that have 4, or, to a new model, --model.in_chans 3 "
            r"\(to statistics, --channels 3\)\)",
        ),
        (values(1)[..., 0], r"it has 1 channel, the model takes 4"),
        (
            np.moveaxis(values(4), -1, 0),
            r"its shape is \(4, 9, 7\), channels first: save it as \(height, width",
        ),
        (np.zeros((2, 3, 3, 4)), r"its shape is \(2, 3, 3, 4\): an image is \(height, width, channels\)"),
        (np.zeros((0, 3, 4)), r"its shape is \(0, 3, 4\)"),
        (np.zeros((3, 3, 4), complex), r"it holds complex128, not plain numbers"),
        (np.full((3, 3, 4), "x"), r"it holds <U1, not plain numbers"),
        (
            np.array([[{}]]),
            r"cannot read image .*a.npy \(it is not a complete .npy file of plain numbers\): replace",
        ),
        (
            np.where(np.arange(4) == 2, np.nan, values(4)),
            r"63 of its values are NaN, .* the first in channel 2",
        ),
        (np.full((3, 3, 4), 1e300), r"36 of its values are NaN, infinite or beyond float32"),
    ],
)
def test_arrays_that_are_no_such_images(tmp_path: Path, content: np.ndarray, message: str) -> None:
    np.save(tmp_path / "a.npy", content, allow_pickle=True)
    with pytest.raises(UnreadableImageError, match=message) as caught:
        stored_values(tmp_path / "a.npy", 4, name=str(tmp_path / "a.npy"))
    assert "--data.on_error skip" in str(caught.value)


@pytest.mark.parametrize("name", ["a.npy", "a.tif"])
@pytest.mark.parametrize("cut", [0, 60, 300])
def test_files_that_are_cut_off(tmp_path: Path, name: str, cut: int) -> None:
    path = tmp_path / name
    if name == "a.npy":
        np.save(path, values(4))
    else:
        tifffile.imwrite(path, values(4), photometric="minisblack", planarconfig="contig")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UnreadableImageError, match=r"cannot read image a \("):
        stored_values(path, 4, name="a")


@pytest.mark.parametrize("name", ["a.npy", "a.tif", "deflate.tif", "pages.tif"])
def test_mutants_give_an_image_or_a_sentence(tmp_path: Path, name: str) -> None:
    path, pixels = tmp_path / name, values(4, "uint16", (6, 5))
    if name == "a.npy":
        np.save(path, pixels)
    elif name == "pages.tif":
        tifffile.imwrite(path, np.moveaxis(pixels, -1, 0), photometric="minisblack")
    else:
        compression = "zlib" if name == "deflate.tif" else None
        tifffile.imwrite(
            path, pixels, photometric="minisblack", planarconfig="contig", compression=compression
        )
    content, generator = path.read_bytes(), np.random.default_rng(0)
    sentences: list[str] = []
    for _ in range(150):
        mutant = bytearray(content[: generator.integers(len(content) // 2, len(content) + 1)])
        for place in generator.integers(0, len(mutant), 3):
            mutant[place] = generator.integers(256)
        path.write_bytes(mutant)
        try:
            image = stored_values(path, 4, name="the image")
        except UnreadableImageError as error:
            sentences.append(str(error))
            continue
        assert image.shape[0] == 4
        assert torch.isfinite(image).all()
    path.write_bytes(content)
    assert sentences
    assert all(re.fullmatch(r"cannot read image the image \(.+", sentence) for sentence in sentences)
    assert torch.equal(
        stored_values(path, 4, name="a"), torch.from_numpy(np.moveaxis(pixels, -1, 0).astype("f4"))
    )


TAGS = {
    256: 4,
    257: 4,
    258: 8,
    259: 1,
    262: 1,
    273: 8,
    277: 1,
    278: 4,
    279: 16,
}  # of a gray picture of 4 x 4 bytes


@pytest.mark.parametrize("pages", [1, 5_000], ids=["itself", "long"])
@pytest.mark.parametrize("big", [False, True])
def test_a_chain_of_pages_without_end_is_refused_at_once(tmp_path: Path, pages: int, big: bool) -> None:
    head, number, tag, size = (b"II+\0\x08\0\0\0", "<Q", "<HHQQ", 8) if big else (b"II*\0", "<H", "<HHII", 4)
    first = len(head) + size
    page = struct.pack(number, len(TAGS)) + b"".join(
        struct.pack(tag, *(name, 4, 1, value)) for name, value in TAGS.items()
    )
    chain = b""
    for place in range(pages):  # the last one leads to the first
        following = first + (place + 1) % pages * (len(page) + size)
        chain += page + following.to_bytes(size, "little")
    (tmp_path / "a.tif").write_bytes(head + first.to_bytes(size, "little") + chain)
    with pytest.raises(
        UnreadableImageError, match=r"it has more than 4,096 pages: save one picture per file"
    ):
        stored_values(tmp_path / "a.tif", 3, name="a.tif")


def test_a_header_that_claims_too_much_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1, 1, 4), np.float32))
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content.replace(b"(1, 1, 4)", b"(1" + b"0" * 6 + b", 4)"))
    with pytest.raises(UnreadableImageError, match=r"cannot read image a"):
        stored_values(tmp_path / "a.npy", 4, name="a")


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Two classes of four-channel scenes of several sizes, arrays and TIFF files."""
    generator = np.random.default_rng(0)
    for number in range(8):
        path = tmp_path / "train" / "ab"[number % 2] / f"{number}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, generator.normal(1000, (10, 20, 40, 80), (10 + number, 12, 4)).astype(np.float32))
    return tmp_path


def test_a_folder_of_arrays_is_a_data_set(scenes: Path) -> None:
    config = stored(4, root=str(scenes), holdout=0.25, augmentation="none")
    data = load_image_data(config, img_size=(12, 10), in_chans=4, purpose="finetune")
    assert (data.classes, len(data.train), len(data.evaluation or ())) == (("a", "b"), 6, 2)
    name = data.train.names[1]  # 12 x 12: its middle columns, at their values
    expected = (np.moveaxis(np.load(name), -1, 0) - 100) / 50
    if np.load(name).shape[0] == 12:
        np.testing.assert_allclose(data.train[1][0].numpy(), expected[:, :, 1:11], rtol=1e-5)
    assert data.train[0][0].shape == (4, 12, 10)


def test_beside_pictures_arrays_are_left_out(labelled: Path) -> None:
    np.save(labelled / "train" / "cat" / "features.npy", values(4))
    config = DataConfig(root=str(labelled))
    data = load_image_data(config, img_size=(8, 8), in_chans=3, purpose="pretrain")
    assert len(data.train) == 20
    assert "ignored: 1 .npy" in data.description


def test_arrays_of_8_bits_are_pictures_of_models_of_pictures(tmp_path: Path, labelled: Path) -> None:
    pixels = values(3, "uint8")
    np.save(tmp_path / "a.npy", pixels)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    array, picture = (
        load_images(tmp_path / name, DataConfig(), img_size=(8, 8), in_chans=3) for name in ("a.npy", "a.png")
    )
    assert torch.equal(array[0][0], picture[0][0])
    np.save(tmp_path / "a.npy", pixels.astype(np.float32))
    with pytest.raises(UserError, match=r"it holds float32 .*without --data.pixels stored an array is"):
        array[0]


@pytest.mark.parametrize("augmentation", ["none", "crop_flip", "pad_crop", "shift"])
@pytest.mark.parametrize("channels", [1, 4, 13])
def test_augmentation_treats_every_channel_alike(augmentation: Any, channels: int) -> None:
    """Channels with equal values stay equal under any augmentation, and a flip applies to all."""
    config = stored(channels, augmentation=augmentation, random_erasing=0.0)
    transform = (
        training_transform(config, resolve_preprocessing(config, in_chans=channels), img_size=(16, 12))
        if channels not in (1, 3)
        else training_transform(
            config, Preprocessing(1, (100.0,), (50.0,), pixels="stored"), img_size=(16, 12)
        )
    )
    image = torch.rand(1, 20, 18).mul(200).expand(channels, -1, -1)
    for _ in range(5):
        result = transform(image)
        assert result.shape == (channels, 16, 12)
        assert torch.isfinite(result).all()
        torch.testing.assert_close(result, result[:1].expand_as(result))


def test_stored_values_of_8_bits_are_prepared_nearly_as_pictures_are() -> None:
    pixels = values(3, "uint8", (40, 30))
    picture = evaluation_transform(Preprocessing(3, (0.5,) * 3, (0.25,) * 3, "bilinear"), img_size=(16, 16))
    bands = evaluation_transform(
        Preprocessing(3, (127.5,) * 3, (63.75,) * 3, "bilinear", pixels="stored"), img_size=(16, 16)
    )
    expected = picture(Image.fromarray(pixels))
    result = bands(torch.from_numpy(pixels).permute(2, 0, 1).float())
    assert (result - expected).abs().max() < 0.03  # Pillow rounds to whole numbers, twice


@pytest.mark.parametrize(
    ("settings", "in_chans", "message"),
    [
        (
            {},
            4,
            r"stored values of 4 channels have no mean and deviation .*map-vision statistics .*--data.statistics",
        ),
        ({"pixels": "stored"}, 1, r"stored values of 1 channel have no mean"),
        (
            {"pixels": "scaled"},
            4,
            r"data.pixels 'scaled' is for pictures of 1 or 3 channels, the model takes 4",
        ),
        (
            {"mean": (1.0,) * 3, "std": (1.0,) * 3},
            4,
            r"data.mean has 3 values, but the model takes 4 channels",
        ),
        (
            {"mean": (1.0,), "std": (1.0,), "cache": "memory"},
            4,
            r"data.cache 'memory' keeps pictures of 8 bits",
        ),
        (
            {"mean": (1.0,), "std": (1.0,), "interpolation": "lanczos"},
            4,
            r"'lanczos' is for pictures of 8 bits",
        ),
        (
            {"mean": (1.0,), "std": (1.0,), "augmentation": "timm"},
            4,
            r"'timm' changes colours, which stored values of 4",
        ),
        (
            {"mean": (1.0,), "std": (1.0,), "augmentation": "three_augment"},
            4,
            r"'three_augment' changes colours",
        ),
        (
            {"mean": (1.0,), "std": (1.0,), "source": "torch/cifar10"},
            4,
            r"read from files in a folder, not from .*cifar",
        ),
    ],
)
def test_what_stored_values_cannot_have(
    scenes: Path, settings: dict[str, Any], in_chans: int, message: str
) -> None:
    config = DataConfig(root=str(scenes), **settings)
    with pytest.raises(UserError, match=message):
        load_image_data(config, img_size=(8, 8), in_chans=in_chans, purpose="pretrain")


def test_digits_have_no_stored_values() -> None:
    with pytest.raises(UserError, match=r"not from data.source 'digits'"):
        load_image_data(stored(4), img_size=(8, 8), in_chans=4, purpose="pretrain")


def test_the_file_of_statistics_says_how_values_are_prepared(scenes: Path, tmp_path: Path) -> None:
    file = tmp_path / "statistics.json"
    saved = Statistics("stored", (1.0, 2.0, 3.0, 4.0), (0.1, 0.2, 0.3, 0.4), 8)
    save_statistics(file, saved)
    assert read_statistics(file) == saved
    config = DataConfig(root=str(scenes), statistics=str(file), mean=(9.0,), std=(9.0,))
    prepared = resolve_preprocessing(config, in_chans=4)
    assert (prepared.mean, prepared.std, prepared.pixels) == (saved.mean, saved.std, "stored")
    again = Preprocessing.from_dict(prepared.to_dict())
    assert again == prepared
    assert resolve_preprocessing(DataConfig(), in_chans=4, trained=again) == prepared
    with pytest.raises(UserError, match=r"statistics.json is of 4 channels, the model takes 13: measure"):
        resolve_preprocessing(config, in_chans=13)
    with pytest.raises(UserError, match=r"is of stored pixels, data.pixels is 'scaled': measure"):
        resolve_preprocessing(DataConfig(statistics=str(file), pixels="scaled"), in_chans=4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"is not valid JSON: name a file that map-vision statistics wrote"),
        ("[]", r"s.json has no pixels, mean, std and images"),
        ('{"mean": [1], "std": [1]}', r"s.json has no pixels, mean, std and images"),
        ('{"pixels": "raw", "mean": [1], "std": [1], "images": 1}', r"pixels must be one of scaled, stored"),
        ('{"pixels": "stored", "mean": [NaN], "std": [1], "images": 1}', r"mean must be finite numbers"),
        ('{"pixels": "stored", "mean": 1, "std": [1], "images": 1}', r"mean must be finite numbers"),
        (
            '{"pixels": "stored", "mean": [1], "std": [0], "images": 1}',
            r"std must be one positive number per channel",
        ),
        ('{"pixels": "stored", "mean": [1, 2], "std": [1], "images": 1}', r"as many as in mean"),
        (
            f'{{"pixels": "stored", "mean": [1{"0" * 400}], "std": [1], "images": 1}}',
            r"mean must be finite numbers",
        ),
        (
            '{"pixels": "stored", "mean": [1], "std": [1], "images": "many"}',
            r"images must be how many; it has 'many'",
        ),
        ("[" * 100_000, r"is not valid JSON: name a file"),
    ],
)
def test_files_that_are_no_statistics(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_statistics(tmp_path / "s.json")
    with pytest.raises(UserError, match=r"cannot read --data.statistics .*none.json \(No such file"):
        read_statistics(tmp_path / "none.json")


def test_statistics_equal_those_of_all_pixels_at_once(scenes: Path) -> None:
    measured = measure(DataConfig(root=str(scenes)))
    everything = np.concatenate([np.load(path).reshape(-1, 4) for path in scenes.rglob("*.npy")]).astype(
        np.float64
    )
    np.testing.assert_allclose(measured.mean, everything.mean(0), rtol=1e-12)
    np.testing.assert_allclose(measured.std, everything.std(0), rtol=1e-12)
    assert (measured.pixels, measured.images) == ("stored", 8)
    assert measure(DataConfig(root=str(scenes), subset=3)).images == 3


def test_statistics_of_pictures_are_of_0_to_1(labelled: Path) -> None:
    measured = measure(DataConfig(root=str(labelled)), channels=3)
    pixels = np.stack([np.asarray(Image.open(path)) for path in (labelled / "train").rglob("*.png")]) / 255
    np.testing.assert_allclose(measured.mean, pixels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(measured.std, pixels.std((0, 1, 2)), rtol=1e-12)
    assert measured.pixels == "scaled"


def test_statistics_of_stored_pictures_have_the_channels_of_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(values(4, "uint8") + np.uint8(number)).save(folder / f"{number}.png")
    measured = measure(DataConfig(root=str(folder), pixels="stored"))
    assert measured == measure(DataConfig(root=str(folder)), channels=4)
    assert (len(measured.mean), measured.pixels) == (4, "stored")
    scaled = tmp_path / "scaled.json"
    save_statistics(scaled, measure(DataConfig(root=str(folder))))
    with pytest.raises(
        UserError, match=r"is of 3 channels, the model takes 4: .* statistics --channels 4, or"
    ):
        resolve_preprocessing(DataConfig(root=str(folder), statistics=str(scaled)), in_chans=4)


def test_a_large_offset_costs_statistics_no_precision(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 2, (8, 8, 4)).astype(np.int32) + 2**23
    np.save(tmp_path / "a.npy", image)
    np.save(tmp_path / "b.npy", image)
    measured = measure(DataConfig(root=str(tmp_path)))
    np.testing.assert_allclose(measured.std, image.reshape(-1, 4).std(0), rtol=1e-9)


def test_a_constant_channel_is_reported(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in scenes.rglob("*.npy"):
        np.save(path, np.load(path) * [1, 1, 0, 1])
    assert measure(DataConfig(root=str(scenes))).std[2] == 1
    assert "channels without variation, whose deviation is written as 1: 2" in capsys.readouterr().err


def test_statistics_say_what_does_not_fit(scenes: Path, break_images: Callable[..., None]) -> None:
    with pytest.raises(UserError, match=r"it has 4 channels, the model takes 13"):
        measure(DataConfig(root=str(scenes)), channels=13)
    with pytest.raises(UserError, match=r"data.pixels 'scaled' is for 1 or 3 channels, not 4"):
        measure(DataConfig(root=str(scenes), pixels="scaled"))
    with pytest.raises(UserError, match=r"not from data.source 'digits'"):
        measure(DataConfig(), channels=4)
    break_images([next(scenes.rglob("*.npy"))])
    assert measure(DataConfig(root=str(scenes), on_error="skip"), channels=4).images == 7
