"""Mean and deviation of the channels of points, measured once and removed from every cloud."""

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
    """Statistics of the channels of a set of clouds.

    Attributes:
        channels: Names of the channels.
        mean, std: Mean and deviation of each channel.
        clouds: How many clouds were read.
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
    """Subtract a mean from every channel of points and divide by a deviation; coordinates stay unchanged."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, cloud: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
        channels = (cloud[:, 3:] - np.array(self.mean)) / np.array(self.std)
        return np.concatenate([cloud[:, :3], channels], axis=1)


def channel_scaling(config: PointDataConfig) -> ChannelScaling | None:
    """The scaling of channels: from the file of statistics, else from the configured mean and deviation, else None.

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


def measure_channels(
    clouds: Clouds, channels: tuple[str, ...], *, progress: bool = False
) -> ChannelStatistics:
    """Measure the channels of all points, with equal weight for every point.

    Vectors turn with their clouds, so they get no mean. The components of velocities get one deviation, the root of
    their mean square; normals stay unchanged.

    Args:
        clouds: Clouds with their channels unscaled, as in the files.
        channels: Names of the channels.
        progress: Show a progress bar.

    Raises:
        UserError: a cloud cannot be read.
    """
    total: Moments | None = None
    for index in tqdm(range(len(clouds)), desc="statistics", disable=not progress, leave=False):
        values = torch.from_numpy(clouds.points(index)[:, 3:].T.copy()).double()
        mean = values.mean(1)
        moments = Moments(float(values.shape[1]), mean, (values - mean[:, None]).square().sum(1))
        total = moments if total is None else total.merged(moments)
    assert total is not None, "there is at least one cloud"
    means, stds = total.mean.tolist(), list(deviations(total, note))
    squares = total.squares / total.count + total.mean.square()
    for kind in ("normal", "velocity"):
        if (columns := vectors(channels, kind)) is not None:
            deviation = (
                float(squares[[column - 3 for column in columns]].mean().sqrt())
                if kind == "velocity"
                else 1.0
            )
            for column in columns:
                means[column - 3], stds[column - 3] = 0.0, deviation or 1.0
    return ChannelStatistics(channels, tuple(means), tuple(stds), len(clouds))
