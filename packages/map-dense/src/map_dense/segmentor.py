"""mmseg's ``EncoderDecoder`` for patch-based backbones, which keeps padding to whole patches from shifting labels.

A patch-based backbone pads images that its patches do not tile. mmseg's heads do not know about the padding and stretch
the padded map over the image, which shifts every label. So the segmentor pads, and crops the padding off the logits.
"""

from typing import Any

import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from mmseg.models.segmentors import EncoderDecoder
from mmseg.utils import stack_batch
from torch import Tensor, nn

from map_core.errors import UserError


class WholePatchEncoderDecoder(EncoderDecoder):
    """mmseg's segmentor, which pads images to whole patches and crops the padding off the logits.

    Training pads images and labels as mmseg's ``size_divisor`` does: the loss ignores padded pixels. Testing (whole,
    sliding, augmented) returns the logits of the padded image without the padding. With a backbone that has no
    ``patch_size`` it behaves as mmseg's.

    Raises:
        UserError: a batch of one image, for a head that pools a map to one pixel and normalises it over the batch.
    """

    @property
    def patch_size(self) -> int:
        return getattr(self.backbone, "patch_size", 1)

    def encode_decode(
        self, inputs: Float[Tensor, "b c h w"], batch_img_metas: list[dict[str, Any]]
    ) -> Float[Tensor, "b k h w"]:
        """Logits of every pixel."""
        rows, cols = inputs.shape[-2:]
        padded = F.pad(inputs, (0, -cols % self.patch_size, 0, -rows % self.patch_size))
        # heads resize to img_shape where it is a torch.Size, as mmseg's sliding window does
        metas = [{**meta, "img_shape": padded.shape[-2:]} for meta in batch_img_metas]
        return super().encode_decode(padded, metas)[..., :rows, :cols]

    def loss(self, inputs: Float[Tensor, "b c h w"], data_samples: list[Any]) -> dict[str, Tensor]:
        """The losses of all heads."""
        self._check_batch(len(inputs))
        if any(side % self.patch_size for side in inputs.shape[-2:]):
            inputs, data_samples = stack_batch(
                list(inputs),
                data_samples,
                size_divisor=self.patch_size,
                seg_pad_val=self.decode_head.ignore_index,
            )
        return super().loss(inputs, data_samples)

    def _check_batch(self, images: int) -> None:
        processes = dist.get_world_size() if dist.is_initialized() else 1
        if self.training and images == 1:
            for norm in _norms_of_one_pixel(self):
                if processes == 1 or not isinstance(norm, nn.SyncBatchNorm):
                    raise UserError(
                        "a batch of 1 image cannot train a head that pools the map to one pixel and normalises it "
                        "over the batch (pool_scales has 1); set train_dataloader.batch_size to 2 or more"
                    )


def _norms_of_one_pixel(model: nn.Module) -> list[nn.Module]:
    """Batch norms in training mode that follow pooling to one pixel."""
    pools = [
        module
        for module in model.modules()
        if isinstance(module, nn.Sequential)
        and any(isinstance(m, nn.AdaptiveAvgPool2d) and m.output_size in (1, (1, 1)) for m in module)
    ]
    norms = [norm for pool in pools for norm in pool.modules()]
    return [n for n in norms if isinstance(n, nn.modules.batchnorm._BatchNorm) and n.training]
