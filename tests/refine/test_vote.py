"""Refinement by masks: hand-made maps whose answer can be read off."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from core.config import check
from core.errors import UserError
from refine import vote
from refine.settings import Refine


def box(y0: int, y1: int, x0: int, x1: int, size: tuple[int, int] = (4, 4)) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def no_prompt(points: np.ndarray, signs: np.ndarray) -> np.ndarray:
    raise AssertionError("the prompter must not be asked")


def no_masks() -> list[np.ndarray]:
    raise AssertionError("masks must not be computed")


PREDICTION = np.array(
    [
        [1, 1, 1, 0],
        [1, 2, 1, 0],
        [1, 1, 1, 0],
        [0, 0, 0, 3],
    ]
)


def test_the_majority_label_fills_the_mask_and_the_rest_stays() -> None:
    refined = vote.vote_refine(PREDICTION, [box(0, 3, 0, 3)])
    assert refined.dtype == np.int32
    np.testing.assert_array_equal(refined[:3, :3], 1)
    np.testing.assert_array_equal(refined[3], PREDICTION[3])
    np.testing.assert_array_equal(refined[:, 3], PREDICTION[:, 3])


def test_background_may_win_a_mask() -> None:
    refined = vote.vote_refine(PREDICTION, [box(2, 4, 1, 4)])
    np.testing.assert_array_equal(refined[2:, 1:], 0)


def test_a_nested_mask_brings_back_what_the_larger_one_painted_over() -> None:
    refined = vote.vote_refine(PREDICTION, [box(0, 4, 0, 4), box(1, 2, 1, 2)])
    expected = np.ones((4, 4))
    expected[1, 1] = 2
    np.testing.assert_array_equal(refined, expected)


def test_the_prediction_is_not_changed_and_empty_masks_do_nothing() -> None:
    before = PREDICTION.copy()
    refined = vote.vote_refine(PREDICTION, [np.zeros((4, 4), bool), box(0, 4, 0, 4)])
    np.testing.assert_array_equal(PREDICTION, before)
    np.testing.assert_array_equal(refined, 1)
    np.testing.assert_array_equal(vote.vote_refine(PREDICTION, []), PREDICTION)


def test_foreground_that_the_vote_erases_comes_back() -> None:
    prediction = np.zeros((4, 4), dtype=np.int32)
    prediction[1, 2] = 7
    refined = vote.refine(prediction, lambda: [box(0, 4, 0, 4)], np.zeros((9, 2, 2)), no_prompt)
    assert refined.rule == "prediction"
    np.testing.assert_array_equal(refined.label, prediction)


def test_a_vote_with_foreground_is_kept() -> None:
    refined = vote.refine(PREDICTION, lambda: [box(0, 3, 0, 3)], np.zeros((4, 2, 2)), no_prompt)
    assert refined.rule == "vote"
    np.testing.assert_array_equal(refined.label, vote.vote_refine(PREDICTION, [box(0, 3, 0, 3)]))


def test_an_empty_prediction_prompts_for_the_likeliest_class() -> None:
    """Class 2 has the largest mean logit; its peak is on the right, so x is large and y is not."""
    logits = np.full((4, 4, 8), -5.0)
    logits[0] = 0.0
    logits[2] = -3.0
    logits[2, 1, 7] = -1.0
    logits[2, 3, 0] = -9.0
    asked = []

    def prompter(points: np.ndarray, signs: np.ndarray) -> np.ndarray:
        asked.append((points, signs))
        return box(2, 12, 60, 80, size=(40, 80))

    prediction = np.zeros((40, 80), dtype=np.int32)
    refined = vote.refine(prediction, no_masks, logits, prompter)
    assert refined.rule == "prompt"
    assert refined.label.dtype == np.int32
    np.testing.assert_array_equal(np.unique(refined.label[2:12, 60:80]), [2])
    assert refined.label.sum() == 2 * 10 * 20
    points, signs = asked[0]
    np.testing.assert_array_equal(signs, [1] * 5 + [0] * 5)
    assert 70 <= points[0, 0] < 80 and 10 <= points[0, 1] < 20
    assert points[5, 0] < 10 and points[5, 1] >= 30


def test_points_are_spread_and_ordered() -> None:
    values = np.random.default_rng(3).normal(size=(48, 64)).astype(np.float32)
    points, signs = vote.spread_points(values)
    assert points.shape == (10, 2) and list(signs) == [1] * 5 + [0] * 5
    heights = values[points[:, 1].astype(int), points[:, 0].astype(int)]
    assert heights[0] == values.max() and heights[5] == values.min()
    assert list(heights[:5]) == sorted(heights[:5], reverse=True)
    assert list(heights[5:]) == sorted(heights[5:])
    distances = np.linalg.norm(points[:, None] - points[None], axis=2) + np.eye(10) * 99
    assert distances.min() >= 48 / 8


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 2), (3, 50)])
def test_tiny_and_flat_images_give_distinct_points_inside(size: tuple[int, int]) -> None:
    points, signs = vote.spread_points(np.zeros(size, np.float32))
    assert len(points) == len(signs) >= 1 and signs[0] == 1
    assert len({tuple(point) for point in points}) == len(points)
    assert (points >= 0).all() and (points < [size[1], size[0]]).all()


@given(
    prediction=arrays(np.int32, (5, 6), elements=st.integers(0, 4)),
    masks=st.lists(arrays(np.bool_, (5, 6)), max_size=5),
)
def test_every_pixel_has_the_majority_of_the_last_mask_over_it(
    prediction: np.ndarray, masks: list[np.ndarray]
) -> None:
    refined = vote.vote_refine(prediction, iter(masks))
    for y, x in np.ndindex(prediction.shape):
        covering = [mask for mask in masks if mask[y, x]]
        expected = np.bincount(prediction[covering[-1]]).argmax() if covering else prediction[y, x]
        assert refined[y, x] == expected


def test_a_mask_without_agreement_does_not_vote() -> None:
    halves = box(0, 4, 0, 4)
    prediction = np.repeat([[1], [1], [2], [3]], 4, axis=1)
    np.testing.assert_array_equal(vote.vote_refine(prediction, [halves]), 1)
    kept = vote.vote_refine(prediction, [halves], min_agreement=0.51)
    np.testing.assert_array_equal(kept, prediction)
    np.testing.assert_array_equal(vote.vote_refine(prediction, [halves], min_agreement=0.5), 1)


def test_confidence_counts_probabilities_not_pixels() -> None:
    """Class 1 wins more pixels, by a hair; class 2 wins fewer, by far."""
    logits = np.zeros((3, 4, 4))
    logits[1, :, :3] = 0.1
    logits[2, :, 3] = 9.0
    prediction = logits.argmax(0)
    counted = vote.vote_refine(prediction, [box(0, 4, 0, 4)])
    np.testing.assert_array_equal(counted, 1)
    ballot = vote.confidence_ballot(logits)
    label, mean = ballot(box(0, 4, 0, 4))
    by_hand = np.exp(logits) / np.exp(logits).sum(0)
    assert label == 2
    np.testing.assert_allclose(mean, by_hand[2].mean(), rtol=1e-6)


@given(seed=st.integers(0, 999), height=st.integers(1, 40), width=st.integers(1, 40))
def test_confidence_is_the_mean_of_the_interpolated_softmax(
    seed: int, height: int, width: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(4, 5, 7))
    mask = rng.random((height, width)) < 0.5
    mask[0, 0] = True
    softmax = np.exp(logits) / np.exp(logits).sum(0)
    full = [cv2.resize(channel, (width, height)) for channel in softmax]
    means = np.array([channel[mask].mean() for channel in full])
    label, mean = vote.confidence_ballot(logits)(mask)
    np.testing.assert_allclose(mean, means.max(), rtol=1e-5)
    np.testing.assert_allclose(means[label], means.max(), rtol=1e-5)


def test_a_region_without_a_mask_of_its_own_stays() -> None:
    """The large mask erases both regions; one of them has a mask that nearly is it."""
    prediction = np.zeros((8, 8), np.int32)
    prediction[1:3, 1:3] = 1
    prediction[5:7, 5:7] = 1
    everything, own = box(0, 8, 0, 8, (8, 8)), box(1, 3, 1, 4, (8, 8))
    background = box(0, 8, 0, 8, (8, 8))
    erased = vote.vote_refine(prediction, [everything])
    assert not erased.any()
    kept = vote.vote_refine(prediction, [background, own], keep_regions=0.5)
    np.testing.assert_array_equal(kept[5:7, 5:7], 1)
    np.testing.assert_array_equal(kept[1:3, 1:4], 1)  # by its mask, whose third column is added
    assert kept.sum() == 4 + 6


def test_diagonal_pixels_are_one_region_and_labels_are_not() -> None:
    prediction = np.array([[1, 0, 2], [0, 1, 2], [0, 0, 0]])
    regions = vote.Regions(prediction)
    regions.meet(prediction == 1)
    np.testing.assert_array_equal(regions.unmet(0.9), prediction == 2)
    regions.meet(prediction == 2)
    assert not regions.unmet(1.0).any()


def test_a_prompted_mask_of_the_whole_image_is_refused() -> None:
    prediction = np.zeros((4, 4), np.int32)
    logits = np.zeros((2, 2, 2))
    for share, rule in ((0.5, "prompt"), (0.49, "background")):
        refined = vote.refine(
            prediction,
            no_masks,
            logits,
            lambda points, signs: box(0, 2, 0, 4),
            Refine(max_prompted=share),
        )
        assert refined.rule == rule and refined.label.any() == (rule == "prompt")


def test_a_sequential_vote_reads_what_was_painted() -> None:
    """The first version's rule, for its published labels: no mask brings anything back."""
    settings = Refine(vote="sequential")
    prediction = np.zeros((4, 4), np.int32)
    prediction[:3], prediction[3] = 1, 2
    masks = [box(0, 4, 0, 4), box(3, 4, 0, 4)]
    refined = vote.refine(prediction, lambda: masks, np.zeros((9, 2, 2)), no_prompt, settings)
    np.testing.assert_array_equal(refined.label, 1)
    np.testing.assert_array_equal(vote.vote_refine(prediction, masks), prediction)
    # Nor does the prediction stand where the vote left no foreground.
    prediction[:] = 0
    prediction[1, 2] = 7
    refined = vote.refine(prediction, lambda: masks, np.zeros((9, 2, 2)), no_prompt, settings)
    assert refined.rule == "vote" and not refined.label.any()
    assert prediction[1, 2] == 7
    refined = vote.refine(
        prediction,
        lambda: masks,
        np.zeros((9, 2, 2)),
        no_prompt,
        replace(settings, min_agreement=1),
    )
    np.testing.assert_array_equal(refined.label, prediction)


@pytest.mark.parametrize(
    "settings",
    [
        Refine(vote="loud"),
        Refine(min_agreement=50),
        Refine(keep_regions=-1),
        Refine(max_prompted=9),
    ],
)
def test_settings_that_cannot_work_are_named(settings: Refine) -> None:
    with pytest.raises(UserError, match="refine\\."):
        check(settings, "refine")
