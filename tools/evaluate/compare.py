"""What a change did to a folder of predictions, class by class and image by image.

``python -m NAME evaluate --predictions AFTER --compare BEFORE``: both under one match, so that each
gain is one of the label maps and not of the names of their clusters.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.data.items import ImageItem
from core.scoring.matching import match_clusters
from core.scoring.metrics import ImageCounts, Scores, SegmentationMetrics, image_miou, lookup_table
from tools.evaluate.folder import count_item, labelled_images, of_each, require_predictions
from tools.evaluate.table import match_words

_SHOWN = 5
_SAME = 1e-4  # a difference of mIoU below a hundredth of a per cent counts as none


@dataclass(frozen=True)
class ImageGain:
    """mIoU of one image, over the classes that its truth shows, before and after."""

    key: str
    before: float
    after: float

    @property
    def gain(self) -> float:
        """Positive where ``after`` is better."""
        return self.after - self.before


@dataclass(frozen=True)
class Comparison:
    """Scores of two folders of predictions under one match, and each image's gain."""

    before: Scores
    after: Scores
    match: dict[int, int]
    images: list[ImageGain]
    split: str
    matched_here: bool
    """Whether the match is the best one for these images."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "match": {str(label): self.match[label] for label in sorted(self.match)},
            "split": self.split,
            "matched_here": self.matched_here,
            "images": {each.key: [each.before, each.after] for each in self.images},
        }


def compare(
    before: Path,
    after: Path,
    data: Path,
    split: str,
    num_classes: int,
    match: dict[int, int] | None = None,
    boundary: bool = True,
    workers: int | None = None,
) -> Comparison:
    """Score two folders of label maps; see ``tools.evaluate.folder.evaluate`` for the arguments.

    Args:
        match: None finds the best one for ``after``.

    Raises:
        UserError: a missing, broken or wrongly sized file, or an id out of range; names the file.
    """
    items = labelled_images(data, split)
    for folder in (before, after):
        require_predictions(folder, items)
    work = functools.partial(
        _count_both,
        folders=(before, after),
        data=data,
        split=split,
        num_classes=num_classes,
        boundary=boundary,
    )
    metrics = [SegmentationMetrics(num_classes, boundary) for _ in range(2)]
    counted: list[tuple[ImageCounts, ImageCounts]] = []
    for pair in of_each(items, work, workers):
        counted.append(pair)
        for metric, counts in zip(metrics, pair):
            metric.add(counts)
    used = match_clusters(metrics[1].cooccurrence) if match is None else match
    table = lookup_table(used, num_classes)
    gains = [
        ImageGain(item.key, *(image_miou(counts, table) for counts in pair))
        for item, pair in zip(items, counted)
    ]
    judged = [each for each in gains if not np.isnan(each.gain)]
    old, new = (metric.compute(used) for metric in metrics)
    return Comparison(old, new, used, judged, split, match is None)


def format_comparison(comparison: Comparison, names: Sequence[str]) -> str:
    """Tables for people, in percent: the scores, every class, and the images that changed most."""
    before, after = comparison.before, comparison.after
    width = max(24, *(len(name) for name in names))
    lines = [
        f"split {comparison.split}; match {match_words(comparison.matched_here)}",
        f"{'':{width + 4}}  before   after    gain",
    ]

    def line(name: str, old: float | None, new: float | None) -> None:
        if old is not None and new is not None:
            gain = 100 * (new - old)
            lines.append(f"{name:{width + 4}}{100 * old:8.2f}{100 * new:8.2f}{gain:+8.2f}")

    line("mIoU", before.miou, after.miou)
    line("background everywhere", before.background_miou, after.background_miou)
    line("mBIoU", before.mbiou, after.mbiou)
    line("accuracy", before.accuracy, after.accuracy)
    line("F-measure", before.f_measure, after.f_measure)
    lines.append("IoU by class")
    for index, name in enumerate(["background", *names]):
        line(f"{index:3d} {name}", before.iou[index], after.iou[index])
    ordered = sorted(comparison.images, key=lambda each: each.gain)
    better = [each for each in reversed(ordered) if each.gain > _SAME]
    worse = [each for each in ordered if each.gain < -_SAME]
    same = len(ordered) - len(better) - len(worse)
    lines.append(
        f"mIoU by image: {len(better)} better, {len(worse)} worse, {same} the same; on average "
        f"{100 * np.mean([each.gain for each in ordered] or [0]):+.2f}"
    )
    for title, images in (("best gains", better), ("worst losses", worse)):
        if images:
            lines.append(title)
        for each in images[:_SHOWN]:
            line(f"    {each.key}", each.before, each.after)
    return "\n".join(lines)


def _count_both(
    item: ImageItem,
    folders: tuple[Path, Path],
    data: Path,
    split: str,
    num_classes: int,
    boundary: bool,
) -> tuple[ImageCounts, ImageCounts]:
    before, after = (
        count_item(item, folder, data, split, num_classes, boundary) for folder in folders
    )
    return before, after
