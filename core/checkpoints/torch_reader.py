"""Reads checkpoints of PyTorch and Jittor into NumPy arrays. It needs neither PyTorch nor Jittor,
and nothing that a file holds is run.

The content tells which kind of file it is; the name ``checkpoint.pth.tar`` may stand for any of
them:

* PyTorch zip: a stored zip with ``<name>/data.pkl`` and one ``<name>/data/<key>`` per storage.
* PyTorch legacy: four pickles that start with a magic number, then the storages one after the
  other.
* Jittor: a pickle, its SHA-1 (20 bytes) and the mark ``HCAJSLHD``.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import re
import struct
import zipfile
from pathlib import Path
from typing import Any, cast

import numpy as np

from core.checkpoints import pickled_values, plain_pickle
from core.checkpoints.budget import ARRAYS, OBJECTS, Budget
from core.errors import UserError

JITTOR_MARK = b"HCAJSLHD"
SHA1_BYTES = 20
_LEGACY_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
_LEGACY_VERSION = 1001
_PREFIX = re.compile(r"^(module\.)+")
_EXPECTED = "expected a checkpoint (PyTorch .pth or Jittor pickle)"


def read_checkpoint(path: Path | str, inert_objects: bool = False) -> Any:
    """Content of a checkpoint: dicts, lists, tuples, plain values, and NumPy arrays for tensors.

    Args:
        path: the file.
        inert_objects: objects of any class become dicts of their attributes instead of being
            refused; an ``argparse.Namespace`` always does. No class is imported or called for it.

    Element types are kept, except that bfloat16 becomes float32. Arrays of one file may share
    memory and may have any strides.

    Raises:
        UserError: no such file, not a checkpoint, damaged, or it asks for more than tensors and
            plain values.
    """
    path = Path(path)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{_EXPECTED} at {path}, which {found}")
    try:
        # Bytes can be wrong in more ways than there are exception classes: whatever reading them
        # raises, the file is to blame, and the cause stays attached.
        return _read(path, inert_objects)
    except UserError as error:
        raise UserError(f"{path}: {plain_pickle.printable(str(error))}") from error
    except MemoryError as error:
        raise UserError(
            f"{path}: {_EXPECTED}, found one that does not fit into the memory that is free; end "
            "other programs, or copy or download it again if it is damaged"
        ) from error
    except Exception as error:
        reason = plain_pickle.printable(str(error), 160)
        raise UserError(
            f"{path}: {_EXPECTED}, found a damaged or incomplete one ({type(error).__name__}: "
            f"{reason}); copy or download it again"
        ) from error


def state_dict_of(path: Path | str) -> dict[str, np.ndarray]:
    """Weights of a checkpoint by name: C-contiguous arrays, float32 or as stored.

    The state dict is the entry "state_dict" or "model" of the file, or the file itself. The prefix
    ``module.`` is stripped, ``num_batches_tracked`` counters are dropped, half precision becomes
    float32. What else the file holds (arguments, optimiser, counters) is left out.

    Raises:
        UserError: see :func:`read_checkpoint`; or the file holds no tensors.
    """
    content = read_checkpoint(path, inert_objects=True)
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected weights by name, found a {type(content).__name__}")
    state: dict[str, np.ndarray] = {}
    budget = Budget(Path(path).stat().st_size, ARRAYS)
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, np.ndarray):
            continue
        key = _PREFIX.sub("", key)
        if key.rpartition(".")[2] == "num_batches_tracked":
            continue
        if key in state:
            raise UserError(f"{path}: holds {key!r:.80} both with and without the prefix 'module.'")
        kind = np.float32 if value.dtype == np.float16 else value.dtype
        try:
            # Names that stand for one array are copied one by one.
            budget.spend(value.size * np.dtype(kind).itemsize)
            state[key] = np.ascontiguousarray(value, kind).reshape(value.shape)
        except (ValueError, MemoryError) as error:
            raise UserError(
                f"{path}: expected weights, found more of them than a file of its size or this "
                f"machine's memory holds ({error})"
            ) from error
    if not state:
        names = ", ".join(sorted(str(key)[:80] for key in content)[:8]) or "nothing"
        raise UserError(
            f"{path}: expected weights by name, found no tensors but: "
            f"{plain_pickle.printable(names)}"
        )
    return state


def _read(path: Path, inert_objects: bool) -> Any:
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{_EXPECTED}, found an empty file")
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if data[-len(JITTOR_MARK) :] == JITTOR_MARK:
            return _read_jittor(data, inert_objects)
        if data[:4] == b"PK\x03\x04":
            return _read_zip(file, size, inert_objects)
        if _LEGACY_MAGIC in data[:24]:
            return _read_legacy(data, inert_objects)
        raise UserError(f"{_EXPECTED}, found {_describe(data[:512])}")


def _describe(head: bytes) -> str:
    """What a file that is no checkpoint looks like, for the error."""
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page: the download was answered with an error or a login page"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer: run git lfs pull"
    if head.startswith(b"\x93NUMPY"):
        return "a NumPy array (.npy)"
    if head.startswith(b"\x1f\x8b"):
        return "a gzip archive: unpack it first"
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    if head.startswith(b"\x80"):
        return "a pickle without Jittor's checksum: it was cut short, or another program wrote it"
    return f"something that begins with {head[:16]!r}"


def _no_storages(key: str) -> np.ndarray:
    raise ValueError(f"storage {key[:40]!r} in a file that has none")


def _read_jittor(data: mmap.mmap, inert_objects: bool) -> Any:
    end = len(data) - len(JITTOR_MARK) - SHA1_BYTES
    with memoryview(data) as view:
        whole = end > 0 and hashlib.sha1(view[:end]).digest() == bytes(view[end : end + SHA1_BYTES])
    if not whole:
        raise UserError(
            f"{_EXPECTED}, found a Jittor pickle whose checksum does not match: it is damaged; "
            "copy or download it again"
        )
    content = plain_pickle.load(data, Budget(end, OBJECTS), inert_objects=inert_objects)
    return pickled_values.resolve(content, _no_storages, Budget(end, ARRAYS))


def _storage_reference(reference: tuple) -> pickled_values.Storage:
    """``("storage", type, key, device, numel[, None or (view key, offset, numel)])`` of a torch
    pickle."""
    label, kind, key, _device, numel, *view = reference
    if label not in ("storage", b"storage") or not isinstance(kind, pickled_values.ElementType):
        raise ValueError("a reference to something else than a storage")
    offset = 0
    if view and view[0] is not None:
        _view_key, offset, numel = view[0]
    if not isinstance(key, str):
        raise ValueError("a reference to a storage without a name")
    numel, offset = pickled_values.integers((numel, offset))
    return pickled_values.Storage(kind, key, numel, offset)


def _read_zip(file: io.BufferedReader, size: int, inert_objects: bool) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
        if len(names) != 1:
            found = ", ".join(name[:80] for name in archive.namelist()[:4])
            raise UserError(f"{_EXPECTED}, found a zip archive without data.pkl (it has: {found})")
        root = names[0].split("/")[0]
        read = 0

        def record(name: str) -> np.ndarray:
            """Bytes of one entry; torch never compresses, so all entries together cannot be larger
            than the file, unless they lie in each other."""
            nonlocal read
            entry = archive.getinfo(f"{root}/{name}")
            read += entry.file_size
            if entry.compress_type != zipfile.ZIP_STORED or read > size:
                raise ValueError(
                    f"entry {entry.filename[:80]} of {entry.file_size} bytes is compressed, cut or "
                    "lies in another one"
                )
            values = np.empty(entry.file_size, np.uint8)
            with archive.open(entry) as source:
                done = cast(io.BufferedIOBase, source).readinto(values.data)
                # Reading past the end is what makes zipfile compare the checksum.
                if done != entry.file_size or source.read(1):
                    raise ValueError(f"entry {entry.filename[:80]} is cut")
            return values

        if f"{root}/byteorder" in archive.namelist() and bytes(record("byteorder")) != b"little":
            raise UserError(
                "its numbers are stored big endian; save it again on a little-endian machine"
            )
        pickled = bytes(record("data.pkl"))
        budget = Budget(len(pickled), OBJECTS)
        content = plain_pickle.load(io.BytesIO(pickled), budget, _storage_reference, inert_objects)
        return pickled_values.resolve(
            content, lambda key: record(f"data/{key}"), Budget(size, ARRAYS)
        )


def _read_legacy(data: mmap.mmap, inert_objects: bool) -> Any:
    storages: dict[str, pickled_values.Storage] = {}

    def reference(parts: tuple) -> pickled_values.Storage:
        storage = _storage_reference(parts)
        storages.setdefault(storage.key, storage)
        return storage

    budget = Budget(len(data), OBJECTS)
    plain_pickle.load(data, budget)
    version, system = plain_pickle.load(data, budget), plain_pickle.load(data, budget)
    if version != _LEGACY_VERSION or not system.get("little_endian", True):
        raise UserError(
            "it is of another version or big endian; save it again with a newer PyTorch"
        )
    content = plain_pickle.load(data, budget, reference, inert_objects)
    raw: dict[str, np.ndarray] = {}
    keys = plain_pickle.load(data, budget)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("a list of storages without their names")
    for key in keys:
        (numel,) = struct.unpack("<q", data.read(8))
        count = numel * storages[key].kind.itemsize
        block = data.read(max(count, 0))
        if count < 0 or len(block) != count:
            raise ValueError(f"storage {key[:40]!r} of {numel} elements is cut")
        raw[key] = np.frombuffer(bytearray(block), np.uint8)
    return pickled_values.resolve(content, raw.__getitem__, Budget(len(data), ARRAYS))
