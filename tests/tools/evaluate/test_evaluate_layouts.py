"""Evaluation on data sets of every layout: the same pictures give the same scores."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.data.layout import open_layout
from core.errors import UserError
from tests.conftest import ROOT
from tests.helpers import voc_sets
from tests.helpers.voc_sets import CLASSES, COCO_KEYS, KEYS
from tools.evaluate import command
from tools.evaluate.compare import compare
from tools.evaluate.folder import evaluate, threshold_curve
from uss.pipeline import PIPELINE

IDENTITY = {index: index for index in range(CLASSES + 1)}


def made(folder: Path) -> dict[str, tuple[Path, str, Path]]:
    """Data set, split and predictions in each layout."""
    imagenet_s = voc_sets.write_imagenet_s(folder / "imagenet_s")
    found = {item.key[-11:]: item.key for item in open_layout(imagenet_s).images("validation")}
    return {
        "voc": (
            voc_sets.write_voc(folder / "voc"),
            "val",
            voc_sets.write_predictions(folder / "p_voc", KEYS),
        ),
        "coco": (
            voc_sets.write_coco(folder / "coco"),
            "val2014",
            voc_sets.write_predictions(folder / "p_coco", COCO_KEYS),
        ),
        "imagenet_s": (
            imagenet_s,
            "validation",
            voc_sets.write_predictions(folder / "p_in", [found[key] for key in KEYS]),
        ),
    }


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, tuple[Path, str, Path]]:
    return made(tmp_path)


@pytest.mark.parametrize("name", ["voc", "coco", "imagenet_s"])
def test_scores_are_those_of_plain_numpy(sets, name: str) -> None:
    data, split, predictions = sets[name]
    result = evaluate(predictions, data, split, CLASSES, IDENTITY)
    assert result.scores.iou == pytest.approx(voc_sets.iou_by_hand(CLASSES), abs=1e-9)
    assert result.scores.images == 4


def test_the_same_pictures_give_the_same_scores_in_every_layout(sets) -> None:
    texts = {
        json.dumps(evaluate(folder, data, split, CLASSES, match).to_dict())
        for data, split, folder in sets.values()
        for match in (IDENTITY,)
    }
    assert len(texts) == 1


def test_curve_and_comparison_on_voc(sets) -> None:
    data, split, predictions = sets["voc"]
    for key in KEYS:
        level = np.linspace(0, 1, 41 * 53, dtype=np.float32).reshape(41, 53)
        np.save(predictions / f"{key}.npy", level)
    points = threshold_curve(predictions, data, split, CLASSES, [0.0, 0.5], match=IDENTITY)
    assert [point.match for point in points] == [IDENTITY] * 2
    cut = evaluate(predictions, data, split, CLASSES, IDENTITY, threshold=0.5)
    assert points[1].miou == pytest.approx(cut.scores.miou)
    whole = evaluate(predictions, data, split, CLASSES, IDENTITY)
    assert points[0].miou == pytest.approx(whole.scores.miou)
    found = compare(predictions, predictions, data, split, CLASSES, IDENTITY)
    assert found.after.miou == whole.scores.miou
    assert [each.key for each in found.images] == list(KEYS)
    assert all(each.gain == 0 for each in found.images)


def test_processes_change_no_result(sets) -> None:
    data, split, predictions = sets["coco"]
    alone, shared = (
        evaluate(predictions, data, split, CLASSES, workers=count).to_dict() for count in (1, 2)
    )
    assert json.dumps(alone) == json.dumps(shared)


def test_a_split_without_all_its_masks(sets) -> None:
    data, split, predictions = sets["voc"]
    (data / "SegmentationClass" / f"{KEYS[2]}.png").unlink()
    with pytest.raises(UserError, match=f"1 of 4 images have no mask .*{KEYS[2]}"):
        evaluate(predictions, data, split, CLASSES)


def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "uss", "evaluate", *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["voc", "coco", "imagenet_s"])
def test_the_command_finds_split_and_classes(sets, tmp_path: Path, name: str) -> None:
    data, _, predictions = sets[name]
    output = tmp_path / "scores.json"
    common = ["--data", data, "--predictions", predictions, "--output", output]
    done = process(*common, "--ids", "classes", "--classes")
    assert done.returncode == 0, done.stderr
    assert "three" in done.stdout and "given" in done.stdout
    scores = json.loads(output.read_text())
    assert scores["miou"] == pytest.approx(float(voc_sets.iou_by_hand(CLASSES).mean()))
    assert scores["match"] == {str(index): index for index in IDENTITY}
    assert scores["matched_here"] is False
    done = process(*common, "--split", "nowhere")
    assert done.returncode == 2 and "nowhere" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def turned(folder: Path) -> None:
    """Make class ids cluster ids: 1 -> 2 -> 3 -> 1."""
    from core.data.label_maps import load_label, save_label

    for path in folder.glob("*.png"):
        ids = load_label(path)
        save_label(path, np.where(ids > 0, ids % CLASSES + 1, 0))


def test_the_pipeline_says_whether_ids_are_classes(
    sets, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, _, predictions = sets["voc"]
    turned(predictions)
    output = tmp_path / "scores.json"
    common = ["--data", str(data), "--predictions", str(predictions), "--output", str(output)]

    def miou(*arguments: str, pipeline=PIPELINE) -> float:
        assert command.main([*common, *arguments], pipeline) == 0
        return json.loads(output.read_text())["miou"]

    expected = float(voc_sets.iou_by_hand(CLASSES).mean())
    classes = replace(PIPELINE, predicts_clusters=False)
    assert PIPELINE.predicts_clusters
    assert miou() == pytest.approx(expected)
    assert miou("--mode", "val") == pytest.approx(expected)
    assert miou(pipeline=classes) < expected / 2
    assert miou("--ids", "clusters", pipeline=classes) == pytest.approx(expected)
    assert miou("--ids", "classes") < expected / 2
    capsys.readouterr()


def test_real_photographs(voc_mini: Path, coco_mini: Path, tmp_path: Path) -> None:
    """The truth, taken for a prediction, is right wherever it counts."""
    from core.data.label_maps import IGNORE, save_label

    for data, split in ((voc_mini, "val"), (coco_mini, "val2014")):
        layout = open_layout(data)
        items = layout.images(split)[:8]
        shown: set[int] = set()
        for item in items:
            ids = layout.truth(split, item.key)
            shown |= set(np.unique(ids).tolist()) - {IGNORE}
            save_label(tmp_path / split / f"{item.key}.png", np.where(ids == IGNORE, 0, ids))
        count = len(layout.class_names())
        match = {index: index for index in range(count + 1)}
        found = evaluate(tmp_path / split, data, split, count, match, items=items)
        assert set(np.flatnonzero(found.scores.iou > 0.999999).tolist()) == shown
