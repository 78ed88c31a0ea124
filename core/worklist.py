"""Resumable work, one result file per image.

A result counts as finished when its file lies under its final name, was recorded as made under the
present settings, and passes a check of completeness. Whatever else lies in the folder is made
again, so that a stopped run continues and a changed setting never mixes with older results.

The folder holds ``settings.json`` beside the results, and ``.done/<fingerprint of the settings>/``
with one text file per process that lists the keys it finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

from PIL import Image

from core import log
from core.data.folders import ImageItem
from core.data.images import image_size
from core.distributed import share
from core.errors import UserError
from core.files import read_json, write_json

Work = Callable[[ImageItem, Path], None]
Check = Callable[[ImageItem, Path], bool]

_NAMED = 5  # how many keys a summary names before it only counts


@dataclass
class WorkResult:
    """What a run did with this process's share: keys, and a reason for each failure."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """True when nothing failed."""
        return not self.failed


class Worklist:
    """The results of one stage in one folder.

    Args:
        folder: where results go: ``<folder>/<key><suffix>``; made when missing.
        settings: everything that changes a result (JSON values; nested dicts are fine). When the
            folder was made under others, the keys that differ are named and all is made again.
        suffix: of the result files, ".png" for label maps.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], suffix: str = ".png") -> None:
        self.folder = Path(folder)
        self.suffix = suffix
        # Through JSON, so that tuples and lists, or 1-based and string keys, compare as stored.
        self.settings = json.loads(json.dumps(settings, sort_keys=True))
        text = json.dumps(self.settings, sort_keys=True)
        self._fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._records = self.folder / ".done" / self._fingerprint
        self._adopt_folder()

    def path_of(self, item: ImageItem) -> Path:
        """Final place of the item's result."""
        return self.folder / f"{item.key}{self.suffix}"

    def pending(
        self, items: Sequence[ImageItem], is_complete: Check | None = None
    ) -> list[ImageItem]:
        """The items that are not finished, in order.

        Args:
            items: what should be there in the end.
            is_complete: ``(item, result path) -> bool`` for an existing result, called last because
                it may read the file; None trusts the record.
        """
        recorded = self._recorded()

        def finished(item: ImageItem) -> bool:
            path = self.path_of(item)
            return (
                item.key in recorded
                and path.is_file()
                and (is_complete is None or is_complete(item, path))
            )

        return [item for item in items if not finished(item)]

    def run(
        self,
        items: Sequence[ImageItem],
        work: Work,
        stage: str,
        is_complete: Check | None = None,
    ) -> WorkResult:
        """Make the missing results of this process's share of ``items``.

        A :class:`UserError` of one item (a broken image) is reported with its name and the run goes
        on; any other exception is a bug and ends it. What was finished until then is kept.

        Args:
            items: all items of the stage; several processes split them among themselves.
            work: ``(item, result path)``; must write the result atomically under that path.
            stage: name in the log and the progress bar.
            is_complete: see :meth:`pending`.
        """
        mine = list(share(items))
        todo = self.pending(mine, is_complete)
        waiting = {item.key for item in todo}
        result = WorkResult(skipped=[item.key for item in mine if item.key not in waiting])
        if result.skipped:
            log.info(
                stage, f"{len(result.skipped)} of {len(mine)} finished earlier, {len(todo)} to do"
            )
        for item in log.progress(todo, stage, total=len(todo)):
            try:
                work(item, self.path_of(item))
            except UserError as error:
                result.failed[item.key] = str(error)
                log.warn(stage, f"{item.key} failed: {error}")
                continue
            self._record(item.key)
            result.done.append(item.key)
        if result.failed:
            log.warn(stage, f"{len(result.failed)} of {len(mine)} failed: {named(result.failed)}")
        return result

    def _adopt_folder(self) -> None:
        """Make the folder ours: state what differs, forget the records of other settings."""
        stored = self.folder / "settings.json"
        differences = self._differences(stored)
        if differences:
            log.warn(
                self.folder.name,
                f"{self.folder} was made under other settings ({named(differences)}); "
                "its results are made again",
            )
        records = self._records.parent
        for other in records.iterdir() if records.is_dir() else ():
            if other != self._records:
                shutil.rmtree(other, ignore_errors=True)
        write_json(stored, self.settings)

    def _differences(self, stored: Path) -> list[str]:
        """Keys whose value in the stored settings is another; none where they cannot be read."""
        try:
            before = _flat(read_json(stored, "the settings of a stage"))
        except UserError:
            return []
        now = _flat(self.settings)
        missing = object()
        keys = sorted(set(before) | set(now))
        return [key for key in keys if before.get(key, missing) != now.get(key, missing)]

    def _record(self, key: str) -> None:
        self._records.mkdir(parents=True, exist_ok=True)
        # A file of its own for each process: appends of several machines to one file may be lost.
        name = f"{socket.gethostname()}-{os.getpid()}.txt"
        with open(self._records / name, "a", encoding="utf-8") as file:
            file.write(f"{key}\n")

    def _recorded(self) -> set[str]:
        keys: set[str] = set()
        for path in self._records.glob("*.txt"):
            # The part behind the last newline may be half a line of a killed process.
            keys.update(path.read_text(encoding="utf-8").split("\n")[:-1])
        return keys


def is_whole_label(item: ImageItem, path: Path) -> bool:
    """Completeness check for label maps: an intact PNG of the image's size, not decoded."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            size = (image.height, image.width)
            image.verify()
    except (OSError, SyntaxError, ValueError, EOFError):
        return False
    return size == image_size(item.path)


def named(keys: Sequence[str] | dict[str, str]) -> str:
    """The first keys, comma separated, and how many more there are."""
    first = ", ".join(list(keys)[:_NAMED])
    return first if len(keys) <= _NAMED else f"{first} and {len(keys) - _NAMED} more"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys."""
    if not isinstance(value, dict):
        return {prefix.rstrip("."): value}
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        flat.update(_flat(entry, f"{prefix}{key}."))
    return flat
