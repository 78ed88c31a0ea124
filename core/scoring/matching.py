"""Which cluster is which class. Cluster and class are matched when they occur in the same images;
the Hungarian algorithm finds the best match, and ``match.json`` keeps it.

A *match* is a dict {prediction id: class id}, a bijection of 1..C onto itself plus 0 -> 0. In its
file the prediction ids are JSON strings: ``{"0": 0, "1": 17, ...}``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from core.files import atomic_write


def hungarian(cost: np.ndarray) -> dict[int, int]:
    """The assignment {row: column} of least total cost, for a matrix (rows, columns) that need not
    be square.

    It has min(rows, columns) pairs. Among equally good assignments scipy chooses, and for the same
    matrix always the same one.
    """
    # Its import takes longer than all others together, and the worker processes of an evaluation do
    # not need it.
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(np.asarray(cost, np.float64))
    return {int(row): int(column) for row, column in zip(rows, columns)}


def match_clusters(cooccurrence: np.ndarray) -> dict[int, int]:
    """Match that maximises the number of images in which matched ids occur together.

    Args:
        cooccurrence: (C, C) counts, [p, g] = images that show prediction id p + 1 and class id g +
            1; see ``SegmentationMetrics.cooccurrence``. Background takes no part.

    Returns:
        {prediction id: class id}, 1-based, with 0: 0.
    """
    if cooccurrence.ndim != 2 or cooccurrence.shape[0] != cooccurrence.shape[1]:
        raise ValueError(f"expected a square (C, C) array, got {cooccurrence.shape}")
    pairs = hungarian(-cooccurrence)
    return {0: 0, **{row + 1: column + 1 for row, column in sorted(pairs.items())}}


def match_single_labels(
    clusters: np.ndarray, targets: np.ndarray, num_classes: int
) -> tuple[dict[int, int], float]:
    """Match of one cluster index and one target index per sample, both (N,) in 0..num_classes - 1.

    Returns:
        ({cluster: target}, 0-based; accuracy under it, a fraction).
    """
    pairs = clusters.astype(np.int64) * num_classes + targets
    counts = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    match = hungarian(-counts)
    right = sum(int(counts[cluster, target]) for cluster, target in match.items())
    return match, right / max(len(clusters), 1)


def identity_match(num_classes: int) -> dict[int, int]:
    """The match that leaves every id as it is, for predictions that hold class ids already."""
    return {label: label for label in range(num_classes + 1)}


def apply_match(label: np.ndarray, match: dict[int, int]) -> np.ndarray:
    """int32 label map of the same shape with every id replaced by its class id.

    Raises:
        UserError: an id of ``label`` is not in ``match``.
    """
    table = np.full(max(match) + 2, -1, np.int32)
    table[list(match)] = list(match.values())
    # The last entry of the table stays -1 and answers for every id beyond it.
    index = np.where((label < 0) | (label > max(match)), max(match) + 1, label)
    matched = table[index]
    if (matched < 0).any():
        unknown = int(label[matched < 0][0])
        raise UserError(
            f"the label map holds id {unknown}, which the match (ids 0 to {max(match)}) does not "
            "know; use the match of the same clustering"
        )
    return matched


def write_match(path: Path, match: dict[int, int]) -> None:
    """Write ``match`` as JSON with string keys in numeric order, atomically."""
    with atomic_write(path, "w") as file:
        file.write(match_text(match))


def match_text(match: dict[int, int]) -> str:
    """The content of the match file."""
    ordered = {str(label): int(match[label]) for label in sorted(match)}
    return json.dumps(ordered, indent=0) + "\n"


def read_match(path: Path, num_classes: int) -> dict[int, int]:
    """Read and check a match file.

    Raises:
        UserError: missing or unreadable file, or not a bijection for ``num_classes``; says what to
            do.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"expected a match file at {path}, but it cannot be read: {error}; "
            "python -m uss evaluate --write-match makes one from validation predictions"
        ) from error
    try:
        return parse_match(text, num_classes)
    except ValueError as error:
        raise UserError(
            f"match file {path}: {error}; expected a bijection of the ids 1 to {num_classes} plus "
            '"0": 0, as python -m uss evaluate --write-match makes it'
        ) from error


def parse_match(text: str, num_classes: int) -> dict[int, int]:
    """The match in a file's content.

    Raises:
        ValueError: what is wrong with it.
    """
    try:
        pairs = json.loads(text, object_pairs_hook=_Pairs)
    except RecursionError as error:
        raise ValueError("not JSON: nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(pairs, _Pairs):
        raise ValueError("not a JSON object")
    match: dict[int, int] = {}
    for key, value in pairs:
        if not (key.isascii() and key.isdigit() and len(key) < 7 and str(int(key)) == key):
            raise ValueError(f"key {key[:40]!r} is not an id")
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"the value of key {key!r} is {str(value)[:40]!r}, not an integer")
        if int(key) in match:
            raise ValueError(f"key {key!r} occurs twice")
        match[int(key)] = value
    _check_bijection(match, num_classes)
    return match


class _Pairs(list):
    """Key-value pairs of a JSON object, repeated keys kept."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)


def _check_bijection(match: dict[int, int], num_classes: int) -> None:
    if match.get(0) != 0:
        raise ValueError('background must be matched to itself ("0": 0)')
    classes = len(match) - 1
    if classes != num_classes:
        raise ValueError(f"it matches {classes} ids but there are {num_classes} classes")
    wanted = set(range(num_classes + 1))
    if set(match) != wanted:
        raise ValueError(f"id {min(wanted - set(match))} has no entry")
    if set(match.values()) != wanted:
        raise ValueError(f"class {min(wanted - set(match.values()))} is matched by no id")
