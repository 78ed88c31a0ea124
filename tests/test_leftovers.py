"""A process that outlives the tests is found, killed and named, and fails the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.helpers import leftovers
from tests.helpers.processes import PATIENCE_S, wait_until

# The shell ends at once, and nobody waits for its child.
ORPHAN = ["sh", "-c", "sleep 600 > /dev/null & echo $!"]


def test_an_orphan_is_found_and_killed_and_others_are_not() -> None:
    environment = {**os.environ, "PYTEST_CURRENT_TEST": "tests/test_x.py::test_y (call)"}
    token = leftovers.mark(environment)
    stranger = {**environment, leftovers.TOKEN: "another session's"}
    pids = []
    for variables in (environment, stranger):
        shell = subprocess.run(ORPHAN, env=variables, stdout=subprocess.PIPE, text=True)
        pids.append(int(shell.stdout))
    try:
        (found,) = leftovers.end(token, grace_s=0)
        assert (found.pid, found.command) == (pids[0], "sleep 600")
        assert str(found) == (f"process {pids[0]} of tests/test_x.py::test_y (call): sleep 600")
        wait_until(lambda: leftovers.alive(token) == [])
        assert os.path.exists(f"/proc/{pids[1]}/stat"), "another session's process"
    finally:
        os.kill(pids[1], signal.SIGKILL)


def test_a_child_without_the_token_is_found_and_a_dead_one_is_not() -> None:
    with subprocess.Popen(["sleep", "600"], env={"PATH": os.environ["PATH"]}) as child:
        assert child.pid in [process.pid for process in leftovers.alive("no such token")]
        child.kill()
        wait_until(lambda: child.pid not in [p.pid for p in leftovers.alive("no such token")])


SUITE = """
import subprocess
def test_that_passes():
    subprocess.Popen({command!r}, stdout=subprocess.DEVNULL)
"""


@pytest.mark.parametrize("command", [["true"], ["sleep", "600"]])
def test_a_run_that_leaves_a_process_fails_and_names_it(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "test_suite.py").write_text(SUITE.format(command=command))
    words = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", "tests.conftest"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "USS_TEST_GRACE_S": "1"}
    done = subprocess.run(
        [*words, "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    if command == ["true"]:
        assert done.returncode == 0 and "outlived" not in done.stdout
    else:
        assert done.returncode == 1, done.stdout
        assert "of test_suite.py::test_that_passes (call): sleep 600" in done.stdout
