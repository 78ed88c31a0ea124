"""The first stage of the second pipeline: trained, killed, continued, and seen by every tool."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.pipeline import origin
from core.schema import SCHEMA
from core.synthetic.voc import make_dataset
from tests.conftest import ROOT
from tests.helpers.processes import PATIENCE_S
from wsss.classifier import labelled
from wsss.presets import PRESET_NAMES, preset

SETTINGS = {
    "classifier.epochs": 3,
    "classifier.batch_size": 4,
    "classifier.crop_size": 64,
    "classifier.base_lr": 0.01,
}
STEPS = 9  # of 12 images


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("voc") / "data", train=12, val=4)


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "wsss", *map(str, arguments)]


def training(data: Path, run: Path) -> list[str]:
    flags = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    places = ["--preset", "demo", "--data", data, "--run", run, "--workers", 0]
    return command("classifier", *places, *flags, "--checkpoint-minutes", 0, "--log-steps", 1)


def environment() -> dict[str, str]:
    return {**os.environ, "USS_DEVICE": "cpu"}


def called(words: list[str], code: int = 0) -> str:
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == code, done.stderr[-2000:]
    return done.stdout + done.stderr


def losses(run: Path) -> list[float]:
    lines = (run / "classifier" / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has interrupted."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    called(training(data, run))
    return run


def test_a_killed_run_repeats_the_losses(data: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    log = run / "classifier" / "log.jsonl"
    with subprocess.Popen(
        training(data, run), cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + PATIENCE_S
        # In the second epoch, behind a checkpoint within it.
        while not log.is_file() or len(log.read_text().splitlines()) < 5:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert len(losses(run)) < STEPS
    assert "resuming at epoch" in called(training(data, run))
    assert losses(run) == pytest.approx(losses(whole), abs=1e-6)
    assert len(losses(run)) == STEPS
    assert "already finished" in called(training(data, run))


def test_its_weights_are_known_to_have_learnt_from_labels(whole: Path) -> None:
    (link,) = origin.chain_of(whole / "classifier" / "checkpoint.pth.tar")
    assert (link.stage, link.supervision) == ("classifier", origin.LABELS)
    assert link.learnt_from.startswith("12 images of ")


def test_every_tool_sees_the_run(data: Path, whole: Path, tmp_path: Path) -> None:
    assert json.loads((whole / "run.json").read_text()) == {"pipeline": "wsss", "schema": SCHEMA}
    for door in ("wsss", "uss"):  # the folder says whose it is
        words = [sys.executable, "-m", door, "watch", str(whole), "--json", "--data", str(data)]
        (stage,) = json.loads(called(words))
        assert (stage["name"], stage["state"]) == ("classifier", "finished")
        assert (stage["done"], stage["total"]) == (STEPS, STEPS)
        page = tmp_path / f"{door}.html"
        words = [sys.executable, "-m", door, "report", str(whole), "--output", str(page)]
        called([*words, "--data", str(data)])
        assert "Step 1: classifier" in page.read_text()
    assert "no problems" in called(command("data", "check", data))
    words = command("doctor", "--json", "--preset", "demo", "--data", data, "--run", whole)
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True)
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["data train"]["found"] == "12 images, 5 classes, each with a mask"
    assert checks["data val"]["state"] == "ok"


def test_other_settings_are_not_continued(data: Path, whole: Path) -> None:
    words = [*training(data, whole), "--set", "classifier.trunk_rate=0.5"]
    assert "classifier.trunk_rate was 1.0, is 0.5" in called(words, code=2)
    assert "classifier.epochs must be at least 1" in called(
        [*training(data, whole), "--set", "classifier.epochs=0"], code=2
    )


def test_bad_data_is_one_line(data: Path, tmp_path: Path) -> None:
    config = preset("demo")
    items, labels = labelled(config, data)
    assert len(items) == 12 and set(labels) == {item.key for item in items}
    assert all(set(ids) <= {1, 2, 3, 4, 5} and ids for ids in labels.values())
    with pytest.raises(UserError, match="5 classes, but num_classes is 20"):
        labelled(preset("voc12_resnet50"), data)
    plain = tmp_path / "plain" / "train" / "n1"
    plain.mkdir(parents=True)
    (plain / "a.JPEG").touch()
    with pytest.raises(UserError, match="no image labels"):
        labelled(config, tmp_path / "plain")


def test_help_shows_the_settings_and_their_rules() -> None:
    text = called(command("classifier", "--help"))
    assert "classifier.epochs=15  passes over the training images (at least 1)" in text
    assert "classifier" in called(command("--help"))
    assert {preset(name).preset for name in PRESET_NAMES} == set(PRESET_NAMES)
