"""Metrics against the official evaluator's outputs, and by hand on small maps."""

from __future__ import annotations

import math
import pickle

import cv2
import numpy as np
import pytest

from core.data.label_maps import IGNORE
from core.errors import UserError
from core.scoring.metrics import SegmentationMetrics, boundary_mask, count_image

EVALUATORS = ("D_evaluator_C5", "D_evaluator_C6", "D_evaluator_C50")
PERCENT_TOLERANCE = 1e-3


def golden_maps(golden):
    """List of (prediction, level, truth) of a stored evaluator run."""
    maps, start = [], 0
    for height, width in golden["shapes"]:
        part, start = slice(start, start + height * width), start + height * width
        shape = (height, width)
        maps.append(
            (
                golden["pred_flat"][part].reshape(shape).astype(np.int32),
                golden["logit_flat_f32"][part].reshape(shape),
                golden["gt_flat"][part].reshape(shape).astype(np.int32),
            )
        )
    return maps


def golden_match(stored):
    return {0: 0, **{row + 1: int(column) + 1 for row, column in enumerate(stored)}}


def golden_runs(golden):
    return sorted(key[: -len(".mIoU")] for key in golden if key.endswith(".mIoU"))


@pytest.mark.parametrize("name", EVALUATORS)
def test_golden_evaluator_scores(goldens, name):
    golden = goldens(name)
    maps = golden_maps(golden)
    num_classes = len(golden["cooccurrence_pred_gt"])
    for run in golden_runs(golden):
        metrics = SegmentationMetrics(num_classes)
        for prediction, level, truth in maps:
            if run != "nologit":
                prediction = np.where(level < np.float32(golden[f"{run}.th"]), 0, prediction)
            metrics.update(prediction, truth)
        if run == "nologit":
            assert np.array_equal(metrics.cooccurrence, golden["cooccurrence_pred_gt"])
        scores = metrics.compute(golden_match(golden[f"{run}.match_pred0_to_gt0"]))
        got = {
            "Acc": scores.accuracy,
            "mIoU": scores.miou,
            "mBIoU": scores.mbiou,
            "FMeasure": scores.f_measure,
            "IoUs": scores.iou,
            "BIoUs": scores.biou,
            **scores.bins,
            **{f"B{size}": value for size, value in scores.boundary_bins.items()},
        }
        for key, value in got.items():
            if f"{run}.{key}" in golden:
                np.testing.assert_allclose(
                    100 * value,
                    golden[f"{run}.{key}"],
                    atol=PERCENT_TOLERANCE,
                    err_msg=f"{run} {key}",
                )


@pytest.mark.parametrize("name", EVALUATORS)
def test_golden_evaluator_boundaries(goldens, name):
    golden = goldens(name)
    maps = golden_maps(golden)
    keys = [key for key in golden if key.startswith("boundary_gt_")]
    assert keys
    for key in keys:
        truth = maps[int(key.rsplit("_", 1)[1])][2]
        assert np.array_equal(np.where(boundary_mask(truth), truth + 1, 0), golden[key])


def test_boundary_equals_erosion_of_each_label():
    rng = np.random.default_rng(3)
    for height, width in ((1, 1), (3, 40), (41, 37), (150, 90)):
        label = np.kron(rng.integers(0, 4, (height // 7 + 1, width // 7 + 1)), np.ones((7, 7), int))
        label = label[:height, :width]
        distance = max(1, round(0.03 * math.hypot(height, width)))
        expected = np.zeros((height, width), bool)
        for value in np.unique(label):
            mask = cv2.copyMakeBorder((label == value).astype(np.uint8), 1, 1, 1, 1, 0, value=0)
            eroded = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=distance)
            expected |= (mask - eroded)[1:-1, 1:-1] > 0
        assert np.array_equal(boundary_mask(label), expected)


def test_iou_counts_background_and_absent_classes():
    truth = np.array([[0, 0, 1, 1]] * 4)
    prediction = np.array([[0, 1, 1, 1]] * 4)
    metrics = SegmentationMetrics(2, boundary=False)
    metrics.update(prediction, truth)
    scores = metrics.compute()
    np.testing.assert_allclose(scores.iou, [0.5, 2 / 3, 0], atol=1e-9)
    assert scores.miou == pytest.approx((0.5 + 2 / 3) / 3)
    assert scores.mbiou is None and scores.boundary_bins is None


def test_ignored_pixels_count_nowhere():
    truth = np.array([[1, 1, IGNORE, IGNORE]] * 4)
    metrics = SegmentationMetrics(3)
    metrics.update(np.array([[1, 1, 2, 3]] * 4), truth)
    scores = metrics.compute()
    assert scores.iou[1] == pytest.approx(1) and metrics.confusion.sum() == 8
    assert metrics.cooccurrence[1:].sum() == 0
    assert scores.accuracy == 1 and scores.f_measure == pytest.approx(1)
    assert math.isnan(scores.bins["S"]) and scores.bins["L"] == pytest.approx(1)


def test_image_of_ignored_pixels_only_is_not_an_image():
    metrics = SegmentationMetrics(2)
    metrics.update(np.ones((4, 4), int), np.full((4, 4), IGNORE))
    assert metrics.compute().images == 0


def test_match_is_applied_to_counts_as_to_pixels():
    rng = np.random.default_rng(5)
    match = {0: 0, 1: 3, 2: 1, 3: 2}
    direct, renamed = SegmentationMetrics(3), SegmentationMetrics(3)
    for _ in range(5):
        truth = np.kron(rng.integers(0, 4, (5, 6)), np.ones((6, 5), int))
        truth[0, :4] = IGNORE
        prediction = np.kron(rng.integers(0, 4, (10, 6)), np.ones((3, 5), int))
        direct.update(prediction, truth)
        renamed.update(np.array([0, 3, 1, 2])[prediction], truth)
    for left, right in zip(
        direct.compute(match).to_dict().values(), renamed.compute().to_dict().values()
    ):
        assert left == right


def test_counts_travel_and_reset_forgets():
    truth, prediction = np.array([[0, 1], [1, 2]]), np.array([[0, 1], [2, 2]])
    direct, travelled = SegmentationMetrics(2), SegmentationMetrics(2)
    direct.update(prediction, truth)
    travelled.add(count_image(prediction, truth, 2))
    assert direct.compute().to_dict() == travelled.compute().to_dict()
    direct.reset()
    assert direct.compute().images == 0 and direct.confusion.sum() == 0


@pytest.mark.parametrize(
    ("prediction", "truth", "text"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), "2x3"),
        (np.full((2, 2), 3), np.zeros((2, 2), int), "id 3"),
        (np.full((2, 2), IGNORE), np.zeros((2, 2), int), "id 1000"),
        (np.zeros((2, 2), int), np.full((2, 2), 7), "ground truth holds id 7"),
    ],
)
def test_maps_that_do_not_fit(prediction, truth, text):
    with pytest.raises(UserError, match=text):
        SegmentationMetrics(2).update(prediction, truth)


def test_match_that_is_no_bijection_is_a_bug():
    with pytest.raises(ValueError, match="bijection"):
        SegmentationMetrics(2).compute({0: 0, 1: 1, 2: 1})


def test_what_is_held_does_not_grow_with_the_images():
    rng = np.random.default_rng(6)
    metrics = SegmentationMetrics(4)
    sizes = []
    for count in (50, 500):
        for _ in range(count):
            metrics.update(*np.kron(rng.integers(0, 5, (2, 4, 5)), np.ones((1, 3, 2), int)))
        sizes.append(len(pickle.dumps(metrics)))
    assert sizes[1] < 1.5 * sizes[0]
    assert metrics.compute().images == 550


def test_accuracy_of_equally_frequent_classes_takes_the_smallest_class():
    metrics = SegmentationMetrics(3, boundary=False)
    metrics.update(np.array([[1, 2]] * 4), np.array([[2, 2]] * 4))
    assert metrics.compute().accuracy == 0  # class 1 is the smaller of 1 and 2
    assert metrics.compute({0: 0, 1: 3, 2: 2, 3: 1}).accuracy == 1
