"""Builds the native CPU kernels beside the Python sources; without a C++ compiler the install still succeeds.

The library has a plain C interface and is loaded with ctypes, so it depends neither on the Python nor on the
torch version. Metadata but the version, which all four packages have in one file, lives in pyproject.toml.
"""

import platform
import re
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
# Beside the packages in the repository; a source distribution has it in its metadata.
FILE, PATTERN = HERE.parent / "VERSION", "(.+)"
if not FILE.is_file():
    FILE, PATTERN = HERE / "PKG-INFO", "(?m)^Version: (.+)$"
VERSION = re.findall(PATTERN, FILE.read_text())[0]

COMMON = ["-std=c++17", "-O3", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
COMMON += ["-g0", "-fvisibility=hidden", "-Wno-psabi", "-Wno-unknown-pragmas"]
X86 = platform.machine().lower() in ("x86_64", "amd64")
# One translation unit per instruction set; which one runs is decided when the library is first used.
SPECIAL = {
    "native/avx2.cpp": ["-mavx2", "-mfma"],
    "native/avx512.cpp": [
        "-mavx512f",
        "-mavx512dq",
        "-mavx512bw",
        "-mavx512vl",
        "-mfma",
        "-mprefer-vector-width=512",
    ],
}


class BuildKernels(build_ext):
    """Compile every source with its own flags and link them to one plain shared library."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        objects = []
        for source in ext.sources:
            flags = [*COMMON, *(SPECIAL.get(source, []) if X86 else [])]
            objects += self.compiler.compile([source], output_dir=self.build_temp, extra_postargs=flags)
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), extra_postargs=["-pthread"], target_lang="c++"
        )


class PlatformWheel(bdist_wheel):
    """One wheel a platform, for every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


SOURCES = ["native/library.cpp", "native/portable.cpp", *SPECIAL]
PARTS = (
    "ops",
    "simd",
    "items",
    "scan_kernel",
    "conv_kernel",
    "transpose_kernel",
    "attention_kernel",
    "kernels",
)
HEADERS = [f"native/{part}.h" for part in PARTS]
kernels = Extension("map_core.ops.native._kernels", SOURCES, depends=HEADERS, optional=True, language="c++")

setup(
    version=VERSION,
    ext_modules=[] if sys.platform == "win32" else [kernels],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
)
