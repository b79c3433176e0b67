"""Mean and deviation of the channels of points, measured once and taken out of every cloud."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from tqdm import tqdm

from map_core.data.statistics import Moments, deviations, read_statistics_file
from map_core.errors import UserError
from map_core.runs.files import save_json
from map_core.runs.notes import note
from map_points.data.clouds import Clouds
from map_points.data.columns import vectors
from map_points.data.config import PointDataConfig


@dataclass(frozen=True)
class ChannelStatistics:
    """What was measured of the channels of a set of clouds.

    Attributes:
        channels: Their names.
        mean, std: Of each.
        clouds: How many were read.
    """

    channels: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    clouds: int

    def save(self, path: Path) -> None:
        """Write the file that ``data.statistics`` names."""
        save_json(path, asdict(self))


@dataclass(frozen=True)
class ChannelScaling:
    """Subtract a mean from every channel of points and divide by a deviation; coordinates stay as they are."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, cloud: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
        channels = (cloud[:, 3:] - np.array(self.mean)) / np.array(self.std)
        return np.concatenate([cloud[:, :3], channels], axis=1)


def scaling_of(config: PointDataConfig) -> ChannelScaling | None:
    """What is done to channels: what the file of statistics says, else mean and deviation that are given, else nothing.

    Raises:
        UserError: the file cannot be read, or is of other channels.
    """
    if config.statistics is not None:
        entries = ("channels", "mean", "std", "clouds")
        values = read_statistics_file(config.statistics, entries, "map-points")
        if values["channels"] != list(config.channels or ()) or len(values["mean"]) != len(
            values["channels"]
        ):
            raise UserError(
                f"{config.statistics} is of channels {values['channels']}, data.channels names "
                f"{list(config.channels or ())}: measure these with map-points statistics, or change data.channels"
            )
        return ChannelScaling(values["mean"], values["std"])
    if config.channel_mean is None or config.channel_std is None:
        return None
    return ChannelScaling(config.channel_mean, config.channel_std)


def statistics_of(clouds: Clouds, channels: tuple[str, ...], *, progress: bool = False) -> ChannelStatistics:
    """Measure the channels of all points, every point counting the same.

    Vectors turn with their clouds, so they get no mean. The components of velocities get one deviation, the root of
    their mean square; normals are left as they are.

    Args:
        clouds: With their channels as files hold them.
        channels: Their names.
        progress: Show a progress bar.

    Raises:
        UserError: a cloud cannot be read.
    """
    total: Moments | None = None
    for index in tqdm(range(len(clouds)), desc="statistics", disable=not progress, leave=False):
        values = torch.from_numpy(clouds.points(index)[:, 3:].T.copy()).double()
        mean = values.mean(1)
        one = Moments(float(values.shape[1]), mean, (values - mean[:, None]).square().sum(1))
        total = one if total is None else total.merged(one)
    assert total is not None, "there is at least one cloud"
    means, stds = total.mean.tolist(), list(deviations(total, note))
    squares = total.squares / total.count + total.mean.square()
    for kind in ("normal", "velocity"):
        if (columns := vectors(channels, kind)) is not None:
            size = (
                float(squares[[column - 3 for column in columns]].mean().sqrt())
                if kind == "velocity"
                else 1.0
            )
            for column in columns:
                means[column - 3], stds[column - 3] = 0.0, size or 1.0
    return ChannelStatistics(channels, tuple(means), tuple(stds), len(clouds))
