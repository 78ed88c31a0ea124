"""The five commands as a user meets them: from any folder, and with earlier products missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.helpers.processes import PATIENCE_S, one_line_error


def call(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the test's interpreter as PYTHON and return what it printed."""
    env = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=PATIENCE_S
    )


@pytest.fixture
def tiny_data(tmp_path: Path) -> Path:
    """Six grey images of two classes in the ImageNet-S layout."""
    for index in range(6):
        folder = tmp_path / "data" / "train" / f"n0000000{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.full((40, 50, 3), 40 * index, np.uint8)
        Image.fromarray(pixels).save(folder / f"image{index}.JPEG")
    return tmp_path / "data"


STEPS = [f"train_{step}.sh" for step in (1, 2, 3, 4)]
PASS = [f"scripts/pass{classes}.sh" for classes in (50, 300, 919)]


@pytest.mark.parametrize("script", [*STEPS, *PASS])
def test_missing_data_folder_is_named(script: str, tmp_path: Path) -> None:
    result = call(["bash", str(ROOT / script)], tmp_path, DATA="nowhere", RUN=str(tmp_path / "run"))
    assert str(tmp_path / "nowhere") in one_line_error(result)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("script", "missing", "maker"),
    [
        ("train_3.sh", "resnet18/pixel_attention/checkpoint.pth.tar", "bash train_2.sh"),
        ("train_4.sh", "pseudo_labels/train", "bash train_3.sh"),
    ],
)
def test_missing_product_names_file_and_command(
    script: str, missing: str, maker: str, tiny_data: Path, tmp_path: Path
) -> None:
    result = call(["bash", str(ROOT / script)], tmp_path, DATA="data", RUN="run", PRESET="demo")
    line = one_line_error(result)
    assert str(tmp_path / "run" / missing) in line
    assert maker in line


def test_arch_chooses_the_labeller(tiny_data: Path, tmp_path: Path) -> None:
    result = call(
        ["bash", str(ROOT / "train_3.sh")],
        tmp_path,
        DATA="data",
        RUN="run",
        PRESET="demo",
        ARCH="resnet50",
    )
    assert "bash train_1.sh" in one_line_error(result)


def test_unknown_setting_stops_before_any_work(tiny_data: Path, tmp_path: Path) -> None:
    result = call(
        ["bash", str(ROOT / "train_1.sh"), "--set", "pretrain.epoch=3"],
        tmp_path,
        DATA="data",
        RUN="run",
        PRESET="demo",
    )
    assert "unknown setting 'pretrain.epoch'" in one_line_error(result)
    assert not (tmp_path / "run").exists()


def test_unknown_command_is_one_line(tmp_path: Path) -> None:
    result = call([sys.executable, "-m", "uss", "pretrian"], ROOT)
    assert "pretrian" in one_line_error(result)


def test_help_lists_every_command() -> None:
    result = call([sys.executable, "-m", "uss", "--help"], ROOT)
    assert result.returncode == 0
    for command in ("pretrain", "pixel-attention", "cluster", "pseudo-labels", "finetune"):
        assert command in result.stdout
