"""The interface that objectives need from an image model."""

from typing import Protocol, runtime_checkable

from torch import nn

from map_core.encoder import Backbone
from map_core.errors import UserError

PARTS = (
    *("embed_dim", "tokenize", "encode"),
    *("img_size", "patch_size", "in_chans", "num_prefix_tokens", "num_global"),
)


@runtime_checkable
class ImageBackbone(Backbone, Protocol):
    """A backbone whose tokens are patches of images.

    Attributes:
        img_size: Height and width in pixels that the positions are made for.
        patch_size: Height and width of a token's patch in pixels.
        in_chans: Image channels.
        num_prefix_tokens: Registers or class tokens.
        num_global: How many of them come first in its tokens as global tokens, which objectives can handle.
    """

    img_size: tuple[int, int]
    patch_size: tuple[int, int]
    in_chans: int
    num_prefix_tokens: int
    num_global: int


def require_image_backbone(backbone: nn.Module) -> ImageBackbone:
    """Return a module that is an :class:`ImageBackbone`.

    Raises:
        UserError: an attribute or method is missing; all that are missing are named.
    """
    if not isinstance(backbone, ImageBackbone):
        missing = ", ".join(name for name in PARTS if not hasattr(backbone, name))
        raise UserError(
            f"{type(backbone).__name__} is not an image backbone: it lacks {missing}; create a model of map_vision, "
            "or add them as docs/your_own_code.md describes"
        )
    return backbone
