"""The interface that objectives need from an image model."""

from typing import Protocol, runtime_checkable

from map_core.encoder import Backbone


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
