"""The report of a run on a data set in VOC form."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.helpers import voc_sets
from tests.helpers.report_runs import SmallRun, write_training
from tests.helpers.voc_sets import CLASSES, KEYS
from tools.evaluate.folder import evaluate
from tools.report.collect import collect
from tools.report.run_files import Request, find
from uss.paths import RunFolder
from uss.pipeline import PIPELINE


@pytest.fixture
def run(tmp_path: Path) -> SmallRun:
    """A run whose segmenter has labelled ``val``."""
    root = tmp_path / "run"
    run = SmallRun(root, voc_sets.write_voc(root / "data"), root / "result")
    write_training(RunFolder(root))
    voc_sets.write_predictions(RunFolder(root).predictions("val"), KEYS)
    return run


def test_numbers_names_and_truth(run: SmallRun) -> None:
    sources = find(Request(run.root), PIPELINE)
    assert sources.split == "val" and sources.has_truth and sources.layout is not None
    content = collect(Request(run.root), PIPELINE, limit=4, workers=1)
    by_hand = voc_sets.iou_by_hand(CLASSES)
    scores = content.scores["after"]
    assert scores.iou == pytest.approx(by_hand)
    folder = RunFolder(run.root).predictions("val")
    assert scores.miou == evaluate(folder, run.data, "val", CLASSES).scores.miou
    assert [row.name for row in content.classes] == ["background", "one", "two", "three"]
    assert [row.after for row in content.classes] == pytest.approx(by_hand)
    assert [picture.key for picture in content.gallery] == list(KEYS)
    assert all("truth" in picture.uris and not picture.problem for picture in content.gallery)
    assert not content.failed


def test_without_masks_there_are_no_scores(run: SmallRun) -> None:
    (run.data / "SegmentationClass" / f"{KEYS[0]}.png").unlink()
    content = collect(Request(run.root), PIPELINE, limit=4, workers=1)
    assert not content.scores and len(content.gallery) == 4


def test_the_command(run: SmallRun, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    words = ["report", run.root, "--output", page, "--workers", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "uss", *map(str, words)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert "three" in text and KEYS[0] in text
