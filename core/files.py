"""Reading and writing files. A file that matters is written under a temporary name and then
renamed, so that a reader never sees half a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import stat
import struct
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from core.errors import UserError, names_file

#: What reading an archive raises that is damaged.
BROKEN_ZIP = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    NotImplementedError,
)


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb", sync: bool = False) -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` for writing. At the end of the block it replaces
    ``path``; on any exception it is removed.

    Args:
        path: final place; its folder is made when missing.
        mode: "wb" or "w" (UTF-8).
        sync: also fsync before the rename, for files whose loss costs hours (checkpoints,
            archives).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        error.filename = str(path)
        raise
    try:
        os.fchmod(handle, 0o644)
        with (
            names_file(path),
            os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file,
        ):
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def private_folder(path: Path) -> Path:
    """Make a folder (mode 0700, its parents as usual) out of which code is run, or make sure of one
    that exists: that nobody else can put anything into it or into its place.

    Returns:
        The folder without links, so that no link can lead elsewhere afterwards.

    Raises:
        UserError: the folder, or the link that stands for it, belongs to another user, others may
            write into it, or everybody may rename what lies in a folder above. The text says
            how to mend it after "; ".
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    real, user = path.resolve(), os.geteuid()
    if not real.is_dir():
        raise UserError(f"{path} is no folder; rm {shlex.quote(str(path))}")
    for place, status in ((path, path.lstat()), (real, real.stat())):
        if status.st_uid != user:
            raise UserError(
                f"{place} belongs to user {status.st_uid}, and what lies in it would be run as "
                f"user {user}, who is you; name a folder of your own"
            )
    if real.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        quoted = shlex.quote(str(real))
        raise UserError(
            f"{real} can be written by other users, and what lies in it is run as you; "
            f"rm -r {quoted} (or, where you trust all that is in it, chmod go-w {quoted})"
        )
    for above in real.parents:
        mode = above.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise UserError(
                f"every user can write into {above} and put another folder in the place of "
                f"{real}; chmod o-w {shlex.quote(str(above))}, or name a folder elsewhere"
            )
    return real


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON with sorted keys, atomically."""
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=2, sort_keys=True)
        file.write("\n")


def read_json(path: Path, expected: str) -> dict[str, Any]:
    """The object in a JSON file; ``expected`` says in the error what the file should have been.

    Raises:
        UserError: the file is missing, unreadable or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"expected {expected} at {path}, but it cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"expected {expected} at {path}, found JSON that is no object")
    return value


def json_or_empty(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where it is missing, unreadable or something else."""
    try:
        return read_json(path, "a JSON object")
    except UserError:
        return {}


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file that holds one a line; broken lines are left out, a missing file has
    none.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(line)
            if isinstance(value, dict):
                yield value


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a finite number, small enough for a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max


def number(value: Any) -> float | None:
    """A value of a JSON file as a float; None where it is no finite number."""
    return float(value) if is_number(value) else None


def flat_name(key: str) -> str:
    """A file name for a key such as "<class folder>/<stem>". It is readable, never hidden and at
    most 200 bytes long, and no two keys get the same name.
    """
    name = key.replace("%", "%25").replace("/", "%2F")
    if name.startswith("."):
        name = "%2E" + name[1:]
    raw = os.fsencode(name)
    if len(raw) <= 200:
        return name
    return f"{os.fsdecode(raw[:180])}%{hashlib.sha256(raw).hexdigest()[:16]}"


def file_system_time(folder: Path) -> float:
    """The time now, in Unix seconds, by the clock that stamps the files of an existing folder. On a
    shared folder that is the file server's clock, which all machines see alike.
    """
    handle, name = tempfile.mkstemp(prefix=".clock.", dir=folder)
    try:
        return os.fstat(handle).st_mtime
    finally:
        os.close(handle)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def sha256_of_json(value: Any) -> str:
    """Hex SHA-256 of a value as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
