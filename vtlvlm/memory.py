"""Memory of the C library, and of this process."""

import ctypes
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # malloc.h
_LARGEST_DYNAMIC = 32 * 2**20  # what glibc's own adjustment of the threshold ends at; changing anything switches that adjustment off


@contextmanager
def freed_memory_kept() -> Iterator[bool]:
    """Let glibc keep what tensors free instead of returning it to the system and asking for it again with the next batch.

    A frozen backbone allocates the same tens of megabytes for every chunk of frames; getting them zeroed anew from the kernel each time
    took half of the extraction on two CPU cores. Only for work of constant size. What was kept is given back at the end.

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


def peak_bytes(job: Callable[[], object]) -> int | None:
    """How much more memory this process holds at most during a job than before.

    Tensors get memory of their own from the system for the while, and give it back: what earlier work left behind would hide it otherwise.
    The job should have been done once before, so that what is only needed once does not count.

    Returns:
        Bytes; None where it cannot be measured (elsewhere than on Linux with glibc).
    """
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")

    def held(name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+)", status.read_text())
        return int(found.group(1)) * 1024 if found else 0

    try:
        libc = ctypes.CDLL("libc.so.6")
        if not libc.mallopt(_M_MMAP_THRESHOLD, 65_536):
            return None
        libc.malloc_trim(0)
        clear.write_text("5")  # VmHWM is the peak from here on
    except (OSError, AttributeError):
        return None
    try:
        before = held("VmRSS")
        job()
        return held("VmHWM") - before
    finally:
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_DYNAMIC)
