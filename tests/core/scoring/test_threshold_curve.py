"""The one-pass curve equals thresholding, rematching and scoring at each threshold."""

from __future__ import annotations

import numpy as np
import pytest

from core.data.label_maps import IGNORE
from core.errors import UserError
from core.scoring.matching import match_clusters
from core.scoring.metrics import SegmentationMetrics
from core.scoring.threshold_curve import ThresholdCurve, hundredths
from tools.evaluate.table import best_point


def stored_curve(golden, thresholds):
    curve = ThresholdCurve(len(golden["cooccurrence_pred_gt"]), thresholds)
    start = 0
    for shape in golden["shapes"]:
        part, start = slice(start, start + shape.prod()), start + shape.prod()
        curve.update(
            golden["pred_flat"][part].reshape(shape).astype(np.int32),
            golden["logit_flat_f32"][part].reshape(shape),
            golden["gt_flat"][part].reshape(shape).astype(np.int32),
        )
    return curve


@pytest.mark.parametrize("name", ["D_evaluator_C5", "D_evaluator_C6", "D_evaluator_C50"])
def test_golden_evaluator_threshold_curve(goldens, name):
    golden = goldens(name)
    table = golden["curve_table"]
    column = list(golden["curve_columns"]).index("mIoU")
    percents = golden["thresholds_percent"]
    curve = stored_curve(golden, [percent / 100 for percent in percents])
    for point, row, percent, unique in zip(
        curve.points(), table, percents, golden["curve_match_unique"]
    ):
        assert point.threshold == percent / 100
        if unique:
            assert point.miou * 100 == pytest.approx(row[column], abs=1e-3)
            stored = golden[f"logit_t{percent}.match_pred0_to_gt0"]
            assert [point.match[row + 1] - 1 for row in range(len(stored))] == list(stored)


def test_golden_evaluator_best_threshold(goldens):
    golden = goldens("D_evaluator_C5")
    run = next(key[: -len(".th")] for key in golden if key.startswith("curve_") and ".th" in key)
    first, last = (int(word) for word in run.split("_")[1:])
    best = best_point(stored_curve(golden, hundredths(first, last)).points())
    assert best.threshold == pytest.approx(float(golden[f"{run}.th"]))
    assert best.miou * 100 == pytest.approx(float(golden[f"{run}.mIoU"]), abs=1e-3)


def test_curve_equals_one_evaluation_a_threshold():
    rng = np.random.default_rng(11)
    thresholds = [0.0, 0.3, 0.7, 0.9]
    images = []
    for _ in range(6):
        truth = np.kron(rng.integers(0, 5, (4, 4)), np.ones((5, 6), int))
        truth[:2, :3] = IGNORE
        prediction = np.where(rng.random(truth.shape) < 0.8, (truth % 5 + 1) % 5, 3)
        # Levels exactly on a threshold are kept: only smaller ones become background.
        level = rng.choice([0.1, 0.3, 0.5, 0.7, 0.95], truth.shape).astype(np.float32)
        images.append((prediction, level, truth))
    curve = ThresholdCurve(4, thresholds)
    for image in images:
        curve.update(*image)
    for point in curve.points():
        metrics = SegmentationMetrics(4, boundary=False)
        for prediction, level, truth in images:
            metrics.update(np.where(level < point.threshold, 0, prediction), truth)
        assert point.match == match_clusters(metrics.cooccurrence)
        assert point.miou == pytest.approx(metrics.compute(point.match).miou, abs=1e-12)


def test_hundredths_include_both_ends():
    assert hundredths(0, 3) == [0.0, 0.01, 0.02, 0.03]


def test_levels_that_do_not_fit():
    curve = ThresholdCurve(2, [0.5])
    label = np.ones((2, 2), int)
    with pytest.raises(UserError, match="same run"):
        curve.update(label, np.ones((2, 3), np.float32), label)
    with pytest.raises(UserError, match="NaN"):
        curve.update(label, np.full((2, 2), np.nan, np.float32), label)
    with pytest.raises(UserError, match="increase"):
        ThresholdCurve(2, [0.5, 0.4])
