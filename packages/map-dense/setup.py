"""What metadata depends on the version, which all four packages have in one file; the rest is in pyproject.toml."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
# Beside the packages in the repository; a source distribution has it in its metadata.
FILE, PATTERN = HERE.parent / "VERSION", "(.+)"
if not FILE.is_file():
    FILE, PATTERN = HERE / "PKG-INFO", "(?m)^Version: (.+)$"
VERSION = re.findall(PATTERN, FILE.read_text())[0]

setup(version=VERSION, install_requires=[f"map-vision=={VERSION}"])
