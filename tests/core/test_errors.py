"""How an entry point ends where the machine, and not the program, is to blame."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.helpers.processes import GUARDED


def end_of(body: str) -> subprocess.CompletedProcess[str]:
    code = GUARDED.format(body=body)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("open('/dev/full', 'wb', buffering=0).write(b'x')", "No space left on device"),
        ("raise OSError(30, 'Read-only file system', '/data/run')", "/data/run: Read-only"),
        ("os.mkdir('/dev/null')", "/dev/null: File exists"),
        ("os.mkdir('/dev/null/a')", "/dev/null/a: Not a directory"),
        ("open('/')", "/: Is a directory"),
        ("raise PermissionError(13, 'Permission denied', 'a\\nb')", "a\\nb: Permission denied"),
        ("raise PermissionError(13, 'Permission denied', '/data/a')", "/data/a: Permission denied"),
        ("raise MemoryError", "out of memory"),
    ],
)
def test_a_machine_that_refuses_is_one_line(body: str, said: str) -> None:
    done = end_of(body)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert said in done.stderr and "run the same command again" in done.stderr


def test_names_that_are_no_text_can_be_printed() -> None:
    code = GUARDED.format(body="print(os.fsdecode(b'a\\xff.jpg'), '\\u5927')")
    for encoding, shown in (
        ("utf-8:strict", "a\\udcff.jpg \u5927"),
        ("ascii", "a\\udcff.jpg \\u5927"),
    ):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, env=environment
        )
        assert (done.returncode, done.stdout.decode().strip()) == (0, shown), done.stderr


@pytest.mark.parametrize(
    "command", [["test.py"], ["-m", "uss", "doctor"], ["-m", "uss"], ["-m", "benchmarks"]]
)
def test_another_python_is_one_line(command: list[str]) -> None:
    """-S: without the packages of the environment."""
    done = subprocess.run(
        [sys.executable, "-S", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "lacks numpy" in done.stderr and "make setup" in done.stderr


@pytest.mark.parametrize("body", ["open('absent')", "raise OSError('of a library')", "1 / 0"])
def test_a_bug_keeps_its_traceback(body: str) -> None:
    done = end_of(body)
    assert done.returncode == 1 and "Traceback" in done.stderr
