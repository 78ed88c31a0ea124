"""Which processes that the tests started are still alive."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

#: Every process of a test session has this variable, whose value is the session's own.
TOKEN = "USS_TEST_SESSION"

#: How long a process may take to end after the last test.
GRACE_S = float(os.environ.get("USS_TEST_GRACE_S", "20"))

# Python's own helper of a process that uses multiprocessing; it ends with that process.
_HARMLESS = "multiprocessing.resource_tracker"


@dataclass(frozen=True)
class Process:
    """A living process: its id, its command line, and the test that started it (or "")."""

    pid: int
    command: str
    test: str

    def __str__(self) -> str:
        return f"process {self.pid} of {self.test or 'an unknown test'}: {self.command[:200]}"


def mark(environment: MutableMapping[str, str]) -> str:
    """Give the processes that will be started with ``environment`` a token; returns it."""
    environment[TOKEN] = uuid.uuid4().hex
    return environment[TOKEN]


def alive(token: str) -> list[Process]:
    """Living processes that carry ``token`` in their environment, however they were started, and
    all below this one. Those that have ended and were not waited for count as dead.
    """
    states = dict(filter(None, map(_state, Path("/proc").glob("[0-9]*"))))
    found = []
    for pid, (state, _) in states.items():
        environment = _words(pid, "environ")
        marked = f"{TOKEN}={token}" in environment
        if pid == os.getpid() or state == "Z" or not (marked or _is_below(pid, states)):
            continue
        command = " ".join(_words(pid, "cmdline"))
        if command and _HARMLESS not in command:
            tests = [word for word in environment if word.startswith("PYTEST_CURRENT_TEST=")]
            found.append(Process(pid, command, "".join(tests).partition("=")[2]))
    return found


def end(token: str, grace_s: float = GRACE_S) -> list[Process]:
    """Processes that are still :func:`alive` after ``grace_s`` seconds; they are killed."""
    deadline = time.monotonic() + grace_s
    left = alive(token)
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = alive(token)
    for process in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    return left


def _is_below(pid: int, states: dict[int, tuple[str, int]]) -> bool:
    while pid in states:
        pid = states[pid][1]
        if pid == os.getpid():
            return True
    return False


def _state(folder: Path) -> tuple[int, tuple[str, int]] | None:
    """(process, (its state's letter, its parent)); None where it has gone."""
    try:
        letter, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return int(folder.name), (letter, int(parent))


def _words(pid: int, name: str) -> list[str]:
    try:
        content = Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return []
    return content.decode(errors="replace").rstrip("\0").split("\0")
