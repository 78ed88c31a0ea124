"""How refinement went: the facts that test.py's ledger keeps of each image, and SAM's masks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.data import rle
from core.files import json_lines, json_or_empty
from core.work.ledger import CONFIRMED, LEDGER_FOLDER, SETTINGS_FILE
from core.work.mask_store import ImageIdentity, MaskStore
from refine.one_image import PARTS
from tools.report.label_scores import ImageSummary


@dataclass(frozen=True)
class ImageFacts:
    """What the ledger says about one finished image."""

    settings: str  # fingerprint
    rule: str
    seconds: dict[str, float]  # by part, see refine.one_image.PARTS
    resident_mib: float | None
    time_ns: int = 0  # when the label map was written; 0: an earlier version, which kept no times


@dataclass(frozen=True)
class RefinementFacts:
    """The facts of all images whose label map is still the recorded one."""

    images: dict[str, ImageFacts]
    settings: dict[str, Any]  # those that most of them were made under
    other_settings: int  # images that were made under others
    unrecorded: int = 0  # images whose label map no ledger records

    @property
    def used(self) -> list[str]:
        """Fingerprints of all settings that the images were made under."""
        return sorted({facts.settings for facts in self.images.values()})

    @property
    def rules(self) -> Counter[str]:
        """Images by the rule that made their label map."""
        return Counter(facts.rule for facts in self.images.values())

    def seconds(self) -> dict[str, float]:
        """Mean seconds an image by part."""
        timed = [facts.seconds for facts in self.images.values() if facts.seconds]
        if not timed:
            return {}
        return {part: float(np.mean([each.get(part, 0.0) for each in timed])) for part in PARTS}

    def peak_mib(self) -> float | None:
        """The most memory that a process held after an image."""
        known = [f.resident_mib for f in self.images.values() if f.resident_mib is not None]
        return max(known, default=None)


def refinement_facts(labels: Path, looks: Sequence[ImageSummary]) -> RefinementFacts:
    """Facts of the looked-at images from the ledger of a folder of label maps."""
    by_file: dict[tuple[str, int, int], list[ImageFacts]] = {}
    for key, file, facts in _records(labels):
        by_file.setdefault((key, *file), []).append(facts)
    images = {}
    for each in looks:
        stated = by_file.get((each.key, *each.crc), []) if each.crc else []
        if stated:
            images[each.key] = _last_made(stated, labels / f"{each.key}.png")
    used = Counter(facts.settings for facts in images.values()).most_common()
    settings = json_or_empty(labels / LEDGER_FOLDER / used[0][0] / SETTINGS_FILE) if used else {}
    unrecorded = sum(each.crc is not None and each.key not in images for each in looks)
    return RefinementFacts(images, settings, sum(count for _, count in used[1:]), unrecorded)


def _last_made(stated: list[ImageFacts], label_map: Path) -> ImageFacts:
    """Of several lines that state the same bytes the one that wrote the file last, by its time.

    Settings that gave the same label map leave lines of their own.
    """
    written = label_map.stat().st_mtime_ns if label_map.is_file() else 0
    return max(stated, key=lambda facts: (facts.time_ns == written, facts.time_ns))


class StoredMasks:
    """Masks of a split that lie in a run already; nothing is computed or written.

    Args:
        folder: root of the split's mask store.
        fingerprint: of the masks that refinement used; None takes the only ones that are there.
    """

    def __init__(self, folder: Path, fingerprint: Any = None) -> None:
        wanted = [
            stored
            for stored in MaskStore.fingerprints(folder)
            if fingerprint is None or stored == fingerprint
        ]
        self._store = MaskStore(folder, wanted[0]) if len(wanted) == 1 else None

    def get(self, key: str, rgb: np.ndarray) -> list[rle.Record] | None:
        """Records (``sam.masks``) of the image, in no order; None where they are not at hand."""
        return None if self._store is None else self._store.get(key, ImageIdentity.of(rgb))


def _records(labels: Path) -> Iterator[tuple[str, tuple[int, int], ImageFacts]]:
    """(key, (bytes, CRC-32) of the label map, facts) of every whole line."""
    for path in sorted((labels / LEDGER_FOLDER).glob("*/*.jsonl")):
        for entry in json_lines(path):
            if CONFIRMED in entry:
                continue  # the facts stand in the line before
            try:
                size, crc32 = entry["files"][0]
                facts = _facts(path.parent.name, entry)
                record = str(entry["key"]), (int(size), int(crc32)), facts
            except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError):
                continue
            yield record


def _facts(settings: str, entry: dict[str, Any]) -> ImageFacts:
    seconds = entry.get("seconds") or {}
    resident, times = entry.get("resident_mib"), entry.get("times_ns") or [0]
    return ImageFacts(
        settings,
        str(entry.get("rule", "unknown")),
        {str(name): float(value) for name, value in seconds.items() if math.isfinite(value)},
        float(resident) if resident is not None else None,
        int(times[0]),
    )
