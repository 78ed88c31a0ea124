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
        ("open('absent/file', 'w')", "absent/file: No such file or directory"),
        ("open('absent')", "absent: No such file or directory"),
        ("os.rename('absent', 'b')", "b: No such file or directory"),
        ("open(b'absent')", "error: absent: No such file"),
        ("raise OSError(5, 'Input/output error')", "the system refuses: Input/output error"),
        ("raise MemoryError", "error: out of memory; close other programs"),
        ("bytearray(1 << 62)", "error: out of memory"),
        ("import numpy; numpy.zeros(1 << 55)", "out of memory (Unable to allocate 256. PiB"),
        ("raise OSError(12, 'Cannot allocate memory')", "out of memory ([Errno 12] Cannot"),
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


def shell(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What a shell command prints on stderr, and the exit code of the first program of a pipe."""
    command = f"{command}; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONUNBUFFERED": "", **variables}
    return subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True
    )


PRINTS = GUARDED.format(body="[print(i, file=STREAM) for i in range(100_000)]")


@pytest.mark.parametrize("stream", ["sys.stdout", "sys.stderr"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_is_no_error(stream: str, unbuffered: str) -> None:
    program = PRINTS.replace("STREAM", stream)
    for reader in ("head -n 1", "true"):
        command = f'"$PYTHON" -c "$PROGRAM" 2>&1 | {reader} >/dev/null'
        done = shell(command, PROGRAM=program, PYTHONUNBUFFERED=unbuffered)
        assert (done.returncode, done.stderr) == (141, "")


def test_a_reader_that_goes_before_the_help_is_no_error() -> None:
    """It is short enough to be written only when the program ends."""
    for words in ("-m uss --help", "test.py --help", "-m uss watch --help"):
        done = shell(f'(sleep 0.1; "$PYTHON" {words}; echo $? >&2) | true')
        assert done.stderr == "141\n"


def test_output_that_is_closed_is_no_error() -> None:
    assert shell('"$PYTHON" -m uss --help >&-').stderr == ""
    done = shell('"$PYTHON" -m uss nothing 2>&-')
    assert (done.returncode, done.stdout) == (2, "")


def test_output_that_cannot_be_written_is_one_line() -> None:
    for words in ("-m uss --help", "-m uss watch --help"):
        done = shell(f'"$PYTHON" {words} > /dev/full')
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("error: standard output: No space left on device; ")


def test_a_full_disk_names_the_file() -> None:
    log = "from core.log import StageLog; StageLog(Path('/dev/full')).write(loss=1)"
    times = (
        "from core.pipeline.times import record_time; "
        "record_time(types.SimpleNamespace(root=Path('.'), times=Path('/dev/full')), 'a', 1.0)"
    )
    for body in (log, times):
        done = end_of(f"import types; from pathlib import Path; {body}")
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error: /dev/full: No space left on device; ")


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


@pytest.mark.parametrize(
    "body",
    [
        "raise OSError('of a library')",
        "1 / 0",
        "os.close(-1)",
        "raise BrokenPipeError(32, 'to a child')",
    ],
)
def test_a_bug_keeps_its_traceback(body: str) -> None:
    done = end_of(body)
    assert done.returncode == 1 and "Traceback" in done.stderr
