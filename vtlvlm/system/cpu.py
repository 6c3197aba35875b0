"""Processor cores."""

import os


def usable_cores() -> int:
    """Cores that this process may use, which a scheduler may have limited; all of them where the system cannot say (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
