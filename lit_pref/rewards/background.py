"""One event loop in a thread of its own, on which all asynchronous rewards of a process run.

A single loop for the whole process, so that a client that a user's function opened stays valid from
call to call.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

__all__ = ["Cancelled", "cancel_all", "run", "run_limited"]

T = TypeVar("T")

_lock = threading.Lock()
_loops: dict[int, asyncio.AbstractEventLoop] = {}  # by process: a fork has no thread of it


class Cancelled(BaseException):
    """Work on the loop was given up; no error of the reward."""


def _loop() -> asyncio.AbstractEventLoop:
    with _lock:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="reward-loop", daemon=True).start()
            _loops[os.getpid()] = loop
        return loop


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, run on the loop while this thread waits.

    Raises:
        Cancelled: ``cancel_all`` was called meanwhile.
    """
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result()
    except concurrent.futures.CancelledError as error:
        raise Cancelled from error
    except BaseException:  # an interrupt of this thread, or the work's own error
        future.cancel()
        raise


async def run_limited(
    calls: Sequence[Callable[[], Awaitable[T]]], limit: asyncio.Semaphore
) -> list[T]:
    """Await all calls, at most ``limit`` of them at the same time; results in order.

    When one fails the others are cancelled and its error is raised.
    """

    async def one(call: Callable[[], Awaitable[T]]) -> T:
        async with limit:
            return await call()

    tasks = [asyncio.ensure_future(one(call)) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def cancel_all() -> None:
    """Give up everything that runs on the loop: the round it was for is lost."""
    loop = _loops.get(os.getpid())
    if loop is not None:
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
