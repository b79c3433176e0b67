"""Time the division of clouds into patches: 32 clouds of 1024 points into 64 patches of 32 by default."""

import argparse

import torch
from timing import median_seconds

from map_points.patches.grouping import group_points
from map_points.patches.neighbors import nearest_neighbors
from map_points.patches.sampling import farthest_point_sample


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("clouds", 32), ("points", 1024), ("patches", 64), ("size", 32), ("repeats", 20)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.manual_seed(0)
    points = torch.randn(options.clouds, options.points, 3)
    center = points[:, : options.patches]

    def group():
        return group_points(points, num_patches=options.patches, patch_size=options.size, backend="torch")

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name, function in (
        ("farthest-point sampling", lambda: farthest_point_sample(points, options.patches)),
        ("nearest neighbours", lambda: nearest_neighbors(center, points, options.size)),
        ("grouping, all of it", group),
    ):
        print(f"{name:24} {1e3 * median_seconds(function, options.repeats):8.2f} ms")


if __name__ == "__main__":
    main()
