"""Errors that a user can act on, and how an entry point ends on one.

A problem that the user can mend (a missing folder, a checkpoint of another architecture, a broken
image) is raised as :class:`UserError` with one line: what was expected, what was found, what to do.
:func:`main_guard` prints that line on stderr and ends with exit code 2. It does the same with a
full disk, a folder that cannot be written, or too little memory. A bug keeps its traceback.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Callable, TypeVar

EXIT_BUG = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
# Answers of the system that the user can mend: the disk or the quota is full, access is refused, or
# a file stands where a folder is wanted, or the other way round.
_REFUSALS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR),
)

Main = TypeVar("Main", bound=Callable[..., int])


class UserError(Exception):
    """A problem that the user can mend; its text is one line: expected, found, what to do."""


class StopWork(UserError):
    """A problem that concerns not one item but all: the work ends, what is finished stays."""


def main_guard(main: Main) -> Main:
    """Wrap an entry point ``main(...) -> exit code``: a :class:`UserError` or Ctrl-C ends in one
    line.

    Returns a function of the same signature that returns the exit code: 2 after a ``UserError`` or
    where the system refused a file, 130 after ``KeyboardInterrupt`` (whose text, where it has one,
    says how to go on), otherwise whatever ``main`` returned. Under MPI, any other end than 0 ends
    this process at once.
    """

    @functools.wraps(main)
    def guarded(*args, **kwargs) -> int:
        try:
            _print_any_name()
            with _sigterm_interrupts():
                return _leave(main(*args, **kwargs))
        except KeyboardInterrupt as error:
            kept = str(error) or "finished work is kept; run the same command to continue"
            print(f"interrupted: {kept}", file=sys.stderr, flush=True)
            return _leave(EXIT_INTERRUPTED)
        except SystemExit as ended:
            if ended.code is None or isinstance(ended.code, int):
                _leave(ended.code or 0)
            elif under_mpi():
                print(ended.code, file=sys.stderr)
                _leave(EXIT_BUG)
            raise
        except Exception as error:
            text = _to_mend(error)
            if text is not None:
                # Names of files may hold line breaks.
                print("error:", text.replace("\n", "\\n"), file=sys.stderr, flush=True)
                return _leave(EXIT_USER_ERROR)
            if under_mpi():
                traceback.print_exc()
            _leave(EXIT_BUG)
            raise

    return guarded  # type: ignore[return-value]


def _print_any_name() -> None:
    """Let stdout escape what it cannot print: a file name need not be valid text, and the terminal
    may not have its characters.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _to_mend(error: Exception) -> str | None:
    """What the user can do about an error; None where it is a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MemoryError):
        return (
            "out of memory; what was finished is kept: end other programs, or take smaller batches "
            "or images, and run the same command again"
        )
    if not isinstance(error, OSError) or error.errno not in _REFUSALS:
        return None
    what = error.filename2 or error.filename or "a file cannot be written"
    return (
        f"{what}: {error.strerror}; what was finished is kept: mend this and run the same command "
        "again"
    )


def under_mpi() -> bool:
    """True in a process that ``mpirun`` started."""
    return "OMPI_COMM_WORLD_SIZE" in os.environ


def _leave(code: int) -> int:
    """Return ``code``, except in an MPI process that has failed: that one ends here. Its usual end
    would wait for the other ranks, which wait for it; when it ends at once, mpirun ends them.
    """
    if code and under_mpi():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


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
