"""Refine a predicted label map with class-agnostic masks, at the image's own size; plain numpy.

The rule of the reference's refinement, with its accidents removed: every mask is voted on the
untouched prediction (so a small mask can bring back a class that a larger one painted over),
points are (x, y), they are spread over the image instead of sitting on one extremum, and no mask
prompt is given.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Callable

import cv2
import numpy as np

POINTS = 5  # prompts of either sign
SPREAD = 1 / 8  # smallest distance of two prompts, as a fraction of the image's shorter side

Prompter = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(points (n, 2) float x y, signs (n,) 1 inside | 0 outside) -> mask (H, W) bool."""


@dataclass(frozen=True)
class Refined:
    """A refined label map and the rule that made it.

    ``rule`` is "vote" (masks voted), "prediction" (the vote left no foreground, so the prediction
    stands) or "prompt" (the prediction had no foreground, so its likeliest class was looked for
    with points).
    """

    label: np.ndarray  # (H, W) int32
    rule: str


def refine(
    prediction: np.ndarray,
    masks: Callable[[], Iterable[np.ndarray]],
    logits: np.ndarray,
    prompter: Prompter,
) -> Refined:
    """Refined label map of one image.

    Args:
        prediction: (H, W) integer argmax map, 0 = background.
        masks: gives the masks, (H, W) bool, largest first; called only where the prediction has
            foreground, since nothing else can win a vote.
        logits: (C + 1, h, w) float of the network, at its own resolution; read only where the
            prediction has no foreground.
        prompter: called only where the prediction has no foreground.
    """
    if prediction.any():
        voted = vote_refine(prediction, masks())
        if voted.any():
            return Refined(voted, "vote")
        return Refined(prediction.astype(np.int32), "prediction")
    likeliest = likeliest_class(logits)
    points_xy, signs = spread_points(_resized(logits[likeliest], prediction.shape))
    mask = prompter(points_xy, signs)
    return Refined(np.where(mask, likeliest, 0).astype(np.int32), "prompt")


def vote_refine(prediction: np.ndarray, masks: Iterable[np.ndarray]) -> np.ndarray:
    """Give each mask the label that most of its pixels have in ``prediction``.

    Args:
        prediction: (H, W) non-negative integers.
        masks: (H, W) bool each, largest first, so that small masks end on top; empty ones are
        ignored.

    Returns:
        (H, W) int32. Pixels outside every mask keep their label; of equally frequent labels the
        lowest is taken.
    """
    refined = prediction.astype(np.int32)
    for mask in masks:
        inside = prediction[mask]
        if inside.size:
            refined[mask] = np.bincount(inside).argmax()
    return refined


def likeliest_class(logits: np.ndarray) -> int:
    """Label (1..C) of the foreground class with the largest mean logit; ``logits`` is (C + 1, h,
    w).
    """
    return 1 + int(logits[1:].mean(axis=(1, 2), dtype=np.float64).argmax())


def spread_points(values: np.ndarray, count: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Point prompts on the highest and the lowest places of a map.

    Args:
        values: (H, W) float, the logits of one class.
        count: how many points of either sign; a tiny image may have room for fewer.

    Returns:
        points (n, 2) float32 as (x, y) in pixels, the positive ones first and highest first, and
        signs (n,) int32, 1 for the highest and 0 for the lowest. No two points of one sign are
        nearer than ``SPREAD`` times the shorter side, and no negative point is that near to a
        positive one.
    """
    distance = SPREAD * min(values.shape)
    free = np.ones(values.shape, dtype=bool)
    high = _peaks(values, free, count, distance)
    low = _peaks(-values, free, count, distance)
    signs = [1] * len(high) + [0] * len(low)
    return np.array(high + low, dtype=np.float32).reshape(-1, 2), np.array(signs, dtype=np.int32)


def _peaks(
    values: np.ndarray, free: np.ndarray, count: int, distance: float
) -> list[tuple[int, int]]:
    """Up to ``count`` highest (x, y), each of which takes its surroundings out of ``free`` (in
    place).
    """
    rows, columns = np.ogrid[: values.shape[0], : values.shape[1]]
    points: list[tuple[int, int]] = []
    while len(points) < count and free.any():
        y, x = np.unravel_index(np.where(free, values, -np.inf).argmax(), values.shape)
        points.append((int(x), int(y)))
        # The pixel itself always goes, or an image of few pixels would give the same point for
        # ever.
        free &= (rows - y) ** 2 + (columns - x) ** 2 >= max(distance, 1) ** 2
    return points


def _resized(values: np.ndarray, size_hw: tuple[int, ...]) -> np.ndarray:
    """(h, w) -> (H, W), bilinear with pixel centres at half coordinates."""
    height, width = size_hw
    return cv2.resize(values.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
