"""Evaluate a folder of predictions against the masks of a split, and find the background threshold.

``python -m uss evaluate --data D --predictions P --mode validation -c 50`` prints a table;
``--curve`` prints mIoU for a range of thresholds over the level maps beside the predictions.
"""

from __future__ import annotations

import argparse
import functools
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from core import log
from core.data.folders import ImageItem, class_names, list_images, mask_path, split_folder
from core.errors import UserError, main_guard
from core.files import write_json
from core.labels import load_label
from core.matching import match_clusters, read_match, write_match
from core.metrics import SIZE_BINS, ImageCounts, Scores, SegmentationMetrics, count_image
from core.parallel import default_workers, ordered_map
from core.threshold_curve import (
    CurvePoint,
    LevelCounts,
    ThresholdCurve,
    count_levels,
    hundredths,
)
from core.worklist import named

Counts = TypeVar("Counts")

STAGE = "evaluate"
# What numpy raises on files that are truncated or something else.
_BROKEN_ARRAY = (OSError, ValueError, EOFError, zipfile.BadZipFile)
# A prediction without threshold is either one archive (arrays "label" and "hundredths", the level
# in hundredths rounded down, as the pseudo-label sweep keeps them) or a label map with its float32
# (H, W) level map beside it.
ARCHIVE_SUFFIX = ".npz"
LEVEL_SUFFIX = ".npy"


@dataclass(frozen=True)
class EvaluationResult:
    """Scores (fractions in [0, 1]) and the match {prediction id: class id} under which they hold.

    ``matched_here`` is True when the match was found on these very images, as in the unsupervised
    validation protocol, and False when it was given.
    """

    scores: Scores
    match: dict[int, int]
    matched_here: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON values: the fields of ``Scores``, ``match`` with string keys, ``matched_here``."""
        match = {str(label): self.match[label] for label in sorted(self.match)}
        return {**self.scores.to_dict(), "match": match, "matched_here": self.matched_here}


def evaluate(
    prediction_dir: Path,
    data: Path,
    split: str,
    num_classes: int,
    match: dict[int, int] | None = None,
    boundary: bool = True,
    result_path: Path | None = None,
    items: Sequence[ImageItem] | None = None,
    workers: int | None = None,
) -> EvaluationResult:
    """Score ``<prediction_dir>/<key>.png`` for every image of ``<data>/<split>``.

    Args:
        prediction_dir: label maps of prediction ids 0..num_classes at image size.
        data, split: masks are read from ``<data>/<split>-segmentation``.
        num_classes: number of classes C without background.
        match: {prediction id: class id}; None finds the best one on these images.
        boundary: also compute boundary IoU.
        result_path: also write the result there as JSON.
        items: score only these images of the split; None takes all.
        workers: processes, which never change the result; None: what pays on this machine.

    Raises:
        UserError: a missing, broken or wrongly sized file, or an id out of range; names the file.
    """
    items = labelled_images(data, split) if items is None else items
    require_predictions(prediction_dir, items)
    work = functools.partial(
        count_item,
        prediction_dir=Path(prediction_dir),
        data=data,
        split=split,
        num_classes=num_classes,
        boundary=boundary,
    )
    metrics = SegmentationMetrics(num_classes, boundary)
    for counts in _of_each(items, work, workers):
        metrics.add(counts)
    used = match_clusters(metrics.cooccurrence) if match is None else match
    result = EvaluationResult(metrics.compute(used), used, matched_here=match is None)
    if result_path is not None:
        write_json(result_path, result.to_dict())
    return result


def count_item(
    item: ImageItem, prediction_dir: Path, data: Path, split: str, num_classes: int, boundary: bool
) -> ImageCounts:
    """Counts of one image from its files; everything that :func:`evaluate` needs of it."""
    path = prediction_path(prediction_dir, item)
    prediction, truth = load_label(path), load_label(mask_path(data, split, item.key))
    try:
        return count_image(prediction, truth, num_classes, boundary)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def threshold_curve(
    prediction_dir: Path,
    data: Path,
    split: str,
    num_classes: int,
    thresholds: Sequence[float],
    items: Sequence[ImageItem] | None = None,
    workers: int | None = None,
) -> list[CurvePoint]:
    """mIoU at each threshold, with its own match, from predictions made without threshold.

    Args:
        prediction_dir: ``<key>.npz`` of the pseudo-label sweep, or ``<key>.png`` label maps with
            ``<key>.npy`` level maps.
        thresholds: increasing levels; pixels whose level is smaller become background.
        data, split, num_classes, items, workers: see :func:`evaluate`.

    Raises:
        UserError: a missing, broken or wrongly sized file; names the file.
    """
    items = labelled_images(data, split) if items is None else items
    archives = (Path(prediction_dir) / f"{items[0].key}{ARCHIVE_SUFFIX}").is_file()
    for suffix in (ARCHIVE_SUFFIX,) if archives else (".png", LEVEL_SUFFIX):
        require_predictions(prediction_dir, items, suffix)
    work = functools.partial(
        count_item_levels,
        prediction_dir=Path(prediction_dir),
        data=data,
        split=split,
        num_classes=num_classes,
        thresholds=tuple(thresholds),
        archives=archives,
    )
    curve = ThresholdCurve(num_classes, thresholds)
    for counts in _of_each(items, work, workers):
        curve.add(counts)
    return curve.points()


def count_item_levels(
    item: ImageItem,
    prediction_dir: Path,
    data: Path,
    split: str,
    num_classes: int,
    thresholds: Sequence[float],
    archives: bool,
) -> LevelCounts:
    """Counts of one image from its files; everything that :func:`threshold_curve` needs of it."""
    path = prediction_path(prediction_dir, item)
    prediction, level = _load_archive(path) if archives else (load_label(path), _load_level(path))
    truth = load_label(mask_path(data, split, item.key))
    try:
        return count_levels(prediction, level, truth, num_classes, thresholds)
    except UserError as error:
        raise UserError(f"{path.with_suffix('')}: {error}") from error


def _of_each(
    items: Sequence[ImageItem], work: Callable[[ImageItem], Counts], workers: int | None
) -> Iterator[Counts]:
    """What ``work`` makes of each item, in order, with a progress bar."""
    processes = default_workers(len(items)) if workers is None else workers
    return log.progress(ordered_map(work, items, processes), STAGE, total=len(items))


def best_point(points: Sequence[CurvePoint]) -> CurvePoint:
    """The point of highest mIoU; of equals the lowest threshold."""
    return max(points, key=lambda point: point.miou)


def labelled_images(data: Path, split: str) -> list[ImageItem]:
    """Images of a split whose masks are at hand.

    Raises:
        UserError: no such split, no mask folder, or an image without mask.
    """
    items = list_images(split_folder(data, split))
    masks = Path(data) / f"{split}-segmentation"
    if not masks.is_dir():
        raise UserError(
            f"{split!r} of {data} has no masks to evaluate against: {masks} does not exist; "
            "evaluate a split that has them, such as validation"
        )
    missing = [item.key for item in items if not mask_path(data, split, item.key).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(items)} images have no mask in {masks}: {named(missing)}"
        )
    return items


def require_predictions(
    prediction_dir: Path, items: Sequence[ImageItem], suffix: str = ".png"
) -> None:
    """Raise :class:`UserError` that names the first missing ``<key><suffix>`` files, if any are."""
    missing = [
        item.key for item in items if not (Path(prediction_dir) / f"{item.key}{suffix}").is_file()
    ]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(items)} {suffix} files are missing in {prediction_dir}: "
            f"{named(missing)}; finish the predictions first"
        )


def prediction_path(prediction_dir: Path, item: ImageItem) -> Path:
    """Where the prediction of an image lies."""
    return Path(prediction_dir) / f"{item.key}.png"


def format_result(result: EvaluationResult, names: Sequence[str] | None = None) -> str:
    """Table for people, scores in percent; ``names`` adds a line for each class."""
    scores = result.scores
    source = "found on these images" if result.matched_here else "given"
    lines = [
        f"images     {scores.images}",
        f"match      {source}",
        f"mIoU       {_percent(scores.miou)}",
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


def format_curve(points: Sequence[CurvePoint]) -> str:
    """One line per threshold and the best one."""
    best = best_point(points)
    lines = ["threshold    mIoU"]
    lines += [f"{point.threshold:9.2f} {_percent(point.miou):>7}" for point in points]
    lines.append(f"best threshold {best.threshold:.2f} with mIoU {_percent(best.miou)}")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """Arguments of ``python -m uss evaluate``."""
    parser = argparse.ArgumentParser(
        prog="python -m uss evaluate", description="Score predictions against a split's masks."
    )
    parser.add_argument("--data", type=Path, required=True, help="data set folder")
    parser.add_argument("--predictions", type=Path, required=True, help="folder of <key>.png")
    parser.add_argument("--mode", default="validation", help="split with masks (validation)")
    parser.add_argument("-c", "--num-classes", type=int, help="classes (default: class folders)")
    parser.add_argument("--match-file", type=Path, help="match to use (default: find the best)")
    parser.add_argument("--write-match", type=Path, help="write the match that was used there")
    parser.add_argument("--output", type=Path, help="write the result there (evaluation.json)")
    parser.add_argument("--no-boundary", action="store_true", help="skip boundary IoU")
    parser.add_argument("--classes", action="store_true", help="also list every class")
    parser.add_argument(
        "--curve",
        action="store_true",
        help="mIoU by background threshold, from unthresholded labels",
    )
    parser.add_argument("--min", type=int, default=0, help="lowest threshold, hundredths (0)")
    parser.add_argument("--max", type=int, default=80, help="highest threshold, hundredths (80)")
    parser.add_argument("--workers", type=int, help="processes (default: what pays)")
    return parser


@main_guard
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = build_parser().parse_args(argv)
    num_classes = args.num_classes or len(class_names(args.data, args.mode))
    if args.curve:
        return _main_curve(args, num_classes)
    match = read_match(args.match_file, num_classes) if args.match_file else None
    result = evaluate(
        args.predictions,
        args.data,
        args.mode,
        num_classes,
        match,
        boundary=not args.no_boundary,
        result_path=args.output,
        workers=args.workers,
    )
    if args.write_match:
        write_match(args.write_match, result.match)
    print(format_result(result, _class_labels(args, num_classes) if args.classes else None))
    return 0


def _main_curve(args: argparse.Namespace, num_classes: int) -> int:
    if args.match_file:
        raise UserError("--curve finds a match for every threshold; leave --match-file out")
    if args.min > args.max:
        raise UserError(f"--min {args.min} is above --max {args.max}; both are hundredths")
    thresholds = hundredths(args.min, args.max)
    points = threshold_curve(
        args.predictions, args.data, args.mode, num_classes, thresholds, workers=args.workers
    )
    best = best_point(points)
    if args.write_match:
        write_match(args.write_match, best.match)
    if args.output:
        write_json(args.output, curve_dict(points))
    print(format_curve(points))
    return 0


def curve_dict(points: Sequence[CurvePoint]) -> dict[str, Any]:
    """JSON values: ``threshold`` and ``miou`` of the best point, and the whole ``curve``."""
    best = best_point(points)
    return {
        "threshold": best.threshold,
        "miou": best.miou,
        "curve": [[point.threshold, point.miou] for point in points],
    }


def _load_level(prediction: Path) -> np.ndarray:
    path = prediction.with_suffix(LEVEL_SUFFIX)
    try:
        level = np.load(path, allow_pickle=False)
    except _BROKEN_ARRAY as error:
        raise UserError(f"level map {path} cannot be read: {error}; make it again") from error
    if not isinstance(level, np.ndarray) or level.ndim != 2 or level.dtype.kind != "f":
        raise UserError(f"level map {path}: expected a 2-D float array; make it again")
    return level


def _load_archive(prediction: Path) -> tuple[np.ndarray, np.ndarray]:
    path = prediction.with_suffix(ARCHIVE_SUFFIX)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            label, steps = arrays["label"], arrays["hundredths"]
    except (*_BROKEN_ARRAY, KeyError) as error:
        raise UserError(f"labels {path} cannot be read: {error}; make them again") from error
    return label.astype(np.int32), (steps / 100).astype(np.float32)


def _class_lines(scores: Scores, names: Sequence[str]) -> Iterator[str]:
    for index, name in enumerate(names):
        line = f"{index:4d}  {name:<24} {_percent(scores.iou[index]):>7}"
        yield line if scores.biou is None else f"{line} {_percent(scores.biou[index]):>7}"


def _class_labels(args: argparse.Namespace, num_classes: int) -> list[str]:
    names = class_names(args.data, args.mode)
    if len(names) != num_classes:
        return [f"class {index}" for index in range(1, num_classes + 1)]
    return names


def _percent(fraction: float) -> str:
    return "-" if np.isnan(fraction) else f"{100 * fraction:.2f}"
