"""Superpixels in place of SAM's masks, for machines that can get no SAM weights; never the default.

They follow colours and edges, not objects: a run that uses them says so in its results.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from skimage.segmentation import felzenszwalb, slic

from sam import masks as M

# Images of more pixels are partitioned at a smaller size: the number of segments grows with the
# pixels, and each becomes a mask of the image's size.
_MAX_PIXELS = 400_000


class SuperpixelMaskGenerator:
    """Partitions of the image at several scales, as records of the same form as SAM's.

    Args:
        slic_segments: about how many segments each SLIC partition has.
        felzenszwalb_scales: scales of the graph-based partitions; larger means larger segments.
        min_area: segments smaller than this many pixels go.
        output_mode: form of ``segmentation``: "binary_mask", "uncompressed_rle" or "coco_rle".
    """

    def __init__(
        self,
        slic_segments: tuple[int, ...] = (25, 100),
        felzenszwalb_scales: tuple[float, ...] = (100.0, 400.0),
        min_area: int = 100,
        output_mode: str = "coco_rle",
    ) -> None:
        self.settings: dict[str, Any] = {
            "masks": "superpixels",
            "slic_segments": list(slic_segments),
            "felzenszwalb_scales": list(felzenszwalb_scales),
            "min_area": min_area,
            "max_pixels": _MAX_PIXELS,
        }
        self.output_mode = output_mode

    def generate(self, image: np.ndarray) -> list[M.Record]:
        """Records (see ``sam.masks``) of a uint8 RGB image (H, W, 3); quality scores are 1, there
        is no model.
        """
        size_hw = (image.shape[0], image.shape[1])
        image = _bounded(image)
        min_area = self.settings["min_area"]
        partitions = [
            slic(image, n_segments=count, compactness=10.0, start_label=0, channel_axis=-1)
            for count in self.settings["slic_segments"]
        ]
        partitions += [
            felzenszwalb(image, scale=scale, sigma=0.5, min_size=max(min_area, 1), channel_axis=-1)
            for scale in self.settings["felzenszwalb_scales"]
        ]
        records: list[M.Record] = []
        seen: set[str] = set()
        for labels in partitions:
            for label in np.flatnonzero(np.bincount(labels.ravel()) >= max(min_area, 1)):
                record = self._record(labels == label, size_hw)
                counts = record["segmentation"]["counts"]
                if counts not in seen:
                    seen.add(counts)
                    records.append(record)
        return [self._in_output_mode(record) for record in records]

    def _record(self, small: np.ndarray, size_hw: tuple[int, int]) -> M.Record:
        h, w = size_hw
        ys, xs = np.nonzero(small)
        # The segment's pixel nearest its centre of mass: a point that is certainly inside.
        nearest = int(np.argmin((xs - xs.mean()) ** 2 + (ys - ys.mean()) ** 2))
        x, y = int(xs[nearest]) * w // small.shape[1], int(ys[nearest]) * h // small.shape[0]
        mask = small
        if small.shape != size_hw:
            enlarged = cv2.resize(small.astype(np.uint8), (w, h), interpolation=cv2.INTER_NEAREST)
            mask = enlarged.astype(bool)
        rle = M.encode(mask)
        return {
            "segmentation": rle,
            "area": M.area(rle),
            "bbox": M.to_xywh(M.box_of(mask)).tolist(),
            "predicted_iou": 1.0,
            "point_coords": [[float(x), float(y)]],
            "stability_score": 1.0,
            "crop_box": [0, 0, w, h],
        }

    def _in_output_mode(self, record: M.Record) -> M.Record:
        if self.output_mode == "binary_mask":
            return {**record, "segmentation": M.decode(record["segmentation"])}
        if self.output_mode == "uncompressed_rle":
            return {**record, "segmentation": M.uncompressed(record["segmentation"])}
        return record


def _bounded(image: np.ndarray) -> np.ndarray:
    """The image, made smaller where it has more than ``_MAX_PIXELS``."""
    shrink = (_MAX_PIXELS / (image.shape[0] * image.shape[1])) ** 0.5
    if shrink >= 1:
        return image
    size = (max(1, round(image.shape[1] * shrink)), max(1, round(image.shape[0] * shrink)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
