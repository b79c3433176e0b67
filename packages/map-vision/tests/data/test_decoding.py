"""Which files are decoded to which values, and which are refused."""

import io
import os
import socket
import stat
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import EpsImagePlugin, Image

from map_vision.data import DataConfig, UnreadableImageError, load_images
from map_vision.data.decoding import ORIENTATION, decode
from map_vision.data.formats import EXTENSIONS_OF_FORMAT, readable_extensions, readable_formats
from map_vision.data.image_files import FileInMemory
from map_vision.data.image_paths import read_image_paths

RAMP = np.array([[0, 1, 128, 129], [257, 1000, 32768, 65535]], dtype=np.uint16)
EIGHT_BITS = [[0, 0, 0, 1], [1, 4, 128, 255]]  # RAMP / 257, rounded


def tiff(
    pixels: np.ndarray, *, sample_format: int = 1, bits: int | None = None, photometric: int = 1
) -> bytes:
    """One uncompressed gray strip, written by hand: Pillow can read more kinds than it writes."""
    data = pixels.tobytes()
    tags = [
        (256, 4, pixels.shape[1]),
        (257, 4, pixels.shape[0]),
        (258, 3, bits or 8 * pixels.itemsize),
        (259, 3, 1),
        (262, 3, photometric),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, pixels.shape[0]),
        (279, 4, len(data)),
        (339, 3, sample_format),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    header = b"II*\0" + struct.pack("<I", 8 + len(data))
    return header + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def gray(path: Path) -> list[list[int]]:
    return np.asarray(decode(path, "L", name=str(path))).tolist()


def test_sixteen_bit_png_is_scaled(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(RAMP).save(path)
    assert gray(path) == EIGHT_BITS
    assert np.asarray(decode(path, "RGB", name="")).tolist() == [[[v] * 3 for v in row] for row in EIGHT_BITS]


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_tiff_is_scaled(tmp_path: Path, order: str) -> None:
    path = tmp_path / "deep.tif"
    Image.frombytes("I;16B" if order == ">" else "I;16", (4, 2), RAMP.astype(f"{order}u2").tobytes()).save(
        path
    )
    assert gray(path) == EIGHT_BITS


def test_sixteen_bit_pgm_is_scaled(tmp_path: Path) -> None:
    path = tmp_path / "deep.pgm"
    path.write_bytes(b"P5 4 2 65535\n" + RAMP.astype(">u2").tobytes())
    assert gray(path) == EIGHT_BITS
    path.write_bytes(b"P5 4 2 1023\n" + (RAMP // 64).astype(">u2").tobytes())  # 10 bits
    np.testing.assert_allclose(gray(path), (RAMP // 64) * (255 / 1023), atol=0.51)


def test_white_is_zero_is_inverted(tmp_path: Path) -> None:
    path = tmp_path / "negative.tif"
    path.write_bytes(tiff(RAMP, photometric=0))
    assert gray(path) == [[255 - value for value in row] for row in EIGHT_BITS]


def test_sixteen_bit_colour_keeps_its_colours(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = np.array([65535, 32768, 0, 257, 1000, 512], dtype=">u2").tobytes()
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    path = tmp_path / "colour.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" + row))
        + chunk(b"IEND", b"")
    )
    values = np.asarray(decode(path, "RGB", name="")).astype(int)
    np.testing.assert_allclose(values, [[[255, 128, 0], [1, 4, 2]]], atol=1)


@pytest.mark.parametrize("suffix", [".tif", ".pfm"])
def test_floats_from_0_to_1_are_scaled(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"float{suffix}"
    values = np.array([[0, 0.25], [0.5, 1]], dtype=np.float32)
    Image.fromarray(values).save(path)
    assert gray(path) == [[0, 64], [128, 255]]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (tiff(RAMP.astype(np.uint32)), "its samples have 32 bits"),
        (tiff(RAMP.astype(np.int32), sample_format=2), "its samples are signed integers"),
        (tiff(RAMP.astype(np.int16), sample_format=2), "its samples are signed integers"),
        (tiff(RAMP.astype(np.int8), sample_format=2), "its samples are signed integers"),
        (tiff(RAMP.astype(np.float32), sample_format=3), r"its floating-point samples are in 0..6.554e\+04"),
        (tiff(-np.ones((2, 2), np.float32), sample_format=3), r"its floating-point samples are in -1..-1"),
        (
            tiff(np.full((2, 2), np.nan, np.float32), sample_format=3),
            "its floating-point samples are in nan..nan: scale them",
        ),
        (b"", "the file is empty"),
        (b"<html>not found</html>", "its content is none of .*JPEG, PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "its content is none of"),
        (b"\xd7\xcd\xc6\x9a" + bytes(60), "its content is none of"),  # WMF
        (b"%PDF-1.7", "its content is none of"),
    ],
)
def test_what_is_refused_is_named(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(
        UnreadableImageError, match=rf"cannot read image {path} \({why}.*\): replace or remove it"
    ):
        decode(path, "RGB", name=str(path))


@pytest.mark.parametrize(
    ("mode", "colour", "rgb", "luma"),
    [
        ("1", 1, (255, 255, 255), 255),
        ("L", 100, (100, 100, 100), 100),
        ("LA", (100, 0), (100, 100, 100), 100),
        ("P", 7, (200, 100, 50), 124),
        ("RGBA", (200, 100, 50, 0), (200, 100, 50), 124),
        ("CMYK", (55, 155, 205, 0), (200, 100, 50), 124),
    ],
)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_every_mode_has_its_colours(
    tmp_path: Path, mode: str, colour: object, rgb: tuple[int, ...], luma: int, suffix: str
) -> None:
    image = Image.new(mode, (3, 2), colour)  # type: ignore[arg-type]
    if mode == "P":
        image.putpalette([0, 0, 0] * 7 + [200, 100, 50])
    path = tmp_path / f"x{'.tif' if mode == 'CMYK' else suffix}"
    image.save(path)
    assert np.unique(np.asarray(decode(path, "RGB", name="")).reshape(-1, 3), axis=0).tolist() == [list(rgb)]
    assert np.unique(np.asarray(decode(path, "L", name=""))).tolist() == [luma]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_images_are_turned_upright(tmp_path: Path, orientation: int, suffix: str, mode: str) -> None:
    """The camera turned the picture; EXIF says how to turn it back (EXIF 2.3, tag 274)."""
    upright = np.kron(np.array([[0, 60, 120], [160, 200, 250]], dtype=np.uint8), np.ones((16, 16), np.uint8))
    # What row 0 and column 0 of the stored picture show, from the standard's table.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),  # row 0 is the right side, column 0 the top
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"photo{suffix}"
    lossless = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(np.ascontiguousarray(stored)).convert("RGB").save(path, exif=exif, quality=95, **lossless)
    image = decode(path, mode, name="")
    assert image.size == (48, 32)
    np.testing.assert_allclose(np.asarray(image.convert("L")).astype(int), upright.astype(int), atol=4)


def test_deep_images_are_turned_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(RAMP))).save(tmp_path / "x.png", exif=exif)
    assert gray(tmp_path / "x.png") == EIGHT_BITS


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_spoil_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.new("RGB", (8, 8), (10, 20, 30)).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_allclose(
        np.asarray(decode(path, "RGB", name=""))[4, 4].astype(int), (10, 20, 30), atol=3
    )


@pytest.mark.parametrize("suffix", sorted(readable_extensions()))
def test_every_listed_extension_is_found_and_read(tmp_path: Path, suffix: str) -> None:
    """Also with its name in capitals, and under the name of another format."""
    name = next(format for format, suffixes in EXTENSIONS_OF_FORMAT.items() if suffix in suffixes)
    mode = {".pgm": "L", ".pbm": "1", ".pfm": "F"}.get(suffix, "RGB")
    image = (
        Image.new("F", (8, 8), 1.0)
        if mode == "F"
        else Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode)
    )
    for file in (f"a{suffix}", f"b{suffix.upper()}", "c.png"):
        image.save(tmp_path / file, format=name)
    samples = load_images(tmp_path, DataConfig(mean=(0.0,), std=(1.0,)), img_size=(8, 8), in_chans=3)
    assert len(samples) == 3
    assert all(image.min() > 0.98 for image, _ in samples)


def test_the_first_picture_of_several_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for suffix in (".gif", ".webp", ".tif", ".png"):
        path = tmp_path / f"film{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        red, _, blue = decode(path, "RGB", name="").getpixel((4, 4))  # type: ignore[misc]
        assert (red > 240, blue < 15) == (True, True)


def test_postscript_never_reaches_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker, program, attack = tmp_path / "ran", tmp_path / "bin" / "gs", tmp_path / "x.png"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow remembers that there was none
    attack.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) print\n")
    with Image.open(attack) as image, pytest.raises(Exception, match=r"."):
        image.load()
    assert marker.exists()  # Pillow alone runs it
    marker.unlink()
    with pytest.raises(UnreadableImageError, match="its content is none of"):
        decode(attack, "RGB", name=str(attack))
    with pytest.raises(UnreadableImageError, match="its content is none of"):
        decode(io.BytesIO(attack.read_bytes()), "RGB", name=str(attack))
    assert not marker.exists()


def test_a_pipe_a_socket_and_a_device_are_no_images(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.png"))
        for name in ("pipe.png", "zero.png", "s.png"):
            with pytest.raises(UnreadableImageError, match=rf"{name} \(it is not a regular file, but a FIFO"):
                decode(tmp_path / name, "RGB", name=name)
            with pytest.raises(UnreadableImageError, match="not a regular file"):
                _ = load_images(tmp_path / name, DataConfig(), img_size=(8, 8), in_chans=3)[0]
        Image.new("L", (4, 4)).save(tmp_path / "a.png")
        assert read_image_paths(tmp_path).paths == (str(tmp_path / "a.png"),)
        assert read_image_paths(tmp_path).ignored == (("special file", 3),)


def test_a_tiff_that_lacks_strips_is_refused(tmp_path: Path) -> None:
    """Pillow leaves the part that no strip covers black."""
    path, whole = tmp_path / "x.tif", tiff(RAMP)
    path.write_bytes(whole.replace(struct.pack("<HHII", 257, 4, 1, 2), struct.pack("<HHII", 257, 4, 1, 2000)))
    with pytest.raises(UnreadableImageError, match=rf"{path} \(it holds 8 of its 4 x 2000 pixels\)"):
        decode(path, "L", name=str(path))


@pytest.mark.parametrize("layout", ["separate", "contig"])
def test_deep_planes_are_not_read_as_noise(tmp_path: Path, layout: str) -> None:
    """Pillow reads planes of 16 bits as if they had 8."""
    pixels = np.random.default_rng(0).integers(0, 65536, (9, 7, 3), dtype=np.uint16)
    path = tmp_path / "x.tif"
    stored = np.moveaxis(pixels, -1, 0) if layout == "separate" else pixels
    tifffile.imwrite(path, stored, photometric="rgb", planarconfig=layout)
    if layout == "contig":
        read = np.asarray(decode(path, "RGB", name="")).astype(int)
        np.testing.assert_allclose(read, pixels / 257, atol=1)
        return
    with pytest.raises(
        UnreadableImageError,
        match=r"its channels of 16 bits lie in planes: save it interleaved, or .* stored",
    ):
        decode(path, "RGB", name="x.tif")
    tifffile.imwrite(path, (stored >> 8).astype(np.uint8), photometric="rgb", planarconfig=layout)
    assert np.array_equal(np.asarray(decode(path, "RGB", name="")), pixels >> 8)


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("kind", ["float32", "int16", "uint32"])
def test_a_tiff_of_other_samples_is_not_called_another_format(
    tmp_path: Path, kind: str, in_memory: bool
) -> None:
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, np.ones((9, 7, 3), kind), photometric="rgb")
    file = FileInMemory(path.read_bytes(), "x.tif") if in_memory else path
    with pytest.raises(
        UnreadableImageError,
        match=r"\(a TIFF whose samples are not those of a picture, which --data.pixels stored",
    ):
        decode(file, "RGB", name="x.tif")


def test_a_decompression_bomb_is_reported_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    path = tmp_path / "bomb.png"
    Image.new("1", (100, 100)).save(path)
    with pytest.raises(UnreadableImageError, match=rf"{path} \(it claims more than 2,000 pixels\): replace"):
        decode(path, "RGB", name=str(path))


def test_formats_that_are_not_built_in_are_not_looked_for() -> None:
    assert (
        {"JPEG", "PNG", "GIF", "TIFF", "BMP", "PPM"} <= set(readable_formats()) <= set(EXTENSIONS_OF_FORMAT)
    )
    assert {".jpg", ".jfif", ".gif", ".tiff"} <= readable_extensions()
    assert not readable_extensions() & {".eps", ".ps", ".svg", ".wmf", ".emf", ".pdf"}
