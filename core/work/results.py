"""Whether the result files of an item are those that a ledger records.

Told by their size and modification time where these are the recorded ones, else by their content.
"""

from __future__ import annotations

import contextlib
import functools
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from core.data.items import ImageItem
from core.distributed import share
from core.work.ledger import Ledger, Record

# Files younger than this are read, for a change within one tick of the file system's clock, or of
# a machine's memory of file attributes, does not show in their times.
_FRESH_S = 2.0
# A process that finishes an item has recorded it at the latest so long after the result was there.
_RECORDED_WITHIN_S = 60.0
_PARTS = 64


class Found(NamedTuple):
    """Where a result is recorded."""

    ledger: Ledger | None
    record: Record | None
    """None also where the file was trusted and not read."""


_NOTHING = Found(None, None)


class Results:
    """The result files of one stage, as its ledgers know them.

    Args:
        folders: each holds a result file ``<key><suffix>`` of every item.
        ledger: of the first folder, under the present settings.
        keep_stale: count results that were made under other settings as finished.
        verify: read every file.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        suffix: str,
        ledger: Ledger,
        keep_stale: bool,
        verify: bool,
    ) -> None:
        self._folders, self._suffix, self._ledger = folders, suffix, ledger
        self._keep_stale, self._verify = keep_stale, verify
        # Where contents had to be read, each process notes their times for its part of the items.
        self._noted = frozenset(share(range(_PARTS)))

    def paths(self, item: ImageItem) -> list[Path]:
        """The result files of an item, whether they exist or not."""
        return [folder / f"{item.key}{self._suffix}" for folder in self._folders]

    def refresh(self, item: ImageItem) -> None:
        """See what others have recorded, where it may concern this item or much time has passed."""
        self._ledger.refresh_if_due()
        status = _status(self.paths(item))
        # Perhaps another process made it since the last look.
        if status and max(status.times) / 1e9 > self._ledger.looked_at - _RECORDED_WITHIN_S:
            self._ledger.refresh()

    def is_finished(self, item: ImageItem) -> bool:
        """Whether the results of an item are there and count."""
        return self._counts(self.recorded(item).ledger)

    def content(self, item: ImageItem) -> Record | None:
        """What lies on disk of a finished item, which is read; None where it is not finished."""
        ledger, record = self.recorded(item, verify=True)
        return record if self._counts(ledger) else None

    def recorded(self, item: ImageItem, verify: bool = False) -> Found:
        """What has recorded what lies on disk now, the present ledger first.

        Args:
            verify: read the files.
        """
        paths = self.paths(item)
        status = _status(paths)
        if status is None:
            return _NOTHING
        state = (item.key, source_bytes(item), status.sizes, status.times)
        known = self._ledger.knows(item.key)
        old = max(status.times) / 1e9 < self._ledger.looked_at - _FRESH_S
        if old and not (verify or self._verify):
            for ledger in [self._ledger] if known else self._others:
                if ledger.trusts(*state):
                    return Found(ledger, None)
        if not known and not any(each.knows(item.key) for each in self._others):
            return _NOTHING
        record = _record(state[1], paths)
        if record is None:
            return _NOTHING
        if self._ledger.has(item.key, record):
            mine = zlib.crc32(os.fsencode(item.key)) % _PARTS in self._noted
            if old and mine and not self._ledger.trusts(*state):
                with contextlib.suppress(OSError):  # else it is read again the next time
                    self._ledger.confirm(item.key, record, status.times)
            return Found(self._ledger, record)
        other = next((each for each in self._others if each.has(item.key, record)), None)
        return Found(other, record) if other else _NOTHING

    @functools.cached_property
    def _others(self) -> list[Ledger]:
        """Read where they are needed first: in most runs every result is in the own ledger."""
        return Ledger.others(self._folders[0], self._ledger)

    def _counts(self, ledger: Ledger | None) -> bool:
        return ledger is not None and (ledger is self._ledger or self._keep_stale)


class _Status(NamedTuple):
    """Of the result files of an item."""

    sizes: tuple[int, ...]
    times: tuple[int, ...]  # modified, in nanoseconds


def source_bytes(item: ImageItem) -> int:
    """Size of the image file of an item; -1 where there is none."""
    try:
        return os.stat(item.path).st_size
    except OSError:
        return -1


def times_of(paths: Sequence[Path]) -> tuple[int, ...]:
    """When result files were modified, in nanoseconds; () where one is missing."""
    status = _status(paths)
    return status.times if status else ()


def _status(paths: Sequence[Path]) -> _Status | None:
    """What the file system says of results; None where one is missing."""
    try:
        found = [os.stat(path) for path in paths]
    except OSError:
        return None
    return _Status(tuple(e.st_size for e in found), tuple(e.st_mtime_ns for e in found))


def _record(source_size: int, paths: Sequence[Path]) -> Record | None:
    """What lies on disk; None where a result is missing."""
    try:
        contents = [path.read_bytes() for path in paths]
    except OSError:
        return None
    return Record(source_size, tuple((len(each), zlib.crc32(each)) for each in contents))
