"""Pictures of a pretrained model's reconstructions, with a caption that says what they use of the hidden pixels."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from map_core.losses import PatchLoss
from map_core.objective import ReconstructingObjective
from map_core.runs.pictures import save_picture
from map_core.tasks.pretraining import hide_and_reconstruct
from map_core.tokens import gather_tokens, undo_scan
from map_vision.backbone import require_image_backbone
from map_vision.patches import unpatchify

WITH_TRUTH = (
    'Patches are predicted without their mean and deviation. "true statistics" lends each predicted patch those of the '
    'original; "visible statistics" lends all of them the average of the visible patches\', and uses nothing hidden.'
)
SHADES = "Black is two deviations below a channel's mean, white two above it."
WITHOUT_TRUTH = "Predicted patches are the model's output: nothing hidden is used."


@dataclass(frozen=True)
class Pictures:
    """Views of each image, in the normalised pixel space of the model's input.

    Attributes:
        original: The images.
        masked: Hidden patches are zero (the mean colour).
        reconstruction: Predicted patches (the hidden ones, unless the objective predicts all) hold the prediction,
            others their pixels.
        unaided: For normalised targets, the prediction with the average statistics of the visible patches instead of
            its target's own; None if the model predicts pixels.
    """

    original: Float[Tensor, "b c h w"]
    masked: Float[Tensor, "b c h w"]
    reconstruction: Float[Tensor, "b c h w"]
    unaided: Float[Tensor, "b c h w"] | None = None


def reconstruct(
    objective: ReconstructingObjective,
    images: Float[Tensor, "b c h w"],
    *,
    ratio: float | None = None,
    seed: int = 0,
) -> Pictures:
    """Hide tokens of images and reconstruct them; normalised predictions take their target's mean and deviation."""
    backbone = require_image_backbone(objective.backbone)
    result = hide_and_reconstruct(objective, images, ratio=ratio, seed=seed)
    tokens, target = result.tokens, result.tokens.target
    assert target is not None
    assert tokens.grid is not None
    grid = tokens.grid
    prediction = result.prediction.to(target.dtype)
    index = result.index.unsqueeze(-1).expand_as(prediction)

    def picture(patches: Tensor) -> Tensor:
        return unpatchify(undo_scan(patches, tokens)[:, tokens.num_global :], grid, backbone.patch_size)

    aided, unaided = prediction, None
    if isinstance(objective.loss, PatchLoss) and objective.loss.normalize:
        aided = objective.loss.to_values(prediction, gather_tokens(target, result.index))
        # global tokens come first and have no pixels
        visible = gather_tokens(target, result.mask.keep[:, tokens.num_global :])
        unaided = picture(target.scatter(1, index, with_average_statistics(prediction, visible)))
    return Pictures(
        original=images,
        masked=picture(target.masked_fill(result.mask.hidden.unsqueeze(-1), 0.0)),
        reconstruction=picture(target.scatter(1, index, aided)),
        unaided=unaided,
    )


def with_average_statistics(
    prediction: Float[Tensor, "b h t"], visible: Float[Tensor, "b v t"]
) -> Float[Tensor, "b h t"]:
    """Give normalised predictions the average mean and deviation of their image's visible patches."""
    deviation = visible.std(-1).mean(1) if visible.shape[-1] > 1 else visible.new_ones(len(visible))
    return prediction * deviation.reshape(-1, 1, 1) + visible.mean((1, 2)).reshape(-1, 1, 1)


def draw_reconstructions(
    objective: ReconstructingObjective,
    images: Float[Tensor, "b c h w"],
    path: Path,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    stored: bool = False,
    ratio: float | None = None,
    seed: int = 0,
) -> None:
    """Write a picture with one row per image, see :func:`figure_of`.

    Args:
        objective: A pretrained objective.
        images: Normalised images.
        path: Picture to write, PNG unless its extension says otherwise.
        mean, std: Normalisation of the images, one value per channel.
        stored: The images are stored values, which have no known black and white.
        ratio: Share to hide; the objective's own when None.
        seed: Chooses the hidden patches.
    """
    device = next(objective.parameters()).device
    pictures = reconstruct(objective, images.to(device), ratio=ratio, seed=seed)
    save_picture(figure_of(pictures, mean=mean, std=std, stored=stored), path, dpi=110)


def figure_of(
    pictures: Pictures, *, mean: tuple[float, ...], std: tuple[float, ...], stored: bool = False
) -> Figure:
    """One row per image: original, masked, reconstruction, and one without the hidden patches' own statistics.

    Of 2 or of more than 3 channels only the first or first three are shown, see :func:`pixels_of`. The last column
    is there only if the model predicts normalised patches; the caption says what each reconstruction uses.
    """
    columns = {"original": pictures.original, "masked": pictures.masked}
    if pictures.unaided is None:
        columns["reconstruction"] = pictures.reconstruction
    else:
        columns["reconstruction,\ntrue statistics"] = pictures.reconstruction
        columns["reconstruction,\nvisible statistics"] = pictures.unaided
    rows, caption = len(pictures.original), WITHOUT_TRUTH if pictures.unaided is None else WITH_TRUTH
    channels, num_shown = len(mean), 3 if len(mean) >= 3 else 1
    if num_shown < channels:
        caption = f"{'Channels 1 to 3' if num_shown == 3 else 'Channel 1'} of {channels}. {caption}"
    if stored:
        caption = f"{caption} {SHADES}"
    height, width = pictures.original.shape[-2:]
    figure = Figure(figsize=(2 * len(columns), 2 * rows * height / width + 1), layout="constrained")
    figure.supxlabel(textwrap.fill(caption, 34 * len(columns)), fontsize="x-small")
    cells = [
        [pixels_of(image, mean, std, stored=stored) for image in batch.cpu()] for batch in columns.values()
    ]
    axis = figure.add_subplot()  # one for all images: each axis costs matplotlib 30 ms
    axis.axis("off")
    gap, title_height = 0.08 * width, 0.3 * width
    for column, (title, images) in enumerate(zip(columns, cells, strict=True)):
        for row, pixels in enumerate(images):
            left, top = column * (width + gap), row * (height + gap)
            extent = (left, left + width, top + height, top)
            axis.imshow(
                pixels.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, extent=extent
            )
        axis.text(left + width / 2, -gap, title, ha="center", va="bottom")
    axis.set(xlim=(0, left + width), ylim=(top + height, -title_height))
    return figure


def pixels_of(
    image: Float[Tensor, "c h w"], mean: Sequence[float], std: Sequence[float], *, stored: bool
) -> Float[Tensor, "k h w"]:
    """The first three channels, or the first of fewer than three, in 0..1.

    Pictures are shown as they were before normalisation; stored values, which have no known black and white, from two
    deviations below the mean to two above it.
    """
    channels = image[: 3 if len(image) >= 3 else 1]
    if stored:
        return (channels * 0.25 + 0.5).clamp(0, 1)
    scale, shift = (torch.tensor(values[: len(channels)]).reshape(-1, 1, 1) for values in (std, mean))
    return (channels * scale + shift).clamp(0, 1)


def thumbnail(image: Float[Tensor, "c h w"], preprocessing: Mapping[str, Any]) -> UInt8[np.ndarray, "h w 3"]:
    """A normalised image as an 8-bit picture, see :func:`pixels_of`; one channel is shown in grey."""
    mean, std = preprocessing.get("mean", (0.0,) * len(image)), preprocessing.get("std", (1.0,) * len(image))
    pixels = pixels_of(image, mean, std, stored=preprocessing.get("pixels") == "stored").expand(3, -1, -1)
    return (255 * pixels).round().byte().permute(1, 2, 0).numpy()
