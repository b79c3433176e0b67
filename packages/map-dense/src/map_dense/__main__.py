"""``python -m map_dense`` is ``map-dense``."""

import sys

from map_dense.cli import main

if __name__ == "__main__":
    sys.exit(main())
