"""The evaluator beside a plain restatement of the official one, on the same files.

The restatement does what the official evaluator does, step by step: it reads every file twice (once
to find the match, once to score), draws the boundary of each label by repeated erosion and counts
each size bin from the pixels, in numpy. Both sides have as many processes: one for each core, their
start included, or one. 752 images of 500 x 375 is the
validation split of ImageNet-S50; ``EVALUATE_IMAGES`` sets another number.
"""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from scipy.optimize import linear_sum_assignment

from benchmarks.cases import STAGE, Agreement, Arrays, Case, Inputs, Loaded, Side, Suite, our_side
from core.log import info
from core.work.pool import ordered_map, usable_cores

_IMAGES = int(os.environ.get("EVALUATE_IMAGES", "752"))
_SIZE_HW = (375, 500)
_CLASSES = 50
_IGNORE = 1000
_BINS = ((0, 5), (5, 25), (25, 50), (50, 100))  # percent, lower end excluded
_EPS = 1e-10
_TOLERANCE = 1e-9
_SPLIT = "validation"


# Inputs -----------------------------------------------------------------------------------------


def prepare(folder: Path) -> Inputs:
    """A generated split of label maps and predictions in the layout of ImageNet-S."""
    from core.data.label_maps import save_label

    info(STAGE, f"writing {_IMAGES} label maps and predictions of {_SIZE_HW} (height, width)")
    rng = np.random.default_rng(0)
    for index in range(_IMAGES):
        key = f"n{index % _CLASSES:02d}/image_{index:04d}"
        image = folder / _SPLIT / f"{key}.JPEG"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(b"")  # only its name is read
        truth = _blobs(rng, 1 + index % _CLASSES)
        prediction = (np.roll(truth, rng.integers(-20, 20, 2), (0, 1)) * 7) % (_CLASSES + 1)
        truth[rng.integers(0, 300) :][:6] = _IGNORE
        save_label(folder / f"{_SPLIT}-segmentation" / f"{key}.png", truth)
        save_label(folder / "predictions" / f"{key}.png", prediction)
    return {"data": str(folder), "predictions": str(folder / "predictions")}


def _blobs(rng: np.random.Generator, label: int) -> np.ndarray:
    """(H, W) label map: smooth blobs of two classes on background."""
    height, width = _SIZE_HW
    second = int(rng.integers(1, _CLASSES + 1))
    fields = rng.random((3, 6, 8)).astype(np.float32)
    smooth = [cv2.resize(f, (width, height), interpolation=cv2.INTER_CUBIC) for f in fields]
    return np.array([0, label, second])[np.argmax(smooth, axis=0)]


# Ours -------------------------------------------------------------------------------------------


def ours(all_cores: bool, inputs: Inputs) -> Loaded:
    """``tools.evaluate.folder``."""
    from core.data.imagenet_s import list_images
    from tools.evaluate.folder import evaluate

    data, predictions = Path(inputs["data"]), Path(inputs["predictions"])

    workers = usable_cores() if all_cores else 1

    def run() -> Any:
        return evaluate(predictions, data, _SPLIT, _CLASSES, workers=workers)

    def warm_up() -> Any:
        few = list_images(data / _SPLIT)[:4]
        return evaluate(predictions, data, _SPLIT, _CLASSES, items=few, workers=1)

    def result(outcome: Any) -> Arrays:
        scores = outcome.scores
        bins = [*scores.bins.values(), *scores.boundary_bins.values()]
        figures = [scores.miou, scores.mbiou, scores.accuracy, scores.f_measure, *bins]
        return {"figures": np.array(figures), "iou": scores.iou, "biou": scores.biou}

    return Loaded(warm_up, run, result)


# The official evaluator, restated -----------------------------------------------------------------


def restated(all_cores: bool, inputs: Inputs) -> Loaded:
    """The official algorithm (see the module)."""
    pairs = [
        (path, Path(inputs["predictions"]) / path.parent.name / path.name)
        for path in sorted(Path(inputs["data"], f"{_SPLIT}-segmentation").glob("*/*.png"))
    ]

    def result(outcome: Any) -> Arrays:
        return outcome

    workers = usable_cores() if all_cores else 1
    return Loaded(lambda: _evaluate(pairs[:4], 1), lambda: _evaluate(pairs, workers), result)


class _Counts:
    """What the scores are made of, of one image or several."""

    def __init__(self) -> None:
        self.whole, self.edges = _Areas(), _Areas()
        self.bins = [_Areas() for _ in _BINS]
        self.edge_bins = [_Areas() for _ in _BINS]
        self.right = 0
        self.f_measures: list[float] = []

    def merge(self, other: _Counts) -> None:
        """Add those of ``other``."""
        for mine, its in zip(self._areas(), other._areas()):
            mine.merge(its)
        self.right += other.right
        self.f_measures += other.f_measures

    def scores(self) -> dict[str, np.ndarray]:
        """The result to compare."""
        iou, biou = self.whole.iou(), self.edges.iou()
        means = [area.mean_of_seen() for area in (*self.bins, *self.edge_bins)]
        images = len(self.f_measures)
        figures = [iou.mean(), biou.mean(), self.right / images, np.mean(self.f_measures), *means]
        return {"figures": np.array(figures), "iou": iou, "biou": biou}

    def _areas(self) -> list[_Areas]:
        return [self.whole, self.edges, *self.bins, *self.edge_bins]


def _evaluate(pairs: list[tuple[Path, Path]], workers: int) -> dict[str, np.ndarray]:
    together = sum(ordered_map(_met, pairs, workers), np.zeros((_CLASSES, _CLASSES)))
    rows, columns = linear_sum_assignment(-together)
    match = {0: 0, **{int(row) + 1: int(column) + 1 for row, column in zip(rows, columns)}}
    total = _Counts()
    for counts in ordered_map(partial(_count, match), pairs, workers):
        total.merge(counts)
    return total.scores()


def _met(pair: tuple[Path, Path]) -> np.ndarray:
    """(C, C): 1 where a predicted label and a true one are in the same image."""
    truth, prediction = _read(pair[0]), _read(pair[1])
    judged = truth != _IGNORE
    true_labels = set(np.unique(truth[judged]).tolist()) - {0}
    together = np.zeros((_CLASSES, _CLASSES))
    for label in set(np.unique(prediction[judged]).tolist()) - {0}:
        for true_label in true_labels:
            together[label - 1, true_label - 1] += 1
    return together


def _count(match: dict[int, int], pair: tuple[Path, Path]) -> _Counts:
    truth, prediction = _read(pair[0]), _read(pair[1])
    counts = _Counts()
    named = np.zeros_like(prediction)
    for label in np.unique(prediction):
        named[prediction == label] = match[label]
    judged = truth != _IGNORE
    true_edge, named_edge = _boundary(truth)[judged], _boundary(named)[judged]
    truth, named = truth[judged], named[judged]
    counts.whole.add(truth, named)
    counts.edges.add_edges(true_edge, named_edge)
    counts.right = int(_is_right(truth, named))
    counts.f_measures.append(_f_measure(truth, named))
    for (low, high), region, edge in zip(_BINS, counts.bins, counts.edge_bins):
        members = [
            label
            for label in np.unique(truth)
            if label > 0 and low < math.ceil(100 * (truth == label).sum() / truth.size) <= high
        ]
        if members:
            chosen = np.isin(truth, [0, *members])
            region.add(truth[chosen], named[chosen])
            edge.add_edges(true_edge[chosen], named_edge[chosen])
    return counts


def _read(path: Path) -> np.ndarray:
    rgb = np.array(Image.open(path)).astype(np.int64)
    return rgb[:, :, 1] * 256 + rgb[:, :, 0]


def _boundary(labels: np.ndarray) -> np.ndarray:
    """Label + 1 on the boundary of each label, 0 inside."""
    height, width = labels.shape
    iterations = max(1, round(0.03 * math.hypot(height, width)))
    boundary = np.zeros_like(labels)
    for label in np.unique(labels):
        mask = (labels == label).astype(np.uint8)
        framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=(0,))
        eroded = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=iterations)
        boundary[(mask - eroded[1:-1, 1:-1]) > 0] = label + 1
    return boundary


class _Areas:
    """Intersection, prediction and truth in pixels, by class."""

    def __init__(self) -> None:
        self.both = np.zeros(_CLASSES + 1)
        self.predicted = np.zeros(_CLASSES + 1)
        self.true = np.zeros(_CLASSES + 1)

    def add(self, truth: np.ndarray, named: np.ndarray) -> None:
        self.both += np.bincount(truth[truth == named], minlength=_CLASSES + 1)
        self.predicted += np.bincount(named, minlength=_CLASSES + 1)
        self.true += np.bincount(truth, minlength=_CLASSES + 1)

    def add_edges(self, truth: np.ndarray, named: np.ndarray) -> None:
        self.both += np.bincount(truth[truth == named], minlength=_CLASSES + 2)[1:]
        self.predicted += np.bincount(named, minlength=_CLASSES + 2)[1:]
        self.true += np.bincount(truth, minlength=_CLASSES + 2)[1:]

    def merge(self, other: _Areas) -> None:
        self.both += other.both
        self.predicted += other.predicted
        self.true += other.true

    def iou(self) -> np.ndarray:
        return self.both / (self.true + self.predicted - self.both + _EPS)

    def mean_of_seen(self) -> float:
        seen = self.true > 0
        return float(self.iou()[seen].mean()) if seen.any() else math.nan


def _is_right(truth: np.ndarray, named: np.ndarray) -> bool:
    foreground = named[named > 0]
    return foreground.size > 0 and int(np.bincount(foreground).argmax()) in np.unique(truth)


def _f_measure(truth: np.ndarray, named: np.ndarray) -> float:
    both = ((truth > 0) & (named > 0)).sum()
    if both == 0:
        return 0.0
    precision, recall = both / (named > 0).sum(), both / (truth > 0).sum()
    return 1.3 * precision * recall / (0.3 * precision + recall)


def same_scores(ours: Arrays, other: Arrays) -> Agreement:
    """Every score and every class."""
    difference = max(
        float(np.nanmax(np.abs(ours[key] - other[key]))) for key in ("figures", "iou", "biou")
    )
    same_gaps = np.array_equal(np.isnan(ours["figures"]), np.isnan(other["figures"]))
    text = f"mIoU {ours['figures'][0]:.4f}, all scores within {difference:.1e}"
    return Agreement(same_gaps and difference <= _TOLERANCE, text)


def _case(how: str, all_cores: bool) -> Case:
    height, width = _SIZE_HW
    other = Side("official algorithm restated in numpy", partial(restated, all_cores))
    return Case(
        f"all scores of {_IMAGES} images of {width} x {height}, boundaries included, {how}",
        {**our_side(partial(ours, all_cores)), "restated": other},
        same_scores,
        against="restated",
        aim=0.1,
        one_process=not all_cores,
    )


SUITE = Suite(
    module=__name__,
    prepare=prepare,
    cases={
        "evaluator": _case("a process for each core", True),
        "evaluator_one_process": _case("one process", False),
    },
)
