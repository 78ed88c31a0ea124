"""Calls of ``test.py`` as its users make them, without SAM and at a small size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

_SMALL = ["--masks", "superpixels", "--set", "predict.resize=64"]


def command(*arguments: object) -> list[str]:
    """The command line with these arguments."""
    return [sys.executable, str(ROOT / "test.py"), *map(str, arguments), *_SMALL]


def call(cwd: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """``test.py`` with these arguments, run in ``cwd`` to its end."""
    return subprocess.run(
        command(*arguments), cwd=cwd, capture_output=True, text=True, timeout=600, check=False
    )


def on_test_split(checkpoint: Path) -> list[object]:
    """Arguments for the test split of the folder ``data``, segmented by ``checkpoint``."""
    return ["--data_path", "data", "--mode", "test", "--pretrained", checkpoint]
