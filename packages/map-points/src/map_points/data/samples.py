"""The clouds of a source as samples, and batches of them."""

from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from map_core.errors import UserError
from map_points.data.clouds import Clouds
from map_points.data.config import PointDataConfig
from map_points.data.transforms import augment, check_count, prepare, take_points


class CloudSamples(Dataset[tuple[Tensor, int]]):
    """Clouds of a source as (points [num_points 3 and channels] float32, label).

    Args:
        clouds: Source of the clouds.
        config: Points, centring and augmentation.
        training: Whether to draw random points and augment, from torch's global generator.
    """

    def __init__(self, clouds: Clouds, config: PointDataConfig, *, training: bool) -> None:
        config.check_values()
        self.clouds, self.config, self.training = clouds, config, training

    def __len__(self) -> int:
        return len(self.clouds)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "n c"], int]:
        cloud, name = self.clouds.points(index), self.clouds.name(index)
        check_count(len(cloud), self.config.num_points, name)
        points = take_points(
            prepare(cloud, unit_sphere=self.config.fits_unit_sphere, name=name),
            self.config.num_points,
            training=self.training,
            surplus=self.config.train_sampling == "fps_random",
            name=name,
        )
        if self.training:
            points = augment(points, self.config)
        return points, int(self.clouds.labels[index])

    @property
    def names(self) -> list[str]:
        """Files of the clouds, or other names that identify them, in the order of the samples."""
        return [self.clouds.name(index) for index in range(len(self))]


def collate_clouds(samples: list[Any]) -> Any:
    """Batch samples whose first part is a cloud.

    Raises:
        UserError: the clouds have different sizes.
    """
    sizes = sorted({len(sample[0]) for sample in samples})
    if len(sizes) > 1:
        raise UserError(
            f"a batch holds clouds of {', '.join(map(str, sizes))} points; take the same number of each "
            "(data.num_points)"
        )
    return default_collate(samples)
