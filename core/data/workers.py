"""Processes that make samples beside the training process, whose interpreter lock they do not need.

Jittor holds the lock while it computes, so threads would stand still exactly then; and a fork after
Jittor has run hangs, so each worker is a new interpreter, which never imports Jittor. Tasks and
answers travel in anonymous memory files: a worker never waits for the training process to take a
result, and nothing is left behind however either side ends. The end of the training process, by
whatever means, closes the socket and so ends the worker.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import traceback
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, Union

import numpy as np

from core.errors import UserError

Sample = tuple[np.ndarray, ...]
# (data set, index, seed words of the generator): what Dataset.get needs.
Task = tuple[Any, int, Sequence[int]]
# What became of a task: a Sample; a Broken one; any other text is the traceback of a bug.
Outcome = Union[Sample, "Broken", str]

# Not run as a module: its classes would be those of __main__, which the other side does not know.
#: More processes than any machine reads images with.
MOST_WORKERS = 1024
_CODE = "import sys; from core.data.workers import serve; serve(int(sys.argv[1]))"
_ENDING_SECONDS = 5.0  # a worker that reads from a dead disk is not waited for any longer
# One process per worker is all the parallelism wanted.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Broken(Exception):
    """The data set refused a sample with a UserError of this text."""


class WorkerPool:
    """``count`` processes that make samples until :meth:`close` or the end of this process.

    SIGINT and SIGTERM, which reach a whole group of processes, do not end them.
    """

    def __init__(self, count: int) -> None:
        self._workers = [_Worker() for _ in range(count)]
        self._next = 0
        self._finalizer = weakref.finalize(self, _end, self._workers)

    def ask(self, tasks: Sequence[Task], names: Sequence[str]) -> Request:
        """Have samples made, shared out over the workers; ``names`` (files) are for errors."""
        count = len(self._workers)
        parts = []
        for turn in range(min(count, len(tasks))):
            worker = self._workers[(self._next + turn) % count]
            parts.append(_Part(worker, tasks[turn::count], names[turn::count]))
        self._next = (self._next + len(tasks)) % count
        return Request(len(tasks), parts)

    def close(self) -> None:
        """End the workers; whatever they still had to do is dropped."""
        self._finalizer()


class Request:
    """Samples in the making."""

    def __init__(self, size: int, parts: Sequence[_Part]) -> None:
        self._size, self._parts = size, parts

    def outcomes(self) -> list[Sample | Broken]:
        """The sample, or why there is none, for each task in their order; waits for them.

        Raises:
            RuntimeError: a data set raised something else than a UserError; names the file.
            UserError: a worker is gone.
        """
        found: list[Any] = [None] * self._size
        for turn, part in enumerate(self._parts):
            found[turn :: len(self._parts)] = part.outcomes()
        return found


class _Part:
    """The tasks of a request that one worker has."""

    def __init__(self, worker: _Worker, tasks: Sequence[Task], names: Sequence[str]) -> None:
        self.names, self.answer = names, None
        self._worker = worker
        worker.send(tasks, self)

    def outcomes(self) -> list[Sample | Broken]:
        while self.answer is None:
            self._worker.receive()
        for name, outcome in zip(self.names, self.answer):
            if isinstance(outcome, str):
                raise RuntimeError(f"a data worker could not make the sample of {name}:\n{outcome}")
        return self.answer


class _Worker:
    """One process, its socket, and what it has not answered yet."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _CODE, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, **_ONE_THREAD, "PYTHONPATH": path},
                pass_fds=[theirs.fileno()],
            )
        self._waiting: deque[_Part] = deque()

    def send(self, tasks: Sequence[Task], part: _Part) -> None:
        """Hand over tasks; ``part`` gets the answer when it has come."""
        self._waiting.append(part)
        # Each by itself, so that one that cannot be read in the worker is named.
        packed = [pickle.dumps(task, protocol=5) for task in tasks]
        # A worker that is gone is noticed by receive, which knows what it did last.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            _send(self.socket, packed)

    def receive(self) -> None:
        """Wait for the next answer, which is that of the oldest part."""
        try:
            answer = _receive(self.socket)
        except ConnectionResetError:
            # Said once, before the answers that the worker gave in its life.
            return
        except EOFError:
            raise self._gone() from None
        self._waiting.popleft().answer = answer

    def _gone(self) -> UserError:
        code = self.process.wait()
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return UserError(
            f"a data worker ended ({cause}) while it made the samples of "
            f"{', '.join(self._waiting[0].names[:4])}; if memory ran out, use a smaller --workers"
        )


def serve(handle: int) -> None:
    """A worker's life: answer one list of tasks after the other until the other side is gone."""
    # Ctrl-C and a scheduler's SIGTERM reach the whole group: the training process decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with socket.socket(fileno=handle) as channel:
        while True:
            try:
                _send(channel, [_outcome(task) for task in _receive(channel)])
            except (EOFError, BrokenPipeError, ConnectionResetError):
                return


def _outcome(task: bytes) -> Outcome:
    try:
        dataset, index, seed = pickle.loads(task)
        return dataset.get(index, np.random.default_rng(seed))
    except UserError as error:
        return Broken(str(error))
    except Exception:  # a bug of the data set: the training process shows it
        return traceback.format_exc()


def _end(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.socket.close()
    for worker in workers:
        try:
            worker.process.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()


def _send(channel: socket.socket, content: Any) -> None:
    with os.fdopen(os.memfd_create("samples"), "w+b") as file:
        pickle.dump(content, file, protocol=5)
        file.flush()
        socket.send_fds(channel, [b"."], [file.fileno()])


def _receive(channel: socket.socket) -> Any:
    """What the other side sent; EOFError where it is gone."""
    packet, handles, _, _ = socket.recv_fds(channel, 1, 1)
    if not packet:
        raise EOFError
    with os.fdopen(handles[0], "rb") as file:
        file.seek(0)
        return pickle.load(file)
