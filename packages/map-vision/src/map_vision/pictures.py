"""Pictures of what a pretrained model reconstructs: original, masked, reconstruction."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from map_core.losses import PatchLoss
from map_core.objective import ReconstructingObjective
from map_core.runs.pictures import save_picture
from map_core.tasks.pretraining import hide_and_reconstruct
from map_core.tokens import gather_tokens, undo_scan
from map_vision.backbone import ImageBackbone
from map_vision.patches import unpatchify


@dataclass(frozen=True)
class Pictures:
    """Three views of each image, in the normalised pixel space of the model's input.

    Attributes:
        original: The images.
        masked: Hidden patches are zero (the mean colour).
        reconstruction: Predicted patches (the hidden ones, unless the objective predicts all) hold the prediction,
            others their pixels.
    """

    original: Float[Tensor, "b c h w"]
    masked: Float[Tensor, "b c h w"]
    reconstruction: Float[Tensor, "b c h w"]


def reconstruct(
    objective: ReconstructingObjective,
    images: Float[Tensor, "b c h w"],
    *,
    ratio: float | None = None,
    seed: int = 0,
) -> Pictures:
    """Hide tokens of images and reconstruct them; predictions take their target's mean and deviation."""
    backbone = objective.backbone
    assert isinstance(backbone, ImageBackbone)
    result = hide_and_reconstruct(objective, images, ratio=ratio, seed=seed)
    tokens, target = result.tokens, result.tokens.target
    assert target is not None
    assert tokens.grid is not None
    grid = tokens.grid
    prediction = result.prediction.to(target.dtype)
    if isinstance(objective.loss, PatchLoss):
        prediction = objective.loss.to_values(prediction, gather_tokens(target, result.index))
    index = result.index.unsqueeze(-1).expand_as(prediction)

    def picture(patches: Tensor) -> Tensor:
        return unpatchify(undo_scan(patches, tokens)[:, tokens.num_global :], grid, backbone.patch_size)

    return Pictures(
        original=images,
        masked=picture(target.masked_fill(result.mask.hidden.unsqueeze(-1), 0.0)),
        reconstruction=picture(target.scatter(1, index, prediction)),
    )


def draw_reconstructions(
    objective: ReconstructingObjective,
    images: Float[Tensor, "b c h w"],
    path: Path,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    ratio: float | None = None,
    seed: int = 0,
) -> None:
    """Write a picture with one row an image: original, masked, reconstruction.

    Args:
        objective: A pretrained objective.
        images: Normalised images.
        path: Picture to write, PNG unless its ending says otherwise.
        mean, std: Of the images' normalisation, a value a channel.
        ratio: Share to hide; the objective's own when None.
        seed: Chooses the hidden patches.
    """
    device = next(objective.parameters()).device
    pictures = reconstruct(objective, images.to(device), ratio=ratio, seed=seed)
    columns = {
        "original": pictures.original,
        "masked": pictures.masked,
        "reconstruction": pictures.reconstruction,
    }
    figure = Figure(figsize=(6, 2 * len(images) + 0.3), layout="constrained")
    axes = figure.subplots(len(images), 3, squeeze=False)
    scale, shift = torch.tensor(std).reshape(-1, 1, 1), torch.tensor(mean).reshape(-1, 1, 1)
    for column, (title, batch) in enumerate(columns.items()):
        axes[0, column].set_title(title)
        for row, image in enumerate(batch.cpu()):
            pixels = (image * scale + shift).clamp(0, 1).permute(1, 2, 0)
            axes[row, column].imshow(pixels.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            axes[row, column].axis("off")
    save_picture(figure, path, dpi=110)
