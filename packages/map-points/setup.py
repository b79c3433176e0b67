"""The metadata that depends on the version, which all four packages share; the rest is in pyproject.toml."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
# Beside the packages in the repository; in the metadata of a source distribution.
FILE, PATTERN = HERE.parent / "VERSION", "(.+)"
if not FILE.is_file():
    FILE, PATTERN = HERE / "PKG-INFO", "(?m)^Version: (.+)$"
VERSION = re.findall(PATTERN, FILE.read_text())[0]

setup(version=VERSION, install_requires=[f"map-core=={VERSION}", "h5py>=3.11"])
