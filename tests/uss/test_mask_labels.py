"""Means over masks from a small grid, against hand-made cases and a computation at full size."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from uss.mask_labels import LevelledLabel, label_from_masks, mask_weights, resize_matrix


def random_masks(rng: np.random.Generator, size: tuple[int, int], count: int) -> list[np.ndarray]:
    masks = []
    for _ in range(count):
        y, x = rng.integers(0, size[0]), rng.integers(0, size[1])
        height, width = rng.integers(1, size[0] + 1), rng.integers(1, size[1] + 1)
        mask = np.zeros(size, dtype=bool)
        mask[y : y + height, x : x + width] = (
            rng.random(mask[y : y + height, x : x + width].shape) < 0.7
        )
        mask[y, x] = True
        masks.append(mask)
    return sorted(masks, key=lambda mask: -int(mask.sum()))


@pytest.mark.parametrize("size, grid", [(13, 4), (4, 4), (3, 8), (100, 1), (1, 5)])
def test_the_resize_matrix_is_bilinear_resizing(size: int, grid: int) -> None:
    values = np.random.default_rng(1).normal(size=(grid, 3)).astype(np.float32)
    expected = cv2.resize(values, (3, size), interpolation=cv2.INTER_LINEAR).reshape(size, 3)
    matrix = resize_matrix(size, grid)
    assert matrix.shape == (size, grid) and matrix.dtype == np.float32
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(matrix @ values, expected, atol=2e-6)


def test_weights_of_a_whole_image_and_of_one_corner() -> None:
    rows = columns = resize_matrix(4, 2)
    whole = np.ones((4, 4), dtype=bool)
    corner = np.zeros((4, 4), dtype=bool)
    corner[0, 0] = True
    np.testing.assert_allclose(mask_weights(whole, rows, columns), np.full((2, 2), 0.25))
    np.testing.assert_allclose(mask_weights(corner, rows, columns), [[1, 0], [0, 0]])


def test_pooled_means_equal_means_at_full_size() -> None:
    rng = np.random.default_rng(7)
    size, grid, channels = (37, 53), (5, 8), 6
    features = rng.normal(size=(channels, *grid)).astype(np.float32)
    rows, columns = resize_matrix(37, 5), resize_matrix(53, 8)
    full = np.stack([cv2.resize(channel, size[::-1]) for channel in features])
    for mask in random_masks(rng, size, 12):
        weight = mask_weights(mask, rows, columns)
        np.testing.assert_allclose(weight.sum(), 1, atol=1e-5)
        np.testing.assert_allclose(
            (features * weight).sum(axis=(1, 2)), full[:, mask].mean(axis=1), atol=1e-5
        )


@pytest.mark.parametrize("uncovered", ["pixels", "background"])
def test_label_and_level_equal_a_computation_at_full_size(uncovered: str) -> None:
    """The direct way: features of every pixel, mean over the mask, cosine to the centres."""
    rng = np.random.default_rng(11)
    size, grid, clusters, channels = (41, 30), (6, 4), 5, 16
    features = rng.normal(size=(channels, *grid)).astype(np.float32)
    features /= np.linalg.norm(features, axis=0)
    centres = rng.normal(size=(clusters, channels)).astype(np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    attention = rng.random(grid).astype(np.float32)
    masks = random_masks(rng, size, 7)

    scores = np.einsum("kc,chw->khw", centres, features)
    got = label_from_masks(scores, attention, masks, size, uncovered)

    full = np.stack([cv2.resize(channel, size[::-1]) for channel in features])
    full_attention = cv2.resize(attention, size[::-1])
    label, level = np.zeros(size, np.int32), np.zeros(size, np.float32)
    if uncovered == "pixels":
        level = full_attention.copy()
        for y, x in np.ndindex(size):
            label[y, x] = 1 + scores[:, y * grid[0] // size[0], x * grid[1] // size[1]].argmax()
    for mask in masks:
        label[mask] = 1 + (centres @ full[:, mask].mean(axis=1)).argmax()
        level[mask] = full_attention[mask].mean()
    np.testing.assert_array_equal(got.label, label)
    np.testing.assert_allclose(got.level, level, atol=1e-5)
    assert got.label.dtype == np.int32 and got.level.dtype == np.float32


def test_a_nested_mask_keeps_the_mean_of_its_own_attention() -> None:
    """Mean attention .3 outside, .9 inside: the inner mask's level is .9, not its parent's mean."""
    attention = np.full((4, 4), 0.3, dtype=np.float32)
    attention[1:3, 1:3] = 0.9
    outer = np.ones((4, 4), dtype=bool)
    inner = np.zeros((4, 4), dtype=bool)
    inner[1:3, 1:3] = True
    scores = np.zeros((2, 4, 4), dtype=np.float32)
    scores[0] = 0.5
    scores[1, 1:3, 1:3] = 1.0
    got = label_from_masks(scores, attention, [outer, inner], (4, 4))
    np.testing.assert_allclose(got.level[inner], 0.9, atol=1e-6)
    np.testing.assert_allclose(got.level[~inner], 0.45, atol=1e-6)
    np.testing.assert_array_equal(got.label, np.where(inner, 2, 1))
    np.testing.assert_array_equal(got.at(0.5), np.where(inner, 2, 0))


def test_without_masks_pixels_keep_their_own_label_or_become_background() -> None:
    scores = np.zeros((3, 2, 2), dtype=np.float32)
    scores[2, 0, 0] = scores[1, 1, 1] = 1.0
    attention = np.array([[0.8, 0.1], [0.1, 0.6]], dtype=np.float32)
    own = label_from_masks(scores, attention, [], (4, 4), "pixels")
    assert own.label[0, 0] == 3 and own.label[3, 3] == 2 and own.label[0, 3] == 1
    assert own.at(0.55)[3, 3] == 2 and own.at(0.65)[3, 3] == 0
    none = label_from_masks(scores, attention, [np.zeros((4, 4), bool)], (4, 4), "background")
    assert not none.label.any() and not none.at(0.0).any()


def test_the_threshold_is_inclusive_and_survives_float32() -> None:
    levels = LevelledLabel(np.array([[4]], np.int32), np.array([[0.35]], np.float32))
    assert levels.at(0.35)[0, 0] == 4
    assert levels.at(0.36)[0, 0] == 0
