"""Make the modules that this folder's tests share importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
