"""All masks of an image: the official ``SamAutomaticMaskGenerator``. It filters the masks of each
batch of points at once and keeps them as run lengths, so memory is bounded by one batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from core.data import rle
from sam import batch_size
from sam import masks as M
from sam.predictor import SamPredictor

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")


@dataclass(frozen=True)
class _Candidate:
    """A mask that has passed the filters so far, in coordinates of the whole image."""

    rle: rle.Rle
    box_xyxy: np.ndarray
    predicted_iou: np.float32
    stability_score: np.float32
    point_xy: np.ndarray
    crop_xyxy: list[int]


class SamAutomaticMaskGenerator:
    """Prompts the model with a grid of points over the image, and over crops of it where asked, and
    keeps the masks that pass its filters.

    The defaults find the large and middle-sized things of a photograph. For small things raise
    ``points_per_side`` or ``crop_n_layers``; for more masks, of lower quality, lower the two
    thresholds; for less memory lower ``points_per_batch``.

    Args:
        model: a ``sam.build.Sam`` with its weights loaded.
        points_per_side: the grid has this many points along each side, and so its square in all. A
            denser grid meets smaller objects; the time grows with the square. None when
            ``point_grids`` is given.
        points_per_batch: how many points are decoded at once, at most. More is faster and takes
            more memory; the masks stay the same. Where the memory is not free, the batch is halved
            until it fits, with a warning; after some images that went well it is doubled again.
        pred_iou_thresh: drop masks whose predicted IoU is not above this. Raise it to keep only
            masks of which the model is sure; 0 keeps all.
        stability_score_thresh: drop masks whose stability score is below this. The score says how
            little a mask changes when its threshold moves; raise it where masks have frayed
            borders, 0 keeps all.
        stability_score_offset: how far the threshold moves for that score, in logits. A larger
            offset asks for sharper borders.
        box_nms_thresh: of two masks of one crop whose boxes have an IoU above this, drop the one of
            lower predicted IoU. Lower it where an object comes back several times; raise it where
            nested or overlapping objects get lost.
        crop_n_layers: layers of crops beyond the whole image; layer i has 4**i crops, each encoded
            by itself. A layer finds objects that are too small in the whole image, and costs four
            times as many encodings as the one before.
        crop_nms_thresh: like ``box_nms_thresh``, between masks of different crops; there the mask
            of the smaller crop is kept.
        crop_overlap_ratio: overlap of the crops in layer 1, as a fraction of the image's shorter
            side, halved in each further layer. An object that a crop cuts is dropped there; with
            more overlap another crop holds it whole.
        crop_n_points_downscale_factor: the grid of layer i has points_per_side / factor**i points
            along each side. Crops show a part of the image only, so a factor of 2 keeps the number
            of points per object about the same and saves most of the decoding.
        point_grids: own grids instead of ``points_per_side``, one (N, 2) array of (x, y) in [0, 1]
            for the image and one for each layer of crops; to look at some places only.
        min_mask_region_area: fill holes and drop islands of fewer pixels than this, and drop masks
            that become duplicates by it; for masks without specks. 0 leaves them as they are.
        output_mode: form of ``segmentation``: "binary_mask" for a bool array, "uncompressed_rle" or
            "coco_rle" for run lengths, which take far less memory when there are many masks.

    Raises:
        ValueError: not exactly one of ``points_per_side`` and ``point_grids``, or an unknown output
            mode.

    Example (random weights, whose masks pass no filter; hence the zeros)::

        >>> import numpy as np
        >>> from sam import SamAutomaticMaskGenerator, sam_model_registry
        >>> generator = SamAutomaticMaskGenerator(
        ...     sam_model_registry["vit_t"](checkpoint=None),
        ...     points_per_side=2,
        ...     pred_iou_thresh=0,
        ...     stability_score_thresh=0,
        ... )
        >>> records = generator.generate(np.full((120, 160, 3), 128, np.uint8))
        >>> sorted(records[0])  # doctest: +NORMALIZE_WHITESPACE
        ['area', 'bbox', 'crop_box', 'point_coords', 'predicted_iou', 'segmentation',
         'stability_score']
        >>> mask = records[0]["segmentation"]
        >>> mask.shape, mask.dtype.name, records[0]["area"] == int(mask.sum())
        ((120, 160), 'bool', True)
    """

    def __init__(
        self,
        model: Any,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: list[np.ndarray] | None = None,
        min_mask_region_area: int = 0,
        output_mode: str = "binary_mask",
    ) -> None:
        if (points_per_side is None) == (point_grids is None):
            raise ValueError("give exactly one of points_per_side and point_grids")
        if output_mode not in OUTPUT_MODES:
            raise ValueError(f"output_mode must be one of {OUTPUT_MODES}, not {output_mode!r}")
        if points_per_side is not None:
            point_grids = M.layer_point_grids(
                points_per_side, crop_n_layers, crop_n_points_downscale_factor
            )
        assert point_grids is not None
        self.predictor = SamPredictor(model)
        self.point_grids = point_grids
        self.points_per_batch = points_per_batch
        self._recovery = batch_size.Recovery(points_per_batch)
        self._known_to_fit = 0
        self.pred_iou_thresh = pred_iou_thresh
        self.stability_score_thresh = stability_score_thresh
        self.stability_score_offset = stability_score_offset
        self.box_nms_thresh = box_nms_thresh
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.crop_n_points_downscale_factor = crop_n_points_downscale_factor
        self.min_mask_region_area = min_mask_region_area
        self.output_mode = output_mode

    def generate(self, image: np.ndarray) -> list[rle.Record]:
        """All masks of a uint8 RGB image (H, W, 3), as records (see ``core.data.rle``).

        Each record has ``segmentation`` (in ``output_mode``), ``area``, ``bbox`` [x, y, w, h],
        ``predicted_iou``, ``point_coords`` [[x, y]], ``stability_score`` and ``crop_box`` [x, y, w,
        h].
        """
        candidates = self._all_candidates(image)
        self.points_per_batch = self._recovery.after_an_image(self.points_per_batch)
        if self.min_mask_region_area > 0:
            candidates = self._without_small_regions(candidates)
        return [self._record(candidate) for candidate in candidates]

    def _all_candidates(self, image: np.ndarray) -> list[_Candidate]:
        h, w = image.shape[:2]
        boxes, layers = M.crop_boxes((h, w), self.crop_n_layers, self.crop_overlap_ratio)
        found: list[_Candidate] = []
        for box, layer in zip(boxes, layers):
            found += self._in_crop(image, box, layer)
        if len(boxes) > 1:
            # Prefer masks from smaller crops: they were seen at a higher resolution.
            areas = [
                (c.crop_xyxy[2] - c.crop_xyxy[0]) * (c.crop_xyxy[3] - c.crop_xyxy[1]) for c in found
            ]
            found = _suppressed(found, 1 / np.array(areas, np.float32), self.crop_nms_thresh)
        return found

    def _in_crop(self, image: np.ndarray, crop_xyxy: list[int], layer: int) -> list[_Candidate]:
        """Encode one crop, decode its grid batch by batch, drop duplicates within the crop."""
        h, w = image.shape[:2]
        x0, y0, x1, y1 = crop_xyxy
        self.predictor.set_image(image[y0:y1, x0:x1])
        points = self.point_grids[layer] * np.array([[x1 - x0, y1 - y0]])
        found: list[_Candidate] = []
        start = 0
        while start < len(points):
            batch = points[start : start + self.points_per_batch]
            try:
                # Jittor keeps the memory that a batch took, so a batch of the same size fits again.
                if len(batch) > self._known_to_fit:
                    batch_size.ask_for(len(batch))
                found += self._of_points(batch, crop_xyxy, (h, w))
            except (MemoryError, RuntimeError) as error:
                # Nor is one as large as that which failed taken for granted.
                self.points_per_batch = batch_size.halved(len(batch), error)
                self._known_to_fit = min(self._known_to_fit, self.points_per_batch)
                self._recovery.begin()
                continue
            self._known_to_fit = max(self._known_to_fit, len(batch))
            start += len(batch)
        self.predictor.reset_image()
        scores = np.array([candidate.predicted_iou for candidate in found], np.float32)
        return _suppressed(found, scores, self.box_nms_thresh)

    def _of_points(
        self, points_xy: np.ndarray, crop_xyxy: list[int], size_hw: tuple[int, int]
    ) -> list[_Candidate]:
        """The masks of one batch of points (in crop coordinates) that pass the filters."""
        crop_hw = (crop_xyxy[3] - crop_xyxy[1], crop_xyxy[2] - crop_xyxy[0])
        coords = self.predictor.transform.apply_coords(points_xy, crop_hw)
        limit = self.pred_iou_thresh if self.pred_iou_thresh > 0 else -math.inf
        low_res, iou, decoded = self.predictor.decode(
            coords[:, None], np.ones((len(coords), 1), np.int32), iou_limit=limit
        )
        upscale = self.predictor.upscaler()
        found = []
        for row, channel in zip(*np.nonzero(iou[decoded] > np.float32(limit))):
            point = decoded[row]
            logits = upscale(low_res[row, channel])
            kept = self._stable(logits, crop_xyxy, size_hw)
            if kept is None:
                continue
            mask, box, stability = kept
            found.append(
                _Candidate(
                    rle=rle.encode(M.uncrop_masks(mask, crop_xyxy, size_hw)),
                    box_xyxy=M.uncrop_boxes(box, crop_xyxy),
                    predicted_iou=iou[point, channel],
                    stability_score=stability,
                    point_xy=M.uncrop_points(points_xy[point], crop_xyxy),
                    crop_xyxy=crop_xyxy,
                )
            )
        return found

    def _stable(
        self, logits: np.ndarray, crop_xyxy: list[int], size_hw: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray, np.float32] | None:
        """(mask, box, stability score) of logits (h, w) of a crop, or None where a filter drops the
        mask.
        """
        threshold = self.predictor.model.mask_threshold
        score = np.float32(M.stability_score(logits, threshold, self.stability_score_offset))
        if self.stability_score_thresh > 0 and not score >= np.float32(self.stability_score_thresh):
            return None
        mask = logits > np.float32(threshold)
        box = rle.box_of(mask)
        # A mask cut off by its crop is whole in another one.
        if M.near_crop_edge(box[None], crop_xyxy, size_hw)[0]:
            return None
        return mask, box, score

    def _without_small_regions(self, candidates: list[_Candidate]) -> list[_Candidate]:
        """The candidates with small holes filled and small islands dropped. Where two masks become
        duplicates by that, one that has not changed is kept rather than one that has.
        """
        cleaned, unchanged = [], []
        for candidate in candidates:
            mask, filled = M.fill_small_holes(rle.decode(candidate.rle), self.min_mask_region_area)
            mask, dropped = M.drop_small_islands(mask, self.min_mask_region_area)
            changed = filled or dropped
            if changed:
                candidate = replace(candidate, rle=rle.encode(mask), box_xyxy=rle.box_of(mask))
            cleaned.append(candidate)
            unchanged.append(float(not changed))
        limit = max(self.box_nms_thresh, self.crop_nms_thresh)
        return _suppressed(cleaned, np.array(unchanged, np.float32), limit)

    def _record(self, candidate: _Candidate) -> rle.Record:
        segmentation: Any = candidate.rle
        if self.output_mode == "binary_mask":
            segmentation = rle.decode(candidate.rle)
        elif self.output_mode == "uncompressed_rle":
            segmentation = rle.uncompressed(candidate.rle)
        return {
            "segmentation": segmentation,
            "area": rle.area(candidate.rle),
            "bbox": rle.to_xywh(candidate.box_xyxy).tolist(),
            "predicted_iou": float(candidate.predicted_iou),
            "point_coords": [candidate.point_xy.tolist()],
            "stability_score": float(candidate.stability_score),
            "crop_box": rle.to_xywh(np.array(candidate.crop_xyxy)).tolist(),
        }


def _suppressed(
    candidates: list[_Candidate], scores: np.ndarray, threshold: float
) -> list[_Candidate]:
    boxes = np.array([candidate.box_xyxy for candidate in candidates], np.float32)
    return [candidates[i] for i in M.nms(boxes, scores, threshold)]
