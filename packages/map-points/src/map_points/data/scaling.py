"""Channels of points with a mean removed and divided by a deviation."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from map_core.data.statistics import read_statistics_file
from map_core.errors import UserError
from map_points.data.config import PointDataConfig


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
