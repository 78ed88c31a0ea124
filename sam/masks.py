"""What automatic mask generation does with masks as numpy arrays: boxes, NMS, crops, point grids,
small regions. Run lengths and records are in ``core.data.rle``.

Boxes follow the official SAM convention: x1 and y1 are the last column and row *inside* the mask,
so a mask of one pixel has width and height 0.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from core.data.rle import box_of

# Boxes ------------------------------------------------------------------------------------------


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """int64 xyxy boxes of bool masks of shape (..., H, W), as (..., 4)."""
    flat = masks.reshape((-1,) + masks.shape[-2:])
    boxes = [box_of(mask) for mask in flat]
    return np.array(boxes, np.int64).reshape(masks.shape[:-2] + (4,))


def nms(boxes_xyxy: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Greedy non-maximum suppression with torchvision's semantics.

    Args:
        boxes_xyxy: (N, 4); areas are (x1 - x0) * (y1 - y0), without any "+1".
        scores: (N,); ties keep their input order.
        threshold: drop a box whose IoU (in float32) with a better box that is kept is larger than
            this.

    Returns:
        int64 indices of the kept boxes, best score first.
    """
    boxes = np.asarray(boxes_xyxy, np.float32).reshape(-1, 4)
    order = np.argsort(-np.asarray(scores, np.float32), kind="stable")
    x0, y0, x1, y1 = boxes[order].T.copy()
    areas = (x1 - x0) * (y1 - y0)
    limit, zero = np.float32(threshold), np.float32(0)
    alive = np.ones(len(order), bool)
    for i in range(len(order)):
        if not alive[i]:
            continue
        rest = slice(i + 1, None)
        width = np.minimum(x1[i], x1[rest]) - np.maximum(x0[i], x0[rest])
        height = np.minimum(y1[i], y1[rest]) - np.maximum(y0[i], y0[rest])
        shared = np.maximum(width, zero) * np.maximum(height, zero)
        with np.errstate(invalid="ignore", divide="ignore"):
            # Two boxes without area give 0/0, which is NaN. NaN is not larger than the limit, so
            # both are kept.
            alive[rest] &= ~(shared / (areas[i] + areas[rest] - shared) > limit)
    return order[alive].astype(np.int64)


# Points and crops -------------------------------------------------------------------------------


def point_grid(per_side: int) -> np.ndarray:
    """float64 (per_side**2, 2) grid of (x, y) in [0, 1], row by row, half a step from the
    border.
    """
    half = 1 / (2 * per_side)
    line = np.linspace(half, 1 - half, per_side)
    return np.stack([np.tile(line, per_side), np.repeat(line, per_side)], axis=-1)


def layer_point_grids(per_side: int, layers: int, downscale: int) -> list[np.ndarray]:
    """A point grid for the image (layer 0) and one for each layer of crops. The grid of layer i has
    per_side / downscale**i points along each side, rounded down.
    """
    return [point_grid(int(per_side / downscale**i)) for i in range(layers + 1)]


def crop_boxes(
    size_hw: tuple[int, int], layers: int, overlap_ratio: float
) -> tuple[list[list[int]], list[int]]:
    """The whole image, then for layer i a grid of 2**i x 2**i overlapping crops.

    Args:
        size_hw: height and width of the image.
        layers: number of crop layers beyond the whole image.
        overlap_ratio: overlap in layer 1 as a fraction of the short side; halved in each further
            layer.

    Returns:
        xyxy boxes (x1, y1 exclusive, at most the image's width and height) and the layer of each.
    """
    h, w = size_hw
    boxes, layer_of = [[0, 0, w, h]], [0]
    for layer in range(1, layers + 1):
        side = 2**layer
        overlap = int(overlap_ratio * min(h, w) * (2 / side))
        crop_w = int(math.ceil((overlap * (side - 1) + w) / side))
        crop_h = int(math.ceil((overlap * (side - 1) + h) / side))
        # Official order: x outside, y inside.
        for x in (int((crop_w - overlap) * i) for i in range(side)):
            for y in (int((crop_h - overlap) * i) for i in range(side)):
                boxes.append([x, y, min(x + crop_w, w), min(y + crop_h, h)])
                layer_of.append(layer)
    return boxes, layer_of


def near_crop_edge(
    boxes_xyxy: np.ndarray, crop_xyxy: list[int], size_hw: tuple[int, int], tolerance: float = 20.0
) -> np.ndarray:
    """bool (N,): whether a side of the box lies near the crop's border, where that is not the
    image's border too. The object of such a box is probably cut off.

    Args:
        boxes_xyxy: (N, 4) in coordinates of the crop.
        crop_xyxy: the crop in the image.
        size_hw: height and width of the image.
        tolerance: how near, in pixels.
    """
    boxes = uncrop_boxes(np.asarray(boxes_xyxy, np.float32), crop_xyxy)
    h, w = size_hw
    at_crop = np.abs(boxes - np.asarray(crop_xyxy, np.float32)) <= tolerance
    at_image = np.abs(boxes - np.asarray([0, 0, w, h], np.float32)) <= tolerance
    return (at_crop & ~at_image).any(axis=-1)


def uncrop_boxes(boxes_xyxy: np.ndarray, crop_xyxy: list[int]) -> np.ndarray:
    """Boxes (..., 4) of a crop in coordinates of the whole image; same dtype."""
    x, y = crop_xyxy[:2]
    return boxes_xyxy + np.array([x, y, x, y], boxes_xyxy.dtype)


def uncrop_points(points_xy: np.ndarray, crop_xyxy: list[int]) -> np.ndarray:
    """Points (..., 2) of a crop in coordinates of the whole image; same dtype."""
    return points_xy + np.array(crop_xyxy[:2], points_xy.dtype)


def uncrop_masks(masks: np.ndarray, crop_xyxy: list[int], size_hw: tuple[int, int]) -> np.ndarray:
    """Masks (..., h, w) of a crop, zero-padded to the whole image (..., H, W)."""
    x0, y0, x1, y1 = crop_xyxy
    if (y1 - y0, x1 - x0) == tuple(size_hw):
        return masks
    whole = np.zeros(masks.shape[:-2] + tuple(size_hw), masks.dtype)
    whole[..., y0:y1, x0:x1] = masks
    return whole


# Quality ----------------------------------------------------------------------------------------


def stability_score(mask_logits: np.ndarray, threshold: float, offset: float) -> np.ndarray:
    """IoU of the masks at ``threshold + offset`` and ``threshold - offset``.

    Args:
        mask_logits: float32 (..., H, W).

    Returns:
        float32 (...), a fraction; NaN where even the larger mask is empty, as in the official code.
    """
    inner = _pixels_above(mask_logits, threshold + offset)
    outer = _pixels_above(mask_logits, threshold - offset)
    with np.errstate(invalid="ignore"):
        return np.asarray(inner / outer, np.float32)


def _pixels_above(mask_logits: np.ndarray, limit: float) -> np.ndarray:
    """float32 (...): pixels of masks (..., H, W) above a limit, counted one mask at a time.

    Counting along axes would be ten times slower, because only the whole-array count is vectorised.
    """
    flat = mask_logits.reshape((-1,) + mask_logits.shape[-2:])
    counts = [np.count_nonzero(mask > np.float32(limit)) for mask in flat]
    return np.array(counts, np.float32).reshape(mask_logits.shape[:-2])


def fill_small_holes(mask: np.ndarray, min_area: float) -> tuple[np.ndarray, bool]:
    """Fill holes: background regions (8-connected) of fewer than ``min_area`` pixels.

    Returns:
        The mask, bool (H, W), and whether it has changed.
    """
    count, regions, sizes = _regions(~mask.astype(bool, copy=False))
    small = np.flatnonzero(sizes < min_area) + 1
    if not len(small):
        return mask, False
    keep = np.zeros(count, bool)
    keep[0] = True
    keep[small] = True
    return keep[regions], True


def drop_small_islands(mask: np.ndarray, min_area: float) -> tuple[np.ndarray, bool]:
    """Drop islands: regions (8-connected) of fewer than ``min_area`` pixels. Where all are that
    small, the largest one is kept.

    Returns:
        The mask, bool (H, W), and whether it has changed.
    """
    count, regions, sizes = _regions(mask)
    small = np.flatnonzero(sizes < min_area) + 1
    if not len(small):
        return mask, False
    keep = np.ones(count, bool)
    keep[0] = False
    keep[small] = False
    if not keep.any():
        keep[int(np.argmax(sizes)) + 1] = True
    return keep[regions], True


def _regions(mask: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """The 8-connected regions of a mask: how many labels there are (background, label 0,
    included), the label map, and the pixels of each label from 1 on.
    """
    count, regions, stats, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=8
    )
    return count, regions, np.asarray(stats)[1:, cv2.CC_STAT_AREA]
