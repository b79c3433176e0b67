"""What the objectives ask of an image model."""

from typing import Protocol, runtime_checkable

from map_core.encoder import Backbone


@runtime_checkable
class ImageBackbone(Backbone, Protocol):
    """A backbone whose tokens are patches of images.

    Attributes:
        img_size: Height and width in pixels that positions are made for.
        patch_size: Height and width of what a token stands for.
        in_chans: Image channels.
        num_prefix_tokens: Registers or class tokens.
        num_global: Those of them that its tokens carry in front, so that an objective can do with them.
    """

    img_size: tuple[int, int]
    patch_size: tuple[int, int]
    in_chans: int
    num_prefix_tokens: int
    num_global: int
