"""One image from file to refined label map, and the process in which that is done.

What makes label maps is heavy and may run out of memory, hang or grow; so ``test.py`` keeps it in a
child process (:class:`SupervisedRefiner`), and the parent writes the results.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from core import log
from core.child import Child, ChildFailed
from core.data.folders import ImageItem
from core.data.images import MAX_PIXELS, load_rgb
from core.distributed import child_environment
from core.errors import StopWork, UserError
from core.labels import png_of_label
from core.memory import resident_mib
from core.worklist import Made
from sam.masks import Record
from uss.config import Config
from uss.image_masks import ImageMasks, MaskSource, largest_first, mask_source
from uss.refine import refine
from uss.segmenter import Segmenter

STAGE = "refine"
#: Parts of an image's time, in seconds, as the ledger and the summary name them.
PARTS = ("decode", "network", "SAM encode", "SAM masks", "vote", "write")
IMAGE_TIMEOUT_S = 1800.0
_IMAGES_PER_CHILD = 500  # then a new process: what libraries lose in memory stays bounded
_SECOND_ATTEMPT = 8  # the points per batch are divided by this


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


class SupervisedRefiner:
    """A :class:`Refiner` in a child process that is watched; use it as a context manager.

    An image without answer (the child died, hung, or ran out of memory) is tried once more in a new
    process with smaller batches. The child is started with the first image and anew every few
    hundred.
    """

    def __init__(
        self,
        setup: Setup,
        image_timeout_s: float = IMAGE_TIMEOUT_S,
        maker: str = "uss.refiner:answerer",
        images_per_child: int = _IMAGES_PER_CHILD,
    ) -> None:
        self._timeout_s = image_timeout_s
        self._images_per_child = images_per_child
        masks = setup.config.masks
        small = replace(masks, points_per_batch=max(1, masks.points_per_batch // _SECOND_ATTEMPT))
        setups = (setup, replace(setup, config=replace(setup.config, masks=small)))
        # One for first attempts, one for second ones, which starts anew for each.
        self._children = [Child(maker, each, child_environment()) for each in setups]
        self._answered = 0
        #: Children started so far.
        self.processes = 0

    def __enter__(self) -> SupervisedRefiner:
        return self

    def __exit__(self, *error: object) -> None:
        for child in self._children:
            child.close()

    def __call__(self, item: ImageItem) -> Made:
        """See :meth:`Refiner.__call__`.

        Raises:
            UserError: also where both attempts got no answer.
        """
        return self._attempt(("refine", item))

    def network_only(self, item: ImageItem) -> bytes:
        """See :meth:`Refiner.network_only`."""
        return self._attempt(("network", item))

    def _attempt(self, request: tuple[str, ImageItem]) -> Any:
        first, second = self._children
        key = request[1].key
        if self._answered >= self._images_per_child:
            first.close()
            self._answered = 0
        try:
            self._start(first)
            self._answered += 1
            return first.ask(request, self._timeout_s)
        except ChildFailed as error:
            log.warn(STAGE, f"{key}: {error}; once more in a new process with smaller batches")
        self._answered = 0
        try:
            self._start(second)
            return second.ask(request, self._timeout_s)
        except ChildFailed as error:
            raise UserError(f"given up after two attempts: {error}") from error
        finally:
            second.close()

    def _start(self, child: Child) -> None:
        if child.running:
            return
        log.info(STAGE, "loading the network (compiles kernels at the first use)")
        self.processes += 1
        try:
            child.start(max(self._timeout_s, IMAGE_TIMEOUT_S))
        except ChildFailed as error:
            raise StopWork(f"the process that refines images could not start: {error}") from error
        except UserError as error:
            raise StopWork(str(error)) from error


def answerer(setup: Setup) -> Any:
    """For ``core.child``: answers ("refine" or "network", item)."""
    refiner = Refiner(setup)

    def answer(request: tuple[str, ImageItem]) -> Any:
        what, item = request
        return refiner(item) if what == "refine" else refiner.network_only(item)

    return answer
