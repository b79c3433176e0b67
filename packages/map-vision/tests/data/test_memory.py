from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from map_core.errors import UserError
from map_vision.data import DataConfig, load_image_data, memory
from map_vision.data.sources import FileImages, ImageSource
from map_vision.data.timm_sources import TimmImages


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("holdout", [0.0, 0.3])
def test_cache_changes_nothing(labelled: Path, in_chans: int, holdout: float) -> None:
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30).astype(np.uint8)).save(
        labelled / "train" / "cat" / "wide.png"
    )
    batches = []
    for cache in ("none", "memory"):
        config = DataConfig(root=str(labelled), cache=cache, augmentation="none", holdout=holdout, subset=10)
        data = load_image_data(config, img_size=(8, 6), in_chans=in_chans, purpose="finetune")
        assert data.evaluation is not None
        batches.append(
            [next(iter(DataLoader(part, batch_size=99))) for part in (data.train, data.evaluation)]
        )
        batches[-1].append([data.train.names, data.evaluation.names])
    for plain, cached in zip(*batches, strict=True):
        assert plain[1] == cached[1] if isinstance(plain[0], list) else torch.equal(plain[1], cached[1])
        assert plain[0] == cached[0] if isinstance(plain[0], list) else torch.equal(plain[0], cached[0])


@pytest.mark.parametrize(
    ("source", "holdout"), [("folder", 0.0), ("folder", 0.25), ("torch/image_folder", 0.0)]
)
def test_evaluation_decodes_nothing_but_what_it_evaluates(
    labelled: Path, monkeypatch: pytest.MonkeyPatch, source: str, holdout: float
) -> None:
    decoded: list[str] = []
    original = FileImages.image if source == "folder" else TimmImages.image

    def image(self: ImageSource, index: int, mode: str) -> Image.Image:
        decoded.append(self.name(index))
        return original(self, index, mode)  # type: ignore[arg-type]

    monkeypatch.setattr(FileImages, "image", image)
    monkeypatch.setattr(TimmImages, "image", image)
    config = DataConfig(source, str(labelled), cache="memory", holdout=holdout, subset=10)
    data = load_image_data(config, img_size=(8, 8), in_chans=3, purpose="evaluate")
    assert data.training is None
    assert data.evaluation is not None
    assert set(decoded) == set(data.evaluation.names)
    expected = load_image_data(config, img_size=(8, 8), in_chans=3, purpose="finetune").evaluation
    assert expected is not None
    assert data.evaluation.names == expected.names


def test_cached_images_are_read_by_workers_without_their_files(labelled: Path) -> None:
    config = DataConfig(root=str(labelled), cache="memory")
    data = load_image_data(config, img_size=(8, 8), in_chans=3, purpose="finetune")
    for path in labelled.rglob("*.png"):
        path.unlink()
    assert len(list(DataLoader(data.train, batch_size=5, num_workers=2))) == 4


def test_cache_that_does_not_fit(labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 7000)
    config = DataConfig(root=str(labelled), cache="memory")
    with pytest.raises(
        UserError, match=r"needs about .* GB for 20 images, .* GB are free: pass --data.cache none"
    ):
        load_image_data(config, img_size=(8, 8), in_chans=3, purpose="finetune")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"memory.max": "max\n", "memory.current": "5\n", "memory.stat": ""}, None),
        ({"memory.max": "1000\n", "memory.current": "700\n", "memory.stat": "anon 1\n"}, 300),
        (
            {"memory.max": "1000\n", "memory.current": "700\n", "memory.stat": "anon 1\ninactive_file 200\n"},
            500,
        ),
        ({"memory.max": "1000\n", "memory.current": "1200\n", "memory.stat": ""}, 0),
        (
            {
                "memory/memory.limit_in_bytes": "1000",
                "memory/memory.usage_in_bytes": "900",
                "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 300\n",
            },
            400,
        ),
    ],
)
def test_a_control_group_limits_memory(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert memory._available_in_cgroup(tmp_path) == expected


def test_cached_pages_count_as_free(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemFree:  100 kB\nMemAvailable:    700 kB\n")
    assert memory._available(tmp_path / "meminfo") == 700 * 1024
    assert 0 < memory.free_memory() <= 2**63
