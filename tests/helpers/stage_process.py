"""A stage in a process of its own that notes the images it reads, and may kill itself on the way.

``python -m tests.helpers.stage_process MODULE DATA RUN LOG KILL``: MODULE is that of a test, which
has STAGE, CONFIG and ``small_blocks``; KILL is the number of images after which the process dies by
SIGKILL, or the name of a function of the stage's module at whose call it does.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.data import datasets
from tests.conftest import ROOT
from uss.paths import RunFolder


def start(module: str, data: Path, run: Path, log: Path, kill: str = "") -> subprocess.Popen:
    """Start the stage of a test's module."""
    arguments = [module, str(data), str(run), str(log), kill]
    command = [sys.executable, "-m", "tests.helpers.stage_process", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def noting(patch: pytest.MonkeyPatch, stage: Any, note: Callable[[str], None]) -> None:
    """Have ``note`` called with the name of each image that the stage reads in this process."""
    for module in (datasets, stage):
        if hasattr(module, "load_rgb"):
            read = module.load_rgb

            def load_rgb(path: Path, read: Callable[[Path], Any] = read) -> Any:
                rgb = read(path)
                note(path.name)
                return rgb

            patch.setattr(module, "load_rgb", load_rgb)


def main(name: str, data: str, run: str, log: str, kill: str) -> None:
    """Run the stage of the test ``name``."""
    test = importlib.import_module(name)
    patch = pytest.MonkeyPatch()
    test.small_blocks(patch)
    count = 0

    def note(image: str) -> None:
        nonlocal count
        with open(log, "a") as file:
            file.write(f"{image}\n")
        count += 1
        if kill.isdigit() and count == int(kill):
            os.kill(os.getpid(), signal.SIGKILL)

    noting(patch, test.STAGE, note)
    if kill and not kill.isdigit():
        patch.setattr(test.STAGE, kill, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    test.STAGE.run(test.CONFIG, Path(data), RunFolder(Path(run)))


if __name__ == "__main__":
    main(*sys.argv[1:])
