"""Scores as text for people and as JSON values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.scoring.metrics import SIZE_BINS, Scores
from core.scoring.threshold_curve import CurvePoint

#: Under which names test.py keeps its results.
BEFORE, AFTER = "before_refinement", "after_refinement"


@dataclass(frozen=True)
class EvaluationResult:
    """Scores (fractions in [0, 1]) and the match {prediction id: class id} under which they hold.

    ``matched_here`` is True when the match was found on these very images, as in the unsupervised
    validation protocol, and False when it was given.
    """

    scores: Scores
    match: dict[int, int]
    matched_here: bool
    split: str

    def to_dict(self) -> dict[str, Any]:
        """JSON values: the fields of ``Scores``, ``match`` with string keys, ``matched_here``."""
        match = {str(label): self.match[label] for label in sorted(self.match)}
        return {**self.scores.to_dict(), "match": match, "matched_here": self.matched_here}


def best_point(points: Sequence[CurvePoint]) -> CurvePoint:
    """The point of highest mIoU; of equals the lowest threshold."""
    return max(points, key=lambda point: point.miou)


def curve_dict(points: Sequence[CurvePoint]) -> dict[str, Any]:
    """JSON values: ``threshold`` and ``miou`` of the best point, ``background_miou``, and the whole
    ``curve``.
    """
    best = best_point(points)
    return {
        "threshold": best.threshold,
        "miou": best.miou,
        "background_miou": best.background_miou,
        "curve": [[point.threshold, point.miou] for point in points],
    }


def format_result(
    result: EvaluationResult, names: Sequence[str] | None = None, context: Sequence[str] = ()
) -> str:
    """Table for people, scores in percent; ``names`` adds a line for each class, ``context`` stands
    above the scores.
    """
    scores = result.scores
    lines = [
        f"images     {scores.images}",
        f"split      {result.split}",
        f"match      {match_words(result.matched_here)}",
        *context,
        f"mIoU       {_percent(scores.miou)}",
        f"trivial    {_percent(scores.background_miou)}  mIoU of background everywhere",
    ]
    if scores.mbiou is not None:
        lines.append(f"mBIoU      {_percent(scores.mbiou)}")
    lines += [
        f"accuracy   {_percent(scores.accuracy)}",
        f"F-measure  {_percent(scores.f_measure)}",
        "size       " + "".join(f"{size:>8}" for size in SIZE_BINS),
        "IoU        " + "".join(f"{_percent(scores.bins[size]):>8}" for size in SIZE_BINS),
    ]
    if scores.boundary_bins is not None:
        values = [_percent(scores.boundary_bins[size]) for size in SIZE_BINS]
        lines.append("BIoU       " + "".join(f"{value:>8}" for value in values))
    if names is not None:
        lines += _class_lines(scores, ["background", *names])
    return "\n".join(lines)


def match_words(matched_here: bool) -> str:
    """How clusters were matched to classes for a score: the masks that find a match flatter a score
    of theirs.
    """
    if matched_here:
        return "found on these images, by the same masks that judge"
    return "not found on these images: it was given, or ids are those of classes"


def format_curve(points: Sequence[CurvePoint], split: str, matched_here: bool) -> str:
    """One line per threshold, then the best one, how it came about and what it is to be compared
    with.
    """
    best = best_point(points)
    lines = ["threshold    mIoU"]
    lines += [f"{point.threshold:9.2f} {_percent(point.miou):>7}" for point in points]
    lines.append(
        f"best threshold {best.threshold:.2f} with mIoU {_percent(best.miou)} of {split}, chosen "
        f"by the same masks that judge (background everywhere {_percent(best.background_miou)}); "
        f"match {match_words(matched_here)}"
    )
    return "\n".join(lines)


def _class_lines(scores: Scores, names: Sequence[str]) -> Iterator[str]:
    for index, name in enumerate(names):
        line = f"{index:4d}  {name:<24} {_percent(scores.iou[index]):>7}"
        yield line if scores.biou is None else f"{line} {_percent(scores.biou[index]):>7}"


def _percent(fraction: float) -> str:
    return "-" if np.isnan(fraction) else f"{100 * fraction:.2f}"
