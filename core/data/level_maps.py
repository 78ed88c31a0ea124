"""Label maps that have no threshold yet, with the level of each pixel: two forms of files.

Either one archive, ``<key>.npz``, as the sweep of the pseudo labels keeps them (arrays ``label``
and ``hundredths``, the level in hundredths rounded down), or a label map ``<key>.png`` with its
level map ``<key>.npy``, float32 (H, W), beside it.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from core.arrays import read_array, read_arrays
from core.data.images import MAX_PIXELS
from core.data.label_maps import load_label
from core.errors import UserError

ARCHIVE_SUFFIX = ".npz"
LEVEL_SUFFIX = ".npy"
_MAX_BYTES = 4 * MAX_PIXELS  # of an archive: 3 a pixel, and headers
_HUNDREDTHS = np.array([step / 100 for step in range(101)], dtype=np.float32)


def archive_of(label: np.ndarray, level: np.ndarray) -> bytes:
    """Content of the archive of a label map and its levels 0..1, both (H, W).

    Whole hundredths are all that a sweep in hundredths needs.
    """
    steps = np.searchsorted(_HUNDREDTHS, level, side="right") - 1
    file = io.BytesIO()
    np.savez_compressed(file, label=label.astype(np.uint16), hundredths=steps.astype(np.uint8))
    return file.getvalue()


def load_levelled(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Label map int32 (H, W) without threshold and its levels, float32 of the same size.

    Args:
        path: the label map, ``<key>.png``; the archive is taken where that is beside it.

    Raises:
        UserError: a missing or broken file, or two of different sizes; names it.
    """
    archive = path.with_suffix(ARCHIVE_SUFFIX)
    if archive.is_file():
        label, level = _load_archive(archive)
    else:
        label, level = load_label(path), _load_level(path.with_suffix(LEVEL_SUFFIX))
    if label.shape != level.shape:
        raise UserError(
            f"{path.with_suffix('')}: the level map is {level.shape} but its prediction is "
            f"{label.shape}; they must come from the same run"
        )
    return label, level


def _load_level(path: Path) -> np.ndarray:
    try:
        level = read_array(path)
    except ValueError as error:
        raise UserError(f"level map {path} cannot be read: {error}; make it again") from error
    if level.ndim != 2 or level.dtype.kind != "f":
        raise UserError(f"level map {path}: expected a 2-D float array; make it again")
    return level


def _load_archive(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        label, steps = read_arrays(path, ("label", "hundredths"), _MAX_BYTES)
    except ValueError as error:
        raise UserError(f"labels {path} cannot be read: {error}; make them again") from error
    if label.ndim != 2 or label.dtype.kind not in "iu" or steps.dtype.kind not in "iu":
        raise UserError(f"labels {path}: expected two 2-D arrays of integers; make them again")
    return label.astype(np.int32), (steps / 100).astype(np.float32)
