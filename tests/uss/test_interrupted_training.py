"""Training that is killed or stopped at any moment goes on as if nothing had happened."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from core.checkpoints import files as checkpoint
from tests.helpers import training_runs as runs
from tests.helpers.processes import PATIENCE_S

STAGES = ("pretrain", "pixel-attention", "finetune")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return runs.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """A run in which nothing was interrupted; stages are added by the tests that need them."""
    run = tmp_path_factory.mktemp("whole")
    runs.make_labels(run)
    runs.finish(runs.start("pretrain", data, run))
    return run


def _prepared(stage: str, data: Path, whole: Path, run: Path) -> None:
    """``whole`` has ``stage``, and ``run`` has what the stage starts from."""
    if not runs.log_lines(runs.folder_of(whole, stage)):
        runs.finish(runs.start(stage, data, whole))
    assert len(runs.log_lines(runs.folder_of(whole, stage))) == runs.STEPS
    if stage != "pretrain":
        shutil.copytree(runs.folder_of(whole, "pretrain"), runs.folder_of(run, "pretrain"))
        runs.make_labels(run)


def _kill_and_resume(stage: str, data: Path, whole: Path, run: Path, kills: int) -> None:
    """SIGKILL at ``kills`` random moments, spread over the steps, then one run to the end."""
    _prepared(stage, data, whole, run)
    folder, chance = runs.folder_of(run, stage), random.Random(f"{stage} {kills}")
    print(f"killing {stage} in {run}")
    for number in range(kills):
        process = runs.start(stage, data, run)
        runs.wait_for_step(process, folder, 1 + (number + 1) * (runs.STEPS - 1) // (kills + 1))
        time.sleep(chance.uniform(0, 0.5))
        os.killpg(process.pid, signal.SIGKILL) if number % 2 else process.kill()
        process.wait()
        process.stderr.close()
    shown = runs.finish(runs.start(stage, data, run))
    assert "resuming at epoch" in shown or "already finished" in shown, shown
    runs.assert_same_steps(runs.log_lines(folder), runs.log_lines(runs.folder_of(whole, stage)))
    got, wanted = (checkpoint.load_latest(runs.folder_of(root, stage)) for root in (run, whole))
    assert got["step"] == wanted["step"] == runs.STEPS
    for part in ("state_dict", "optimizer"):
        for key, value in wanted[part].items():
            np.testing.assert_allclose(got[part][key], value, rtol=0, atol=1e-6)
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint.pth.tar",
        "config.json",
        "log.jsonl",
        "previous.pth.tar",
    ]


@pytest.mark.parametrize(("stage", "kills"), zip(STAGES, (3, 1, 1)))
def test_killed_training_repeats_no_step_and_changes_none(stage, kills, data, whole, tmp_path):
    _kill_and_resume(stage, data, whole, tmp_path, kills)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_many_moments(stage, data, whole, tmp_path):
    _kill_and_resume(stage, data, whole, tmp_path, kills=21)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_training_says_where_it_goes_on(number, data, whole, tmp_path):
    folder = runs.folder_of(tmp_path, "pretrain")
    process = runs.start("pretrain", data, tmp_path)
    runs.wait_for_step(process, folder, 2)
    # Ctrl-C in a terminal reaches the data workers as well.
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    shown = runs.finish(process, code=130)
    payload = checkpoint.load_latest(folder)
    assert payload is not None
    epoch, step = divmod(payload["step"], 2)
    last = shown.rstrip().splitlines()[-1]
    assert last == (
        f"interrupted: pretrain: the same command goes on at step {step + 1} of epoch "
        f"{epoch + 1} (as saved in {folder})"
    )
    assert "Traceback" not in shown
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    shown = runs.finish(runs.start("pretrain", data, tmp_path))
    assert f"resuming at epoch {epoch + 1}" in shown
    runs.assert_same_steps(
        runs.log_lines(folder), runs.log_lines(runs.folder_of(whole, "pretrain"))
    )


@pytest.mark.slow
def test_ranks_are_saved_restored_and_die_together(data, tmp_path):
    """SIGKILL of one of two ranks ends the run; two ranks resume it, one process may not."""
    launcher = runs.mpirun()
    runs.finish(runs.start("pretrain", data, tmp_path / "whole", launcher=launcher))
    run = tmp_path / "cut"
    folder = runs.folder_of(run, "pretrain")
    process = runs.start("pretrain", data, run, launcher=launcher)
    runs.wait_for_step(process, folder, 5)
    os.kill(_rank_pid(process, 1), signal.SIGKILL)
    begin = time.monotonic()
    _, shown = process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0 and "signal 9" in shown, shown
    assert time.monotonic() - begin < 30
    queue = checkpoint.load_latest(folder)["task"]["queue"]
    assert queue.shape == (2, 8, 8) and np.all(np.linalg.norm(queue, axis=2) > 0.99)
    shown = runs.finish(runs.start("pretrain", data, run), code=2)
    assert "was trained by 2 processes and would not go on as it began with 1" in shown
    runs.finish(runs.start("pretrain", data, run, launcher=launcher))
    runs.assert_same_steps(
        runs.log_lines(folder), runs.log_lines(runs.folder_of(tmp_path / "whole", "pretrain"))
    )


def _rank_pid(launcher: subprocess.Popen, rank: int) -> int:
    """The process of a rank below ``mpirun``."""
    wanted = f"OMPI_COMM_WORLD_RANK={rank}".encode()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher.pid and wanted in (path / "environ").read_bytes().split(b"\0"):
                return int(path.name)
        except (OSError, ValueError):
            continue
    raise AssertionError(f"no rank {rank} below {launcher.pid}")
