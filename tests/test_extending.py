"""docs/extending.md, done as it says in a copy of the project: its blocks are written, its commands
run, and what it shows of their output is compared.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.document_commands import ROOT, fences

PAGE = ROOT / "docs" / "extending.md"
PACKAGES = ("core", "models", "sam", "refine", "tools", "uss", "wsss", "benchmarks")
COPIED = (*PACKAGES, "requirements", "tests")
FILES = ("test.py", "pyproject.toml", "requirements.txt")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's code, to be changed."""
    folder = tmp_path_factory.mktemp("extending")
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    (folder / "weights").symlink_to(ROOT / "weights")
    return folder


def test_the_page_does_what_it_says(project: Path) -> None:
    blocks = fences(PAGE.read_text(encoding="utf-8"))
    output = ""
    for place, (language, content) in enumerate(blocks):
        if language == "bash":
            after = blocks[place + 1] if place + 1 < len(blocks) else ("", "")
            fails = after[0] == "text" and after[1].startswith("error: ")
            lines = content.splitlines()
            output = "".join(run(project, line, fails) for line in lines)
        elif language == "text":
            compare(content, output)
        else:
            write(project, language, content)
    assert (project / "toy" / "hues.py").is_file(), "the blocks were not found"
    follows_the_house_rules(project)


def write(project: Path, language: str, content: str) -> None:
    """Write or change the file that the first line of a block names."""
    title, _, body = content.partition("\n")
    assert title.startswith("# "), f"a block names no file: {title}"
    path = project / title[2:]
    if language == "python":
        assert not path.exists(), f"{title}: already there"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body, encoding="utf-8")
        return
    assert language == "diff", language
    text = path.read_text(encoding="utf-8")
    for hunk in body.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        # An empty line of a diff stands for an empty line of the file.
        old = "".join(line[1:] if line != "\n" else line for line in lines if line[0] != "+")
        new = "".join(line[1:] if line != "\n" else line for line in lines if line[0] != "-")
        assert text.count(old) == 1, f"{title}: not once in the file:\n{old}"
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def run(project: Path, line: str, fails: bool = False) -> str:
    """What a command of the page prints."""
    words = shlex.split(line)
    assert words[0] == ".venv/bin/python", line
    environment = {**os.environ, "USS_DEVICE": "cpu", "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, *words[1:]],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,  # Jittor may have to be compiled for the doctor
    )
    output = done.stdout + done.stderr
    assert "Traceback" not in output, output
    # What the doctor thinks of the machine that runs the tests is open.
    allowed = (2,) if fails else (0, 1) if "doctor" in words else (0,)
    assert done.returncode in allowed, f"{line}\n{output}"
    return output


def compare(shown: str, output: str) -> None:
    """The lines that the page shows are printed, in this order; each may be a part of a line."""
    rest = output
    for line in shown.splitlines():
        assert line in rest, f"the page shows {line!r}, which is not in\n{output}"
        rest = rest[rest.index(line) + len(line) :]


def follows_the_house_rules(project: Path) -> None:
    """The page's own code is formatted, its packages are mapped, its arrows point down."""
    added = ["toy", "wsss", "tests/wsss"]
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["check", "--no-cache"], ["format", "--no-cache", "--check"]):
        done = subprocess.run(
            [*ruff, *command, *added], cwd=project, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    rules = "(map or arrows or stage_is_named or annotations) and (toy or wsss) or circle"
    words = [".venv/bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    words += ["tests/test_architecture.py", "-k", rules]
    assert "passed" in run(project, shlex.join(words))
