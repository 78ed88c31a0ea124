"""What a check of a data set finds: counts of each split, and problems to mend."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from core.data.label_maps import IGNORE


@dataclass(frozen=True)
class Problem:
    """One thing to mend."""

    kind: str
    """broken, oversized, tiny, duplicate, collision, layout, list, annotation or mask."""
    path: str
    detail: str


@dataclass
class SplitCounts:
    """What a split holds."""

    images: int = 0
    classes: int = 0
    masks: int | None = None
    """None where the split has no folder of masks."""


@dataclass
class DataReport:
    """Counts by split, and every problem in the order of the files."""

    splits: dict[str, SplitCounts] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


@dataclass(frozen=True)
class ImageFile:
    """An image to look into."""

    path: Path
    mask: Path | None = None
    max_id: int = IGNORE  # of the mask; IGNORE itself is always allowed
    group: str = ""  # duplicates count within a group
    digest: bool = False  # another file has the same size: compare contents
    plain_ids: bool = False  # the pixels of the mask are ids, as in VOC, and 255 is ignored
    labels: tuple[int, ...] | None = None  # classes that the image is said to show
