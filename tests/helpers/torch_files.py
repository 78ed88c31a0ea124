"""Writes PyTorch and Jittor checkpoint files by hand, to test reading without PyTorch."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
TORCH_NAMES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


@dataclass(frozen=True)
class Global:
    """A class or function that the pickle names."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """A call of ``function`` that the pickle asks for."""

    function: Global
    arguments: tuple


@dataclass(frozen=True)
class Storage:
    """A reference to storage ``key``; legacy files can refer to a part of it by ``view``."""

    key: str
    type_name: str
    numel: int
    view: tuple | None = None


class _Pickler(pickle._Pickler):  # type: ignore[name-defined, misc, unused-ignore]
    legacy = False

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Global):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        elif isinstance(obj, Storage):
            kind = Global("torch", obj.type_name)
            reference = ("storage", kind, obj.key, "cpu", obj.numel)
            self.save(reference + ((obj.view,) if self.legacy else ()))
            self.write(pickle.BINPERSID)
        else:
            super().save(obj, save_persistent_id)


def dumps(value: Any, legacy: bool = False) -> bytes:
    """Pickle of protocol 2 with the marks above."""
    file = io.BytesIO()
    pickler = _Pickler(file, 2)
    pickler.legacy = legacy
    pickler.dump(value)
    return file.getvalue()


def tensor(
    storage: Storage, size: tuple[int, ...], stride: tuple[int, ...] | None = None, offset: int = 0
) -> Call:
    """What torch writes for a tensor."""
    if stride is None:
        stride = tuple(int(np.prod(size[axis + 1 :])) for axis in range(len(size)))
    hooks = Call(Global("collections", "OrderedDict"), ())
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, (storage, offset, size, stride, False, hooks))


def storage_of(key: str, values: np.ndarray) -> Storage:
    """Reference to a storage that holds all of ``values``."""
    return Storage(key, TORCH_NAMES[str(values.dtype)], values.size)


def write_zip(
    path: Path, content: Any, storages: dict[str, bytes], name: str = "archive", **more: bytes
) -> Path:
    """A zip container as torch.save writes it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            f"{name}/data.pkl", content if isinstance(content, bytes) else dumps(content)
        )
        for entry, data in more.items():
            archive.writestr(f"{name}/{entry}", data)
        for key, data in storages.items():
            archive.writestr(f"{name}/data/{key}", data)
        archive.writestr(f"{name}/version", b"3\n")
    return path


def write_legacy(path: Path, content: Any, storages: dict[str, np.ndarray]) -> Path:
    """The container of torch.save before 1.6."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    with open(path, "wb") as file:
        for part in (MAGIC, 1001, system):
            file.write(pickle.dumps(part, 2))
        file.write(dumps(content, legacy=True))
        file.write(pickle.dumps(sorted(storages), 2))
        for key in sorted(storages):
            file.write(struct.pack("<q", storages[key].size) + storages[key].tobytes())
    return path


def write_jittor(path: Path, content: Any) -> Path:
    """The container of jt.save."""
    path.write_bytes(signed(content if isinstance(content, bytes) else pickle.dumps(content, 4)))
    return path


def signed(data: bytes) -> bytes:
    """A pickle with Jittor's checksum and mark."""
    return data + hashlib.sha1(data).digest() + b"HCAJSLHD"


NUMBERS = np.arange(24, dtype=np.float32)


def state_content() -> dict:
    """A checkpoint of whole, transposed, sliced, scalar, empty and expanded tensors."""
    whole = storage_of("0", NUMBERS)
    counter = Storage("1", "LongStorage", 1)
    hooks = Call(Global("collections", "OrderedDict"), ())
    parameter = Global("torch._utils", "_rebuild_parameter")
    return {
        "epoch": 7,
        "state_dict": {
            "module.whole": Call(parameter, (tensor(whole, (2, 3, 4)), True, hooks)),
            "module.transposed": tensor(whole, (4, 3, 2), (1, 4, 12)),
            "module.slice": tensor(whole, (3, 2), (4, 1), 13),
            "module.scalar": tensor(whole, (), (), 5),
            "module.empty": tensor(whole, (0, 3)),
            "module.expanded": tensor(whole, (2, 5), (1, 0), 3),
            "module.bn.num_batches_tracked": tensor(counter, ()),
        },
    }


def write_state(path: Path, kind: str) -> Path:
    """The checkpoint of :func:`state_content` as a file of kind "zip", "legacy" or "jittor"."""
    content, counter = state_content(), np.array([3], np.int64)
    if kind == "zip":
        return write_zip(path, content, {"0": NUMBERS.tobytes(), "1": counter.tobytes()})
    if kind == "legacy":
        return write_legacy(path, content, {"0": NUMBERS, "1": counter})
    block = NUMBERS.reshape(2, 3, 4)
    state = {
        "whole": block,
        "transposed": np.asfortranarray(block).transpose(2, 1, 0),
        "slice": block[1, :, 1:3],
        "scalar": np.array(NUMBERS[5]),
        "empty": np.zeros((0, 3), np.float32),
        "expanded": np.broadcast_to(NUMBERS[3:5, None], (2, 5)),
    }
    return write_jittor(path, {"epoch": 7, "state_dict": state})
