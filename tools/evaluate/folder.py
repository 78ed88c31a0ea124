"""Evaluate a folder of predictions against the masks of a split, and find the background
threshold.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from core import log
from core.data.items import ImageItem
from core.data.label_maps import load_label
from core.data.layout import open_layout
from core.data.level_maps import ARCHIVE_SUFFIX, LEVEL_SUFFIX, load_levelled
from core.errors import UserError
from core.files import write_json
from core.scoring.matching import match_clusters
from core.scoring.metrics import ImageCounts, SegmentationMetrics, count_image
from core.scoring.threshold_curve import (
    CurvePoint,
    LevelCounts,
    ThresholdCurve,
    count_levels,
    require_fraction,
)
from core.text import named
from core.work.pool import default_workers, ordered_map
from tools.evaluate.table import (
    EvaluationResult,
)

Counts = TypeVar("Counts")

STAGE = "evaluate"


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
    threshold: float | None = None,
) -> EvaluationResult:
    """Score ``<prediction_dir>/<key>.png`` for every image of a split.

    Args:
        prediction_dir: label maps of prediction ids 0..num_classes at image size.
        data, split: the data set, in any layout of ``core.data.layout``, and its split.
        num_classes: number of classes C without background.
        match: {prediction id: class id}; None finds the best one on these images.
        boundary: also compute boundary IoU.
        result_path: also write the result there as JSON.
        items: score only these images of the split; None takes all.
        workers: processes, which never change the result; None: what pays on this machine.
        threshold: pixels whose level (:func:`threshold_curve`) is below it become background; None
            reads no levels.

    Raises:
        UserError: a missing, broken or wrongly sized file, or an id out of range, by its name; a
            threshold that is no fraction.

    Example: predictions that are right, under other ids than the classes have::

        >>> import tempfile
        >>> from pathlib import Path
        >>> from core.data.imagenet_s import mask_path
        >>> from core.data.label_maps import load_label, save_label
        >>> from core.scoring.matching import apply_match
        >>> from core.synthetic.imagenet_s import make_dataset
        >>> from tools.evaluate.folder import evaluate, labelled_images
        >>> folder = Path(tempfile.mkdtemp())
        >>> data = make_dataset(folder / "data", classes=2, train=1, validation=2, test=1)
        >>> for item in labelled_images(data, "validation"):
        ...     truth = load_label(mask_path(data, "validation", item.key))
        ...     swapped = apply_match(truth, {0: 0, 1: 2, 2: 1, 1000: 0})
        ...     save_label(folder / "predictions" / f"{item.key}.png", swapped)
        >>> result = evaluate(folder / "predictions", data, "validation", num_classes=2)
        >>> result.match, result.scores.images
        ({0: 0, 1: 2, 2: 1}, 4)
        >>> round(result.scores.miou, 3), round(result.scores.accuracy, 3)
        (1.0, 1.0)
    """
    if threshold is not None:
        require_fraction("the threshold", threshold)
    items = labelled_images(data, split) if items is None else items
    archives = threshold is not None and _are_archives(prediction_dir, items)
    _require_all(prediction_dir, items, archives, levels=threshold is not None)
    work = functools.partial(
        count_item,
        threshold=threshold,
        prediction_dir=Path(prediction_dir),
        data=data,
        split=split,
        num_classes=num_classes,
        boundary=boundary,
    )
    metrics = SegmentationMetrics(num_classes, boundary)
    for counts in of_each(items, work, workers):
        metrics.add(counts)
    used = match_clusters(metrics.cooccurrence) if match is None else match
    result = EvaluationResult(metrics.compute(used), used, match is None, split)
    if result_path is not None:
        write_json(result_path, {**result.to_dict(), "split": split})
    return result


def count_item(
    item: ImageItem,
    prediction_dir: Path,
    data: Path,
    split: str,
    num_classes: int,
    boundary: bool,
    threshold: float | None = None,
) -> ImageCounts:
    """Counts of one image from its files; everything that :func:`evaluate` needs of it."""
    path = prediction_path(prediction_dir, item)
    truth = open_layout(data).truth(split, item.key)
    if threshold is None:
        prediction = load_label(path)
    else:
        prediction, level = load_levelled(path)
        prediction = np.where(level < np.float32(threshold), 0, prediction)
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
    match: dict[int, int] | None = None,
) -> list[CurvePoint]:
    """mIoU at each threshold, with its own match, from predictions made without threshold.

    Args:
        prediction_dir: ``<key>.npz`` of the pseudo-label sweep, or ``<key>.png`` label maps with
            ``<key>.npy`` level maps.
        thresholds: increasing levels; pixels whose level is smaller become background.
        data, split, num_classes, items, workers: see :func:`evaluate`.
        match: the same for every threshold; None finds the best one for each.

    Raises:
        UserError: a missing, broken or wrongly sized file; names the file.
    """
    items = labelled_images(data, split) if items is None else items
    archives = _are_archives(prediction_dir, items)
    _require_all(prediction_dir, items, archives, levels=True)
    work = functools.partial(
        count_item_levels,
        prediction_dir=Path(prediction_dir),
        data=data,
        split=split,
        num_classes=num_classes,
        thresholds=tuple(thresholds),
    )
    curve = ThresholdCurve(num_classes, thresholds)
    for counts in of_each(items, work, workers):
        curve.add(counts)
    return curve.points(match)


def count_item_levels(
    item: ImageItem,
    prediction_dir: Path,
    data: Path,
    split: str,
    num_classes: int,
    thresholds: Sequence[float],
) -> LevelCounts:
    """Counts of one image from its files; everything that :func:`threshold_curve` needs of it."""
    path = prediction_path(prediction_dir, item)
    prediction, level = load_levelled(path)
    truth = open_layout(data).truth(split, item.key)
    try:
        return count_levels(prediction, level, truth, num_classes, thresholds)
    except UserError as error:
        raise UserError(f"{path.with_suffix('')}: {error}") from error


def _are_archives(prediction_dir: Path, items: Sequence[ImageItem]) -> bool:
    """Whether labels and levels come in the pseudo-label sweep's archives."""
    return (Path(prediction_dir) / f"{items[0].key}{ARCHIVE_SUFFIX}").is_file()


def _require_all(
    prediction_dir: Path, items: Sequence[ImageItem], archives: bool, levels: bool
) -> None:
    label_maps = (".png", LEVEL_SUFFIX) if levels else (".png",)
    for suffix in (ARCHIVE_SUFFIX,) if archives else label_maps:
        require_predictions(prediction_dir, items, suffix)


def of_each(
    items: Sequence[ImageItem], work: Callable[[ImageItem], Counts], workers: int | None
) -> Iterator[Counts]:
    """What ``work`` makes of each item, in order, with a progress bar; None: as many processes as
    pay.
    """
    processes = default_workers(len(items)) if workers is None else workers
    return log.progress(ordered_map(work, items, processes), STAGE, total=len(items))


def labelled_images(data: Path, split: str) -> list[ImageItem]:
    """Images of a split whose masks are at hand.

    Raises:
        UserError: no such split, no mask folder, or an image without mask.
    """
    layout = open_layout(data)
    items = layout.images(split)
    masks = layout.truth_folder(split)
    if not masks.is_dir():
        raise UserError(
            f"{split!r} of {data} has no masks to evaluate against: {masks} does not exist; "
            "evaluate a split that has them, such as validation"
        )
    missing = [item.key for item in items if not layout.truth_path(split, item.key).is_file()]
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
