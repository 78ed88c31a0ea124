"""Label all images of a split: the work that is left, who makes it, and what is said about it.

The images go to a refiner (``refine.supervised``, or ``refine.one_image`` in this process). Any
number of processes may label one split at a time; each comes back when every image has a label map
or has failed.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from core import log
from core.data.imagenet_s import ImageItem
from core.files import write_json
from core.text import named
from core.work.claims import IMAGE_TIMEOUT_S
from core.work.ledger import Record
from core.work.worklist import Made, Worklist
from refine.supervised import given_up_after


class AnyRefiner(Protocol):
    """What makes label maps: :class:`refine.one_image.Refiner`, here or in a child process."""

    @property
    def processes(self) -> int:
        """Processes that it has used so far."""

    def __call__(self, item: ImageItem) -> Made:
        """The refined and the unrefined label map of an image."""

    def network_only(self, item: ImageItem) -> Made:
        """The unrefined label map of an image."""


@dataclass(frozen=True)
class Outcome:
    """What there is once every image is finished or has failed."""

    items: Sequence[ImageItem]
    finished: Mapping[str, Record]
    """Key -> what lies on disk."""
    failed: dict[str, str]
    """Key -> reason."""
    stale: int
    """How many of the finished ones were made under other settings."""

    def report(self, path: Path, stage: str) -> None:
        """Write the failed images to ``path`` as JSON, key -> reason, and name them in the log of
        ``stage``; where none failed, the report of an earlier run goes.
        """
        if not self.failed:
            path.unlink(missing_ok=True)
            return
        write_json(path, self.failed)
        for key, reason in self.failed.items():
            log.warn(stage, f"no result of {key}: {reason}")

    def complaint(self, report: Path) -> str:
        """Why there is no archive, where images failed; ``report`` is the file with the reasons."""
        return (
            f"no archive: {len(self.failed)} of {len(self.items)} images have no label map "
            f"({named(self.failed)}; reasons in {report}); mend or remove them and run the same "
            "command again"
        )


def label_split(
    work: Worklist,
    items: Sequence[ImageItem],
    refiner: AnyRefiner,
    stage: str,
    split: str,
    network_only: bool = False,
    image_timeout_s: float = IMAGE_TIMEOUT_S,
) -> Outcome:
    """Have ``refiner`` make what is missing of a split, and say how long its images took.

    Args:
        work: the folder of the label maps; with ``network_only`` a file an image, else two.
        items: all images of the split.
        stage, split: names in the log.
        network_only: leave the label maps as the network draws them.
        image_timeout_s: that of the refiner, which needs no longer than ``given_up_after`` it.

    Raises:
        UserError: a result cannot be written. StopWork: no image can be labelled.
    """
    summary = _Summary()
    label = refiner.network_only if network_only else refiner

    def make(item: ImageItem) -> Made:
        made = label(item)
        summary.add(made.facts)
        return made

    result = work.run(
        items, make, f"{stage} {split}", image_timeout_s=given_up_after(image_timeout_s)
    )
    summary.show(stage, refiner.processes)
    finished = work.finished(items)
    missing = [item.key for item in items if item.key not in finished]
    failed = {key: result.failed.get(key, "its result has vanished") for key in missing}
    return Outcome(items, finished, failed, len(result.stale))


class _Summary:
    """Time by part and memory of the images that this process made."""

    def __init__(self) -> None:
        self._seconds: list[dict[str, float]] = []
        self._resident: list[float] = []
        self._rules: Counter[str] = Counter()

    def add(self, facts: Mapping[str, Any]) -> None:
        """Take the facts of one image."""
        self._seconds.append(facts["seconds"])
        self._resident.append(facts["resident_mib"])
        if "rule" in facts:
            self._rules[facts["rule"]] += 1

    def show(self, stage: str, processes: int) -> None:
        """Print what was taken."""
        if not self._seconds:
            return
        count = len(self._seconds)
        rules = ", ".join(f"{number} by {rule}" for rule, number in self._rules.most_common())
        log.info(stage, f"{count} images: {rules}" if rules else f"{count} images")
        names = self._seconds[0]
        parts = [(name, statistics.fmean(each[name] for each in self._seconds)) for name in names]
        text = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in parts)
        total = sum(seconds for _, seconds in parts)
        log.info(stage, f"time per image: {text}; together {total:.3f} s")
        early = self._resident[min(9, count - 1)]
        log.info(
            stage,
            f"memory: {early:.0f} MiB after {min(10, count)} images, {self._resident[-1]:.0f} MiB "
            f"after {count}, at most {max(self._resident):.0f} MiB; processes used: {processes}",
        )
