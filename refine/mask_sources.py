"""Class-agnostic masks of images, by SAM or by superpixels, kept on disk and computed at most once.

Nothing heavy happens before it is needed: SAM is loaded at the first image whose masks are not in
the store, and an image is encoded only for masks that are missing or for a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from core import log
from core.config import check, recorded
from core.data import rle
from core.errors import StopWork, UserError
from core.work.mask_store import ImageIdentity, MaskStore
from refine.settings import Masks
from sam.weights import SamWeights, find_sam, sam_at


class MaskSource(Protocol):
    """What makes masks; two sources with one fingerprint make the same ones."""

    fingerprint: dict[str, Any]

    @property
    def encoding_s(self) -> float:
        """Seconds spent in an image encoder so far."""

    def generate(self, rgb: np.ndarray) -> list[rle.Record]:
        """All masks of a uint8 RGB image (H, W, 3)."""

    def prompt(self, rgb: np.ndarray, points_xy: np.ndarray, signs: np.ndarray) -> np.ndarray:
        """One mask (H, W) bool for points (n, 2) in pixels, (x, y), and signs (n,) 1 or 0."""


def mask_source(config: Masks, sam_path: Path | None = None) -> MaskSource:
    """The source that ``config.source`` names.

    Args:
        sam_path: SAM checkpoint; None looks for one where ``sam.weights`` keeps them.

    Raises:
        UserError: an unknown source, settings that cannot work, or no SAM weights.
    """
    check(config, "masks")
    if config.source == "superpixels":
        log.warn("masks", "superpixels stand in for SAM's masks: they follow colours, not objects")
        return SuperpixelSource(config)
    _check_grids(config)
    return SamSource(config, find_sam() if sam_path is None else sam_at(sam_path))


class ImageMasks:
    """Masks of the images of one split, each made once and then read from its store in
    ``folder``.

    Other processes may fill the same store meanwhile: at worst an image is computed twice.
    """

    def __init__(self, source: MaskSource, folder: Path) -> None:
        self.source = source
        self.store = MaskStore(folder, source.fingerprint)

    def masks(self, key: str, rgb: np.ndarray) -> Iterator[np.ndarray]:
        """Masks (H, W) bool of the uint8 RGB image (H, W, 3) with this key, largest first.

        Raises:
            StopWork: the store cannot be written.
        """
        return largest_first(self.records(key, rgb))

    def records(self, key: str, rgb: np.ndarray) -> list[rle.Record]:
        """The same as records (``sam.masks``), in no order."""
        image = ImageIdentity.of(rgb)
        records = self.store.get(key, image)
        if records is None:
            records = self.source.generate(rgb)
            try:
                self.store.put(key, image, records)
            except OSError as error:
                raise StopWork(
                    f"cannot write masks to {self.store.folder}: {error.strerror or error}; mend "
                    "this and run the same command again"
                ) from error
        return records


def largest_first(records: list[rle.Record]) -> Iterator[np.ndarray]:
    """The masks of records as (H, W) bool, largest first, decoded one at a time; empty ones go."""
    sizes = np.array([rle.area(record["segmentation"]) for record in records], np.int64)
    for index in np.argsort(-sizes, kind="stable"):
        if sizes[index]:
            yield rle.decode(records[index]["segmentation"])


class SamSource:
    """SAM's automatic mask generator, and SAM's answer to prompts; a ``StopWork`` where its weights
    do not load.
    """

    def __init__(self, config: Masks, weights: SamWeights) -> None:
        self._settings = recorded(config)
        del self._settings["source"]
        self._weights = weights
        # How many points are decoded at once changes memory, never a mask.
        settings = {key: v for key, v in self._settings.items() if key != "points_per_batch"}
        self.fingerprint = {"weights": weights.fingerprint(), "generator": settings}
        self._loaded: Any = None

    def generate(self, rgb: np.ndarray) -> list[rle.Record]:
        return self._generator().generate(rgb)

    def prompt(self, rgb: np.ndarray, points_xy: np.ndarray, signs: np.ndarray) -> np.ndarray:
        predictor = self._generator().predictor
        predictor.set_image(rgb)
        masks, _, _ = predictor.predict(points_xy, signs, multimask_output=False)
        predictor.reset_image()
        return masks[0]

    @property
    def encoding_s(self) -> float:
        return self._loaded.predictor.encoding_s if self._loaded else 0.0

    def _generator(self) -> Any:
        if self._loaded is None:
            from sam import SamAutomaticMaskGenerator, sam_model_registry

            try:
                model = sam_model_registry[self._weights.model](checkpoint=self._weights.path)
            except UserError as error:
                # Not about the image at hand: every other one would fail like it.
                raise StopWork(str(error)) from error
            self._loaded = SamAutomaticMaskGenerator(
                model, output_mode="coco_rle", **self._settings
            )
        return self._loaded


def _check_grids(config: Masks) -> None:
    """Stop before anything is loaded where a grid of points would be empty."""
    layers, factor = config.crop_n_layers, config.crop_n_points_downscale_factor
    if config.points_per_side < factor**layers:
        raise UserError(
            f"masks.points_per_side is {config.points_per_side}, divided by {factor} for each of "
            f"{layers} crop layers: no point is left in crop layer {layers}; use more points"
        )


class SuperpixelSource:
    """Superpixels at several scales, for machines that can get no SAM weights."""

    encoding_s = 0.0

    def __init__(self, config: Masks) -> None:
        from refine.superpixels import SuperpixelMaskGenerator

        self._generator = SuperpixelMaskGenerator(min_area=config.min_mask_region_area)
        self.fingerprint = self._generator.settings

    def generate(self, rgb: np.ndarray) -> list[rle.Record]:
        return self._generator.generate(rgb)

    def prompt(self, rgb: np.ndarray, points_xy: np.ndarray, signs: np.ndarray) -> np.ndarray:
        """Union of the superpixels that hold a positive point and no negative one."""
        columns, rows = points_xy.astype(int).T
        union = np.zeros(rgb.shape[:2], dtype=bool)
        for mask in largest_first(self.generate(rgb)):
            hit = mask[rows, columns]
            if hit[signs == 1].any() and not hit[signs == 0].any():
                union |= mask
        return union
