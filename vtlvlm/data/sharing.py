"""Work that one process does for all: it reads the disk once, and its errors reach the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from vtlvlm.errors import DataError, UsageError

T = TypeVar("T")


def on_first(trainer: Any, work: Callable[[], T]) -> T:
    """Do something on the first process and give all processes its result. All processes call this together.

    Args:
        trainer: Lightning's trainer, whose processes have found each other; None for a single process.
        work: Makes the result, which can be pickled.

    Raises:
        DataError: The work failed; likewise UsageError and OSError. The other processes raise it too, so that none waits for ever.
    """
    if trainer is None or trainer.world_size == 1:
        return work()
    found: T | None = None
    failed: Exception | None = None
    if trainer.is_global_zero:
        try:
            found = work()
        except Exception as error:
            failed = error
    result, told = trainer.strategy.broadcast((found, None if failed is None else _plain(failed)))
    if failed is not None:
        raise failed
    if told is not None:
        raise told
    return result


def _plain(error: Exception) -> Exception:
    """An error that can be pickled and has the same type, if it is one that a user can mend."""
    for kind in (UsageError, DataError):
        if isinstance(error, kind):
            return kind(str(error))
    if isinstance(error, OSError) and error.errno:
        return OSError(error.errno, error.strerror, error.filename)
    return DataError(f"the first process failed ({type(error).__name__}: {error})")
