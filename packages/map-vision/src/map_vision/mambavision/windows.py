"""Maps of features to windows of tokens and back."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def window_count(side: int, size: int) -> int:
    """How many windows of ``size`` cover ``side``; no negative number is divided, as ONNX rounds it towards zero."""
    return (side + size - 1) // size


def cut_windows(x: Float[Tensor, "b d h w"], size: int) -> Float[Tensor, "n t d"]:
    """Cut maps into windows of size x size tokens, windows and tokens in raster order.

    Maps that the windows do not tile are first extended by zeros at the right and lower edge; nothing masks
    these later.
    """
    height, width = x.shape[2], x.shape[3]
    rows, cols = window_count(height, size), window_count(width, size)
    x = F.pad(x, (0, cols * size - width, 0, rows * size - height))
    x = x.unflatten(3, (cols, size)).unflatten(2, (rows, size))  # (b, d, rows, size, cols, size)
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(0, 2)


def join_windows(
    windows: Float[Tensor, "n t d"], size: int, height: int, width: int
) -> Float[Tensor, "b d {height} {width}"]:
    """Undo :func:`cut_windows` for maps of ``height`` x ``width``: what was added at the edges is cut off."""
    rows, cols = window_count(height, size), window_count(width, size)
    x = windows.unflatten(1, (size, size)).unflatten(0, (-1, rows, cols))  # (b, rows, cols, size, size, d)
    x = x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
    return x[:, :, :height, :width]
