"""Refine a predicted label map with class-agnostic masks, at the image's own size; plain numpy.

The rule of the reference's refinement, with its accidents removed: every mask is voted on the
untouched prediction (so a small mask can bring back a class that a larger one painted over),
points are (x, y), they are spread over the image instead of sitting on one extremum, and no mask
prompt is given. ``refine.settings.Refine`` has what goes beyond the reference; all of it is off by
default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from refine.settings import Refine as Settings

POINTS = 5  # prompts of either sign
SPREAD = 1 / 8  # smallest distance of two prompts, as a fraction of the image's shorter side

# A mask (H, W) bool, not empty -> (label, share of it between 0 and 1).
Ballot = Callable[[np.ndarray], "tuple[int, float]"]
Prompter = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(points (n, 2) float x y, signs (n,) 1 inside | 0 outside) -> mask (H, W) bool."""


_REFERENCE = Settings()


@dataclass(frozen=True)
class Refined:
    """A refined label map and the rule that made it.

    ``rule`` is "vote" (masks voted), "prediction" (the vote left no foreground, so the prediction
    stands), "prompt" (the prediction had no foreground, so its likeliest class was looked for with
    points) or "background" (so it had, but what the points found is too large).
    """

    label: np.ndarray  # (H, W) int32
    rule: str


def refine(
    prediction: np.ndarray,
    masks: Callable[[], Iterable[np.ndarray]],
    logits: np.ndarray,
    prompter: Prompter,
    settings: Settings = _REFERENCE,
) -> Refined:
    """Refined label map of one image.

    Args:
        prediction: (H, W) integer argmax map, 0 = background.
        masks: gives the masks, (H, W) bool, largest first; called only where the prediction has
            foreground, since nothing else can win a vote.
        logits: (C + 1, h, w) float of the network, at its own resolution; read for votes by
            confidence, and where the prediction has no foreground.
        prompter: called only where the prediction has no foreground.
        settings: options beyond the reference.
    """
    if prediction.any():
        sequential = settings.vote == "sequential"
        ballot = confidence_ballot(logits) if settings.vote == "confidence" else None
        voted = vote_refine(
            prediction, masks(), ballot, settings.min_agreement, settings.keep_regions, sequential
        )
        if voted.any() or sequential:  # the reference had no other map to fall back on
            return Refined(voted, "vote")
        return Refined(prediction.astype(np.int32), "prediction")
    likeliest = likeliest_class(logits)
    points_xy, signs = spread_points(_resized(logits[likeliest], prediction.shape))
    mask = prompter(points_xy, signs)
    if mask.mean() > settings.max_prompted:
        return Refined(np.zeros(prediction.shape, np.int32), "background")
    return Refined(np.where(mask, likeliest, 0).astype(np.int32), "prompt")


def vote_refine(
    prediction: np.ndarray,
    masks: Iterable[np.ndarray],
    ballot: Ballot | None = None,
    min_agreement: float = 0.0,
    keep_regions: float = 0.0,
    sequential: bool = False,
) -> np.ndarray:
    """Give each mask the label that wins the vote inside it.

    Args:
        prediction: (H, W) non-negative integers.
        masks: (H, W) bool each, largest first, so that small masks end on top; empty ones are
            ignored.
        ballot: decides a mask; None counts its pixels (:func:`count_ballot`).
        min_agreement: masks whose winner has a smaller share do not vote.
        keep_regions: regions (8-connected pixels of one label but 0) that no mask meets with at
            least this IoU keep their label in the end; 0 = none does.
        sequential: without ``ballot``, count the pixels as the masks before have painted them.

    Returns:
        (H, W) int32. Pixels outside every mask keep their label; of equally frequent labels the
        lowest is taken.
    """
    regions = Regions(prediction) if keep_regions > 0 else None
    refined = prediction.astype(np.int32)
    ballot = ballot or count_ballot(refined if sequential else prediction)
    for mask in masks:
        if not mask.any():
            continue
        label, share = ballot(mask)
        if share >= min_agreement:
            refined[mask] = label
        if regions is not None:
            regions.meet(mask)
    if regions is not None:
        kept = regions.unmet(keep_regions)
        refined[kept] = prediction[kept]
    return refined


def count_ballot(prediction: np.ndarray) -> Ballot:
    """The most frequent label of ``prediction`` in a mask, and its share of the mask's pixels."""

    def decide(mask: np.ndarray) -> tuple[int, float]:
        inside = prediction[mask]
        counts = np.bincount(inside)
        label = int(counts.argmax())
        return label, float(counts[label] / inside.size)

    return decide


def confidence_ballot(logits: np.ndarray) -> Ballot:
    """The label of the highest mean softmax in a mask, and that mean.

    The softmax of ``logits`` (C + 1, h, w) is taken at the network's resolution and interpolated
    bilinearly to the mask's; the mean is computed from the mask brought down to (h, w), which is
    the same and needs no probabilities at full size.
    """
    exponentials = np.exp(logits - logits.max(axis=0, keepdims=True), dtype=np.float64)
    probabilities = exponentials / exponentials.sum(axis=0, keepdims=True)
    weights: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}

    def decide(mask: np.ndarray) -> tuple[int, float]:
        if mask.shape not in weights:
            down, across = (
                _interpolation(small, large) for small, large in zip(logits.shape[1:], mask.shape)
            )
            weights[mask.shape] = (down, across)
        down, across = weights[mask.shape]
        share = down.T @ (mask.astype(np.float32) @ across)
        means = np.tensordot(probabilities, share, axes=([1, 2], [0, 1])) / mask.sum()
        label = int(means.argmax())
        return label, float(means[label])

    return decide


class Regions:
    """The regions of a label map, 8-connected pixels of one label but 0, and how well masks meet
    them.
    """

    def __init__(self, label: np.ndarray) -> None:
        self._ids = np.zeros(label.shape, np.int32)
        count = 0
        for value in np.unique(label[label > 0]):
            found, ids = cv2.connectedComponents((label == value).astype(np.uint8), connectivity=8)
            self._ids[ids > 0] = ids[ids > 0] + count
            count += found - 1
        self._areas = np.bincount(self._ids.ravel(), minlength=count + 1)
        self._best = np.zeros(count + 1)

    def meet(self, mask: np.ndarray) -> None:
        """Take one mask (H, W) bool into account."""
        inside = self._ids[mask]
        shared = np.bincount(inside, minlength=len(self._areas))
        np.maximum(self._best, shared / (self._areas + inside.size - shared), out=self._best)

    def unmet(self, iou: float) -> np.ndarray:
        """(H, W) bool: the regions that no mask met with at least this IoU."""
        lost = self._best < iou
        lost[0] = False
        return lost[self._ids]


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


def _interpolation(small: int, large: int) -> np.ndarray:
    """(large, small) float32: bilinear weights, pixel centres at half coordinates."""
    identity = np.eye(small, dtype=np.float32)
    return cv2.resize(identity, (small, large), interpolation=cv2.INTER_LINEAR)


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
