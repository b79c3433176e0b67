"""Malicious tar files cost bounded work and give a one-sentence error."""

import io
import os
import tarfile
import tracemalloc

import pytest

from map_core import UserError
from map_core.shards import index_shards

ENDINGS = frozenset({".png"})
BLOCK = tarfile.BLOCKSIZE


def header(size: int, kind: bytes = tarfile.REGTYPE, name: str = "a.png") -> bytes:
    """A header that claims a size, which may be negative or beyond any file."""
    block = bytearray(BLOCK)
    block[: len(name)] = name.encode()
    block[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % 2**88).to_bytes(11, "big")
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def with_pax(**headers: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.png")
        info.size, info.pax_headers = 1000, headers
        archive.addfile(info, io.BytesIO(bytes(1000)))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            header(512) + bytes(BLOCK) + header(-512),
            r"is not a complete tar file \(a.png has a size of -512\)",
        ),
        (header(-(2**40)), r"\(a.png has a size of -1099511627776\)"),
        (header(2**40), r"\(it ends within a.png\)"),
        (header(2**40, tarfile.GNUTYPE_LONGNAME), r"\(a header claims 1099511627776 bytes\)"),
        (header(2**80, tarfile.XHDTYPE), r"\(a header claims 1208925819614629174706176 bytes\)"),
        (header(-512, tarfile.XGLTYPE), r"\(a header claims -512 bytes\)"),
        (header(0, tarfile.XHDTYPE) * 3000 + header(0), r"\(maximum recursion depth exceeded"),
        (with_pax(**{"GNU.sparse.size": "all"}), r"is not a complete tar file \(invalid literal"),
        (with_pax(**{"GNU.sparse.map": "a,b"}), r"is not a complete tar file \(invalid literal"),
        (with_pax(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}), r"is not a complete tar file \("),
        (with_pax(size="9" * 4000), r"is not a complete tar file \(it ends within"),
    ],
    ids=range(11),
)
def test_headers_that_lie_are_reported_in_one_sentence(tmp_path, content, message):
    (tmp_path / "0.tar").write_bytes(content + bytes(2 * BLOCK))
    with pytest.raises(UserError, match=message):
        index_shards(tmp_path, ENDINGS)


def test_a_label_makes_no_billions_of_classes(make_tar):
    folder = make_tar("0.tar", {"a.png": b"a", "a.cls": b"2147483647"}).parent
    with pytest.raises(UserError, match=r"labels in .* go up to 2147483647, of more than 1,000,000 classes"):
        index_shards(folder, ENDINGS)


@pytest.mark.parametrize("label", [b"9" * 5000, b"1_0", b"+1", b"\xff", b"1" + b" " * 100])
def test_only_digits_are_a_label(make_tar, label):
    folder = make_tar("0.tar", {"a.png": b"a", "a.cls": label}).parent
    with pytest.raises(UserError, match=r"label a.cls in shard .*0.tar is b.*: a label is a whole number"):
        index_shards(folder, ENDINGS)


def test_what_lies_beside_the_samples_is_not_read_into_memory(make_tar):
    folder = make_tar("0.tar", {"a.mp4": bytes(2**26), "a.png": bytes(2**25)}).parent
    tracemalloc.start()
    try:
        assert index_shards(folder, ENDINGS) == {"": 1}
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_a_pipe_in_place_of_the_names_is_reported_in_one_sentence(make_tar):
    folder = make_tar("0.tar", {"a.png": b"a", "a.cls": b"0"}).parent
    os.mkfifo(folder / "classnames.txt")
    with pytest.raises(UserError, match=r"cannot index the shards in .* \(it is a pipe, socket or device"):
        index_shards(folder, ENDINGS)
