"""Valid files of each kind that the program reads, changes of them, and a watched process that
reads what came of it.

The changes are drawn by a seed. Half of them are made inside of the container, which is closed
again with right checksums, so that the reader gets as far as the content.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import re
import resource
import time
import traceback
import zipfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from core.checkpoints.files import load_latest, save_checkpoint
from core.checkpoints.torch_reader import read_checkpoint, state_dict_of
from core.config import to_dict
from core.data import rle
from core.data.image_labels import read_label_file
from core.data.imagenet_s import list_images
from core.data.label_maps import load_label, png_of_label, save_label
from core.data.level_maps import archive_of, load_levelled
from core.errors import UserError
from core.files import json_lines, json_or_empty, read_json, write_json
from core.memory import resident_mib
from core.pipeline.presets import preset_or_trained
from core.scoring.matching import read_match, write_match
from core.work.ledger import Ledger, Record
from core.work.mask_store import ImageIdentity, MaskStore
from tests.helpers import torch_files
from tools.submission.archive import Method, build_zip
from tools.submission.check import check_zip
from uss.pipeline import PIPELINE
from uss.pseudo_labels import load_centroids

MEBIBYTES = 500  # that reading a changed file may take
SECONDS = 2.0  # of the processor

_CLASSES = 3
_NAMES = ("n01/a", "n02/b")
_IMAGE = ImageIdentity(crc32=7, height=20, width=30)
_FINGERPRINT = {"weights": "0" * 64, "points_per_side": 8}
_LEDGER = {"threshold": 0.3, "masks": {"points": [16, 8]}}
_OPCODES = b"".join(
    value for name, value in vars(pickle).items() if name.isupper() and isinstance(value, bytes)
)
_TOKENS = (
    b"-1 0 1e999 NaN null true [] {} 123456789012345678901234567890 99999999999 0.5 '' \"x\" 1e-400"
).split()


@dataclass(frozen=True)
class Kind:
    """A valid file, and what reads it."""

    make: Callable[[Path], Path]
    """Writes what the reader needs into an empty folder; returns the file that is changed."""
    read: Callable[[Path], Any]
    """Reads the file of :attr:`make`."""
    inner: str = ""
    """What can be changed inside: "zip", "gzip", "jittor" or nothing."""


def _labels_zip(folder: Path) -> Path:
    for index, name in enumerate(_NAMES):
        path = folder / "data" / "test" / f"{name}.JPEG"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (20 + index, 10)).save(path)
        label = np.zeros((10, 20 + index), np.int32)
        label[2:6, 3:9] = index + 1
        save_label(folder / "predictions" / f"{name}.png", label)
    items = list_images(folder / "data" / "test")
    match = {label: label for label in range(_CLASSES + 1)}
    build_zip(folder / "predictions", items, folder / "r.zip", match, Method(description="x"))
    return folder / "r.zip"


def _check_labels_zip(path: Path) -> str | None:
    problems = check_zip(path, path.parent / "data", "test", _CLASSES)
    assert all(isinstance(problem, str) for problem in problems)
    return None


def _torch(kind: str) -> Callable[[Path], Path]:
    return lambda folder: torch_files.write_state(folder / "a.pth", kind)


def _jittor(folder: Path) -> Path:
    content = {
        "state_dict": {"a": np.ones((2, 3), np.float32), "b": np.arange(4)},
        "args": Namespace(arch="resnet18", sizes=[1, 2]),
        "best": np.float64(0.5),
        "sets": {1, "a"},
        "steps": (1, 2.5, None, True, b"x", 1 << 70),
    }
    return torch_files.write_jittor(folder / "a.pkl", pickle.dumps(content, 2))


def _checkpoint(folder: Path) -> Path:
    payload = {"epoch": 1, "state_dict": {"a": np.ones(5, np.float32)}, "settings": {"a": [1]}}
    return save_checkpoint(folder, payload)


def _masks(folder: Path) -> Path:
    mask = np.zeros((20, 30), bool)
    mask[3:9, 4:17] = True
    record = {"area": 78, "bbox": [4, 3, 12, 5], "point_coords": [[7.5, 4.25]]}
    store = MaskStore(folder, _FINGERPRINT)
    store.put("a", _IMAGE, [{**record, "segmentation": rle.encode(mask)}] * 3)
    return store.path("a")


def _read_masks(path: Path) -> None:
    store = MaskStore(path.parent.parent.parent, _FINGERPRINT)
    store.get("a", _IMAGE)
    store.fault("a")


def _mask_settings(folder: Path) -> Path:
    return MaskStore(folder, _FINGERPRINT).folder / "settings.json"


def _read_mask_settings(path: Path) -> None:
    MaskStore.fingerprints(path.parent.parent)
    MaskStore(path.parent.parent, _FINGERPRINT)


def _ledger(folder: Path) -> Path:
    ledger = Ledger(folder, _LEDGER)
    ledger.open()
    ledger.record("a", Record(10, ((3, 4),)), (10**18,), {"seconds": 1.5})
    ledger.fail("b", "broken")
    return next(ledger.folder.glob("*.jsonl"))


def _ledger_settings(folder: Path) -> Path:
    return _ledger(folder).parent / "settings.json"


def _read_ledger(path: Path) -> None:
    root = path.parent.parent.parent
    ledger = Ledger(root, _LEDGER)
    ledger.open()
    ledger.knows("a")
    ledger.failure("b", 0.0)
    for other in Ledger.others(root, Ledger(root, {"threshold": 1})):
        other.knows("a")


def _levels(folder: Path) -> Path:
    label = np.arange(60, dtype=np.int32).reshape(6, 10) % 4
    (folder / "a.npz").write_bytes(archive_of(label, np.linspace(0, 1, 60).reshape(6, 10)))
    return folder / "a.npz"


def _level_map(folder: Path) -> Path:
    (folder / "a.png").write_bytes(png_of_label(np.zeros((6, 10), np.int32)))
    np.save(folder / "a.npy", np.ones((6, 10), np.float32))
    return folder / "a.npy"


def _centroids(folder: Path) -> Path:
    np.save(folder / "centroids.npy", np.ones((4, 8), np.float32))
    return folder / "centroids.npy"


def _label_map(folder: Path) -> Path:
    (folder / "a.png").write_bytes(png_of_label(np.zeros((6, 10), np.int32)))
    return folder / "a.png"


def _label_file(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        vectors = {f"2007_{i:06d}": np.eye(3, dtype=np.float32)[i % 3] for i in range(4)}
        if name.endswith(".npz"):
            np.savez(folder / name, keys=np.array(list(vectors)), labels=np.eye(4, 3))
        elif name.endswith(".json"):
            write_json(folder / name, {"2007_000001": [1, "b"], "2007_000002": []})
        else:
            array = np.empty((), object)
            array[()] = vectors
            np.save(folder / name, array)
        return folder / name

    return make


def _config(folder: Path) -> Path:
    write_json(folder / "config.json", to_dict(PIPELINE.preset("demo", None)))
    return folder / "config.json"


def _match(folder: Path) -> Path:
    write_match(folder / "match.json", {label: label for label in range(_CLASSES + 1)})
    return folder / "match.json"


def _read_json(path: Path) -> None:
    json_or_empty(path)
    list(json_lines(path))
    read_json(path, "settings")


def _read_weights(path: Path) -> None:
    state_dict_of(path)
    read_checkpoint(path)


KINDS: dict[str, Kind] = {
    "torch zip": Kind(_torch("zip"), _read_weights, "zip"),
    "torch legacy": Kind(_torch("legacy"), _read_weights),
    "jittor": Kind(_jittor, _read_weights, "jittor"),
    "jittor arrays": Kind(_torch("jittor"), _read_weights, "jittor"),
    "run checkpoint": Kind(_checkpoint, lambda path: load_latest(path.parent), "jittor"),
    "result zip": Kind(_labels_zip, _check_labels_zip, "zip"),
    "masks": Kind(_masks, _read_masks, "gzip"),
    "mask settings": Kind(_mask_settings, _read_mask_settings),
    "ledger": Kind(_ledger, _read_ledger),
    "ledger settings": Kind(_ledger_settings, _read_ledger),
    "levels": Kind(_levels, lambda path: load_levelled(path.with_suffix(".png")), "zip"),
    "level map": Kind(_level_map, lambda path: load_levelled(path.with_suffix(".png"))),
    "label map": Kind(_label_map, load_label),
    "centroids": Kind(_centroids, lambda path: load_centroids(path, 4, 8)),
    "labels npz": Kind(
        _label_file("l.npz"), lambda path: read_label_file(path, ["a", "b", "c"]), "zip"
    ),
    "labels npy": Kind(_label_file("l.npy"), lambda path: read_label_file(path, ["a", "b", "c"])),
    "labels json": Kind(_label_file("l.json"), lambda path: read_label_file(path, ["a", "b", "c"])),
    "config": Kind(_config, lambda path: preset_or_trained(PIPELINE, None, path.parent / "c.pth")),
    "json": Kind(_config, _read_json),
    "match": Kind(_match, lambda path: read_match(path, _CLASSES)),
}


# Changes ----------------------------------------------------------------------------------------


def changed(kind: Kind, data: bytes, chance: random.Random) -> bytes:
    """A change of a file's content: outside, or inside of its container."""
    if not kind.inner or chance.random() < 0.5:
        return _edited(data, chance)
    if kind.inner == "gzip":
        return gzip.compress(_edited(gzip.decompress(data), chance), mtime=0)
    if kind.inner == "jittor":
        return torch_files.signed(_edited(data[: -len(torch_files.signed(b""))], chance))
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(file, "w") as after:
        entries = before.infolist()
        target = chance.choice(entries)
        for entry in entries:
            content = before.read(entry)
            after.writestr(entry, _edited(content, chance) if entry is target else content)
    return file.getvalue()


def _edited(data: bytes, chance: random.Random) -> bytes:
    for _ in range(chance.randint(1, 3)):
        data = chance.choice(_EDITS)(bytearray(data), chance)
    return data


def _part(data: bytearray, chance: random.Random) -> tuple[int, int]:
    begin = chance.randrange(len(data) + 1)
    return begin, min(len(data), begin + chance.choice((1, 2, 4, 8, 40)))


def _flip(data: bytearray, chance: random.Random) -> bytes:
    for _ in range(chance.randint(1, 4)):
        if data:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def _cut(data: bytearray, chance: random.Random) -> bytes:
    return bytes(data[: chance.randrange(len(data) + 1)])


def _drop(data: bytearray, chance: random.Random) -> bytes:
    begin, end = _part(data, chance)
    return bytes(data[:begin] + data[end:])


def _double(data: bytearray, chance: random.Random) -> bytes:
    begin, end = _part(data, chance)
    return bytes(data[:end] + data[begin:end] * chance.choice((1, 2, 50)) + data[end:])


def _swap(data: bytearray, chance: random.Random) -> bytes:
    (a, b), (c, d) = sorted((_part(data, chance), _part(data, chance)))
    if b > c:
        return bytes(data[:b])
    return bytes(data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:])


def _opcode(data: bytearray, chance: random.Random) -> bytes:
    for _ in range(chance.randint(1, 3)):
        if data:
            data[chance.randrange(len(data))] = chance.choice(_OPCODES)
    return bytes(data)


def _number(data: bytearray, chance: random.Random) -> bytes:
    """A size, offset or count of a binary file."""
    width = chance.choice((2, 4, 8))
    value = chance.choice((0, 1, 0x7F, 0x80, 0xFF, 1 << 24, 1 << 31, 1 << 40, (1 << 63) - 1))
    place = chance.randrange(len(data) + 1)
    data[place : place + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    return bytes(data)


def _token(data: bytearray, chance: random.Random) -> bytes:
    """A number, text or list of a text file."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?|\"[^\"]*\"|\[[^\[\]]*\]|null|true", data))
    if not found:
        return bytes(data)
    place = chance.choice(found)
    nested = b"[" * 3000 + b"]" * 3000
    data[place.start() : place.end()] = chance.choice((*_TOKENS, nested, b'{"a":' * 900))
    return bytes(data)


_EDITS = (_flip, _cut, _drop, _double, _swap, _opcode, _number, _token, _token)


# Reading what came of it ------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What reading a changed file came to."""

    error: str | None
    """The line of a ``UserError``; None for a success."""
    bug: str | None
    """The traceback of anything else."""
    seconds: float
    mebibytes: int
    """Peak of the process beyond what it took before."""


def reader(setup: Any) -> Callable[[tuple[str, str]], Outcome]:
    """For ``core.work.child``: the function that reads a file (kind, path)."""
    before = int(resident_mib("VmHWM"))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    # More than the process may take, so that a reservation of terabytes fails as it does elsewhere.
    limit = pages * os.sysconf("SC_PAGE_SIZE") + (2 * MEBIBYTES << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def read(request: tuple[str, str]) -> Outcome:
        kind, path = request
        error = bug = None
        begin = time.process_time()
        try:
            KINDS[kind].read(Path(path))
        except UserError as expected:
            error = str(expected)
        except Exception:
            bug = traceback.format_exc(limit=-6)[-3000:]
        seconds = time.process_time() - begin
        peak = int(resident_mib("VmHWM"))
        return Outcome(error, bug, seconds, peak - before)

    return read


def valid(kind: str, folder: Path) -> tuple[Path, bytes]:
    """The valid file of a kind in a new folder, and its content."""
    folder.mkdir()
    path = KINDS[kind].make(folder)
    return path, path.read_bytes()


def as_json(value: Outcome) -> str:
    """For messages of a test."""
    return json.dumps(value._asdict(), indent=1).replace("\\n", "\n")
