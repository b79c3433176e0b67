"""Mutants of small valid files: each gives an image, or a one-sentence error that names the file."""

import io
import random
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from map_core.testing.mutations import Case, run
from map_vision.data import UnreadableImageError
from map_vision.data.decoding import decode
from map_vision.data.formats import readable_formats

SECONDS = 2.0  # at most, for each kind of file
MUTANTS = 140
Mutate = Callable[[bytes, random.Random], bytes]


def seeds() -> dict[str, bytes]:
    """Small files of every supported format, in variants that take different paths through the decoders."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 12, 3), dtype=np.uint8)
    colour, gray = Image.fromarray(pixels), Image.fromarray(pixels[..., 0])
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    real = Image.fromarray(pixels[..., 0].astype(np.float32) / 255)
    exif = Image.Exif()
    exif[274], exif[271] = 6, "maker"
    variants: list[tuple[str, str, Image.Image, dict]] = [
        ("jpeg", "JPEG", colour, {"exif": exif}),
        ("jpeg-progressive", "JPEG", gray, {"progressive": True}),
        ("jpeg-cmyk", "JPEG", colour.convert("CMYK"), {}),
        ("png", "PNG", colour, {"exif": exif}),
        ("png-palette", "PNG", colour.convert("P"), {"transparency": 0}),
        ("png-animated", "PNG", colour, {"save_all": True, "append_images": [colour.rotate(180)]}),
        ("png-16", "PNG", deep, {}),
        ("tiff", "TIFF", colour, {"exif": exif}),
        ("tiff-lzw", "TIFF", colour, {"compression": "tiff_lzw"}),
        ("tiff-deflate", "TIFF", deep, {"compression": "tiff_deflate"}),
        ("tiff-fax", "TIFF", gray.convert("1"), {"compression": "group4"}),
        ("tiff-jpeg", "TIFF", colour, {"compression": "jpeg"}),
        ("tiff-16", "TIFF", deep, {}),
        ("tiff-float", "TIFF", real, {}),
        ("bmp", "BMP", colour, {}),
        ("bmp-palette", "BMP", colour.convert("P"), {}),
        ("gif", "GIF", colour, {"save_all": True, "append_images": [colour.rotate(180)]}),
        ("ppm", "PPM", colour, {}),
        ("pgm", "PPM", gray, {}),
        ("pbm", "PPM", gray.convert("1"), {}),
        ("pfm", "PPM", real, {}),
        ("webp", "WEBP", colour, {"exif": exif}),
        ("webp-lossless", "WEBP", colour, {"lossless": True}),
        ("avif", "AVIF", colour, {"exif": exif}),
    ]
    files = {}
    for name, kind, image, options in variants:
        if kind in readable_formats():
            buffer = io.BytesIO()
            image.save(buffer, format=kind, **options)
            files[name] = buffer.getvalue()
    files["pgm-text"] = b"P2 3 2 255\n" + b" ".join(b"%d" % value for value in range(6))
    return files


def flip_bits(data: bytes, draw: random.Random) -> bytes:
    mutant = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8])):
        mutant[draw.randrange(len(mutant))] ^= 1 << draw.randrange(8)
    return bytes(mutant)


def flip_header_bits(data: bytes, draw: random.Random) -> bytes:
    return flip_bits(data[:64], draw) + data[64:]


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def remove(data: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(data))
    return data[:start] + data[start + draw.randrange(1, 20) :]


def insert(data: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(data))
    return data[:start] + draw.randbytes(draw.randrange(1, 20)) + data[start:]


def extreme_number(data: bytes, draw: random.Random) -> bytes:
    number = draw.choice(
        [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"9999"]
    )
    start = draw.randrange(len(data))
    return data[:start] + number + data[start + 4 :]


def repeat(data: bytes, draw: random.Random) -> bytes:
    first, last = sorted(draw.sample(range(len(data) + 1), 2))
    return data[:last] + data[first:last] * draw.randrange(1, 4) + data[last:]


MUTATIONS: list[Mutate] = [flip_bits, flip_header_bits, cut, remove, insert, extreme_number, repeat]
SEEDS = seeds()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", SEEDS)
def test_mutants_give_an_image_or_one_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # so that no mutant needs much memory
    draw, path, data = random.Random(name), tmp_path / "mutant.png", SEEDS[name]
    path.write_bytes(data)
    whole = decode(path, "RGB", name=str(path))
    assert whole.size in ((12, 16), (16, 12), (3, 2))
    refused, start = 0, time.monotonic()
    for number in range(MUTANTS):
        if time.monotonic() - start > SECONDS and refused > 5:
            break
        mutant = MUTATIONS[number % len(MUTATIONS)](data, draw)
        mode = draw.choice(["RGB", "L"])
        path.write_bytes(mutant)
        image, sentence = outcome(path, mode)
        if image is None:
            refused += 1
            assert sentence.startswith(f"cannot read image {path} (")
            assert "\n" not in sentence
        else:
            assert image.mode == mode
            assert 0 < image.width * image.height <= 200_000
            assert len(image.tobytes()) == image.width * image.height * len(mode)
    assert refused > 5  # the mutations do reach the decoder's errors


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("name", SEEDS)
def test_half_a_file_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    path.write_bytes(SEEDS[name][: len(SEEDS[name]) // 2])
    with pytest.raises(UnreadableImageError, match=rf"cannot read image {path} \("):
        decode(path, "RGB", name=str(path))


def outcome(path: Path, mode: str) -> tuple[Image.Image | None, str]:
    """The image, or the message with which it is refused; any other exception is a failure."""
    try:
        return decode(path, mode, name=str(path)), ""
    except UnreadableImageError as error:
        return None, str(error)


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_refused(tmp_path: Path, seed: int) -> None:
    draw, path = random.Random(seed), tmp_path / "noise.png"
    path.write_bytes(draw.randbytes(draw.randrange(1, 200)))
    with pytest.raises(UnreadableImageError, match=rf"cannot read image {path} \("):
        decode(path, "RGB", name=str(path))


def write_image(name: str, folder: Path) -> None:
    (folder / "mutant.png").write_bytes(SEEDS[name])


def read_image(folder: Path) -> None:
    path = folder / "mutant.png"
    image = decode(path, "RGB", name=str(path))
    assert len(image.tobytes()) == 3 * image.width * image.height


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of Pillow, about what it makes the best of
    Image.MAX_IMAGE_PIXELS = 100_000
    run([Case(name, "mutant.png", partial(write_image, name), read_image) for name in SEEDS])
