"""Images to patches and back."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from map_core.errors import UserError


def patch_grid(img_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches in an image of ``img_size`` (height, width) pixels.

    Raises:
        UserError: the patches do not tile the image.
    """
    (height, width), (ph, pw) = img_size, patch_size
    if height < ph or width < pw or height % ph or width % pw:
        raise UserError(
            f"image size {height}x{width} does not fit patch size {ph}x{pw}: height and width must be "
            "multiples of the patch's; resize the images or choose another patch size"
        )
    return height // ph, width // pw


def patchify(images: Float[Tensor, "b c h w"], patch_size: tuple[int, int]) -> Float[Tensor, "b l t"]:
    """Cut images into patches in raster order; the values of a patch are ordered row, column, channel."""
    b, c, height, width = images.shape
    rows, cols = patch_grid((height, width), patch_size)
    ph, pw = patch_size
    patches = images.reshape(b, c, rows, ph, cols, pw).permute(0, 2, 4, 3, 5, 1)
    return patches.reshape(b, rows * cols, ph * pw * c)


def unpatchify(
    patches: Float[Tensor, "b l t"], grid: tuple[int, int], patch_size: tuple[int, int]
) -> Float[Tensor, "b c h w"]:
    """Undo :func:`patchify`."""
    (rows, cols), (ph, pw) = grid, patch_size
    b, _, values = patches.shape
    images = patches.reshape(b, rows, cols, ph, pw, values // (ph * pw)).permute(0, 5, 1, 3, 2, 4)
    return images.reshape(b, -1, rows * ph, cols * pw)


class PatchEmbed(nn.Module):
    """Linear projection of patches, as a convolution with kernel and stride of the patch size.

    Args:
        patch_size: Height and width of a patch in pixels.
        in_chans: Image channels.
        embed_dim: Width.
    """

    def __init__(self, patch_size: tuple[int, int], in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size, self.in_chans = patch_size, in_chans
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)
        fan_in = in_chans * patch_size[0] * patch_size[1]
        nn.init.trunc_normal_(self.proj.weight, std=fan_in**-0.5)
        nn.init.zeros_(torch.as_tensor(self.proj.bias))

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches in a batch of images."""
        return patch_grid((images.shape[-2], images.shape[-1]), self.patch_size)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b l d"]:
        if images.shape[1] != self.in_chans:
            raise UserError(
                f"images have {images.shape[1]} channels, the model takes in_chans={self.in_chans}; "
                "convert the images or create the model with that in_chans"
            )
        self.grid(images)
        return self.proj(images).flatten(2).transpose(1, 2)  # (b, d, rows, cols) -> (b, l, d)
