"""A sharded set of 40 small samples, and shards as other people make them."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_shards import files

from map_core.shards import write_shards

MakeTar = Callable[..., Path]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of 13 samples, whose entries take 3 kB each, and one of the last sample."""
    write_shards({"": files()}, tmp_path / "shards", size=41_000)
    return tmp_path / "shards"


@pytest.fixture
def make_tar(tmp_path: Path) -> MakeTar:
    """Write a tar file of {name: content}, where content may be a TarInfo of another type."""

    def make(name: str, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
        path = tmp_path / "tars" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as archive:
            for member, content in members.items():
                info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(member)
                info.name = member
                data = b"" if isinstance(content, tarfile.TarInfo) else content
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return path

    return make
