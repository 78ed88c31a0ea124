"""k-means at the size of ImageNet-S50 with the reference's settings, beside Lloyd's algorithm in
numpy.

64,431 unit features of 512 channels (ResNet18) into 50 centres, 20 iterations, the best of 30
starts. A run takes minutes: pass ``--runs 1``. ``KMEANS_IMAGES`` sets another number of features.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare import STAGE, Agreement, Arrays, Case, Inputs, Side, Suite
from core.log import info
from uss.config import Cluster

_IMAGES = int(os.environ.get("KMEANS_IMAGES", "64431"))
_CHANNELS = 512
_CENTRES = 50
_SETTINGS = Cluster()
_TOLERANCE = 0.01  # of the objective: the starts differ


def prepare(folder: Path) -> Inputs:
    """``features``: non-negative unit rows around twice as many modes as centres."""
    info(STAGE, f"{_IMAGES} features of {_CHANNELS} channels around {2 * _CENTRES} modes")
    rng = np.random.default_rng(0)
    modes = rng.random((2 * _CENTRES, _CHANNELS), np.float32) ** 2
    noise = rng.random((_IMAGES, _CHANNELS), np.float32)
    features = modes[rng.integers(0, len(modes), _IMAGES)] + noise
    path = folder / "features.npy"
    np.save(path, features / np.linalg.norm(features, axis=1, keepdims=True))
    return {"features": str(path)}


def ours(inputs: Inputs) -> Side:
    """``core.kmeans.kmeans``, that is faiss."""
    from core.kmeans import kmeans

    features = np.load(inputs["features"])

    def run(rows: int = len(features), redo: int = _SETTINGS.redo) -> Any:
        return kmeans(features[:rows], _CENTRES, _SETTINGS.iterations, redo, seed=31)

    return Side(lambda: run(1000, 1), run, _objective)


def lloyd(inputs: Inputs) -> Side:
    """Lloyd's algorithm by matrix products, from random rows."""
    features = np.load(inputs["features"])

    def run(rows: int = len(features), redo: int = _SETTINGS.redo) -> Any:
        starts = (_lloyd(features[:rows], np.random.default_rng(seed)) for seed in range(redo))
        return min(starts, key=lambda result: result[1])

    return Side(lambda: run(1000, 1), run, _objective)


def _lloyd(features: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    centres = features[rng.choice(len(features), _CENTRES, replace=False)]
    squares = float((features**2).sum())
    objective = np.inf
    for _ in range(_SETTINGS.iterations):
        distance = (centres**2).sum(1) - 2 * features @ centres.T
        nearest = distance.argmin(1)
        objective = squares + float(distance.min(1).sum(dtype=np.float64))
        members = np.zeros((_CENTRES, len(features)), np.float32)
        members[nearest, np.arange(len(features))] = 1
        sizes = members.sum(1, keepdims=True)
        centres = np.where(sizes > 0, members @ features / np.maximum(sizes, 1), centres)
    return centres, objective


def _objective(outcome: Any) -> Arrays:
    return {"objective": np.array(outcome[1])}


def same_objective(ours: Arrays, other: Arrays) -> Agreement:
    """The sum of squared distances is no larger than the other's, within a hundredth."""
    reached, compared = float(ours["objective"]), float(other["objective"])
    text = f"objective {reached:.1f}, Lloyd's in numpy {compared:.1f}"
    return Agreement(reached <= compared * (1 + _TOLERANCE), text)


SUITE = Suite(
    module=__name__,
    prepare=prepare,
    cases={
        "kmeans": Case(
            f"{_IMAGES} features of {_CHANNELS} channels into {_CENTRES} centres, "
            f"{_SETTINGS.iterations} iterations, best of {_SETTINGS.redo} starts",
            {"ours": ours, "torch": lloyd},
            same_objective,
        )
    },
)
