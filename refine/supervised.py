"""A refiner in a process of its own, which is watched.

Making label maps may run out of memory, hang or grow. The child process does nothing else; the
parent gives it one image at a time, waits no longer than it wants to, and writes the results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from core import log
from core.data.imagenet_s import ImageItem
from core.distributed import child_environment
from core.errors import StopWork, UserError
from core.work.child import Child, ChildFailed
from core.work.claims import IMAGE_TIMEOUT_S
from core.work.worklist import Made
from refine.one_image import STAGE, Refiner, Setup

_IMAGES_PER_CHILD = 500  # then a new process: what libraries lose in memory stays bounded

_SECOND_ATTEMPT = 8  # the points per batch are divided by this


class SupervisedRefiner:
    """A :class:`Refiner` in a child process that is watched; use it as a context manager.

    An image without answer (the child died, hung, or ran out of memory) is tried once more in a new
    process with smaller batches. The child is started with the first image and anew every few
    hundred.

    Args:
        setup: see :class:`refine.one_image.Setup`.
        image_timeout_s: seconds after which an image counts as hung.
        maker: ``module:function`` of what makes the answerer in the child, see :func:`answerer`.
        images_per_child: after so many images a new child is started.
        stage: name in the log.
    """

    def __init__(
        self,
        setup: Setup,
        image_timeout_s: float = IMAGE_TIMEOUT_S,
        maker: str = "refine.supervised:answerer",
        images_per_child: int = _IMAGES_PER_CHILD,
        stage: str = STAGE,
    ) -> None:
        self._stage = stage
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

    def network_only(self, item: ImageItem) -> Made:
        """See :meth:`Refiner.network_only`."""
        return self._attempt(("network", item))

    def _attempt(self, request: tuple[str, ImageItem]) -> Any:
        first, second = self._children
        what, item = request
        if self._answered >= self._images_per_child:
            first.close()
            self._answered = 0
        try:
            self._start(first)
            self._answered += 1
            return first.ask(request, self._timeout_s)
        except ChildFailed as error:
            smaller = " with smaller batches" if what == "refine" else ""
            log.warn(self._stage, f"{item.key}: {error}; once more in a new process{smaller}")
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
        log.info(self._stage, "loading the network (compiles kernels at the first use)")
        self.processes += 1
        try:
            child.start(_start_timeout_s(self._timeout_s))
        except ChildFailed as error:
            raise StopWork(f"the process that labels images could not start: {error}") from error
        except UserError as error:
            raise StopWork(str(error)) from error


def given_up_after(image_timeout_s: float) -> float:
    """Seconds within which an image has been answered or given up: two attempts, each perhaps with
    the start of a process.
    """
    return 2 * (_start_timeout_s(image_timeout_s) + image_timeout_s)


def _start_timeout_s(image_timeout_s: float) -> float:
    return max(image_timeout_s, IMAGE_TIMEOUT_S)


def answerer(setup: Setup) -> Callable[[tuple[str, ImageItem]], Made]:
    """For ``core.work.child``: answers ("refine" or "network", item)."""
    refiner = Refiner(setup)

    def answer(request: tuple[str, ImageItem]) -> Made:
        what, item = request
        return refiner(item) if what == "refine" else refiner.network_only(item)

    return answer
