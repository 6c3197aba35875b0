"""One thread that computes, and a short queue before it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.exceptions import HTTPException

T = TypeVar("T")
WAITING = 4
"""Works that wait for the one that is done, at most"""
AGAIN = 2
"""Seconds after which a refused client should ask again"""


class Desk:
    """Does one work at a time, in the order in which they came. Its methods belong to the event loop's thread.

    Args:
        waiting: Works that wait, at most; more are refused.
    """

    def __init__(self, waiting: int = WAITING) -> None:
        self.waiting = waiting
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="vtlvlm-app")
        self._open: list[Future[Any]] = []

    @property
    def busy(self) -> int:
        """Works that are done or wait."""
        self._open = [one for one in self._open if not one.done()]
        return len(self._open)

    def require_room(self) -> None:
        """Refuse another work if the queue is full.

        Raises:
            HTTPException: 503, with the header ``Retry-After``.
        """
        if self.busy > self.waiting:
            raise HTTPException(503, f"{self.busy} clips are before yours; ask again in {AGAIN} s", {"Retry-After": str(AGAIN)})

    async def do(self, work: Callable[[], T]) -> T:
        """The result of a work, once its turn has come and it is done."""
        self._open = [one for one in self._open if not one.done()]
        future = self._pool.submit(work)
        self._open.append(future)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Drop what waits, and wait for what is being done."""
        self._pool.shutdown(wait=True, cancel_futures=True)
