"""One image from file to refined label map, and the process in which that is done.

What makes label maps is heavy and may run out of memory, hang or grow; so ``test.py`` keeps it in a
child process (:class:`SupervisedRefiner`), and the parent writes the results.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.data.imagenet_s import ImageItem
from core.data.images import MAX_PIXELS, load_rgb
from core.data.label_maps import png_of_label
from core.data.rle import Record
from core.memory import resident_mib
from core.work.worklist import Made
from refine.mask_sources import ImageMasks, MaskSource, largest_first, mask_source
from refine.segmenter import Segmenter
from refine.vote import refine
from uss.config import Config

STAGE = "refine"
#: Parts of an image's time, in seconds, as the ledger and the summary name them.
PARTS = ("decode", "network", "SAM encode", "SAM masks", "vote", "write")
IMAGE_TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Setup:
    """What a refiner needs; picklable."""

    config: Config  # its sections masks, predict and refine
    pretrained: Path  # checkpoint of the segmenter
    pretrained_sam: Path | None  # None: the one at hand
    masks: Path  # folder of the mask store
    max_pixels: int = MAX_PIXELS


class Refiner:
    """Label maps of images, before and after refinement, made in this process."""

    processes = 1  # as in SupervisedRefiner

    def __init__(self, setup: Setup, source: MaskSource | None = None) -> None:
        self._setup = setup
        self._segmenter = Segmenter(setup.pretrained, setup.config.predict)
        self._source = source or mask_source(setup.config.masks, setup.pretrained_sam)
        self._masks = ImageMasks(self._source, setup.masks)

    def __call__(self, item: ImageItem) -> Made:
        """The refined and the unrefined label map as PNG, in this order; the rule, seconds by part
        and resident memory as facts.

        Raises:
            UserError: the image cannot be used. StopWork: the mask store cannot be written.
        """
        clock = _Clock()
        with clock.part("decode"):
            rgb = load_rgb(item.path, self._setup.max_pixels)
        with clock.part("network"):
            logits = self._segmenter.logits(rgb)
            label = self._segmenter.label(logits, rgb.shape[:2])

        def masks() -> Iterator[np.ndarray]:
            with self._timed(clock):
                records: list[Record] = self._masks.records(item.key, rgb)
            return largest_first(records)

        def prompter(points_xy: np.ndarray, signs: np.ndarray) -> np.ndarray:
            with self._timed(clock):
                return self._source.prompt(rgb, points_xy, signs)

        with clock.part("vote"):
            refined = refine(label, masks, logits, prompter, self._setup.config.refine)
        with clock.part("write"):
            contents = (png_of_label(refined.label), png_of_label(label))
        facts = {"rule": refined.rule, "seconds": clock.seconds, "resident_mib": resident_mib()}
        return Made(contents, facts)

    def network_only(self, item: ImageItem) -> bytes:
        """The unrefined label map as PNG, without any mask."""
        return png_of_label(self._segmenter(load_rgb(item.path, self._setup.max_pixels)))

    @contextlib.contextmanager
    def _timed(self, clock: _Clock) -> Iterator[None]:
        """What happens in the block counts as SAM's, and not as the part around it."""
        encoding = self._source.encoding_s
        with clock.part("SAM masks"):
            yield
        clock.move("SAM masks", "SAM encode", self._source.encoding_s - encoding)


class _Clock:
    """Seconds by part; a part within another is taken out of it."""

    def __init__(self) -> None:
        self.seconds = {name: 0.0 for name in PARTS}
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

    def move(self, source: str, target: str, seconds: float) -> None:
        """Count some of one part as another."""
        self.seconds[source] -= seconds
        self.seconds[target] += seconds


# In a process of its own ------------------------------------------------------------------------
