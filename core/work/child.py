"""A child process that does the heavy part of a job, so that it may die, hang or grow without harm.

The parent starts it, gives it one request at a time, and waits for each answer for a limited time.
A child that dies is noticed at once, and one that hangs is killed; the parent can then start it
anew. The child ends when its parent ends, however that came about.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, Pipe
from typing import Any

from core.errors import StopWork, UserError

_CODE = "import sys; from core.work.child import serve; serve(int(sys.argv[1]))"
_SIGNAL_AT_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG of prctl(2)
_ENDING_S = 5.0
_STDERR = 2

Answerer = Callable[[Any], Any]


class ChildFailed(Exception):
    """The child gave no answer: it died, hung, or ran out of memory. The text says which."""


class Child:
    """A process that answers requests.

    Args:
        maker: "package.module:function"; called in the child with ``setup``, it returns the
            function that answers a request. Either may raise ``UserError`` (about the request),
            ``StopWork`` (about everything) or ``MemoryError``; anything else is a bug and ends the
            child with a traceback.
        setup: given to ``maker``; it, requests and answers must be picklable.
        environment: environment variables of the child; None takes those of this process.
    """

    def __init__(
        self, maker: str, setup: Any, environment: Mapping[str, str] | None = None
    ) -> None:
        self._maker, self._setup = maker, setup
        self._environment = dict(os.environ if environment is None else environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Connection | None = None

    @property
    def running(self) -> bool:
        """Whether there is a process that can be asked."""
        return self._process is not None

    @property
    def pid(self) -> int | None:
        """Number of the running process; None where there is none."""
        return self._process.pid if self._process else None

    def start(self, timeout_s: float) -> None:
        """Start the process and wait until it is ready for requests.

        Raises:
            ChildFailed: it did not become ready. UserError: what ``maker`` raised.
        """
        ours, theirs = Pipe()
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _CODE, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=_STDERR,
                    env={**self._environment, "PYTHONPATH": path},
                    pass_fds=[theirs.fileno()],
                    # Ctrl-C reaches the parent alone, which tells the child.
                    start_new_session=True,
                )
        except OSError as error:
            ours.close()
            raise ChildFailed(f"the process could not start: {error.strerror}") from error
        self._channel = ours
        try:
            self._exchange((os.getpid(), self._maker, self._setup), timeout_s)
        except UserError:
            self.close()
            raise

    def ask(self, request: Any, timeout_s: float) -> Any:
        """The answer to a request.

        Raises:
            ChildFailed: none came; the child is gone then. UserError: what the answerer raised.
        """
        return self._exchange(request, timeout_s)

    def close(self) -> None:
        """End the process; whatever it is at is dropped."""
        process, channel = self._process, self._channel
        self._process = self._channel = None
        if channel is not None:
            channel.close()
        if process is not None:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_ENDING_S)

    def _exchange(self, message: Any, timeout_s: float) -> Any:
        channel = self._channel
        assert channel is not None, "the child is not running"
        try:
            channel.send(message)
            if not channel.poll(timeout_s):
                self.close()
                raise ChildFailed(f"no answer within {timeout_s:g} s")
            kind, content = channel.recv()
        except (EOFError, OSError):  # OSError also where it died in the middle of an answer
            raise ChildFailed(self._ended()) from None
        except BaseException:
            self.close()  # an answer to this request must not be taken for one to the next
            raise
        if kind == "memory":
            self.close()
            raise ChildFailed(f"out of memory: {content}")
        if kind != "answer":
            raise {"error": UserError, "stop": StopWork}[kind](content)
        return content

    def _ended(self) -> str:
        process = self._process
        assert process is not None
        try:
            code = process.wait(_ENDING_S)
        except subprocess.TimeoutExpired:
            code = 0
        self.close()
        if code == -signal.SIGKILL:
            return "the process was killed (SIGKILL), perhaps for want of memory"
        if code < 0:
            return f"the process ended by {signal.Signals(-code).name}"
        return f"the process ended with exit code {code}; its messages stand above"


def serve(handle: int) -> None:
    """The child's life: make the answerer, then answer until the parent is gone."""
    os.set_inheritable(handle, False)  # nothing that is started from here keeps the channel open
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = Connection(handle)
    try:
        parent, maker, setup = channel.recv()
        _die_with(parent)
        module, _, name = maker.partition(":")
        answerer: list[Answerer] = []

        def make(setup: Any) -> None:
            answerer.append(getattr(importlib.import_module(module), name)(setup))

        _answer(channel, make, setup)
        while answerer:
            _answer(channel, answerer[0], channel.recv())
    except (EOFError, ConnectionError):
        pass
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    # The usual end of a process would wait for native threads, which may be busy.
    os._exit(0)


def _answer(channel: Connection, answerer: Answerer, request: Any) -> None:
    try:
        message = ("answer", answerer(request))
    except StopWork as error:
        message = ("stop", str(error))
    except UserError as error:
        message = ("error", str(error))
    except MemoryError as error:
        message = ("memory", str(error) or "an allocation failed")
    channel.send(message)


def _die_with(parent: int) -> None:
    """Have the kernel end this process when its parent is gone, busy or not (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SIGNAL_AT_PARENTS_DEATH, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
