"""Descriptions of what a pickle holds, and their conversion to plain values and NumPy arrays.

The reader (``core.checkpoints.plain_pickle``) makes the descriptions; :func:`resolve` turns them
into arrays when the bytes are at hand.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from core.errors import UserError

# Element types of torch storages and tensors, as the names in the file spell them.
TORCH_TYPES = {
    "float32": "<f4",
    "float64": "<f8",
    "float16": "<f2",
    "bfloat16": "bfloat16",
    "int64": "<i8",
    "int32": "<i4",
    "int16": "<i2",
    "int8": "<i1",
    "uint8": "<u1",
    "uint16": "<u2",
    "uint32": "<u4",
    "uint64": "<u8",
    "bool": "|b1",
    "complex64": "<c8",
    "complex128": "<c16",
}
TORCH_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
    "TypedStorage": "uint8",
}
# A tensor may be larger than its storage, by strides of 0. With more elements than this, the file
# is taken to be damaged.
_MAX_EXPANDED = 1 << 24
StorageBytes = Callable[[str], np.ndarray]


@dataclasses.dataclass(frozen=True)
class ElementType:
    """Element type by its torch name, e.g. "float32"."""

    name: str

    @property
    def itemsize(self) -> int:
        """Bytes of one element in the file."""
        return 2 if self.name == "bfloat16" else np.dtype(TORCH_TYPES[self.name]).itemsize


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of ``numel`` elements of the file's storage ``key``, ``offset`` elements from its
    start."""

    kind: ElementType
    key: str
    numel: int
    offset: int = 0


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A strided view of a storage; offset and strides in elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Dtype:
    """A NumPy dtype that the file describes: type letter, size, byte order."""

    def __init__(self, text: str, *_flags: Any) -> None:
        if isinstance(text, bytes):
            text = text.decode("ascii")
        if not re.fullmatch(r"[biufc]\d{1,2}|[SU]\d{1,9}", text):
            raise UserError(f"its arrays have the unsupported element type {text!r}")
        self.text = text
        self.order: Literal["<", ">", "|", "="] = "|"

    def set_state(self, state: Any) -> None:
        """Take the byte order that the file states after the type."""
        orders: dict[str, Literal["<", ">", "|", "="]] = {"<": "<", ">": ">", "|": "|", "=": "="}
        self.order = orders[state[1]]

    def dtype(self) -> np.dtype:
        """The element type in NumPy's own terms."""
        return np.dtype(self.text).newbyteorder(self.order)


class ObjectDtype:
    """The element type of a NumPy array of Python objects."""

    def set_state(self, state: Any) -> None:
        """Its state says nothing that matters."""


class Array:
    """A NumPy array that the file describes; ``value`` is set once its bytes were read.

    The value of an array of objects is a flat list of what they are described as.
    """

    def __init__(self) -> None:
        self.value: np.ndarray | list[Any] = np.zeros(0, np.float32)

    def set_state(self, state: Any) -> None:
        """Take (version, shape, dtype, Fortran order, bytes), as NumPy pickles it."""
        _version, shape, dtype, fortran, raw = state
        if isinstance(dtype, ObjectDtype):
            if not isinstance(raw, list) or math.prod(shape) != len(raw):
                raise ValueError(f"array of shape {shape} without its objects")
            self.value = raw
            return
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(dtype, Dtype) or not isinstance(raw, bytes):
            raise UserError("its arrays hold Python objects instead of numbers")
        kind = dtype.dtype()
        if any(size < 0 for size in shape) or math.prod(shape) * kind.itemsize != len(raw):
            raise ValueError(f"array of shape {shape} and type {kind} in {len(raw)} bytes")
        read_only: np.ndarray = np.ndarray(shape, kind, raw, order="F" if fortran else "C")
        self.value = read_only.astype(kind.newbyteorder("="), order="C")


@dataclasses.dataclass(frozen=True)
class ObjectClass:
    """A class that the pickle names, as "module.name"; it is never imported."""

    name: str


class Record(dict):
    """What an object of an :class:`ObjectClass` becomes: its attributes (or entries) by name."""

    def set_state(self, state: Any) -> None:
        """Take the attributes: a dict, or a pair of dicts where the class has slots."""
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.update(part)


def resolve(value: Any, storage_bytes: StorageBytes) -> Any:
    """Replace all descriptions inside ``value`` by NumPy arrays; OrderedDicts become dicts.

    Args:
        storage_bytes: function from a storage's key to its bytes, uint8 (n,), little endian.

    Arrays of torch tensors may share memory and may have any strides; bfloat16 becomes float32.
    """
    return _Resolver(storage_bytes).resolve(value)


class _Resolver:
    def __init__(self, storage_bytes: StorageBytes) -> None:
        self._storage_bytes = storage_bytes
        self._done: dict[int, Any] = {}
        self._typed: dict[tuple[str, str], np.ndarray] = {}

    def resolve(self, value: Any) -> Any:
        # One result per object: a file may refer to the same list a billion times.
        if id(value) not in self._done:
            self._done[id(value)] = self._resolved(value)
        return self._done[id(value)]

    def _resolved(self, value: Any) -> Any:
        if isinstance(value, Array):
            return self.resolve(value.value) if isinstance(value.value, list) else value.value
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, Storage):
            return self._elements(value)
        if isinstance(value, (Dtype, ObjectDtype)):
            return str(value.dtype()) if isinstance(value, Dtype) else "object"
        if isinstance(value, ElementType):
            return value.name
        if isinstance(value, ObjectClass):
            return value.name
        if isinstance(value, dict):
            return {self.resolve(key): self.resolve(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return type(value)(self.resolve(entry) for entry in value)
        if value is None or isinstance(value, (str, bytes, int, float, complex, np.generic)):
            return value
        raise UserError("refused: it holds a function or a class")

    def _elements(self, storage: Storage) -> np.ndarray:
        """The storage's elements, shape (numel,)."""
        place = (storage.key, storage.kind.name)
        if place not in self._typed:
            raw = self._storage_bytes(storage.key)
            raw = raw[: len(raw) // storage.kind.itemsize * storage.kind.itemsize]
            if storage.kind.name == "bfloat16":  # the upper half of a float32
                self._typed[place] = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                self._typed[place] = raw.view(TORCH_TYPES[storage.kind.name])
        elements = self._typed[place]
        if storage.offset < 0 or not 0 <= storage.numel <= len(elements) - storage.offset:
            raise ValueError(
                f"storage {storage.key!r} holds {len(elements)} elements, not {storage.numel}"
            )
        return elements[storage.offset : storage.offset + storage.numel]

    def _tensor(self, tensor: Tensor) -> np.ndarray:
        elements = self._elements(tensor.storage)
        size, stride, first = tensor.size, tensor.stride, tensor.offset
        count = math.prod(size)
        if len(size) != len(stride) or min((first, *size, *stride)) < 0:
            raise ValueError(f"tensor of size {size}, stride {stride}, offset {first}")
        if count == 0:
            return np.zeros(size, elements.dtype)
        last = first + sum((n - 1) * step for n, step in zip(size, stride))
        if last >= len(elements) or count > max(len(elements), _MAX_EXPANDED):
            raise ValueError(f"tensor of size {size} in a storage of {len(elements)} elements")
        strides = [step * elements.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(elements[first:], size, strides)
