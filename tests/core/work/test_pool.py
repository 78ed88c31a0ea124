"""Several processes: order, bounded memory, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.errors import UserError
from core.work.pool import ordered_map
from tests.conftest import ROOT
from tests.helpers.processes import wait_until


def square(number: int) -> int:
    """Runs in a worker; 13 is refused."""
    if number == 13:
        raise UserError("13 is refused")
    return number * number


def die(number: int) -> int:
    """Runs in a worker, which the operating system kills."""
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def slow(number: int) -> int:
    """Runs in a worker; says which process it is and takes its time."""
    print(os.getpid(), flush=True)
    time.sleep(60)
    return number


def test_order_and_errors_do_not_depend_on_the_number_of_processes():
    numbers = [number for number in range(70) if number != 13]
    for workers in (1, 2):
        assert list(ordered_map(square, numbers, workers)) == [n * n for n in numbers]
        results = ordered_map(square, range(70), workers)
        with pytest.raises(UserError, match="13 is refused"):
            list(results)


def test_items_are_drawn_as_they_are_needed():
    drawn = []
    results = ordered_map(square, (drawn.append(n) or n for n in range(14, 2000)), 2)
    assert next(results) == 196 and len(drawn) < 200
    results.close()


def test_a_killed_worker_is_one_line():
    with pytest.raises(UserError, match="killed.*--workers 1"):
        list(ordered_map(die, range(3), 2))


def test_workers_end_with_a_parent_that_is_killed():
    code = (
        "from core.work.pool import ordered_map\n"
        "from tests.core.work.test_pool import slow\n"
        "if __name__ == '__main__':\n"
        "    list(ordered_map(slow, range(3), 2))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    wait_until(lambda: not _alive(worker))


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
