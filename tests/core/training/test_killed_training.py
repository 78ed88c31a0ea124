"""A training of each kind, killed in the middle of an epoch, goes on with the same losses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from core.checkpoints import files as checkpoint
from tests.conftest import ROOT
from tests.helpers import training_runs as runs
from tests.helpers.optimiser_training import EPOCHS, KINDS, STEPS

PROGRAM = ROOT / "tests" / "helpers" / "optimiser_training.py"
KILLED_AFTER = STEPS + 2  # steps: the second epoch is at its third


def _start(folder: Path, pause: float, *kinds: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(folder), str(pause), *kinds],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The runs of all kinds, uninterrupted, in one process."""
    folder = tmp_path_factory.mktemp("whole")
    runs.finish(_start(folder, 0.0, *KINDS))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_repeats_the_losses_of_a_whole_one(kind, whole, tmp_path):
    folder = tmp_path / kind
    process = _start(tmp_path, 0.25, kind)
    runs.wait_for_step(process, folder, KILLED_AFTER)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    step = checkpoint.load_latest(folder)["step"]
    assert STEPS < step < 2 * STEPS
    shown = runs.finish(_start(tmp_path, 0.0, kind))
    assert f"resuming at epoch 2 of {EPOCHS}, step {step % STEPS + 1}:" in shown
    wanted = runs.log_lines(whole / kind)
    assert len(wanted) == EPOCHS * STEPS
    runs.assert_same_steps(runs.log_lines(folder), wanted)


def test_the_kinds_differ(whole):
    """What two kinds have in common would hide that one of them does nothing."""
    losses = {kind: runs.log_lines(whole / kind)[-1]["loss"] for kind in KINDS}
    assert losses.pop("turns") == losses["momentum"]  # the second network does not touch the first
    assert len(set(losses.values())) == len(losses)


def test_two_optimisers_are_recorded_by_name(whole):
    states = checkpoint.load_latest(whole / "turns")["optimizer"]
    assert states.keys() == {"first", "second"}
    assert np.abs(states["second"]["exp_avg/0.weight"]).max() > 0
    assert states["second"]["step/0.weight"].tolist() == [EPOCHS * STEPS]


def test_a_single_sgd_is_recorded_as_ever(whole):
    """By the names of its parameters, as in checkpoints of before there were other optimisers."""
    payload = checkpoint.load_latest(whole / "larc")
    assert list(payload["optimizer"]) == ["0.weight", "0.bias", "2.weight", "2.bias"]
