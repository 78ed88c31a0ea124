"""A child process: answers, and every way in which it may fail to."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.errors import StopWork, UserError
from core.work.child import Child, ChildFailed
from tests.conftest import ROOT
from tests.helpers.processes import wait_until

MAKER = f"{__name__}:maker"


def maker(setup: Any) -> Callable[[Any], Any]:
    """Runs in the child: answers by what the request says."""
    if setup == "refuse":
        raise UserError("no such checkpoint")
    if setup == "die":
        os._exit(3)

    def answer(request: Any) -> Any:
        if request == "pid":
            return os.getpid()
        if request == "hang":
            time.sleep(600)
        if request == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if request == "half":
            # The size of an answer and its beginning, as `multiprocessing` sends them.
            os.write(int(sys.argv[1]), struct.pack("!i", 1000) + b"begin")
            os.kill(os.getpid(), signal.SIGKILL)
        if request == "bug":
            raise ZeroDivisionError
        if request == "user":
            raise UserError("a broken image")
        if request == "stop":
            raise StopWork("disk full")
        if request == "memory":
            raise MemoryError("512 MiB")
        return setup, request

    return answer


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child(MAKER, "setup")
    yield child
    child.close()


def started(child: Child) -> Child:
    child.start(60)
    return child


def gone(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def test_answers_and_errors_about_a_request(child: Child) -> None:
    started(child)
    assert child.ask({"a": 1}, 10) == ("setup", {"a": 1})
    with pytest.raises(UserError, match="a broken image") as user:
        child.ask("user", 10)
    assert not isinstance(user.value, StopWork)
    with pytest.raises(StopWork, match="disk full"):
        child.ask("stop", 10)
    assert child.ask("pid", 10) == child.pid


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ("kill", "SIGKILL.*memory"),
        ("half", "SIGKILL.*memory"),
        ("bug", "exit code 1"),
        ("hang", "no answer within 0.3 s"),
        ("memory", "out of memory: 512 MiB"),
    ],
)
def test_no_answer_and_a_new_start(child: Child, request_: str, reason: str) -> None:
    pid = started(child).pid
    assert pid is not None
    with pytest.raises(ChildFailed, match=reason):
        child.ask(request_, 0.3 if request_ == "hang" else 10)
    assert not child.running and gone(pid)
    assert started(child).ask("pid", 10) != pid


def test_a_stopped_child_is_killed(child: Child) -> None:
    pid = started(child).pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(ChildFailed, match="no answer"):
        child.ask("pid", 0.3)
    assert gone(pid)


def test_a_child_that_cannot_start() -> None:
    refusing = Child(MAKER, "refuse")
    with pytest.raises(UserError, match="no such checkpoint"):
        refusing.start(60)
    assert not refusing.running
    with pytest.raises(ChildFailed, match="exit code 3"):
        Child(MAKER, "die").start(60)
    # A system that is out of memory or processes refuses alike.
    with pytest.raises(ChildFailed, match="could not start: Argument list too long"):
        Child(MAKER, "setup", {"TOO_LONG": "x" * (1 << 20)}).start(60)


def test_a_child_ends_with_its_parent_even_while_busy() -> None:
    code = (
        "from core.work.child import Child\n"
        f"child = Child({MAKER!r}, 'setup')\n"
        "child.start(60)\n"
        "print(child.pid, flush=True)\n"
        "child.ask('hang', 600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert not gone(pid)
    parent.kill()
    parent.wait()
    wait_until(lambda: gone(pid))


def test_ctrl_c_reaches_the_parent_alone(child: Child) -> None:
    pid = started(child).pid
    assert pid is not None
    assert os.getpgid(pid) != os.getpgid(0)
    os.kill(pid, signal.SIGINT)
    assert child.ask("pid", 10) == pid
