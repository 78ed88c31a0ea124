"""mIoU as a function of the background threshold, all thresholds in one pass over the images.

A prediction comes with a level map (attention): pixels whose level is below the threshold become
background. Each threshold gets its own Hungarian match, as in the reference evaluator's curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.data.label_maps import IGNORE
from core.errors import UserError
from core.scoring.matching import match_clusters
from core.scoring.metrics import (
    background_miou,
    check_pair,
    compact_ids,
    iou_per_class,
    lookup_table,
)


def hundredths(first: int, last: int) -> list[float]:
    """Thresholds first/100, ..., last/100, both ends included."""
    return [step / 100 for step in range(first, last + 1)]


def require_fraction(name: str, threshold: float) -> None:
    """Refuse a threshold that is given in percent instead of as a fraction, and NaN.

    Every level would lie below a threshold in percent, and none below NaN. No level reaches a
    threshold above 1; up to 2 it is allowed all the same, for those who want no foreground.

    Raises:
        UserError: names the threshold and what was probably meant.
    """
    if not threshold < 2:
        raise UserError(
            f"{name} is a fraction, not {threshold:g}; did you mean {threshold / 100:g}?"
        )


@dataclass(frozen=True)
class LevelCounts:
    """What one image adds to a curve of T thresholds; small, to be sent between processes.

    Attributes:
        pred_ids: (P,) int64, sorted ids that the prediction shows on judged pixels, 0 included.
        true_ids: (G,) int64, the same of the truth.
        pixels: (T + 1, P, G) int64 pixel counts. The index of the first axis says how many of the
            thresholds, from the lowest on, the level of the pixels reaches.
    """

    pred_ids: np.ndarray
    true_ids: np.ndarray
    pixels: np.ndarray


def count_levels(
    prediction: np.ndarray,
    level: np.ndarray,
    truth: np.ndarray,
    num_classes: int,
    thresholds: Sequence[float],
) -> LevelCounts:
    """Count one image: prediction without threshold, its levels (float) and the truth, all (H, W).

    A pixel survives threshold t unless level < t; both are compared as float32, like a float32
    level map with a Python number.

    Raises:
        UserError: sizes differ, a level is not a number, or an id is out of range.
    """
    check_pair(prediction, truth, num_classes)
    if level.shape != prediction.shape:
        raise UserError(
            f"the level map is {level.shape} but its prediction is {prediction.shape}; "
            "they must come from the same run"
        )
    if np.isnan(level).any():
        raise UserError("the level map holds NaN; make it again")
    judged = truth != IGNORE
    pred_ids, pred_index = compact_ids(prediction[judged])
    true_ids, true_index = compact_ids(truth[judged])
    edges = np.asarray(thresholds, np.float32)
    survived = np.searchsorted(edges, level[judged].astype(np.float32), side="right")
    index = (survived * len(pred_ids) + pred_index) * len(true_ids) + true_index
    shape = (len(thresholds) + 1, len(pred_ids), len(true_ids))
    pixels = np.bincount(index, minlength=int(np.prod(shape))).reshape(shape)
    return LevelCounts(pred_ids, true_ids, pixels)


@dataclass(frozen=True)
class CurvePoint:
    """The result at one threshold: mIoU (a fraction) over the C + 1 classes, under the match
    {prediction id: class id} that is best at this threshold, and the mIoU of background everywhere.
    """

    threshold: float
    miou: float
    match: dict[int, int]
    background_miou: float


class ThresholdCurve:
    """Streaming counts for every threshold: ``update`` (or ``add``) each image, then ``points``.

    What it holds does not grow with the number of images: two int64 arrays of (T + 1, C + 1,
    C + 1), of which untouched pages cost nothing.

    Args:
        num_classes: number of classes C without background.
        thresholds: increasing.
    """

    def __init__(self, num_classes: int, thresholds: Sequence[float]) -> None:
        if not thresholds or list(thresholds) != sorted(set(thresholds)):
            raise UserError(
                f"the thresholds of a curve must increase and not be empty, got {list(thresholds)}"
            )
        self.num_classes = num_classes
        self.thresholds = [float(threshold) for threshold in thresholds]
        size = num_classes + 1
        # First axis: how many of the thresholds (the lowest ones) a pixel, or a whole region,
        # survives.
        self._pixels = np.zeros((len(thresholds) + 1, size, size), np.int64)
        self._presence = np.zeros((len(thresholds) + 1, size, size), np.int64)

    def update(self, prediction: np.ndarray, level: np.ndarray, truth: np.ndarray) -> None:
        """Count one image: prediction without threshold, its levels (float) and the truth, all (H,
        W).

        Raises:
            UserError: sizes differ, a level is not a number, or an id is out of range.
        """
        self.add(count_levels(prediction, level, truth, self.num_classes, self.thresholds))

    def add(self, counts: LevelCounts) -> None:
        """Add one image's counts; an image without judged pixels adds nothing."""
        pred_ids, true_ids = counts.pred_ids, counts.true_ids
        if not len(pred_ids):
            return
        steps = np.arange(len(counts.pixels))
        self._pixels[np.ix_(steps, pred_ids, true_ids)] += counts.pixels
        seen = counts.pixels.any(2)
        longest = steps[-1] - seen[::-1].argmax(0)
        self._presence[longest[:, None], pred_ids[:, None], true_ids[None]] += 1

    def points(self, match: dict[int, int] | None = None) -> list[CurvePoint]:
        """The result at every threshold, lowest first; ``match`` None finds the best one for
        each.
        """
        total_true = self._pixels.sum((0, 1))
        trivial = background_miou(total_true)
        kept = np.zeros_like(self._pixels[0])
        together = np.zeros_like(kept)
        points = []
        for step in range(len(self.thresholds), 0, -1):
            kept += self._pixels[step]
            together += self._presence[step]
            used = match_clusters(together[1:, 1:]) if match is None else match
            confusion = kept.copy()
            confusion[0] += total_true - kept.sum(0)
            iou = iou_per_class(confusion, lookup_table(used, self.num_classes))
            points.append(CurvePoint(self.thresholds[step - 1], float(iou.mean()), used, trivial))
        return points[::-1]
