"""Keeps freed memory in the C library's allocator."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # malloc.h
_LARGEST_DYNAMIC = 32 * 2**20  # maximum of glibc's own adjustment of the threshold; changing a value switches that adjustment off


@contextmanager
def freed_memory_kept() -> Iterator[bool]:
    """Let glibc keep the memory of freed tensors instead of returning it to the system and asking for it again with the next batch.

    A frozen backbone allocates the same tens of megabytes for every chunk of frames, and the kernel zeroes them each time. Measured over
    two dozen clips of the small stage (32 frames of 128 pixels, EfficientNet-Lite0) on two busy cores, the fastest of seven alternating
    runs: 10.1 s with it and 18.7 s without, a ratio of 0.54. It saves 1.5 million page faults and 2 s of system time. Use it for work of
    constant size only. The block returns the memory at its end.

    Yields:
        Whether it took effect (Linux with glibc).
    """
    try:
        libc = ctypes.CDLL("libc.so.6") if sys.platform == "linux" else None
        kept = libc is not None and bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
    except (OSError, AttributeError):
        libc, kept = None, False
    try:
        yield kept
    finally:
        if libc is not None and kept:
            libc.mallopt(_M_MMAP_MAX, 65_536)
            libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_DYNAMIC)
            libc.mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST_DYNAMIC)
            libc.malloc_trim(0)
