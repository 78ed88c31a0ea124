"""How several processes go through one list of items without waiting for each other.

Every MPI rank and every task of a SLURM array makes its own part of the list, then helps with what
is left of the others' parts. Processes that were started by hand all have the whole list as their
part. Claims (``core.work.claims``) keep two processes from making one item; what a dead process was
at is taken over.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Sequence

from core import log
from core.distributed import share
from core.text import named
from core.work.claims import Claims

# Between two looks at items that other processes hold.
_WAIT_S = 1.0


def work_together(
    keys: Sequence[str],
    unfinished: Callable[[], list[str]],
    settle: Callable[[str], bool],
    stage: str,
    wait_s: float = _WAIT_S,
    unit: str = "image",
) -> None:
    """Return when every item is finished, here or by another process, or has failed.

    Args:
        keys: all items, the same in every process.
        unfinished: returns the keys that nobody has finished yet, in order; it is called twice at
            most.
        settle: makes one item unless it is finished; returns False where another process is at it.
        stage: name in the log and the progress bar.
        wait_s: seconds between two looks at what others hold.
        unit: what an item is, for the progress bar.
    """
    todo, others = _own_part(keys, unfinished())
    # Its own part, in order.
    held = _settle_each(todo, settle, stage, unit)
    del todo

    # What is left of the others', in an order of its own, so that helpers seldom meet.
    if held or others:
        rest = unfinished()
        random.SystemRandom().shuffle(rest)
        held = _settle_each(rest, settle, f"{stage}, helping", unit)

    # What the others are at, in case they do not finish it.
    if held:
        log.info(stage, f"waiting for other processes to finish {named(held)}")
    while held:
        time.sleep(wait_s)
        held = [key for key in held if not settle(key)]


def _own_part(keys: Sequence[str], missing: list[str]) -> tuple[list[str], bool]:
    """(what is missing of this process's part of the keys, whether more is missing)."""
    part = share(keys)
    if len(part) == len(keys):
        return missing, False
    own = set(part)
    del part  # with a million items each list counts
    todo = [key for key in missing if key in own]
    return todo, len(todo) < len(missing)


def make_once(
    claims: Claims,
    key: str,
    is_made: Callable[[], bool],
    make: Callable[[], None],
    stage: str,
    wait_s: float = _WAIT_S,
) -> None:
    """Return when what is made of all items together is there, made here or by another process.

    Args:
        key: its name in the claims and the log.
        is_made: whether it is there.
        make: makes it; called by the process that has claimed ``key``.
        stage: name in the log.
        wait_s: seconds between two looks at what another process makes.
    """
    waiting = False
    while not is_made():
        if claims.claim(key):
            try:
                # The owner before may have finished just now.
                if not is_made():
                    make()
            finally:
                claims.release(key)
            return
        if not waiting:
            log.info(stage, f"another process makes {key}; waiting for it")
        waiting = True
        time.sleep(wait_s)


def _settle_each(
    keys: Sequence[str], settle: Callable[[str], bool], label: str, unit: str
) -> list[str]:
    """Settle these in order; returns those that other processes are at."""
    if not keys:
        return []
    with contextlib.closing(log.progress(keys, label, len(keys), unit)) as bar:
        return [key for key in bar if not settle(key)]
