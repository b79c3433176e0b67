"""``python -m map_points`` is ``map-points``; launchers such as torchrun start it this way."""

import sys

from map_points.cli import main

if __name__ == "__main__":
    sys.exit(main())
