"""Superpixels in place of SAM's masks, for machines that can get no SAM weights; never the default.

They follow colours and edges, not objects: a run that uses them says so in its results.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from skimage.segmentation import felzenszwalb, slic

from core.data import rle

# Images of more pixels are partitioned at a smaller size: the number of segments grows with the
# pixels, and each becomes a mask of the image's size.
_MAX_PIXELS = 400_000
_SLIC_SEGMENTS = (25, 100)  # about how many segments each SLIC partition has
_FELZENSZWALB_SCALES = (100.0, 400.0)  # of the graph-based partitions; larger: larger segments


class SuperpixelMaskGenerator:
    """Partitions of the image at several scales, as records of the same form as SAM's.

    Args:
        min_area: segments smaller than this many pixels go.
    """

    def __init__(self, min_area: int = 100) -> None:
        self._min_area = max(min_area, 1)
        #: Everything that decides the masks; JSON serialisable.
        self.settings: dict[str, Any] = {
            "masks": "superpixels",
            "slic_segments": list(_SLIC_SEGMENTS),
            "felzenszwalb_scales": list(_FELZENSZWALB_SCALES),
            "min_area": min_area,
            "max_pixels": _MAX_PIXELS,
        }

    def generate(self, image: np.ndarray) -> list[rle.Record]:
        """Records (see ``sam.masks``) of a uint8 RGB image (H, W, 3), ``segmentation`` as COCO RLE;
        quality scores are 1, there is no model.
        """
        size_hw = (image.shape[0], image.shape[1])
        image = _bounded(image)
        partitions = [
            slic(image, n_segments=count, compactness=10.0, start_label=0, channel_axis=-1)
            for count in _SLIC_SEGMENTS
        ]
        partitions += [
            felzenszwalb(image, scale=scale, sigma=0.5, min_size=self._min_area, channel_axis=-1)
            for scale in _FELZENSZWALB_SCALES
        ]
        records: dict[str, rle.Record] = {}  # by run lengths: partitions share segments
        for labels in partitions:
            for label in np.flatnonzero(np.bincount(labels.ravel()) >= self._min_area):
                record = _record(labels == label, size_hw)
                records.setdefault(record["segmentation"]["counts"], record)
        return list(records.values())


def _record(small: np.ndarray, size_hw: tuple[int, int]) -> rle.Record:
    """The record of a segment (h, w) bool in an image of another size."""
    h, w = size_hw
    ys, xs = np.nonzero(small)
    # The segment's pixel nearest its centre of mass: a point that is certainly inside.
    nearest = int(np.argmin((xs - xs.mean()) ** 2 + (ys - ys.mean()) ** 2))
    x, y = int(xs[nearest]) * w // small.shape[1], int(ys[nearest]) * h // small.shape[0]
    mask = small
    if small.shape != size_hw:
        enlarged = cv2.resize(small.astype(np.uint8), (w, h), interpolation=cv2.INTER_NEAREST)
        mask = enlarged.astype(bool)
    segmentation = rle.encode(mask)
    return {
        "segmentation": segmentation,
        "area": rle.area(segmentation),
        "bbox": rle.to_xywh(rle.box_of(mask)).tolist(),
        "predicted_iou": 1.0,
        "point_coords": [[float(x), float(y)]],
        "stability_score": 1.0,
        "crop_box": [0, 0, w, h],
    }


def _bounded(image: np.ndarray) -> np.ndarray:
    """The image, made smaller where it has more than ``_MAX_PIXELS``."""
    shrink = (_MAX_PIXELS / (image.shape[0] * image.shape[1])) ** 0.5
    if shrink >= 1:
        return image
    size = (max(1, round(image.shape[1] * shrink)), max(1, round(image.shape[0] * shrink)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
