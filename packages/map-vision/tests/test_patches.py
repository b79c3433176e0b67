"""Images to patches and back."""

import pytest
import torch

from map_core import UserError
from map_vision.patches import PatchEmbed, patch_grid, patchify, unpatchify

SHAPES = [((2, 3, 8, 12), (4, 4)), ((1, 1, 6, 8), (2, 4)), ((2, 3, 12, 4), (3, 2))]


@pytest.mark.parametrize(("shape", "patch_size"), SHAPES)
def test_round_trip(shape, patch_size):
    images = torch.randn(shape)
    grid = patch_grid(shape[2:], patch_size)
    assert torch.equal(unpatchify(patchify(images, patch_size), grid, patch_size), images)


@pytest.mark.parametrize(("shape", "patch_size"), SHAPES)
def test_patch_is_the_slice_of_the_image(shape, patch_size):
    images, (ph, pw) = torch.randn(shape), patch_size
    patches = patchify(images, patch_size)
    rows, cols = patch_grid(shape[2:], patch_size)
    for row in range(rows):
        for col in range(cols):
            window = images[:, :, row * ph : (row + 1) * ph, col * pw : (col + 1) * pw]
            assert torch.equal(patches[:, row * cols + col], window.permute(0, 2, 3, 1).flatten(1))


@pytest.mark.parametrize(("shape", "patch_size"), SHAPES)
def test_embedding_is_a_linear_layer_on_patches(shape, patch_size):
    images, embed = torch.randn(shape), PatchEmbed(patch_size, shape[1], 16)
    weight = embed.proj.weight.permute(0, 2, 3, 1).flatten(1)  # (d, c, h, w) -> (d, h w c)
    expected = torch.nn.functional.linear(patchify(images, patch_size), weight, embed.proj.bias)
    torch.testing.assert_close(embed(images), expected)


@pytest.mark.parametrize("size", [(7, 8), (8, 7), (2, 8), (8, 2), (0, 8)])
def test_patches_must_tile_the_image(size):
    fitting = "x".join(str(max(4, round(side / 4) * 4)) for side in size)
    message = rf"image size {size[0]}x{size[1]} does not fit patch size 4x4: .*; take {fitting} \(in commands"
    with pytest.raises(UserError, match=message):
        patch_grid(size, (4, 4))
