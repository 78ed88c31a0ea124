"""Real processes that train on a few small images, to be stopped and started again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.data.label_maps import save_label
from tests.conftest import ROOT
from tests.helpers.processes import PATIENCE_S
from uss.paths import RunFolder

CLASSES, IMAGES, SIZE_HW = ("n01", "n02"), 4, (70, 90)
SECONDS = 2 * PATIENCE_S  # no process may take longer, cold kernels included
SETTINGS = {
    "num_classes": 2,
    "heads.hidden_mlp": 16,
    "heads.feat_dim": 8,
    "heads.prototypes": 6,
    "pretrain.epochs": 5,
    "pretrain.batch_size": 4,
    "pretrain.crop_sizes": "64,32",
    "pretrain.crop_counts": "2,1",
    "pretrain.queue_length": 8,
    "pretrain.queue_start_epoch": 1,
    "pretrain.freeze_prototypes_steps": 3,
    "pixel_attention.epochs": 5,
    "pixel_attention.batch_size": 4,
    "pixel_attention.crop_size": 64,
    "pixel_attention.queue_length": 8,
    "finetune.epochs": 5,
    "finetune.batch_size": 4,
    "finetune.crop_size": 64,
    "finetune.head_width": 16,
}
STEPS = 10  # of each stage


def make_data(root: Path) -> Path:
    """Eight images of two colours in two class folders."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        for index in range(IMAGES):
            rgb = rng.integers(0, 120, (*SIZE_HW, 3)).astype(np.uint8)
            rgb[20:60, 20:60, number] = 250
            path = root / "train" / name / f"{name}_{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rgb).save(path)
    return root


def make_labels(run: Path) -> None:
    """Pseudo labels of :func:`make_data`."""
    for number, name in enumerate(CLASSES):
        for index in range(IMAGES):
            ids = np.zeros(SIZE_HW, np.int32)
            ids[20:60, 20:60] = number + 1
            save_label(RunFolder(run).pseudo_labels("train") / name / f"{name}_{index}.png", ids)


def folder_of(run: Path, stage: str) -> Path:
    """Checkpoints and log of a stage."""
    folders = RunFolder(run)
    if stage == "finetune":
        return folders.segmenter
    return (
        folders.pretrain("resnet18") if stage == "pretrain" else folders.pixel_attention("resnet18")
    )


def start(
    stage: str, data: Path, run: Path, *arguments: str, launcher: tuple[str, ...] = ()
) -> subprocess.Popen:
    """A stage in a process group of its own, logging and saving every step."""
    overrides = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "uss", stage, "--preset", "demo", "--arch", "resnet18"]
    command += ["--data", str(data), "--run", str(run), "--log-steps", "1"]
    command += ["--checkpoint-minutes", "0", "--workers", "1", *overrides, *arguments]
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return subprocess.Popen(
        [*launcher, *command],
        cwd=ROOT,
        env={**os.environ, **root},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def mpirun() -> tuple[str, ...]:
    """The launcher of two ranks; skips where there is none."""
    if shutil.which("mpirun") is None or shutil.which("mpicc") is None:
        pytest.skip("needs mpirun and mpicc (Debian: apt-get install openmpi-bin libopenmpi-dev)")
    return "mpirun", "-np", "2", "--oversubscribe"


def finish(process: subprocess.Popen, code: int = 0) -> str:
    """Wait for a process that ends with ``code``; returns what it said."""
    try:
        _, shown = process.communicate(timeout=SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, shown
    return shown


def log_lines(folder: Path) -> list[dict]:
    """The whole lines of a log, without what depends on the clock."""
    path = folder / "log.jsonl"
    text = path.read_text() if path.is_file() else ""
    lines = [json.loads(line) for line in text.split("\n")[:-1]]
    measured = ("time", "images_per_second", "data_wait", "peak_memory_mib")
    return [{key: line[key] for key in line if key not in measured} for line in lines]


def wait_for_step(process: subprocess.Popen, folder: Path, step: int) -> None:
    """Return once the log has a line of ``step`` or the process has ended."""
    deadline = time.monotonic() + SECONDS
    while process.poll() is None and not any(line["step"] >= step for line in log_lines(folder)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def assert_same_steps(got: list[dict], wanted: list[dict]) -> None:
    """Each step once, each number as in the other run to 1e-6."""
    assert [line["step"] for line in got] == [line["step"] for line in wanted]
    for mine, other in zip(got, wanted):
        assert mine.keys() == other.keys()
        for key, value in mine.items():
            assert value == pytest.approx(other[key], rel=0, abs=1e-6), (mine["step"], key)
