"""One work at a time, in order; more than the queue takes are refused."""

import asyncio
import threading
import time

import pytest
from starlette.exceptions import HTTPException

from vtlvlm.app.desk import Desk


def test_one_at_a_time_in_their_order() -> None:
    desk, log, at_once, most = Desk(), [], 0, 0
    lock = threading.Lock()

    def work(number: int) -> int:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.01)
        log.append(number)
        with lock:
            at_once -= 1
        return number

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*(desk.do(lambda n=n: work(n)) for n in range(5)))  # type: ignore[misc]

    assert asyncio.run(all_of_them()) == log == [0, 1, 2, 3, 4]
    assert most == 1
    desk.close()


def test_a_full_queue_is_refused_and_an_error_frees_its_place() -> None:
    desk, go = Desk(waiting=1), threading.Event()

    def fail() -> None:
        go.wait(10)
        raise ValueError("mine")

    async def full() -> None:
        works = [asyncio.create_task(desk.do(fail)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(HTTPException) as refused:
            desk.require_room()
        assert refused.value.status_code == 503
        assert refused.value.headers == {"Retry-After": "2"}
        go.set()
        for work in works:
            with pytest.raises(ValueError, match="mine"):
                await work
        desk.require_room()
        assert desk.busy == 0

    asyncio.run(full())
    desk.close()
