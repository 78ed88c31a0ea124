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

from core.checkpoints.budget import Budget
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
# Containers within containers, the axes of an array, and the size of a number, beyond which a file
# is taken to be damaged.
MAX_DEPTH = 100
_MAX_AXES = 32
_MAX_INTEGER = 1 << 63
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
        # An element of no bytes would let an array of any size stand in a file.
        if not re.fullmatch(r"[biufc]\d{1,2}|[SU][1-9]\d{0,8}", text):
            raise UserError(f"its arrays have the unsupported element type {text!r}")
        self.text = text
        self.order: Literal["<", ">", "|", "="] = "|"

    def set_state(self, state: Any) -> None:
        """Take the byte order that the file states after the type."""
        order = state[1]
        if not isinstance(order, str) or order not in ("<", ">", "|", "="):
            raise ValueError("an unknown byte order")
        self.order = order  # type: ignore[assignment]

    def dtype(self) -> np.dtype:
        """The element type in NumPy's own terms."""
        return np.dtype(self.text).newbyteorder(self.order)


class ObjectDtype:
    """The element type of a NumPy array of Python objects."""

    def set_state(self, state: Any) -> None:
        """Its state says nothing that matters."""


class Array:
    """A NumPy array that the file describes; ``value`` is a view of its bytes, in their own order.

    The value of an array of objects is a flat list of what they are described as.
    """

    def __init__(self) -> None:
        self.value: np.ndarray | list[Any] = np.zeros(0, np.float32)

    def set_state(self, state: Any) -> None:
        """Take (version, shape, dtype, Fortran order, bytes), as NumPy pickles it."""
        _version, shape, dtype, fortran, raw = state
        shape = integers(shape)
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
        self.value = np.ndarray(shape, kind, raw, order="F" if fortran else "C")


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


def integers(values: Any) -> tuple[int, ...]:
    """``values``, checked to be a tuple of few integers of 64 bits.

    Raises:
        ValueError: they are anything else; the text holds nothing of them.
    """
    if not isinstance(values, tuple) or len(values) > _MAX_AXES:
        raise ValueError(f"expected up to {_MAX_AXES} integers, found a {type(values).__name__}")
    if not all(type(value) is int and abs(value) < _MAX_INTEGER for value in values):
        raise ValueError("expected integers of 64 bits")
    return values


def is_plain(value: Any) -> bool:
    """Whether this is a text, number or None: what may be a key, for its hash costs nothing. That
    of nested tuples can take for ever.
    """
    return value is None or isinstance(value, (str, bytes, int, float, complex, np.generic))


def resolve(value: Any, storage_bytes: StorageBytes, budget: Budget) -> Any:
    """Replace all descriptions inside ``value`` by NumPy arrays; OrderedDicts become dicts.

    Args:
        storage_bytes: function from a storage's key to its bytes, uint8 (n,), little endian.
        budget: what all arrays together may take, as if none shared its memory.

    Arrays of torch tensors may share memory and may have any strides; bfloat16 becomes float32.

    Raises:
        ValueError: arrays beyond their bytes or the budget, or containers nested too deeply.
    """
    return _Resolver(storage_bytes, budget).resolve(value, MAX_DEPTH)


class _Resolver:
    def __init__(self, storage_bytes: StorageBytes, budget: Budget) -> None:
        self._storage_bytes = storage_bytes
        self._budget = budget
        # By the identity of what was read: the result, and the levels of containers in it.
        self._done: dict[int, tuple[Any, int]] = {}
        self._raw: dict[str, np.ndarray] = {}
        self._typed: dict[tuple[str, str], np.ndarray] = {}

    def resolve(self, value: Any, room: int) -> Any:
        """The value itself; ``room`` is how many levels of containers it may have."""
        return self._with_depth(value, room)[0]

    def _with_depth(self, value: Any, room: int) -> tuple[Any, int]:
        # One result per object: a file may refer to the same list a billion times.
        if id(value) not in self._done:
            if room < 0:
                raise ValueError("nested too deeply")
            self._done[id(value)] = self._resolved(value, room)
        found = self._done[id(value)]
        if found[1] > room:
            raise ValueError("nested too deeply")
        return found

    def _resolved(self, value: Any, room: int) -> tuple[Any, int]:
        if isinstance(value, Array) and isinstance(value.value, list):
            return self._with_depth(value.value, room)
        if isinstance(value, dict):
            pairs = [(key, self._with_depth(entry, room - 1)) for key, entry in value.items()]
            depth = 1 + max((entry[1] for _key, entry in pairs), default=0)
            return {key: entry[0] for key, entry in pairs}, depth
        if isinstance(value, (list, tuple, set, frozenset)):
            entries = [self._with_depth(entry, room - 1) for entry in value]
            depth = 1 + max((entry[1] for entry in entries), default=0)
            return type(value)(entry[0] for entry in entries), depth
        return self._leaf(value), 0

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, Array):
            return self._array(value.value)
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, Storage):
            return self._elements(value)
        if isinstance(value, (Dtype, ObjectDtype)):
            return str(value.dtype()) if isinstance(value, Dtype) else "object"
        if isinstance(value, (ElementType, ObjectClass)):
            return value.name
        if is_plain(value):
            return value
        raise UserError("refused: it holds a function or a class")

    def _array(self, read_only: Any) -> np.ndarray:
        self._budget.spend(read_only.nbytes)
        return read_only.astype(read_only.dtype.newbyteorder("="), order="C")

    def _elements(self, storage: Storage) -> np.ndarray:
        """The storage's elements, shape (numel,)."""
        place = (storage.key, storage.kind.name)
        if place not in self._typed:
            if storage.key not in self._raw:
                self._raw[storage.key] = self._storage_bytes(storage.key)
            raw = self._raw[storage.key]
            raw = raw[: len(raw) // storage.kind.itemsize * storage.kind.itemsize]
            if storage.kind.name == "bfloat16":  # the upper half of a float32
                self._budget.spend(2 * raw.nbytes)
                self._typed[place] = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                self._typed[place] = raw.view(TORCH_TYPES[storage.kind.name])
        elements = self._typed[place]
        if storage.offset < 0 or not 0 <= storage.numel <= len(elements) - storage.offset:
            raise ValueError(
                f"storage {storage.key[:40]!r} holds {len(elements)} elements, not {storage.numel}"
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
        if last >= len(elements):
            raise ValueError(f"tensor of size {size} in a storage of {len(elements)} elements")
        # By strides of 0 a tensor may be larger than its storage, and a copy of it really is.
        self._budget.spend(count * elements.itemsize)
        strides = [step * elements.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(elements[first:], size, strides)
