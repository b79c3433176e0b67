"""Point-cloud data: sources, what is taken from them, and augmentation."""

from map_points.data.clouds import Clouds
from map_points.data.config import PointDataConfig
from map_points.data.samples import CloudSamples, PointData, load_point_data, read_clouds

__all__ = ["CloudSamples", "Clouds", "PointData", "PointDataConfig", "load_point_data", "read_clouds"]
