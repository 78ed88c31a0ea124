"""Fetching a large file over HTTP: it goes on where it was cut, and nothing but the right content
gets the file's name.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from core import log
from core.errors import UserError

_BLOCK = 1 << 20
_TIMEOUT_S = 60.0
_TRIES = 3  # in a row that brought nothing
_PAUSE_S = 1.0
_MEGABYTE = 1e6


class _Cut(Exception):
    """The connection ended before the file did."""


def fetch(url: str, path: Path, sha256: str, stage: str, by_hand: str) -> None:
    """Fetch ``url`` to ``path``, which is replaced when the content is whole and right.

    What has come stands in ``<path>.part`` meanwhile. A later call goes on from there, where the
    server can.

    Args:
        url: http or https.
        sha256: of the content, hex.
        stage: name in the log and before the progress bar.
        by_hand: what the user may do instead, for the errors.

    Raises:
        UserError: no network, an error of the server, a full disk, another content (of which
            nothing is kept), or another process that fetches the same.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"expected an http or https address, found {url}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _opened(path.with_name(f"{path.name}.part")) as part:
        _fill(url, part, stage, by_hand)
        part.seek(0)
        found = hashlib.sha256()
        for block in iter(lambda: part.read(_BLOCK), b""):
            found.update(block)
        if found.hexdigest() != sha256:
            os.unlink(part.name)
            raise UserError(
                f"{url} has SHA-256 {found.hexdigest()}, expected {sha256}; nothing of it was "
                f"kept: run the command again, or {by_hand}"
            )
        os.fsync(part.fileno())
        os.replace(part.name, path)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """A file for reading and writing that no other process has opened so."""
    with open(path, "a+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino
        except BlockingIOError:
            ours = False
        if not ours:
            raise UserError(f"another process is fetching {path}; wait for it")
        try:
            yield file
        finally:
            if path.exists() and os.fstat(file.fileno()).st_size == 0:
                path.unlink()


def _fill(url: str, part: IO[bytes], stage: str, by_hand: str) -> None:
    """Append to ``part`` what it lacks."""
    failures = 0
    while True:
        before = part.seek(0, os.SEEK_END)
        try:
            _append(url, part, stage)
            return
        except urllib.error.HTTPError as error:
            raise UserError(
                f"{url} was answered with {error.code} {error.reason}; {by_hand}"
            ) from error
        except (_Cut, http.client.HTTPException, OSError) as error:
            have = part.seek(0, os.SEEK_END)
            failures = 1 if have > before else failures + 1
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            if failures == _TRIES:
                kept = f" after {have / _MEGABYTE:.0f} MB, which are kept" if have else ""
                raise UserError(
                    f"{url} cannot be fetched ({reason}){kept}: see to the network and run the "
                    f"same command again, or {by_hand}"
                ) from error
            log.warn(stage, f"{reason}; trying again from {have / _MEGABYTE:.0f} MB")
            time.sleep(_PAUSE_S)


def _append(url: str, part: IO[bytes], stage: str) -> None:
    """One connection: from the end of ``part`` to the end of the file, or as far as it holds."""
    begin = part.seek(0, os.SEEK_END)
    request = urllib.request.Request(url, headers={"Range": f"bytes={begin}-"} if begin else {})
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        # Nothing lies behind what is there: it is whole, or never was a part of this file. The
        # checksum tells.
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and begin:
            return
        raise
    with answer:
        first = _first_byte(answer)
        if first not in (0, begin):
            raise _Cut("the server sends another part of the file than it was asked for")
        if first != begin:
            begin = 0  # a server that always sends the whole file
            part.truncate(0)
        length = answer.headers.get("Content-Length", "")
        left = int(length) if re.fullmatch(r"\d{1,18}", length) else None
        _require_room(Path(part.name), left)
        total = None if left is None else begin + left
        with log.progress_of_bytes(stage, total, begin) as bar:
            for block in iter(lambda: answer.read(_BLOCK), b""):
                _write(part, block)
                bar.update(len(block))
        have = part.seek(0, os.SEEK_END)
    if total is not None and have < total:
        raise _Cut(f"the connection was cut after {have} of {total} bytes")


def _first_byte(answer: Any) -> int:
    """Where the content of an answer begins in the file."""
    if answer.status != http.client.PARTIAL_CONTENT:
        return 0
    stated = re.match(r"bytes (\d{1,18})-", answer.headers.get("Content-Range", ""))
    return int(stated[1]) if stated else -1


def _require_room(path: Path, wanted: int | None) -> None:
    free = shutil.disk_usage(path.parent).free
    if wanted is not None and free < wanted:
        raise UserError(
            f"{path.parent} has {free / _MEGABYTE:.0f} MB left, expected room for "
            f"{wanted / _MEGABYTE:.0f} MB more; make room and run the same command again"
        )


def _write(part: IO[bytes], block: bytes) -> None:
    left = memoryview(block)
    try:
        while left:
            left = left[part.write(left) :]
    except OSError as error:
        raise UserError(
            f"{part.name} cannot be written: {error.strerror}; make room and run the same command "
            "again, which goes on from there"
        ) from error
