"""Gains and losses between two folders of predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.data.imagenet_s import mask_path
from core.data.label_maps import IGNORE, save_label
from tools.evaluate.compare import compare
from tools.evaluate.folder import evaluate
from uss.__main__ import main

KEYS = ("n00/better", "n00/same", "n01/worse", "n01/unjudged")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four images of two classes; clusters are named the other way round."""
    for index, key in enumerate(KEYS):
        path = tmp_path / "data" / "validation" / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10, 8)).save(path)
        truth = np.zeros((8, 10), np.int32)
        truth[2:6, 2:8] = 1 + index // 2
        if key.endswith("unjudged"):
            truth[:] = IGNORE
        save_label(mask_path(tmp_path / "data", "validation", key), truth)
        right, half = np.zeros((2, 8, 10), np.int32)
        right[2:6, 2:8] = half[2:6, 2:5] = 2 - index // 2
        before, after = {
            "better": (half, right),
            "same": (right, right),
            "worse": (right, half),
            "unjudged": (right, half),
        }[key.partition("/")[2]]
        save_label(tmp_path / "before" / f"{key}.png", before)
        save_label(tmp_path / "after" / f"{key}.png", after)
    return tmp_path / "data"


def test_scores_and_gains(data: Path, tmp_path: Path) -> None:
    found = compare(tmp_path / "before", tmp_path / "after", data, "validation", 2)
    assert found.match == {0: 0, 1: 2, 2: 1}
    for name in ("before", "after"):
        scores = evaluate(tmp_path / name, data, "validation", 2, found.match).scores
        assert getattr(found, name).miou == scores.miou
    gains = {each.key: each for each in found.images}
    assert set(gains) == set(KEYS[:3])  # of what is not judged there is no gain
    # Half of 24 pixels is missed, and joins the 56 of the background.
    half = (12 / 24 + 56 / 68) / 2
    assert gains["n00/better"].before == pytest.approx(half) and gains["n00/better"].after > 0.999
    assert gains["n00/same"].gain == 0
    assert gains["n01/worse"].gain == pytest.approx(half - 1)


def test_command_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", data, "--predictions", tmp_path / "after", "-c", 2]
    arguments += ["--compare", tmp_path / "before", "--output", tmp_path / "gains.json"]
    assert main(["evaluate", *map(str, arguments)]) == 0
    printed = capsys.readouterr().out
    assert "mIoU by image: 1 better, 1 worse, 1 the same" in printed
    lines = printed.splitlines()
    assert lines[lines.index("best gains") + 1].split()[0] == "n00/better"
    assert lines[lines.index("worst losses") + 1].split()[0] == "n01/worse"
    row = next(line.split() for line in lines if line.strip().startswith("1 n00"))
    assert (
        float(row[4]) == pytest.approx(float(row[3]) - float(row[2]), abs=0.011)
        and row[4][0] == "+"
    )
    kept = json.loads((tmp_path / "gains.json").read_text())
    assert kept["images"]["n00/same"] == [pytest.approx(1), pytest.approx(1)]
    (tmp_path / "before" / "n00" / "same.png").unlink()
    assert main(["evaluate", *map(str, arguments)]) == 2
    assert "n00/same" in capsys.readouterr().err
    assert main(["evaluate", *map(str, arguments), "--threshold", "0.5"]) == 2
