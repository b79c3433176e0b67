"""Images to patches and back."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from map_core.errors import UserError
from map_core.tracing import fx_leaf


def patch_grid(
    img_size: tuple[int, int], patch_size: tuple[int, int], stride: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Rows and columns of patches in an image of ``img_size`` (height, width) pixels.

    Args:
        img_size: Height and width of the image.
        patch_size: Height and width of a patch.
        stride: Step from one patch to the next, for overlapping patches; None for patches side by side.

    Raises:
        UserError: patches that do not tile the image, or overlapping ones that do not end at its border.
    """
    (height, width), (ph, pw) = img_size, patch_size
    down, across = stride or patch_size
    remaining = height - ph, width - pw
    if min(remaining) >= 0 and not remaining[0] % down and not remaining[1] % across:
        return remaining[0] // down + 1, remaining[1] // across + 1
    if stride is None or stride == patch_size:
        nearest = [
            max(patch, round(side / patch) * patch) for side, patch in zip(img_size, patch_size, strict=True)
        ]
        raise UserError(
            f"image size {height}x{width} does not fit patch size {ph}x{pw}: height and width must be "
            f"multiples of the patch's; take {nearest[0]}x{nearest[1]} (in commands --model.img_size), or other "
            "patches where the model has them"
        )
    raise UserError(
        f"image size {height}x{width} does not fit patches of {ph}x{pw} every {down}x{across} pixels: the last "
        "one must end at the border; resize the images"
    )


def require_images(images: Tensor) -> None:
    """Check that images come as a batch.

    Raises:
        UserError: they have another number of axes.
    """
    if images.ndim != 4:
        raise UserError(
            f"images have shape {tuple(images.shape)}; they must be a batch of images (b, c, h, w): a single image is "
            "images[None]"
        )


@fx_leaf
def image_grid(
    images: Float[Tensor, "b c h w"], patch_size: tuple[int, int], stride: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Rows and columns of patches in a batch of images, see :func:`patch_grid`."""
    require_images(images)
    return patch_grid((images.shape[-2], images.shape[-1]), patch_size, stride)


@fx_leaf
def require_channels(images: Float[Tensor, "b c h w"], in_chans: int) -> Float[Tensor, "b c h w"]:
    """Return the images unchanged.

    Raises:
        UserError: these are no batch of images, or do not have ``in_chans`` channels.
    """
    require_images(images)
    if images.shape[1] != in_chans:
        raise UserError(
            f"images have {images.shape[1]} channels, the model takes in_chans={in_chans}; "
            "convert the images or create the model with that in_chans"
        )
    return images


def patchify(images: Float[Tensor, "b c h w"], patch_size: tuple[int, int]) -> Float[Tensor, "b l t"]:
    """Cut images into patches in raster order; the values of a patch are ordered row, column, channel."""
    require_images(images)
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
    """Linear projection of patches, as a convolution with a kernel of the patch size.

    Args:
        patch_size: Height and width of a patch in pixels.
        in_chans: Image channels.
        embed_dim: Width.
        stride: Step from one patch to the next, ``patch_size`` when None; patches overlap if it is smaller.

    Raises:
        UserError: a stride larger than the patch, which would leave pixels out.
    """

    def __init__(
        self,
        patch_size: tuple[int, int],
        in_chans: int,
        embed_dim: int,
        *,
        stride: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.patch_size, self.in_chans, self.stride = patch_size, in_chans, stride or patch_size
        if not all(0 < step <= size for step, size in zip(self.stride, patch_size, strict=True)):
            raise UserError(
                f"patch_stride {self.stride[0]}x{self.stride[1]} must lie between 1 and the patch size "
                f"{patch_size[0]}x{patch_size[1]}"
            )
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=self.stride)
        fan_in = in_chans * patch_size[0] * patch_size[1]
        nn.init.trunc_normal_(self.proj.weight, std=fan_in**-0.5)
        nn.init.zeros_(torch.as_tensor(self.proj.bias))

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches in a batch of images."""
        return image_grid(images, self.patch_size, self.stride)

    def grid_of(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches in an image of ``img_size``, see :func:`patch_grid`."""
        return patch_grid(img_size, self.patch_size, self.stride)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b l d"]:
        images = require_channels(images, self.in_chans)
        self.grid(images)  # raises if the patches do not tile the images
        return self.proj(images).flatten(2).transpose(1, 2)  # (b, d, rows, cols) -> (b, l, d)
