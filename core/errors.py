"""Errors that a user can act on, and how an entry point ends on one.

Everything that is the user's to mend (a missing folder, a checkpoint of another architecture, a
broken image) is raised as :class:`UserError` with one line that says what was expected, what came
and what to do. :func:`main_guard` turns it into that line on stderr and exit code 2; a bug keeps
its traceback.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Callable, TypeVar

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

Main = TypeVar("Main", bound=Callable[..., int])


class UserError(Exception):
    """A problem that the user can mend; its text is one line: expected, found, what to do."""


def main_guard(main: Main) -> Main:
    """Wrap an entry point ``main(...) -> exit code``: a :class:`UserError` or Ctrl-C ends in one
    line.

    Returns a function of the same signature that returns the exit code: 2 after a ``UserError``,
    130 after ``KeyboardInterrupt``, otherwise whatever ``main`` returned.
    """

    @functools.wraps(main)
    def guarded(*args, **kwargs) -> int:
        try:
            with _sigterm_interrupts():
                return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            return EXIT_USER_ERROR
        except KeyboardInterrupt:
            print(
                "interrupted: finished work is kept; run the same command to continue",
                file=sys.stderr,
                flush=True,
            )
            return EXIT_INTERRUPTED

    return guarded  # type: ignore[return-value]


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Inside the block SIGTERM raises ``KeyboardInterrupt``: a scheduler stops like Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            # A forked helper inherits this handler; it has nothing to tidy up or to say.
            os._exit(128 + number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
