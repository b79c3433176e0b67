"""Mean and deviation of the channels of points, measured over the clouds that training reads."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from map_core.data.statistics import Moments, deviations
from map_core.errors import UserError
from map_core.runs.files import save_json
from map_core.runs.notes import note
from map_points.data.clouds import Clouds
from map_points.data.columns import vectors
from map_points.data.config import PointDataConfig
from map_points.data.splits import choose_clouds


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


def measure(config: PointDataConfig, *, progress: bool = False) -> ChannelStatistics:
    """Measure mean and deviation of the channels of the clouds that ``config`` trains on.

    Raises:
        UserError: there are no channels, or a file cannot be used.
    """
    if not config.channels:
        raise UserError("data.channels names nothing to measure: name channels, such as [intensity]")
    unscaled = replace(config, statistics=None, channel_mean=None, channel_std=None)
    return measure_channels(
        choose_clouds(unscaled, evaluate=False).train, tuple(config.channels), progress=progress
    )


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
