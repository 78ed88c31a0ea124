"""What tests of real processes share: a PATH of few programs, and how a failed run should look."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

#: A program whose ``main`` is guarded; ``body`` is its one statement.
GUARDED = """
import os, sys
from core.errors import main_guard

@main_guard
def main():
    {body}
    return 0

sys.exit(main())
"""


def only(folder: Path, *programs: str) -> str:
    """A PATH that holds nothing but ``programs``."""
    folder.mkdir()
    for program in programs:
        found = shutil.which(program)
        assert found is not None
        (folder / program).symlink_to(found)
    return str(folder)


def one_line_error(result: subprocess.CompletedProcess[str]) -> str:
    """The error line of a run that failed as a user should see it."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]
