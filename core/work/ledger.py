"""Which results in a folder are finished, and under which settings each was made.

::

    <folder>/.ledger/<fingerprint of the settings>/settings.json    with the schema
    <folder>/.ledger/<fingerprint of the settings>/<host>-<pid>-<chance>.jsonl

Every process appends to a file of its own, a JSON object a line: a finished item with size and
CRC-32 of its result files, or a failure with its reason. So several machines may write at a time. A
last line that is half written does not count. A result that was damaged, cut or overwritten since
it was recorded does not match its line.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from core.errors import UserError
from core.files import file_system_time, json_or_empty, read_json, write_json
from core.schema import stamped, unstamped

LEDGER_FOLDER = ".ledger"
SETTINGS_FILE = "settings.json"


class Record(NamedTuple):
    """What was on disk when an item was finished."""

    source_bytes: int
    """Size of the image file that the results were made from."""
    files: tuple[tuple[int, int], ...]
    """(size in bytes, CRC-32) of each result file."""


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
        self._records: dict[str, set[Record]] = {}
        self._failures: dict[str, tuple[float, str]] = {}
        self._read: dict[str, int] = {}
        self._own: Path | None = None

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
        """Make the ledger's folder, read what is there; returns the file system's time (Unix s).

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
        self.refresh()
        return now

    def records(self, key: str) -> set[Record]:
        """The records of an item: none, one, or several where it was made more than once."""
        return self._records.get(key, set())

    def failure(self, key: str, since: float) -> str | None:
        """Why an item failed at or after ``since``, a time by the file system's clock; None where
        it did not.
        """
        time, reason = self._failures.get(key, (0.0, ""))
        return reason if reason and time >= since else None

    def record(self, key: str, record: Record, facts: Mapping[str, Any]) -> None:
        """Note a finished item, with any facts (JSON values) for people who read the file."""
        line = {"key": key, "source_bytes": record.source_bytes, "files": record.files, **facts}
        self._append(line)
        self._take(line)

    def fail(self, key: str, reason: str) -> None:
        """Note that an item failed."""
        line = {"key": key, "failed": reason, "time": file_system_time(self.folder)}
        self._append(line)
        self._take(line)

    def refresh(self) -> None:
        """Read what was appended since the last look, by any process."""
        try:
            names = [name for name in os.listdir(self.folder) if name.endswith(".jsonl")]
        except FileNotFoundError:
            return
        for name in names:
            self._read_on(name)

    def _read_on(self, name: str) -> None:
        # Opened, not asked for its size: network file systems look at the real file only then.
        with open(self.folder / name, "rb") as file:
            file.seek(self._read.get(name, 0))
            text = file.read()
        whole = text.rfind(b"\n") + 1
        self._read[name] = self._read.get(name, 0) + whole
        for line in text[:whole].splitlines():
            try:
                self._take(json.loads(line))
            except (ValueError, TypeError, KeyError):
                continue  # a torn line, or one that a person edited: the item is made again

    def _take(self, line: Mapping[str, Any]) -> None:
        key = line["key"]
        if "failed" in line:
            self._failures[key] = (float(line["time"]), str(line["failed"]))
            return
        files = tuple((int(size), int(crc32)) for size, crc32 in line["files"])
        self._records.setdefault(key, set()).add(Record(int(line["source_bytes"]), files))

    def _append(self, line: Mapping[str, Any]) -> None:
        if self._own is None:
            name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
            self._own = self.folder / name.replace("/", "-")
        with open(self._own, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, sort_keys=True) + "\n")
