"""What tests of real processes share: how long to wait, a PATH of few programs, how a failed run
should look.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

#: Seconds that a test waits for what takes a moment on a quiet machine. Only what hangs takes as
#: long, on a busy machine too.
PATIENCE_S = 300.0

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


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE_S) -> None:
    """Return once ``condition`` holds; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain"
        time.sleep(0.02)


@contextlib.contextmanager
def killed_at_the_end(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """``process``, which a test that fails inside the block does not leave running."""
    try:
        yield process
    finally:
        process.kill()  # nothing where it has ended
        process.communicate()


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
