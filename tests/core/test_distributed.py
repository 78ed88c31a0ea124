"""Ranks and shares without MPI, under a made-up environment, and with two real MPI processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from core import distributed
from core.errors import UserError
from tests.conftest import ROOT
from tests.helpers.processes import PATIENCE_S

PREFIXES = ("OMPI_", "SLURM_", "PMIX_")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(PREFIXES):
            monkeypatch.delenv(name)


def set_array(monkeypatch: pytest.MonkeyPatch, number: int, count: int, first: int = 0) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(number))
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", str(count))
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", str(first))


def test_alone_everything_is_trivial_and_starts_nothing() -> None:
    code = """
import sys
from core import distributed as d
thing = object()
assert d.rank() == 0 and d.world_size() == 1 and d.is_main()
assert d.share(range(3)) == [0, 1, 2]
assert d.all_reduce_sum(thing) is d.all_reduce_mean(thing) is d.broadcast(thing) is thing
d.barrier()
assert "jittor" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_rank_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")
    assert (distributed.rank(), distributed.world_size()) == (2, 3)
    assert not distributed.is_main()
    assert distributed.share("abcdefgh") == ["c", "f"]
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "three")
    with pytest.raises(UserError, match="OMPI_COMM_WORLD_SIZE should be a number, not 'three'"):
        distributed.world_size()


@pytest.mark.parametrize("first", [0, 1, 100])
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("tasks", [1, 3])
def test_shares_cover_everything_once(
    monkeypatch: pytest.MonkeyPatch, first: int, world: int, tasks: int
) -> None:
    items, parts = list(range(17)), []
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", str(world))
    for task in range(tasks):
        set_array(monkeypatch, first + task, tasks, first)
        for rank in range(world):
            monkeypatch.setenv("OMPI_COMM_WORLD_RANK", str(rank))
            parts.append(distributed.share(items))
    assert sorted(sum(parts, [])) == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_array_numbers_with_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    set_array(monkeypatch, 14, 3, 10)  # --array=10-14:2
    monkeypatch.setenv("SLURM_ARRAY_TASK_STEP", "2")
    assert distributed.share(range(7)) == [2, 5]


def test_array_numbers_with_holes_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    set_array(monkeypatch, 7, 3, 1)  # --array=1,5,7: two parts would be done by nobody
    with pytest.raises(UserError, match="expected consecutive numbers; submit with --array=0-2"):
        distributed.share(range(9))


RANKS = """
import json, sys, time
import numpy as np
from core import distributed as d
rank = d.rank()
assert "jittor" not in sys.modules
from core.runtime import jt

def both(kind):
    var = jt.array(np.array([rank + 1, 2**24 + 1, 0])).cast(kind)
    total, first = d.all_reduce_sum(var), d.broadcast(var)
    assert str(total.dtype) == str(first.dtype) == kind
    return total.numpy().tolist(), first.numpy().tolist()

report = {"rank": [rank, d.world_size(), jt.rank, jt.world_size], "share": d.share(range(5))}
for kind in ("float32", "float64", "int32", "int64"):
    report[kind] = both(kind)
x = jt.array(np.array([rank + 1.0, 4.0], np.float32))
mean = d.all_reduce_mean(x)
report["mean"] = mean.numpy().tolist()
report["gradient"] = jt.grad((mean * (rank + 1)).sum(), x).numpy().tolist()
time.sleep(1.0 if rank == 0 else 0.0)
report["before"] = time.time()
d.barrier()
report["passed"] = time.time()
with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
    json.dump(report, file)
"""


def mpirun(*command: str) -> subprocess.CompletedProcess:
    if shutil.which("mpirun") is None or shutil.which("mpicc") is None:
        pytest.skip("needs mpirun and mpicc (Debian: apt-get install openmpi-bin libopenmpi-dev)")
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return subprocess.run(
        ["mpirun", "-np", "2", "--oversubscribe", *command],
        cwd=ROOT,
        env={**os.environ, **root},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_two_ranks(tmp_path: Path) -> None:
    done = mpirun(sys.executable, "-c", RANKS, str(tmp_path))
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["rank"] == [0, 2, 0, 2] and second["rank"] == [1, 2, 1, 2]
    assert first["share"] == [0, 2, 4] and second["share"] == [1, 3]
    for kind in ("float32", "float64", "int32", "int64"):
        big = 2**24 if kind == "float32" else 2**24 + 1
        assert first[kind] == second[kind] == [[3, 2 * big, 0], [1, big, 0]]
    assert first["mean"] == second["mean"] == [1.5, 4.0]
    # d/dx of sum over ranks of (rank + 1) * mean
    assert first["gradient"] == second["gradient"] == [1.5, 1.5]
    # Nobody passes the barrier before the last has come to it.
    last = max(first["before"], second["before"])
    assert min(first["passed"], second["passed"]) >= last


def test_a_failing_rank_ends_the_run() -> None:
    code = """
import sys, time
from core import distributed
from core.errors import UserError, main_guard

@main_guard
def main():
    if distributed.rank() == 1:
        raise UserError("rank 1 has no data")
    time.sleep(60)
    return 0

sys.exit(main())
"""
    done = mpirun(sys.executable, "-c", code)
    assert done.returncode == 2
    assert "error: rank 1 has no data" in done.stderr and "Traceback" not in done.stderr


DYING = """
import os, signal, sys
from core import distributed as d
from core.errors import UserError, main_guard
from core.runtime import jt

def die(how):
    if how == "bug":
        raise ZeroDivisionError("by nought")
    if how == "user":
        raise UserError("this rank has no data")
    if how == "exit":
        sys.exit("rank 1 gives up")
    os.kill(os.getpid(), signal.SIGKILL)

@main_guard
def main():
    for step in range(1000):
        if step == 3 and d.rank() == 1:
            die(sys.argv[1])
        d.all_reduce_sum(jt.ones((4,))).sync()
    return 0

sys.exit(main())
"""


@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        ("bug", 1, "ZeroDivisionError: by nought"),
        ("user", 2, "error: this rank has no data"),
        ("exit", 1, "rank 1 gives up"),
        ("kill", 137, "signal 9"),
    ],
)
def test_a_rank_that_dies_takes_those_along_that_wait_for_it(how, code, message) -> None:
    """The other rank is inside a collective operation, which would never end."""
    done = mpirun(sys.executable, "-c", DYING, how)  # has a time limit
    assert done.returncode == code, done.stderr
    assert message in done.stderr
