"""A map over many small items in several processes: results come in order, and only a few items are
in the making at a time, so memory is bounded.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

import cv2

from core.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

_CHUNK = 16  # items sent to a process at a time: hides the cost of sending
_AHEAD = 3  # chunks in the making for each process
# With fewer items than this, a process costs more time (half a second to start) than it saves.
_WORTHWHILE = 100


def default_workers(items: int) -> int:
    """How many processes are worth starting for ``items`` items of a few milliseconds each; at
    least 1.
    """
    return max(1, min(usable_cores(), items // _WORTHWHILE))


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ordered_map(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """``work(item)`` of each item, in the order of ``items``.

    Args:
        work: picklable (a function of a module, or a ``functools.partial`` of one), and independent
            of Jittor, which must not run in a copied process.
        workers: number of processes; with 1, this process does the work itself.

    Raises:
        UserError: fewer than 1 worker, or one was killed.
        Exception: what ``work`` raised, at the place of its item.
    """
    if workers < 1:
        raise UserError(f"--workers must be at least 1, is {workers}")
    return map(work, items) if workers == 1 else _in_processes(work, items, workers)


def _in_processes(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    rest = iter(items)
    waiting: deque[Future[list[Result]]] = deque()
    # Spawned, not forked: a fork of a process in which Jittor has run hangs.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _begin_worker)
    try:
        while True:
            while len(waiting) < _AHEAD * workers and (chunk := list(islice(rest, _CHUNK))):
                waiting.append(pool.submit(_work_on, work, chunk))
            if not waiting:
                return
            yield from waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, perhaps for want of memory; use --workers 1"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _work_on(work: Callable[[Item], Result], chunk: list[Item]) -> list[Result]:
    return [work(item) for item in chunk]


def _begin_worker() -> None:
    """Settings of a worker process. It ends when its parent ends; otherwise it would wait for work
    for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: the parent tells the rest
    cv2.setNumThreads(1)  # the processes share the cores already
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
