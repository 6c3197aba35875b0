"""Memory of the C library."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Let glibc keep what tensors free instead of returning it to the system and asking for it again with the next batch.

    A frozen backbone allocates the same tens of megabytes for every chunk of frames; getting them zeroed anew from the kernel each time
    took half of the extraction on two CPU cores. Only worth it for work of constant size: memory is kept until the process ends.

    Returns:
        Whether it took effect (Linux with glibc).
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
