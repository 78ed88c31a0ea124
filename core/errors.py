"""Errors that a user can act on, and how an entry point ends on one.

A problem that the user can mend (a missing folder, a checkpoint of another architecture, a broken
image) is raised as :class:`UserError` with one line: what was expected, what was found, what to do.
:func:`main_guard` prints that line on stderr and ends with exit code 2. It does the same where the
system refuses a file or memory. A bug keeps its traceback.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TextIO, TypeVar

EXIT_BUG = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_NO_READER = 128 + signal.SIGPIPE
# Answers of the system that the user can mend even where they name no file: the disk or the quota
# is full, access is refused, too much is open or runs, or a device or a server fails.
_REFUSALS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EIO, errno.ESTALE),
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
    where the system refused a file or memory, 130 after ``KeyboardInterrupt`` (whose text, where it
    has one, says how to go on), 141 without a word where nobody reads the output any more (as with
    ``| head``), otherwise whatever ``main`` returned. Under MPI, any other end than 0 ends this
    process at once.
    """

    @functools.wraps(main)
    def guarded(*args, **kwargs) -> int:
        try:
            _print_any_name()
            with _sigterm_interrupts(), _output_complete():
                return _leave(main(*args, **kwargs))
        except KeyboardInterrupt as error:
            kept = str(error) or "finished work is kept; run the same command to continue"
            _say(f"interrupted: {kept}")
            return _leave(EXIT_INTERRUPTED)
        except SystemExit as ended:
            if ended.code is None or isinstance(ended.code, int):
                _leave(ended.code or 0)
            elif under_mpi():
                print(ended.code, file=sys.stderr)
                _leave(EXIT_BUG)
            raise
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _nobody_reads():
                return _leave(EXIT_NO_READER)
            text = _to_mend(error)
            if text is not None:
                _say(f"error: {text}")
                return _leave(EXIT_USER_ERROR)
            if under_mpi():
                traceback.print_exc()
            _leave(EXIT_BUG)
            raise

    return guarded  # type: ignore[return-value]


def _say(text: str) -> None:
    """Print one line on stderr; names of files may hold line breaks."""
    if sys.stderr is None:
        return
    try:
        print(text.replace("\n", "\\n"), file=sys.stderr, flush=True)
    except OSError:  # nobody reads it
        _to_nowhere(sys.stderr)


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
    again = "what was finished is kept: mend this and run the same command again"
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        wanted = f" ({error})" if str(error) else ""
        return (
            f"out of memory{wanted}; close other programs, or use smaller batches or fewer "
            f"processes; {again}"
        )
    if not isinstance(error, OSError) or error.errno is None:
        return None
    what = error.filename2 or error.filename
    if what is None and error.errno not in _REFUSALS:
        return None
    if isinstance(what, bytes):
        what = os.fsdecode(what)
    return f"{what or 'the system refuses'}: {error.strerror}; {again}"


@contextlib.contextmanager
def names_file(path: Path) -> Iterator[None]:
    """Let what the system refuses inside the block name ``path``: a full disk by itself names no
    file.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in _REFUSALS:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def _output_complete() -> Iterator[None]:
    """Write out what was printed when the block ends, and not when the interpreter does: it would
    report a full disk or a closed pipe with a traceback.
    """
    try:
        yield
    finally:
        try:
            if sys.stdout is not None:  # as it is where the program was started with it closed
                sys.stdout.flush()
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                _to_nowhere(sys.stdout)
                error.filename = "standard output"
            raise


def _nobody_reads() -> bool:
    """Whether the reader of a pipe that this process prints to has gone; if so, what would still be
    printed goes nowhere.
    """
    gone = False
    for stream in filter(None, (sys.stdout, sys.stderr)):
        poll = select.poll()
        with contextlib.suppress(OSError, ValueError):  # it is closed, or no file
            poll.register(stream.fileno(), 0)
            if any(event & select.POLLERR for _, event in poll.poll(0)):
                _to_nowhere(stream)
                gone = True
    return gone


def _to_nowhere(stream: TextIO) -> None:
    """Let a stream's file be /dev/null, to which anything can be written."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


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
