"""One image from file to label map, as the network draws it and as masks refine it.

This is heavy and may run out of memory, hang or grow: ``refine.supervised`` keeps it in a child
process.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.data.imagenet_s import ImageItem
from core.data.images import MAX_PIXELS, load_rgb
from core.data.label_maps import png_of_label
from core.data.rle import Record
from core.memory import resident_mib
from core.pipeline.stage import hook
from core.work.worklist import Made
from refine.mask_sources import ImageMasks, MaskSource, largest_first, mask_source
from refine.segmenter import Segmenter
from refine.settings import Sections
from refine.vote import refine

STAGE = "refine"
#: Parts of an image's time, in seconds, as the ledger and the summary name them.
PARTS = ("decode", "network", "SAM encode", "SAM masks", "vote", "write")
NETWORK_PARTS = ("decode", "network", "write")


@dataclass(frozen=True)
class Setup:
    """What a refiner needs; picklable."""

    config: Sections
    network: str
    """``module:function`` of what loads the segmenter: (checkpoint, fixed_pool=bool) -> (network,
    facts), see :class:`refine.segmenter.Segmenter`."""
    pretrained: Path
    """Checkpoint of the segmenter."""
    pretrained_sam: Path | None = None
    """SAM's checkpoint; None: the one at hand."""
    masks: Path | None = None
    """Folder of the mask store; None: the network alone is asked, and no masks are looked for."""
    max_pixels: int = MAX_PIXELS
    """Images of more pixels are refused."""


class Refiner:
    """Label maps of images, before and after refinement, made in this process.

    Args:
        source: of masks; None: the one of the settings.
    """

    processes = 1  # as in SupervisedRefiner

    def __init__(self, setup: Setup, source: MaskSource | None = None) -> None:
        self._setup = setup
        predict = setup.config.predict
        model, facts = hook(setup.network)(setup.pretrained, fixed_pool=predict.fixed_pool)
        self._segmenter = Segmenter(model, facts, predict)
        self._masks: ImageMasks | None = None
        if setup.masks is not None:
            source = source or mask_source(setup.config.masks, setup.pretrained_sam)
            self._masks = ImageMasks(source, setup.masks)

    def __call__(self, item: ImageItem) -> Made:
        """The refined and the unrefined label map as PNG, in this order; the rule, seconds by part
        and resident memory as facts.

        Raises:
            UserError: the image cannot be used. StopWork: the mask store cannot be written.
        """
        images = self._masks
        assert images is not None, "a refiner needs a mask store"
        clock = _Clock(PARTS, images.source)
        with clock.part("decode"):
            rgb = load_rgb(item.path, self._setup.max_pixels)
        with clock.part("network"):
            logits = self._segmenter.logits(rgb)
            label = self._segmenter.label(logits, rgb.shape[:2])

        def masks() -> Iterator[np.ndarray]:
            with clock.masks():
                records: list[Record] = images.records(item.key, rgb)
            return largest_first(records)

        def prompter(points_xy: np.ndarray, signs: np.ndarray) -> np.ndarray:
            with clock.masks():
                return images.source.prompt(rgb, points_xy, signs)

        with clock.part("vote"):
            # Masks have the image's own edges, so they vote on labels of its own resolution.
            fine = self._segmenter.fine_label(logits, rgb.shape[:2], label)
            refined = refine(fine, masks, logits, prompter, self._setup.config.refine)
        with clock.part("write"):
            contents = (png_of_label(refined.label), png_of_label(label))
        return Made(contents, {"rule": refined.rule, **clock.facts()})

    def network_only(self, item: ImageItem) -> Made:
        """The unrefined label map as PNG, without any mask; seconds by part and resident memory as
        facts.

        Raises:
            UserError: the image cannot be used.
        """
        clock = _Clock(NETWORK_PARTS)
        with clock.part("decode"):
            rgb = load_rgb(item.path, self._setup.max_pixels)
        with clock.part("network"):
            label = self._segmenter(rgb)
        with clock.part("write"):
            content = png_of_label(label)
        return Made([content], clock.facts())


class _Clock:
    """Seconds by part; a part within another is taken out of it.

    Args:
        parts: their names.
        source: of masks, which knows how long it has been encoding.
    """

    def __init__(self, parts: Sequence[str], source: MaskSource | None = None) -> None:
        self.seconds = {name: 0.0 for name in parts}
        self._source = source
        self._inner = 0.0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """The block counts as ``name``."""
        before, self._inner = self._inner, 0.0
        started = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            self.seconds[name] += elapsed - self._inner
            self._inner = before + elapsed

    @contextlib.contextmanager
    def masks(self) -> Iterator[None]:
        """The block counts as SAM's: encoding as "SAM encode", what else it does as "SAM masks"."""
        assert self._source is not None
        before = self._source.encoding_s
        with self.part("SAM masks"):
            yield
        encoding = self._source.encoding_s - before
        self.seconds["SAM masks"] -= encoding
        self.seconds["SAM encode"] += encoding

    def facts(self) -> dict[str, Any]:
        """For the ledger: the seconds, and this process's resident memory in MiB."""
        return {"seconds": self.seconds, "resident_mib": resident_mib()}
