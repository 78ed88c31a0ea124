"""Masks as run lengths, and the record that describes a mask (numpy and pycocotools only).

A *record* is one entry of what ``SamAutomaticMaskGenerator.generate`` returns:

- ``segmentation``: the mask, in one of three forms: a bool array (H, W); an *uncompressed RLE*
  ``{"size": [h, w], "counts": [int, ...]}`` (column-major run lengths, the first one counts zeros);
  a *COCO RLE* with the same keys whose ``counts`` is COCO's compressed string;
- ``area`` in pixels, ``bbox`` as [x, y, width, height], ``predicted_iou``, ``stability_score``,
  ``point_coords`` as [[x, y]] and ``crop_box`` as [x, y, width, height], all in pixels of the whole
  image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco

Rle = dict[str, Any]


def encode(mask: np.ndarray) -> Rle:
    """COCO RLE (``counts`` is an ASCII str, so that it goes into JSON) of a bool mask (H, W)."""
    rle = coco.encode(np.asfortranarray(mask).view(np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode(segmentation: np.ndarray | Rle) -> np.ndarray:
    """Bool mask (H, W) of any of the three forms.

    Raises:
        ValueError: the run lengths do not add up to the stated size.
    """
    if isinstance(segmentation, np.ndarray):
        return segmentation.astype(bool, copy=False)
    h, w = segmentation["size"]
    counts = run_lengths(segmentation)
    if int(counts.sum()) != h * w:
        raise ValueError(f"run lengths add up to {int(counts.sum())}, expected {h} x {w} pixels")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(w, h).T


def run_lengths(rle: Rle) -> np.ndarray:
    """int64 column-major run lengths of an uncompressed or COCO RLE; the first run counts zeros."""
    counts = rle["counts"]
    return _parse(counts) if isinstance(counts, (str, bytes)) else np.asarray(counts, np.int64)


def _parse(text: str | bytes) -> np.ndarray:
    """Run lengths of COCO's string: six-bit characters, the low five carry bits, from the third run
    on differences.
    """
    raw = text.encode("ascii") if isinstance(text, str) else text
    codes = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if not len(codes):
        return np.zeros(0, np.int64)
    last = codes & 0x20 == 0
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    values = np.add.reduceat((codes & 0x1F) << (5 * place), starts)
    values -= np.where(codes[ends] & 0x10, np.int64(1) << (5 * (place[ends] + 1)), 0)
    # Every run after the third is stored as its difference from the run two before.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def uncompressed(segmentation: np.ndarray | Rle) -> Rle:
    """The official uncompressed RLE ``{"size": [h, w], "counts": list of int}`` of any form."""
    rle = encode(segmentation) if isinstance(segmentation, np.ndarray) else segmentation
    return {"size": [int(side) for side in rle["size"]], "counts": run_lengths(rle).tolist()}


def compressed(segmentation: np.ndarray | Rle) -> Rle:
    """The COCO RLE of any form, ``counts`` as ASCII str."""
    if isinstance(segmentation, np.ndarray):
        return encode(segmentation)
    counts, size = segmentation["counts"], [int(side) for side in segmentation["size"]]
    if not isinstance(counts, (str, bytes)):
        plain = {"size": size, "counts": [int(count) for count in counts]}
        counts = coco.frPyObjects(plain, *size)["counts"]
    return {"size": size, "counts": counts if isinstance(counts, str) else counts.decode("ascii")}


def area(segmentation: np.ndarray | Rle) -> int:
    """Number of pixels of a mask in any form."""
    if isinstance(segmentation, np.ndarray):
        return int(np.count_nonzero(segmentation))
    return int(run_lengths(segmentation)[1::2].sum())


def box_of(mask: np.ndarray) -> np.ndarray:
    """int64 xyxy (4,) box of a bool mask (H, W); x1 and y1 are inside the mask; zeros for an empty
    mask.
    """
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return np.zeros(4, np.int64)
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], np.int64)


def to_xywh(boxes_xyxy: np.ndarray) -> np.ndarray:
    """Boxes (..., 4) as x, y, x1 - x0, y1 - y0; same dtype."""
    boxes = np.array(boxes_xyxy)
    boxes[..., 2:] -= boxes[..., :2]
    return boxes


Record = dict[str, Any]
