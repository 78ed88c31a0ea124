"""Segmentation metrics over label maps: IoU, boundary IoU, size bins, image accuracy and F-measure.

One pass over the images counts everything in the prediction's own ids; a match (prediction id ->
class id) is applied afterwards, in :meth:`SegmentationMetrics.compute`. This works because a match
only renames regions: overlaps, boundaries and presence do not depend on the names.

Pixels whose truth is :data:`IGNORE` are not judged: they are left out of every count, also of the
presence that the matching uses. Boundaries are drawn before ignored pixels are dropped, so the rim
of an object that touches an ignored area counts as boundary, as in the ImageNet-S evaluation.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from core.data.label_maps import IGNORE
from core.errors import UserError

# Upper ends, in percent of the image's judged pixels, of the size bins S, MS and ML; L is the rest.
SIZE_BIN_ENDS = (5, 25, 50)
SIZE_BINS = ("S", "MS", "ML", "L")
BOUNDARY_FRACTION = 0.03  # thickness of a boundary, as a fraction of the image diagonal
F_BETA_SQUARED = 0.3
_EPS = 1e-10


@dataclass(frozen=True)
class ImageCounts:
    """What one image adds to the metrics; small, so that it can be sent between processes.

    Attributes:
        pred_ids: (P,) int64, sorted ids that the prediction shows on judged pixels, 0 included.
        true_ids: (G,) int64, the same of the truth.
        joint: (P, 2, G, 2) int64 pixel counts by prediction id, prediction boundary (0 no, 1 yes),
            true id and true boundary; the boundary axes only use index 0 when boundaries were not
            asked for.
    """

    pred_ids: np.ndarray
    true_ids: np.ndarray
    joint: np.ndarray


@dataclass(frozen=True)
class Scores:
    """Results; every score is a fraction in [0, 1] or NaN where nothing could be measured.

    Attributes:
        miou: mean IoU over the C + 1 classes, background included; an absent class counts 0.
        iou: (C+1,) float64, IoU of background (index 0) and of each class.
        mbiou, biou: the same on boundaries; None when boundaries were not counted.
        accuracy: share of images whose most frequent predicted class occurs in the truth.
        f_measure: mean over images of the F-measure of foreground against background, beta^2 = 0.3.
        bins: mean IoU of the objects of size bin S, MS, ML, L; NaN for an empty bin.
        boundary_bins: the same on boundaries; None when boundaries were not counted.
        images: number of images that had at least one judged pixel.
        background_miou: mIoU of a map that says background everywhere, the trivial baseline.
    """

    miou: float
    iou: np.ndarray
    mbiou: float | None
    biou: np.ndarray | None
    accuracy: float
    f_measure: float
    bins: dict[str, float]
    boundary_bins: dict[str, float] | None
    images: int
    background_miou: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; NaN becomes None."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(entry) for key, entry in value.items()}
            if isinstance(value, np.ndarray):
                return [plain(entry) for entry in value.tolist()]
            return None if isinstance(value, float) and math.isnan(value) else value

        return {key: plain(value) for key, value in vars(self).items()}


def boundary_mask(label: np.ndarray) -> np.ndarray:
    """Pixels closer than the boundary thickness d to another label or to the outside of the image.

    The thickness is max(1, round(0.03 * diagonal)) pixels in chessboard distance. This equals
    eroding each label's mask d times with a 3x3 square after a 1-pixel zero border, and taking what
    erosion removed: a pixel survives erosion exactly when the (2d+1)-square around it holds its own
    label only.

    Args:
        label: (H, W) integers in 0..65534.

    Returns:
        (H, W) bool.
    """
    height, width = label.shape
    distance = max(1, round(BOUNDARY_FRACTION * math.hypot(height, width)))
    framed = np.full((height + 2, width + 2), int(label.max()) + 1, np.uint16)
    framed[1:-1, 1:-1] = label
    sides = framed[:, 1:] != framed[:, :-1]
    sides = sides[:, 1:] | sides[:, :-1]
    ends = framed[1:] != framed[:-1]
    ends = ends[1:] | ends[:-1]
    # Pixels whose own 3x3 square shows a second label. A larger square shows one exactly when it
    # contains such a 3x3 square, that is, when such a pixel lies within d - 1.
    thin = sides[1:-1] | sides[:-2] | sides[2:] | ends[:, 1:-1] | ends[:, :-2] | ends[:, 2:]
    square = np.ones((2 * distance - 1, 2 * distance - 1), np.uint8)
    return cv2.dilate(thin.view(np.uint8), square).view(bool)


def count_image(
    prediction: np.ndarray, truth: np.ndarray, num_classes: int, boundary: bool = True
) -> ImageCounts:
    """Count one image.

    Args:
        prediction: (H, W) integers in 0..num_classes (class or cluster ids).
        truth: (H, W) integers in 0..num_classes, or :data:`IGNORE`.
        num_classes: number of classes C without background, below 32768.
        boundary: also count boundaries.

    Raises:
        UserError: the sizes differ, or an id is out of range.
    """
    check_pair(prediction, truth, num_classes)
    narrow = (prediction.astype(np.uint16), truth.astype(np.uint16))
    codes = [2 * ids + boundary_mask(ids) if boundary else 2 * ids for ids in narrow]
    pred_codes, true_codes, lengths = _runs(*codes)
    judged = true_codes >> 1 != IGNORE
    pred_codes, true_codes = pred_codes[judged], true_codes[judged]
    pred_ids, pred_index = compact_ids(pred_codes >> 1)
    true_ids, true_index = compact_ids(true_codes >> 1)
    rows, columns = 2 * len(pred_ids), 2 * len(true_ids)
    index = (2 * pred_index + (pred_codes & 1)) * columns + 2 * true_index + (true_codes & 1)
    # Sums of whole numbers below 2**53: float64 holds them exactly.
    joint = np.bincount(index, lengths[judged], minlength=rows * columns).astype(np.int64)
    return ImageCounts(pred_ids, true_ids, joint.reshape(len(pred_ids), 2, len(true_ids), 2))


def _runs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs of pixels, row by row, over which both maps are constant. There are about a fiftieth as
    many runs as pixels, so counting them is quicker.

    Returns:
        The value of ``first`` and that of ``second`` in each run, and its length in pixels; all
        (R,).
    """
    first, second = first.reshape(-1), second.reshape(-1)
    changes = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
    return first[starts], second[starts], np.diff(starts, append=first.size)


def check_pair(prediction: np.ndarray, truth: np.ndarray, num_classes: int) -> None:
    """Raise :class:`UserError` unless both maps are (H, W) of one size with ids that fit
    ``num_classes``.
    """
    if prediction.shape != truth.shape or truth.ndim != 2:
        raise UserError(
            f"the prediction is {_size(prediction)} but its ground truth is {_size(truth)} "
            "(height x width); predictions must have the size of their image"
        )
    for name, label in (("prediction", prediction), ("ground truth", truth)):
        if 0 <= label.min() and label.max() <= num_classes:
            continue
        wrong = (label < 0) | (label > num_classes)
        if name == "ground truth":
            wrong &= label != IGNORE
        if wrong.any():
            raise UserError(
                f"the {name} holds id {int(label[wrong][0])} but there are {num_classes} classes "
                f"(ids 0 to {num_classes}); is the number of classes right?"
            )


def compact_ids(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids that are present in ``labels`` (N,), ascending, and for each element the index of its
    id among them; both int64. Like ``np.unique`` with its inverse, without sorting.
    """
    present = np.bincount(labels) if labels.size else np.zeros(0, np.int64)
    ids = np.flatnonzero(present)
    position = np.zeros(len(present), np.int64)
    position[ids] = np.arange(len(ids))
    return ids, position[labels]


def lookup_table(match: dict[int, int] | None, num_classes: int) -> np.ndarray:
    """(C+1,) int64: class id of each prediction id under a bijective ``match``; None is the
    identity.

    Raises:
        ValueError: ``match`` is not a bijection of 0..num_classes that keeps 0.
    """
    if match is None:
        return np.arange(num_classes + 1)
    table = np.array([match.get(label, -1) for label in range(num_classes + 1)], np.int64)
    if table[0] != 0 or not np.array_equal(np.sort(table), np.arange(num_classes + 1)):
        raise ValueError(f"not a bijection of the ids 0..{num_classes} that keeps 0: {match}")
    return table


def background_miou(true_pixels: np.ndarray) -> float:
    """mIoU of background everywhere: its IoU is the share of background, every class has 0.

    Args:
        true_pixels: (C+1,) judged pixels by true id.
    """
    return float(true_pixels[0] / max(true_pixels.sum(), 1) / len(true_pixels))


def iou_per_class(confusion: np.ndarray, table: np.ndarray) -> np.ndarray:
    """(C+1,) float64 IoU by class id of counts (C+1, C+1) [prediction id, class id] under
    ``table``.
    """
    hits = np.zeros(len(table), np.int64)
    predicted = np.zeros(len(table), np.int64)
    hits[table] = confusion[np.arange(len(table)), table]
    predicted[table] = confusion.sum(1)
    return _iou(hits, predicted, confusion.sum(0))


class SegmentationMetrics:
    """Streaming counts over images: ``update`` (or ``add``) each image, then ``compute``.

    What it holds does not grow with the number of images.

    Args:
        num_classes: number of classes C without background.
        boundary: also count boundaries (mBIoU and its bins).
    """

    def __init__(self, num_classes: int, boundary: bool = True) -> None:
        self.num_classes = num_classes
        self.boundary = boundary
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        size = self.num_classes + 1
        self.images = 0
        self.confusion = np.zeros((size, size), np.int64)
        self.presence = np.zeros((size, size), np.int64)
        # [p, g]: images whose most frequent prediction id is p alone and whose truth shows g.
        self._top_presence = np.zeros((size, size), np.int64)
        # Images of equally frequent ids, which are rare: (these ids, ids of the truth) -> images.
        self._tied_tops: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
        self._f_sum = 0.0
        self._regions = [_Overlap(size) for _ in SIZE_BINS]
        edges = 1 + len(SIZE_BINS) if self.boundary else 0
        self._edges = [_Overlap(size) for _ in range(edges)]

    @property
    def cooccurrence(self) -> np.ndarray:
        """(C, C) int64: images that show both prediction id p + 1 and class id g + 1 on judged
        pixels.
        """
        return self.presence[1:, 1:]

    def update(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Count one image; see :func:`count_image` for the arguments and errors."""
        self.add(count_image(prediction, truth, self.num_classes, self.boundary))

    def add(self, counts: ImageCounts) -> None:
        """Add one image's counts; an image without judged pixels adds nothing."""
        confusion = counts.joint.sum((1, 3))
        if confusion.sum() == 0:
            return
        self.images += 1
        here = np.ix_(counts.pred_ids, counts.true_ids)
        self.confusion[here] += confusion
        self.presence[here] += 1
        self._add_image_scores(counts, confusion)
        bins = _size_bin_of(confusion.sum(0))
        for index, region in enumerate(self._regions):
            columns = _bin_columns(bins, counts.true_ids, index)
            region.add(counts, confusion[:, columns], columns)
        if self.boundary:
            self._add_edges(counts, bins)

    def _add_image_scores(self, counts: ImageCounts, confusion: np.ndarray) -> None:
        predicted = np.where(counts.pred_ids > 0, confusion.sum(1), 0)
        if predicted.any():
            tops = counts.pred_ids[predicted == predicted.max()]
            true_ids = counts.true_ids[counts.true_ids > 0]
            if len(tops) == 1:
                self._top_presence[tops[0], true_ids] += 1
            else:
                self._tied_tops[tuple(tops.tolist()), tuple(true_ids.tolist())] += 1
        both = confusion[counts.pred_ids > 0][:, counts.true_ids > 0].sum()
        true = confusion[:, counts.true_ids > 0].sum()
        if both:
            precision, recall = both / predicted.sum(), both / true
            weighted = F_BETA_SQUARED * precision + recall
            self._f_sum += float((1 + F_BETA_SQUARED) * precision * recall / weighted)

    def _add_edges(self, counts: ImageCounts, bins: np.ndarray) -> None:
        every = np.arange(len(counts.true_ids))
        selections = [every] + [
            _bin_columns(bins, counts.true_ids, index) for index in range(len(SIZE_BINS))
        ]
        for edge, columns in zip(self._edges, selections):
            edge.add_boundary(counts, columns)

    def compute(self, match: dict[int, int] | None = None) -> Scores:
        """Scores under a match {prediction id: class id}, a bijection of 1..C plus 0 -> 0. With
        None, the predicted ids are class ids already.
        """
        table = lookup_table(match, self.num_classes)
        iou = iou_per_class(self.confusion, table)
        images = max(self.images, 1)
        right = int(self._top_presence[np.arange(len(table)), table].sum())
        # Of equally frequent classes the one with the smallest class id counts, as in the
        # reference.
        for (tops, true_ids), count in self._tied_tops.items():
            right += count * int(table[list(tops)].min() in true_ids)
        biou = self._edges[0].iou(table) if self.boundary else None
        return Scores(
            miou=float(iou.mean()),
            iou=iou,
            mbiou=None if biou is None else float(biou.mean()),
            biou=biou,
            accuracy=right / images,
            f_measure=self._f_sum / images,
            bins=_bin_scores(self._regions, table),
            boundary_bins=_bin_scores(self._edges[1:], table) if self.boundary else None,
            images=self.images,
            background_miou=background_miou(self.confusion.sum(0)),
        )


class _Overlap:
    """Pixel counts of one family of regions, such as the objects of a size bin: by predicted id and
    true id (size, size), by predicted id (size,) and by true id (size,).
    """

    def __init__(self, size: int) -> None:
        self.both = np.zeros((size, size), np.int64)
        self.predicted = np.zeros(size, np.int64)
        self.true = np.zeros(size, np.int64)

    def add(self, counts: ImageCounts, confusion: np.ndarray, columns: np.ndarray) -> None:
        """Add regions; ``confusion`` (P, K) holds the chosen ``columns`` of the truth ids."""
        true_ids = counts.true_ids[columns]
        self.both[np.ix_(counts.pred_ids, true_ids)] += confusion
        self.predicted[counts.pred_ids] += confusion.sum(1)
        self.true[true_ids] += confusion.sum(0)

    def add_boundary(self, counts: ImageCounts, columns: np.ndarray) -> None:
        """Add the boundary pixels that lie on the chosen ``columns`` of the image's truth ids."""
        joint = counts.joint[:, :, columns]
        true_ids = counts.true_ids[columns]
        self.both[np.ix_(counts.pred_ids, true_ids)] += joint[:, 1, :, 1]
        self.predicted[counts.pred_ids] += joint[:, 1].sum((1, 2))
        self.true[true_ids] += joint[:, :, :, 1].sum((0, 1))

    def iou(self, table: np.ndarray) -> np.ndarray:
        """(size,) float64 IoU by class id."""
        hits, predicted = np.zeros_like(self.true), np.zeros_like(self.true)
        hits[table] = self.both[np.arange(len(table)), table]
        predicted[table] = self.predicted
        return _iou(hits, predicted, self.true)


def image_miou(counts: ImageCounts, table: np.ndarray) -> float:
    """Mean IoU of one image over the classes that its truth shows, background included.

    Args:
        counts: from :func:`count_image`.
        table: (C+1,) class id of each prediction id, from :func:`lookup_table`.

    Returns:
        a fraction in [0, 1]; NaN where no pixel is judged.
    """
    confusion = counts.joint.sum((1, 3))
    if not len(counts.true_ids) or not confusion.sum():
        return float("nan")
    same = table[counts.pred_ids][:, None] == counts.true_ids
    hits, predicted = (confusion * same).sum(0), (confusion.sum(1)[:, None] * same).sum(0)
    return float(_iou(hits, predicted, confusion.sum(0)).mean())


def _iou(hits: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    return hits / (true + predicted - hits + _EPS)


def _size_bin_of(pixels: np.ndarray) -> np.ndarray:
    """(G,) index of the size bin of each truth region from its pixel count; whole percents, rounded
    up.
    """
    percent = -(-100 * pixels // pixels.sum())
    return np.searchsorted(SIZE_BIN_ENDS, percent)


def _bin_columns(bins: np.ndarray, true_ids: np.ndarray, index: int) -> np.ndarray:
    """Indices of the true ids that are in size bin ``index``, and of background where the image has
    an object of this bin; else none.
    """
    members = (bins == index) & (true_ids > 0)
    return np.flatnonzero(members | (true_ids == 0)) if members.any() else np.zeros(0, np.int64)


def _bin_scores(overlaps: list[_Overlap], table: np.ndarray) -> dict[str, float]:
    scores = {}
    for name, overlap in zip(SIZE_BINS, overlaps):
        seen = overlap.true > 0
        scores[name] = float(overlap.iou(table)[seen].mean()) if seen.any() else float("nan")
    return scores


def _size(label: np.ndarray) -> str:
    return "x".join(str(side) for side in label.shape)
