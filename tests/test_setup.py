"""``make setup``: which interpreter it takes and which lock it installs; pip is a stand-in."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.helpers.processes import one_line_error

# An interpreter that answers as Python 3.MINOR, makes a .venv of itself, notes what pip is told.
STAND_IN = """#!/usr/bin/env bash
case "$*" in
    *sys.exit*) [ {minor} -ge 10 ] && [ {minor} -le 12 ] ;;
    *print*) echo 3{minor} ;;
    --version) echo Python 3.{minor}.0 ;;
    *venv*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *pip*) echo "$*" >> pip.log ;;
esac
"""


def interpreter(path: Path, minor: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(STAND_IN.format(minor=minor))
    path.chmod(0o755)
    return path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "project" / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", tmp_path / "project")
    shutil.copy(ROOT / "scripts" / "setup.sh", tmp_path / "project" / "scripts")
    shutil.copytree(ROOT / "requirements", tmp_path / "project" / "requirements")
    return tmp_path / "project"


def setup(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "scripts/setup.sh", *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=project, env=env, capture_output=True, text=True)


def told(project: Path) -> list[str]:
    """What pip was told, from ``-r`` on."""
    lines = (project / "pip.log").read_text().splitlines()
    return [line.partition(" -r ")[2] for line in lines]


@pytest.mark.parametrize("minor", [10, 11, 12])
def test_the_lock_is_that_of_the_interpreter(project: Path, tmp_path: Path, minor: int) -> None:
    python = str(interpreter(tmp_path / "bin" / "python", minor))
    assert setup(project, PYTHON=python).returncode == 0
    for group in ("test", "judge"):
        assert setup(project, group).returncode == 0
    lock = f"requirements/lock-py3{minor}"
    assert told(project) == [
        f"{lock}.txt --require-hashes",
        f"{lock}-test.txt --require-hashes",
        f"{lock}-judge.txt --require-hashes",
        "requirements/torch.txt",
        "requirements/official.txt --require-hashes --no-deps",
    ]
    assert all((project / told.split()[0]).is_file() for told in told(project))


def test_make_installs_again_only_when_a_list_has_changed(project: Path, tmp_path: Path) -> None:
    python = str(interpreter(tmp_path / "bin" / "python", 11))
    make = ["make", "-C", str(project), "setup", f"PYTHON={python}"]
    for _ in range(2):
        subprocess.run(make, check=True, capture_output=True, env={**os.environ, "PYTHON": python})
    assert len(told(project)) == 1
    later = (project / ".venv" / ".run.done").stat().st_mtime + 5
    os.utime(project / "requirements" / "lock-py311.txt", (later, later))
    subprocess.run(make, check=True, capture_output=True, env={**os.environ, "PYTHON": python})
    assert len(told(project)) == 2


@pytest.mark.parametrize("minor", [9, 13])
def test_other_interpreters_are_refused_in_one_line(
    project: Path, tmp_path: Path, minor: int
) -> None:
    python = str(interpreter(tmp_path / "bin" / "python", minor))
    line = one_line_error(setup(project, PYTHON=python))
    assert "no Python 3.10 to 3.12" in line and "PYTHON=/path/to/python make setup" in line
    assert not (project / ".venv").exists()
    interpreter(project / ".venv" / "bin" / "python", minor)  # a .venv from before
    line = one_line_error(setup(project))
    assert f"found Python 3.{minor}.0" in line and "rm -rf .venv && make setup" in line
    assert not (project / "pip.log").exists()


def test_an_unknown_group_is_refused(project: Path, tmp_path: Path) -> None:
    python = str(interpreter(tmp_path / "bin" / "python", 11))
    line = one_line_error(setup(project, "tests", PYTHON=python))
    assert "expected run, test or judge, found tests" in line
    assert not list(project.glob(".venv/.*.done"))
