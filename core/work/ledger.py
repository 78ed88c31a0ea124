"""Which results in a folder are finished, and under which settings each was made.

::

    <folder>/.ledger/<fingerprint of the settings>/settings.json          with the schema
    <folder>/.ledger/<fingerprint of the settings>/<process>.jsonl         being written
    <folder>/.ledger/<fingerprint of the settings>/<process>.ended.jsonl   of a process that is done
    <folder>/.ledger/<fingerprint of the settings>/earlier-<chance>.jsonl  several of those in one
    <folder>/.ledger/<fingerprint of the settings>/failures                a byte for each failure

Every process appends to a file of its own, a JSON object a line: a finished item with size, CRC-32
and modification time of its result files, or a failure with its reason. So several machines may
write at a time. A last line that is half written does not count. A result that was damaged, cut or
overwritten since it was recorded does not match its line.

With hundreds of processes it takes long to open all their files, so they are read now and then
(:meth:`Ledger.refresh_if_due`), and those of finished processes are brought together
(:meth:`Ledger.compact`). In memory an item takes some thirty bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from core.errors import UserError
from core.files import atomic_write, file_system_time, json_or_empty, read_json, write_json
from core.schema import stamped, unstamped
from core.work.claims import CLAIMS_FOLDER, is_dead, own_identity
from core.work.fingerprints import Fingerprints

LEDGER_FOLDER = ".ledger"
SETTINGS_FILE = "settings.json"
#: A line that states again what an earlier one states, with new modification times and no facts.
CONFIRMED = "confirmed"
_FAILURES = "failures"
_REPLACES = "replaces"
_LINES, _ENDED, _EARLIER = ".jsonl", ".ended.jsonl", "earlier-"

# Seconds between two looks at what other processes append.
_REFRESH_S = 5.0
# A file of another machine that has not grown for so long is that of a process that was killed.
_SILENT_S = 86400.0
# So many files of finished processes are worth bringing together, each no larger than this.
_WORTHWHILE, _LARGE_BYTES = 8, 64 << 20
_BLOCK_BYTES = 1 << 20


class Record(NamedTuple):
    """What was on disk when an item was finished."""

    source_bytes: int
    """Size of the image file that the results were made from."""
    files: tuple[tuple[int, int], ...]
    """(size in bytes, CRC-32) of each result file."""


#: Modification time of each result file, in nanoseconds.
Times = Sequence[int]


class Ledger:
    """The records of one folder under one set of settings.

    Args:
        root: the folder of the results.
        settings: everything that changes a result (JSON values; nested dicts are fine).
    """

    def __init__(self, root: Path, settings: Mapping[str, Any]) -> None:
        # Through JSON, so that tuples and lists, or 1-based and string keys, compare as stored.
        self.settings: dict[str, Any] = json.loads(json.dumps(settings, sort_keys=True))
        text = json.dumps(self.settings, sort_keys=True)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder = Path(root) / LEDGER_FOLDER / self.fingerprint
        #: For ``core.work.claims``, of the processes that fill the folder together.
        self.claims_folder = self.folder.parent / CLAIMS_FOLDER
        self._known = Fingerprints()
        self._contents = Fingerprints()
        self._times = Fingerprints()
        self._failures: dict[str, tuple[float, str]] = {}
        self._failures_bytes = 0
        self._read: dict[str, int] = {}
        self._own: Path | None = None
        self._looked = float("-inf")
        #: The file system's time (Unix s) of the last look at what all processes have appended.
        self.looked_at = 0.0

    @staticmethod
    def others(root: Path, own: Ledger) -> list[Ledger]:
        """The ledgers of other settings in the same folder, read."""
        found = []
        for path in sorted((Path(root) / LEDGER_FOLDER).glob(f"*/{SETTINGS_FILE}")):
            if path.parent == own.folder:
                continue
            try:
                settings = read_json(path, "the settings of earlier results")
                ledger = Ledger(root, unstamped(settings, path))
            except UserError:
                continue
            if ledger.folder == path.parent:
                ledger.refresh()
                found.append(ledger)
        return found

    def open(self) -> float:
        """Make the ledger's folder, read what is there; returns the file system's time (Unix s) of
        before.

        Raises:
            UserError: the folder cannot be written, or a newer version of the project has worked in
                it.
        """
        for path in sorted(self.folder.parent.glob(f"*/{SETTINGS_FILE}")):
            unstamped(json_or_empty(path), path)
        try:
            write_json(self.folder / SETTINGS_FILE, stamped(self.settings))
            now = file_system_time(self.folder)
        except OSError as error:
            raise UserError(
                f"cannot write results to {self.folder.parent.parent}: {error.strerror}; give a "
                "folder that can be written"
            ) from error
        for together in self.folder.glob(f"{_EARLIER}*{_LINES}"):
            with contextlib.suppress(OSError):
                self._remove_replaced(together)
        self.refresh()
        return now

    def knows(self, key: str) -> bool:
        """Whether an item was finished at some time."""
        return key in self._known

    def has(self, key: str, record: Record) -> bool:
        """Whether an item was finished with these contents."""
        return (key, *_plain(record)) in self._contents

    def trusts(self, key: str, source_bytes: int, sizes: Sequence[int], times: Times) -> bool:
        """Whether an item was finished with result files of these sizes and times, from an image
        file of this size.
        """
        return (key, source_bytes, tuple(sizes), tuple(times)) in self._times

    def failure(self, key: str, since: float) -> str | None:
        """Why an item failed at or after ``since``, a time by the file system's clock; None where
        it did not.
        """
        time, reason = self._failures.get(key, (0.0, ""))
        return reason if reason and time >= since else None

    def record(self, key: str, record: Record, times: Times, facts: Mapping[str, Any]) -> None:
        """Note a finished item, with any facts (JSON values) for people who read the file."""
        line = {"key": key, "source_bytes": record.source_bytes, "files": record.files, **facts}
        self._note({**line, "times_ns": times})

    def confirm(self, key: str, record: Record, times: Times) -> None:
        """Note the times of result files whose contents were read and are the recorded ones."""
        self.record(key, record, times, {CONFIRMED: True})

    def fail(self, key: str, reason: str) -> None:
        """Note that an item failed."""
        self._note({"key": key, "failed": reason, "time": file_system_time(self.folder)})
        with open(self.folder / _FAILURES, "ab") as file:
            file.write(b"\n")

    def end(self) -> None:
        """State that what was appended so far is all that its file will ever hold."""
        own, self._own = self._own, None
        if own is not None:
            with contextlib.suppress(FileNotFoundError):
                own.rename(own.with_name(own.name[: -len(_LINES)] + _ENDED))

    def refresh(self) -> None:
        """Read what was appended since the last look, by any process."""
        with contextlib.suppress(OSError):  # of other settings, in a folder of another user
            self.looked_at = file_system_time(self.folder)
        try:
            names = self._names()
            self._failures_bytes = self._size_of_failures()
        except FileNotFoundError:
            return
        for name in names:
            self._read_on(name)
        self._looked = time.monotonic()

    def refresh_if_due(self) -> None:
        """Read what was appended where the last look is some seconds old, or where an item has
        failed since.
        """
        late = time.monotonic() - self._looked > _REFRESH_S
        if late or self._size_of_failures() != self._failures_bytes:
            self.refresh()

    def finished_files(self) -> list[Path]:
        """The files of finished processes, where there are enough to be brought together."""
        with contextlib.suppress(OSError):  # not there yet, or one was moved since it was listed
            names = self._names()
            if len(names) < _WORTHWHILE:
                return []
            now = file_system_time(self.folder)
            found = [self.folder / name for name in names if self._is_finished(name, now)]
            return found if len(found) >= _WORTHWHILE else []
        return []

    def compact(self) -> None:
        """Bring the files of finished processes together in one. One process at a time may do so;
        others may read and append meanwhile, for lines that are read twice count once.
        """
        files = self.finished_files()
        if not files:
            return
        # First what it replaces, so that a process that dies before the end leaves no line twice.
        replaced = {path.name: path.stat().st_size for path in files}
        together = self.folder / f"{_EARLIER}{uuid.uuid4().hex[:8]}{_LINES}"
        with atomic_write(together, sync=True) as all_lines:
            all_lines.write(json.dumps({_REPLACES: replaced}).encode() + b"\n")
            for path in files:
                with open(path, "rb") as file:
                    for line in file:
                        # A last line that was torn must not run into the next file's first.
                        all_lines.write(line if line.endswith(b"\n") else line + b"\n")
        self._remove_replaced(together)

    def _remove_replaced(self, together: Path) -> None:
        """Remove the files whose lines are in another one, unless they have grown since."""
        with open(together, "rb") as file, contextlib.suppress(ValueError, AttributeError):
            for name, size in json.loads(file.readline()).get(_REPLACES, {}).items():
                path = together.with_name(Path(name).name)
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_size == size:
                        path.unlink()

    def _is_finished(self, name: str, now: float) -> bool:
        """Whether nobody will append to a file, and it is worth moving; ``now`` is the file
        system's time (Unix s).
        """
        status = (self.folder / name).stat()
        if status.st_size > _LARGE_BYTES:
            return False
        if name.endswith(_ENDED) or name.startswith(_EARLIER) or is_dead(name[: -len(_LINES)]):
            return True
        return now - status.st_mtime > _SILENT_S

    def _names(self) -> list[str]:
        return [name for name in os.listdir(self.folder) if name.endswith(_LINES)]

    def _size_of_failures(self) -> int:
        try:
            return os.stat(self.folder / _FAILURES).st_size
        except FileNotFoundError:
            return 0

    def _read_on(self, name: str) -> None:
        """Read the lines of a file that were not read yet."""
        same = name[: -len(_ENDED)] + _LINES if name.endswith(_ENDED) else name
        try:
            # Opened, not asked for its size: network file systems look at the real file only then.
            with open(self.folder / name, "rb") as file:
                file.seek(self._read.get(same, 0))
                # By blocks of whole lines: a file may hold those of a million items.
                while lines := file.readlines(_BLOCK_BYTES):
                    if not lines[-1].endswith(b"\n"):
                        lines.pop()
                    self._read[same] = self._read.get(same, 0) + sum(map(len, lines))
                    for line in lines:
                        self._take_line(line)
        except FileNotFoundError:
            return  # renamed or brought together with others since it was listed

    def _take_line(self, text: bytes) -> None:
        with contextlib.suppress(ValueError, TypeError, KeyError, OverflowError, RecursionError):
            self._take(json.loads(text))  # else torn, or edited: the item is made again

    def _take(self, line: Mapping[str, Any]) -> None:
        key = line["key"]
        if "failed" in line:
            self._failures[key] = (float(line["time"]), str(line["failed"]))
            return
        files = tuple((int(size), int(crc32)) for size, crc32 in line["files"])
        source_bytes = int(line["source_bytes"])
        self._known.add(key)
        self._contents.add((key, source_bytes, files))
        if "times_ns" in line:  # not in lines of earlier versions
            sizes, times = tuple(size for size, _ in files), tuple(map(int, line["times_ns"]))
            self._times.add((key, source_bytes, sizes, times))

    def _note(self, line: Mapping[str, Any]) -> None:
        if self._own is None:
            self._own = self.folder / f"{own_identity()}{_LINES}"
        with open(self._own, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, sort_keys=True) + "\n")
        self._take(json.loads(json.dumps(line)))


def _plain(record: Record) -> tuple[int, tuple[tuple[int, int], ...]]:
    """A record as what is hashed of it."""
    return record.source_bytes, tuple((size, crc32) for size, crc32 in record.files)
