"""Keep freed memory in the process, as CUDA's caching allocator does on a GPU."""

import ctypes
import functools
import sys

# parameters of glibc's mallopt(3)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
TOP_PAD_BYTES = 64 << 20  # grow the heap by this much at a time
NEVER_TRIM = 2**31 - 1


@functools.cache
def keep_freed_memory() -> bool:
    """Tell glibc to reuse large freed blocks instead of returning them to the system after every operation.

    A training step on the CPU allocates and frees the same large tensors again and again; mapping them anew
    costs a page fault every 4 KiB, a fifth of a step of a small model. The process keeps its peak until it ends.

    Returns:
        Whether the allocator took it: False where the C library is not glibc (macOS, Windows, musl).
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER_TRIM), (M_TOP_PAD, TOP_PAD_BYTES))
    return all(library.mallopt(name, value) == 1 for name, value in settings)
