"""Two MPI processes compute what one does with the same global batch, and end together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.helpers import training_runs as runs

SCRIPT = ROOT / "tests" / "helpers" / "rank_training.py"
STAGES = ("pretrain", "pixel_attention", "finetune")
STEPS = 8
# A batch norm behind them takes them out again: their gradients are rounding, which LARC scales up.
NOISE = ("fbg.atten.0.bias", "fbg.atten.3.bias")


def _run(launcher: tuple[str, ...], *arguments: Path) -> None:
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run(
        [*launcher, sys.executable, str(SCRIPT), *map(str, arguments)],
        env={**os.environ, **root, "PYTHONPATH": str(runs.ROOT)},
        capture_output=True,
        text=True,
        timeout=2 * runs.SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[Path, Path]:
    """Run folders of one process and of two ranks."""
    launcher = runs.mpirun()
    folder = tmp_path_factory.mktemp("ranks")
    data = runs.make_data(folder / "data")
    for name in ("one", "two"):
        runs.make_labels(folder / name)
    _run((), data, folder / "one")
    _run(launcher, data, folder / "two", folder / "one")
    return folder / "one", folder / "two"


def _arrays(run: Path, stage: str, rank: int = 0) -> dict[str, np.ndarray]:
    with np.load(run / f"{stage}.{rank}.npz") as file:
        return {key: file[key] for key in file.files}


def _distance(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> float:
    """Of all arrays together, relative to their length: single small ones are all noise."""
    difference = sum(float(((got[key] - value) ** 2).sum()) for key, value in wanted.items())
    return float(np.sqrt(difference / sum(float((v**2).sum()) for v in wanted.values())))


def _named(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {
        key: value
        for key, value in arrays.items()
        if key.startswith(prefix) and not key.endswith(NOISE)
    }


def _moved(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [key[6:] for key in _named(arrays, "start/") if ".running_" not in key]
    return {name: arrays[name] - arrays[f"start/{name}"] for name in names}


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_and_weights_are_those_of_one_process(both, stage):
    one, two = (_arrays(run, stage) for run in both)
    assert _distance(_named(two, "first/"), _named(one, "first/")) < 1e-3
    moved, wanted = _moved(two), _moved(one)
    learns = "prototypes.weight" if stage == "pixel_attention" else "conv1.weight"
    assert np.linalg.norm(wanted[learns]) > 0
    assert _distance(moved, wanted) < 5e-3
    if stage == "pretrain":
        key = "prototypes.weight"
        assert _distance({key: moved[key]}, {key: wanted[key]}) < 1e-4


@pytest.mark.parametrize("stage", STAGES)
def test_losses_are_those_of_one_process(both, stage):
    one, two = (runs.log_lines(runs.folder_of(run, stage)) for run in both)
    assert [line["step"] for line in one] == [line["step"] for line in two]
    assert len(one) == STEPS
    for name in one[0]:
        np.testing.assert_allclose(
            [line[name] for line in two], [line[name] for line in one], rtol=0, atol=1e-3
        )


@pytest.mark.parametrize("stage", STAGES)
def test_ranks_hold_the_same_weights_to_the_last_bit(both, stage):
    first, second = (_arrays(both[1], stage, rank) for rank in (0, 1))
    for key in first:
        if not key.startswith("start/"):
            np.testing.assert_array_equal(first[key], second[key], err_msg=key)
