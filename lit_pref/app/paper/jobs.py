"""Work in several processes that end with this one, whatever ends it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

__all__ = ["parallel"]

Given = TypeVar("Given")
Made = TypeVar("Made")


def parallel(
    function: Callable[[Given], Made], items: Sequence[Given], *, jobs: int
) -> Iterator[Made]:
    """``map`` in so many fresh processes, results in order; in this process for one job.

    Ctrl-C, or an error in one, ends the others at once. They also end when this process is
    killed.

    Args:
        function: of a module; it and the items must be picklable.
        items: what it is called with.
        jobs: processes at most.
    """
    if min(jobs, len(items)) <= 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start)
    try:
        yield from pool.map(function, items)
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start() -> None:
    """Leave Ctrl-C to the parent, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
