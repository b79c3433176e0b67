import random
import resource
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_choices
from torch import Tensor

from map_core.errors import UserError
from map_vision.data import DataConfig, transforms
from map_vision.data.config import Augmentation
from map_vision.data.preprocessing import Preprocessing, resolve_preprocessing
from map_vision.data.transforms import (
    TRANSFORM_SETS,
    PadCrop,
    ResizeToFill,
    Shift,
    evaluation_transform,
    training_transform,
)

AUGMENTATIONS: list[dict] = [
    {"augmentation": "crop_flip"},
    {"augmentation": "pad_crop"},
    {"augmentation": "shift", "random_erasing": 0.9},
    {"augmentation": "timm", "auto_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.9},
    {"augmentation": "timm", "color_jitter": 0.4, "interpolation": "bilinear"},
    {"augmentation": "three_augment"},
]


def picture(height: int = 40, width: int = 56, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def make(
    img_size: tuple[int, int] = (24, 16), in_chans: int = 3, **settings: object
) -> Callable[..., Tensor]:
    config = DataConfig()
    for name, value in settings.items():
        setattr(config, name, value)  # unlike the constructor, takes wrong types too
    config.validate()
    return training_transform(config, resolve_preprocessing(config, in_chans=in_chans), img_size=img_size)


def seed(key: int) -> None:
    torch.manual_seed(key)
    random.seed(key)
    np.random.seed(key)  # noqa: NPY002 - timm draws from it


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("settings", AUGMENTATIONS)
def test_key_decides_the_augmentation(settings: dict, in_chans: int) -> None:
    """The same seeds give the same image whatever was drawn before; other seeds give another."""
    transform = make(in_chans=in_chans, source="folder", **settings)
    image = picture(mode="RGB" if in_chans == 3 else "L")
    results = []
    for key in (1, 2, 3, 4, 1):
        seed(key)
        results.append(transform(image))
    assert all(result.shape == (in_chans, 24, 16) and result.dtype == torch.float32 for result in results)
    assert torch.equal(results[0], results[-1])
    assert any(not torch.equal(results[0], other) for other in results[1:-1])


@pytest.mark.parametrize("in_chans", [1, 3])
def test_pixels_are_normalised(in_chans: int) -> None:
    preprocessing = resolve_preprocessing(DataConfig(source="folder"), in_chans=in_chans)
    mean, std = preprocessing.mean, preprocessing.std
    transform = evaluation_transform(preprocessing, img_size=(40, 56))
    image = picture(mode="RGB" if in_chans == 3 else "L")
    expected = torch.from_numpy(np.array(image) / np.float32(255)).reshape(40, 56, in_chans).movedim(-1, 0)
    restored = transform(image) * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    torch.testing.assert_close(restored, expected)


def test_small_images_are_not_blurred_and_large_ones_cropped() -> None:
    plain = Preprocessing(3, (0.0,) * 3, (1.0,) * 3)
    image = picture(32, 32)
    exact = evaluation_transform(plain, img_size=(32, 32))(image)
    assert torch.equal((exact * 255).round().byte(), torch.from_numpy(np.array(image)).movedim(-1, 0))
    ramp = Image.fromarray(np.repeat(np.arange(64, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2))
    centre = evaluation_transform(plain, img_size=(32, 32))(ramp) * 255
    whole = evaluation_transform(replace(plain, crop_pct=1.0), img_size=(32, 32))(ramp) * 255
    assert centre[0, 0, 0] == pytest.approx(4, abs=1.5)  # 64 * (1 - 0.875) / 2
    assert whole[0, 0, 0] == pytest.approx(0.5, abs=1)


@pytest.mark.parametrize("turned", [False, True])
def test_a_very_long_image_takes_little_memory(turned: bool) -> None:
    """1 x 60,000 pixels would be enlarged to 224 x 13,440,000; only its middle counts."""
    column = np.zeros((60_000, 1), dtype=np.uint8)
    column[29_990:30_010] = 200
    image = Image.fromarray(column.T if turned else column)
    fill = ResizeToFill((224, 224), crop_pct=0.875, crop_pct_small=1.0, interpolation="bicubic")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert np.unique(np.asarray(fill(image))).tolist() == [200]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


@pytest.mark.parametrize("size", [(40, 1200), (1200, 40), (9, 700), (33, 33)])
def test_cutting_long_images_first_changes_nothing(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, columns = np.mgrid[: size[0], : size[1]]
    smooth = Image.fromarray((128 + 100 * np.sin(rows / 20) * np.cos(columns / 20)).astype(np.uint8))
    fill = ResizeToFill((32, 24), crop_pct=0.875, crop_pct_small=1.0, interpolation="bilinear")
    whole = np.asarray(fill(smooth)).astype(int)
    monkeypatch.setattr(transforms, "MAX_AREA_RATIO", 0)
    np.testing.assert_allclose(np.asarray(fill(smooth)), whole, atol=6)  # the crop may differ by half a pixel


@pytest.mark.parametrize(("step", "most"), [(PadCrop(), 4), (Shift(), 1)])
def test_offsets_reach_their_border_and_no_further(step: Callable, most: int) -> None:
    dot = Image.new("L", (32, 32))
    dot.putpixel((16, 16), 255)
    seed(0)
    moves = {tuple(np.argwhere(np.asarray(step(dot)))[0] - 16) for _ in range(1000)}
    assert moves == {(row, column) for row in range(-most, most + 1) for column in range(-most, most + 1)}


def test_policy_that_timm_does_not_know() -> None:
    with pytest.raises(UserError, match=r"data\.auto_augment 'rnd' is not a policy that timm knows"):
        make(augmentation="timm", auto_augment="rnd")
    for policy in ("rand-foo", "rand-m9-wq", "original-mstd"):  # which timm ignores
        with pytest.raises(
            UserError, match=f"{policy}' is not a policy that timm knows .*'{policy.split('-')[-1]}' has no"
        ):
            make(augmentation="timm", auto_augment=policy)


@pytest.mark.parametrize("section", ["tfoo", "t0", "tweigths", "t"])
def test_a_set_of_transforms_that_timm_does_not_know(section: str) -> None:
    message = (
        rf"m9-{section}' is not a policy that timm knows "
        rf"\('{section}' does not name a set of transforms: weights, 3a, 3aw\)"
    )
    with pytest.raises(UserError, match=message):
        make(augmentation="timm", auto_augment=f"rand-m9-{section}")


@pytest.mark.parametrize("name", [*TRANSFORM_SETS, "another"])
def test_timm_knows_these_sets_of_transforms_and_no_other(name: str) -> None:
    assert (rand_augment_choices(name) is rand_augment_choices("")) is (name not in TRANSFORM_SETS)
    if name in TRANSFORM_SETS:
        make(augmentation="timm", auto_augment=f"rand-mstd1-t{name}")


@pytest.mark.parametrize(
    "policy", ["rand-m9", "rand-tweights", "rand-t3aw", "augmix-m5", "original", "v0-mstd0.5"]
)
def test_a_policy_that_rotates_is_refused_where_pillow_cannot_interpolate(policy: str) -> None:
    settings = {"augmentation": "timm", "auto_augment": policy}
    message = rf"interpolation 'lanczos' cannot rotate or shear, as data\.auto_augment '{policy}' does: choose bicubic"
    with pytest.raises(UserError, match=message):
        make(interpolation="lanczos", **settings)
    make(interpolation="bilinear", **settings)


@pytest.mark.parametrize(
    ("augmentation", "settings", "ignored"),
    [
        ("none", {"crop_scale": (0.5, 0.6)}, ["crop_scale (0.5, 0.6)"]),
        (
            "none",
            {"horizontal_flip": 0.0, "random_erasing": 0.9},
            ["horizontal_flip 0.0", "random_erasing 0.9"],
        ),
        ("pad_crop", {"crop_scale": (0.5, 0.6), "horizontal_flip": 0.9}, ["crop_scale (0.5, 0.6)"]),
        ("shift", {"horizontal_flip": 0.9, "random_erasing": 0.9}, ["horizontal_flip 0.9"]),
        ("crop_flip", {"crop_scale": (0.5, 0.6), "horizontal_flip": 0.9, "random_erasing": 0.9}, []),
    ],
)
def test_settings_that_an_augmentation_does_not_read_are_named(
    augmentation: str, settings: dict[str, Any], ignored: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    make(augmentation=augmentation, **settings)
    messages = [f"data.{setting} has no effect with data.augmentation {augmentation}" for setting in ignored]
    assert capsys.readouterr().err.splitlines() == messages


@pytest.mark.parametrize(
    ("policy", "ignored"), [("rand-m9-inc1", True), ("3a", False), ("rand-m9-t3a", False)]
)
def test_a_jitter_that_the_policy_leaves_out_is_named(
    policy: str, ignored: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    make(augmentation="timm", auto_augment=policy, color_jitter=0.4)
    message = f"data.color_jitter 0.4 has no effect with data.auto_augment '{policy}'"
    assert (message in capsys.readouterr().err) == ignored


@pytest.mark.parametrize(
    "settings",
    [
        {"augmentation": "three_augment"},
        {"augmentation": "timm"},
        {"augmentation": "timm", "auto_augment": "3a", "color_jitter": 0.3},
        {"augmentation": "timm", "auto_augment": "rand-m9-n3-t3a"},
    ],
    ids=str,
)
def test_lanczos_goes_with_everything_that_neither_rotates_nor_shears(settings: dict) -> None:
    transform = make(source="folder", interpolation="lanczos", **settings)
    for key in range(20):
        seed(key)
        assert transform(picture()).shape == (3, 24, 16)


def test_every_augmentation_is_tested() -> None:
    names: list[Augmentation] = [settings["augmentation"] for settings in AUGMENTATIONS]
    assert {*names, "none"} == set(Augmentation.__args__)  # type: ignore[attr-defined]


@pytest.mark.parametrize("probability", [0.0, 1.0])
@pytest.mark.parametrize("augmentation", ["crop_flip", "pad_crop", "timm", "three_augment"])
def test_an_image_is_flipped_as_often_as_the_setting_says(augmentation: str, probability: float) -> None:
    """Its left half is the darker one."""
    halves = np.repeat([[0, 100]], 8, axis=1).repeat(16, axis=0).astype(np.uint8)
    settings = {"augmentation": augmentation, "horizontal_flip": probability, "crop_scale": (1.0, 1.0)}
    transform = make((16, 16), source="folder", **settings)
    for key in range(8):
        seed(key)
        left, right = transform(Image.fromarray(halves).convert("RGB")).split(8, dim=2)
        assert bool(left.mean() > right.mean()) == (probability == 1.0)


@pytest.mark.parametrize("augmentation", ["crop_flip", "timm"])
def test_a_random_crop_covers_the_share_of_the_image_that_the_setting_says(augmentation: str) -> None:
    """A quarter of 64 x 64 with sides in 3:4 to 4:3 is 28 to 37 columns wide; column x has value 2 x."""
    ramp = Image.fromarray(np.arange(0, 128, 2, dtype=np.uint8)[None].repeat(64, axis=0)).convert("RGB")
    plain = {"source": "folder", "mean": (0.0,), "std": (1.0,), "augmentation": augmentation}
    transform = make((32, 32), crop_scale=(0.25, 0.25), **plain)
    for key in range(8):
        seed(key)
        columns = transform(ramp) * 255 / 2
        assert 25 < columns.max() - columns.min() < 38


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"augmentation": "crop_flip"}, False),
        ({"augmentation": "crop_flip", "random_erasing": 1.0}, True),
        ({"augmentation": "timm"}, False),
        ({"augmentation": "timm", "color_jitter": 0.4}, True),
        ({"augmentation": "timm", "auto_augment": "rand-m9-mstd0.5-inc1"}, True),
        ({"augmentation": "three_augment"}, True),
        ({"augmentation": "three_augment", "color_jitter": 0.0}, False),
    ],
    ids=str,
)
def test_colours_change_and_rectangles_are_erased_where_asked_for(settings: dict, changes: bool) -> None:
    """A plain, dark grey image is the same wherever it is cropped, and grey, solarised or blurred."""
    transform = make(source="folder", **settings)
    results = []
    for key in range(8):
        seed(key)
        results.append(transform(Image.new("RGB", (56, 40), (100, 100, 100))))
    normalize = transform.transforms[-1 - ("random_erasing" in settings)]
    unchanged = normalize(Image.new("RGB", (16, 24), (100, 100, 100)))
    differ = [not torch.allclose(result, unchanged, atol=0.03) for result in results]
    assert any(differ) is changes
    if "random_erasing" in settings:
        assert all(differ)


@pytest.mark.parametrize(("augmentation", "smallest"), [("crop_flip", 0.2), ("timm", 0.08)])
def test_crops_cover_at_least_the_published_share(augmentation: str, smallest: float) -> None:
    """MAE's in pretraining, and that of ImageNet's finetuning, unless crop_scale says otherwise."""
    crop, *_ = make(augmentation=augmentation).transforms
    crop = getattr(crop, "transforms", [crop])[0]  # timm's is the first of its own steps
    assert crop.scale == (smallest, 1.0)
