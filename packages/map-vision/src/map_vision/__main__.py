"""``python -m map_vision`` is ``map-vision``; launchers such as torchrun start it this way."""

import sys

from map_vision.cli import main

if __name__ == "__main__":
    sys.exit(main())
