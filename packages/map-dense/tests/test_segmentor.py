"""Padding to whole patches shifts no label, in testing (whole, sliding, mirrored) or in training."""

from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor

from map_core.errors import UserError
from map_dense import catalogue

CLASSES, VOID = 11, 11
SIZES = [(225, 225), (225, 240), (240, 231), (17, 50)]


def segmenter(**changes: Any) -> Any:
    config = Config.fromfile(catalogue.config_path("upernet_hybridnet-mini_cpu_camvid"))
    small = {"embed_dim": 32, "layout": "MMMT", "num_heads": 4, "img_size": 240}
    config.merge_from_dict({f"model.backbone.{key}": value for key, value in small.items()})
    config.merge_from_dict({"model.neck.embed_dim": 32, "model.decode_head.in_channels": [32] * 4})
    config.merge_from_dict({"model.auxiliary_head.in_channels": 32, **changes})
    init_default_scope("mmseg")
    torch.manual_seed(0)
    return MODELS.build(config.model).eval()


def pad_to_patches(images: Tensor, value: float = 0.0) -> Tensor:
    """Pad images to multiples of 16, spelled out."""
    rows, cols = (-(-side // 16) * 16 for side in images.shape[-2:])
    padded = images.new_full((*images.shape[:-2], rows, cols), value)
    padded[..., : images.shape[-2], : images.shape[-1]] = images
    return padded


def sample(rows: int, cols: int, **meta: Any) -> SegDataSample:
    shape = (rows, cols)
    return SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, padding_size=[0] * 4, **meta))


def metas(images: Tensor) -> list[dict[str, Any]]:
    return [sample(*images.shape[-2:]).metainfo for _ in images]


@pytest.mark.parametrize("size", SIZES)
def test_logits_are_those_of_the_whole_patches_without_the_padding(size: tuple[int, int]) -> None:
    model, images = segmenter(), torch.randn(2, 3, *size)
    with torch.no_grad():
        ours = model.encode_decode(images, metas(images))
        theirs = model.encode_decode(pad_to_patches(images), metas(pad_to_patches(images)))
    assert ours.shape == (2, CLASSES, *size)
    torch.testing.assert_close(ours, theirs[..., : size[0], : size[1]], rtol=0.0, atol=0.0)


def test_an_image_of_whole_patches_is_read_as_mmseg_reads_it() -> None:
    from mmseg.models.segmentors import EncoderDecoder

    model, images = segmenter(), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        ours = model.encode_decode(images, metas(images))
        theirs = EncoderDecoder.encode_decode(model, images, metas(images))
    assert torch.equal(ours, theirs)


def test_labels_lie_where_the_image_is() -> None:
    """A model whose logits are the patch's colour: the border between the colours stays where it is in the image."""
    model = segmenter()
    model.extract_feat = lambda x: x  # the "head" below reads the padded image at a quarter of its size
    model.decode_head.forward = lambda x: torch.nn.functional.avg_pool2d(x[:, :2], 4)
    images = torch.zeros(1, 3, 225, 225)
    images[:, 1, 112:], images[:, 0, :112] = 1.0, 1.0
    labels = model.predict(images, [sample(225, 225)])[0].pred_sem_seg.data[0]
    assert labels[:112].eq(0).all()
    assert labels[112:].eq(1).all()


@pytest.mark.parametrize("direction", ["horizontal", "vertical"])
def test_a_mirrored_image_is_mirrored_back_without_the_padding(direction: str) -> None:
    model, images = segmenter(), torch.randn(1, 3, 225, 231)
    with torch.no_grad():
        (prediction,) = model.predict(images, [sample(225, 231, flip=True, flip_direction=direction)])
        logits = model.encode_decode(pad_to_patches(images), metas(pad_to_patches(images)))[0, :, :225, :231]
    expected = logits.flip(-1 if direction == "horizontal" else -2)
    torch.testing.assert_close(prediction.seg_logits.data, expected)


@pytest.mark.parametrize(("size", "crop"), [((225, 225), 64), ((130, 97), 50), ((30, 225), 64)])
def test_sliding_windows_are_averages_of_windows_without_padding(size: tuple[int, int], crop: int) -> None:
    stride = crop * 2 // 3
    test_cfg = dict(_delete_=True, mode="slide", crop_size=(crop, crop), stride=(stride, stride))
    model, images = segmenter(**{"model.test_cfg": test_cfg}), torch.randn(1, 3, *size)
    total, count = torch.zeros(1, CLASSES, *size), torch.zeros(*size)
    with torch.no_grad():
        logits_of_image = model.inference(images, metas(images))
        for top in window_starts(size[0], crop, stride):
            for left in window_starts(size[1], crop, stride):
                region = (..., slice(top, top + crop), slice(left, left + crop))
                window = images[region]
                logits = model.encode_decode(pad_to_patches(window), metas(pad_to_patches(window)))
                total[region] += logits[..., : window.shape[-2], : window.shape[-1]]
                count[region] += 1
    torch.testing.assert_close(logits_of_image, total / count)


def window_starts(side: int, crop: int, stride: int) -> list[int]:
    """Where windows begin, so that the last one ends with the image."""
    return sorted(
        {min(start, max(side - crop, 0)) for start in range(0, max(side - crop, 0) + stride, stride)}
    )


def test_training_ignores_the_padding() -> None:
    model = segmenter(
        **{"model.decode_head.dropout_ratio": 0.0, "model.auxiliary_head.dropout_ratio": 0.0}
    ).train()
    images, labels = torch.randn(2, 3, 225, 225), torch.randint(0, CLASSES, (2, 1, 225, 225))
    losses = []
    for pictures, maps in ((images, labels), (pad_to_patches(images), pad_to_patches(labels, VOID))):
        samples = [sample(*maps.shape[-2:]) for _ in maps]
        for data_sample, map_ in zip(samples, maps, strict=True):
            data_sample.gt_sem_seg = PixelData(data=map_)
        losses.append(model.loss(pictures, samples))
    assert {"decode.loss_ce", "aux.loss_ce"} <= set(losses[0])
    for name, value in losses[0].items():
        torch.testing.assert_close(value, losses[1][name])


def test_a_backbone_without_patches_is_left_to_mmseg() -> None:
    model = segmenter()
    del model.backbone.patch_size
    assert model.patch_size == 1


def test_a_batch_of_one_is_refused_where_a_head_normalises_one_pixel() -> None:
    model, images = segmenter().train(), torch.randn(1, 3, 64, 64)
    data_sample = sample(64, 64)
    data_sample.gt_sem_seg = PixelData(data=torch.zeros(1, 64, 64, dtype=torch.long))
    with pytest.raises(UserError, match=r"batch of 1 image .*set train_dataloader.batch_size to 2 or more"):
        model.loss(images, [data_sample])
    unaffected_model = segmenter(**{"model.decode_head.pool_scales": (2, 3)}).train()
    assert unaffected_model.loss(images, [data_sample])["decode.loss_ce"].isfinite()
