"""Remembers that this process was asked to stop, until a moment at which it can."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

STOP = signal.SIGTERM
"""What ``kill``, a shutdown, and Slurm before it ends a job send"""
REQUEUE = signal.SIGUSR1
"""What the batch scripts have Slurm send some time before a job ends (``--signal``): it will be started again"""
REQUEUED = 75
"""Exit code of a process that stopped so that its job can be started again (EX_TEMPFAIL of sysexits.h)"""

_asked: list[signal.Signals] = []


def _note(number: int, frame: FrameType | None) -> None:
    _asked.append(signal.Signals(number))


def in_slurm() -> bool:
    """Whether this process belongs to a job of Slurm."""
    return "SLURM_JOB_ID" in os.environ


def listen(*which: signal.Signals) -> None:
    """Remember these signals instead of ending. Only the main thread can; a system without one of them lacks nothing."""
    if threading.current_thread() is threading.main_thread():
        for one in which:
            signal.signal(one, _note)


def begin() -> None:
    """A command begins: nothing was asked yet. What Slurm sends counts from here on, long before a training has begun."""
    _asked.clear()
    if in_slurm():
        listen(REQUEUE, STOP)


def ignore() -> None:
    """In a job of Slurm, let none of these signals reach this process.

    One that is leaving keeps its exit code so: srun ends the others when one has gone.
    """
    if in_slurm() and threading.current_thread() is threading.main_thread():
        for one in (REQUEUE, STOP):
            signal.signal(one, signal.SIG_IGN)


def asked() -> signal.Signals | None:
    """The first signal since :func:`begin`."""
    return _asked[0] if _asked else None


def exit_code(found: signal.Signals) -> int:
    """The exit code of a process that a signal has stopped in good order."""
    return REQUEUED if found == REQUEUE else 128 + found
