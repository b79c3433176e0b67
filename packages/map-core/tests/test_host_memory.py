"""Freed memory is reused: seen in the page faults of a process of its own."""

import platform
import subprocess
import sys

from map_core.host_memory import keep_freed_memory

ALLOCATE = """
import resource, sys, torch
from map_core.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.zeros(64 << 20, dtype=torch.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.zeros(64 << 20, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    done = subprocess.run(
        [sys.executable, "-c", ALLOCATE, how], capture_output=True, text=True, check=True, timeout=120
    )
    return int(done.stdout)


def test_large_blocks_are_mapped_once():
    if platform.libc_ver()[0] != "glibc":
        assert not keep_freed_memory()
        return
    pages = 5 * (64 << 20) // 4096
    assert faults("keep") < pages / 100 < pages / 2 < faults("return")
