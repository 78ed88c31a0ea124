"""Labels of masks from features on a small grid, as if they were averaged at the image's size.

Bilinear resizing is linear: with the matrices Ry (H, h) and Rx (W, w) that resize a grid g to the
image, the mean of Ry g Rx^T over a mask M is sum(g * (Ry^T M Rx)) / |M|. So a mask becomes a
weight map on the grid, and neither the features nor anything else with channels ever exists at
full size. Scores are linear in the features too: the score of a mean feature is the mean of the
scores. Plain numpy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from core.data.crops import resize_nearest_floor


@dataclass(frozen=True)
class LevelledLabel:
    """A label map together with what decides, for each threshold, which of it is kept."""

    label: np.ndarray  # (H, W) int32, 1..C, or 0 where there is none at any threshold
    level: np.ndarray  # (H, W) float32, mean attention; a threshold t keeps level >= t

    def at(self, threshold: float) -> np.ndarray:
        """(H, W) int32: the labels whose level reaches ``threshold``, 0 elsewhere."""
        return np.where(self.level >= np.float32(threshold), self.label, 0).astype(np.int32)


def resize_matrix(size: int, grid: int) -> np.ndarray:
    """(size, grid) float32 R so that R @ v resizes v bilinearly (half-pixel centres, edges
    clamped).
    """
    centres = np.clip((np.arange(size) + 0.5) * grid / size - 0.5, 0, grid - 1)
    low = np.floor(centres).astype(np.int64)
    high = np.minimum(low + 1, grid - 1)
    matrix = np.zeros((size, grid), dtype=np.float64)
    rows = np.arange(size)
    np.add.at(matrix, (rows, low), 1 - (centres - low))
    np.add.at(matrix, (rows, high), centres - low)
    return matrix.astype(np.float32)


def mask_weights(mask: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Weights on the grid with which the mean over a mask is taken.

    Args:
        mask: (H, W) bool, not empty.
        rows, columns: :func:`resize_matrix` of the height (H, h) and of the width (W, w).

    Returns:
        (h, w) float32, summing to 1.
    """
    # Only the mask's bounding box counts, which is most of the time saved on small masks.
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    y, x = slice(ys[0], ys[-1] + 1), slice(xs[0], xs[-1] + 1)
    box = mask[y, x].astype(np.float32)
    return rows[y].T @ box @ columns[x] / np.float32(np.count_nonzero(box))


def label_from_masks(
    scores: np.ndarray,
    attention: np.ndarray,
    masks: Iterable[np.ndarray],
    size_hw: tuple[int, int],
    uncovered: str = "pixels",
) -> LevelledLabel:
    """Label map of an image whose masks take the class and the attention of their mean.

    The level of a mask is the mean of the image's own attention inside it, whatever was painted
    there before.

    Args:
        scores: (C, h, w) float, cosine of the feature at each grid place to each cluster centre.
        attention: (h, w) float, mean over the channels of the attention.
        masks: (H, W) bool each, largest first, so that small ones end on top; empty ones are
            ignored.
        size_hw: size of the image.
        uncovered: what pixels outside every mask become: "pixels" = the label of the nearest grid
            place and their own attention; "background" = 0.
    """
    rows = resize_matrix(size_hw[0], attention.shape[0])
    columns = resize_matrix(size_hw[1], attention.shape[1])
    if uncovered == "pixels":
        label = resize_nearest_floor(1 + scores.argmax(axis=0), size_hw).astype(np.int32)
        level = (rows @ attention.astype(np.float32) @ columns.T).astype(np.float32)
    else:
        label, level = np.zeros(size_hw, np.int32), np.zeros(size_hw, np.float32)
    flat_scores, flat_attention = scores.reshape(len(scores), -1), attention.reshape(-1)
    for mask in masks:
        if mask.any():
            weights = mask_weights(mask, rows, columns).reshape(-1)
            label[mask] = 1 + (flat_scores @ weights).argmax()
            level[mask] = flat_attention @ weights
    return LevelledLabel(label, level)
