"""Unpickler that builds plain Python values and NumPy arrays, and nothing else.

A pickle is a program: whoever unpickles a file that he was sent runs it. Checkpoints need only a
    few of its
instructions, so this module knows those few and stops with :class:`UserError` at anything else,
    naming it.
Tensors and arrays come out of the pickle as small descriptions, which :func:`resolve` turns into
    arrays when
the bytes are at hand; no class of ``torch``, ``jittor`` or ``numpy`` is ever called with what the
file says.

The unpickler is Python's own pure Python one: the compiled one reserves up to 64 GiB when a damaged
file asks for a far away memo slot. A checkpoint has a few thousand instructions, so this costs
milliseconds.
"""

from __future__ import annotations

import dataclasses
import math
import pickle
import re
from collections import OrderedDict
from typing import Any, Callable, Literal

import numpy as np

from core.errors import UserError

# Element types of torch storages and tensors, as the names in the file spell them.
_TORCH_TYPES = {
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
_TORCH_STORAGES = {
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
# A tensor may be larger than its storage (strides of 0); beyond this many elements it is a damaged
# file.
_MAX_EXPANDED = 1 << 24
# Instructions that no checkpoint needs: they make instances of classes, or reserve memory before
# reading.
_REFUSED_OPCODES = (
    pickle.INST,
    pickle.OBJ,
    pickle.NEWOBJ,
    pickle.NEWOBJ_EX,
    pickle.EXT1,
    pickle.EXT2,
    pickle.EXT4,
    pickle.BYTEARRAY8,
    pickle.NEXT_BUFFER,
    pickle.READONLY_BUFFER,
)

StorageBytes = Callable[[str], np.ndarray]


@dataclasses.dataclass(frozen=True)
class ElementType:
    """Element type by its torch name, e.g. "float32"."""

    name: str

    @property
    def itemsize(self) -> int:
        """Bytes of one element in the file."""
        return 2 if self.name == "bfloat16" else np.dtype(_TORCH_TYPES[self.name]).itemsize


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of ``numel`` elements of the file's storage ``key``, ``offset`` elements from its
    start."""

    kind: ElementType
    key: str
    numel: int
    offset: int = 0


@dataclasses.dataclass(frozen=True)
class _Tensor:
    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Dtype:
    """A NumPy dtype that the file describes: type letter, size, byte order."""

    def __init__(self, text: str, *_flags: Any) -> None:
        if isinstance(text, bytes):
            text = text.decode("ascii")
        if not re.fullmatch(r"[biufc]\d{1,2}|[SU]\d{1,9}", text):
            raise UserError(f"its arrays have the unsupported element type {text!r}")
        self.text = text
        self.order: Literal["<", ">", "|", "="] = "|"

    def set_state(self, state: Any) -> None:
        orders: dict[str, Literal["<", ">", "|", "="]] = {"<": "<", ">": ">", "|": "|", "=": "="}
        self.order = orders[state[1]]

    def dtype(self) -> np.dtype:
        return np.dtype(self.text).newbyteorder(self.order)


class _Array:
    """A NumPy array that the file describes; ``value`` is set once its bytes were read."""

    def __init__(self) -> None:
        self.value = np.zeros(0, np.float32)

    def set_state(self, state: Any) -> None:
        _version, shape, dtype, fortran, raw = state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
            raise UserError("its arrays hold Python objects instead of numbers")
        kind = dtype.dtype()
        if any(size < 0 for size in shape) or math.prod(shape) * kind.itemsize != len(raw):
            raise ValueError(f"array of shape {shape} and type {kind} in {len(raw)} bytes")
        read_only: np.ndarray = np.ndarray(shape, kind, raw, order="F" if fortran else "C")
        self.value = read_only.astype(kind.newbyteorder("="), order="C")


def load(file: Any, persistent_load: Callable[[Any], Any] | None = None) -> Any:
    """Read one pickle from ``file`` (``read`` and ``readline``); give the result to
    :func:`resolve`.

    Args:
        persistent_load: what a torch file's references to storages become; without it they are
            refused.

    Raises:
        UserError: the pickle asks for something that is not on the list.
        Exception: of any kind, when the bytes are damaged; the caller says which file.
    """
    return _Unpickler(file, persistent_load).load()


def resolve(value: Any, storage_bytes: StorageBytes) -> Any:
    """Replace all descriptions inside ``value`` by NumPy arrays; OrderedDicts become dicts.

    Args:
        storage_bytes: from a storage's key to its bytes, uint8 (n,), little endian; called once per
            use.

    Arrays of torch tensors may share memory and may have any strides; bfloat16 becomes float32.
    """
    return _Resolver(storage_bytes).resolve(value)


def printable(text: str, limit: int = 240) -> str:
    """One line for an error, out of a file's text: names in it may hold any characters."""
    line = "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
    return line if len(line) <= limit else f"{line[:limit]}..."


_PurePythonUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined, unused-ignore]
_REFUSED_CODES = {opcode[0] for opcode in _REFUSED_OPCODES}


class _Unpickler(_PurePythonUnpickler):
    dispatch = {
        code: method
        for code, method in _PurePythonUnpickler.dispatch.items()
        if code not in _REFUSED_CODES
    }

    def __init__(self, file: Any, persistent_load: Callable[[Any], Any] | None) -> None:
        # latin1: what Python 2 wrote as `str` may be an array's bytes.
        super().__init__(file, encoding="latin1")
        self._storage_of = persistent_load

    def persistent_load(self, reference: Any) -> Any:
        if self._storage_of is None or not isinstance(reference, tuple):
            raise UserError("it refers to data outside the file")
        return self._storage_of(reference)

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage") and name in _TORCH_STORAGES:
            return ElementType(_TORCH_STORAGES[name])
        if module == "torch" and name in _TORCH_TYPES:
            return ElementType(name)
        try:
            return _ALLOWED[(module, name)]
        except KeyError:
            raise UserError(
                f"refused: it wants to call {module}.{name}, and only tensors, arrays and plain "
                "values are read"
            ) from None

    def load_build(self) -> None:
        """Python would write the state into any object; here only descriptions take one."""
        state = self.stack.pop()
        instance = self.stack[-1]
        if isinstance(instance, (_Array, _Dtype)):
            instance.set_state(state)
        elif not isinstance(
            instance, OrderedDict
        ):  # torch hangs `_metadata` on a state dict: not needed
            raise UserError(f"refused: it wants to change a {type(instance).__name__}")

    dispatch[pickle.BUILD[0]] = load_build


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
        if isinstance(value, _Array):
            return value.value
        if isinstance(value, _Tensor):
            return self._tensor(value)
        if isinstance(value, Storage):
            return self._elements(value)
        if isinstance(value, _Dtype):
            return str(value.dtype())
        if isinstance(value, ElementType):
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
                self._typed[place] = raw.view(_TORCH_TYPES[storage.kind.name])
        elements = self._typed[place]
        if storage.offset < 0 or not 0 <= storage.numel <= len(elements) - storage.offset:
            raise ValueError(
                f"storage {storage.key!r} holds {len(elements)} elements, not {storage.numel}"
            )
        return elements[storage.offset : storage.offset + storage.numel]

    def _tensor(self, tensor: _Tensor) -> np.ndarray:
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


# What a pickle may call. Each of these checks its arguments, because the file chooses them.


def _integers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or any(type(value) is not int for value in values):
        raise ValueError(f"expected integers, found {values!r:.80}")
    return values


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_rest: Any) -> _Tensor:
    if not isinstance(storage, Storage):
        raise ValueError(f"a tensor without a storage: {storage!r:.80}")
    return _Tensor(storage, _integers((offset,))[0], _integers(size), _integers(stride))


def _rebuild_tensor_v3(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    _grad: Any,
    _hooks: Any,
    kind: Any,
    *_rest: Any,
) -> _Tensor:
    """Storage in bytes, offset and strides in elements of ``kind``."""
    if not isinstance(storage, Storage) or not isinstance(kind, ElementType):
        raise ValueError(f"a tensor without a storage or type: {storage!r:.80} {kind!r:.80}")
    typed = Storage(kind, storage.key, storage.numel // kind.itemsize)
    return _rebuild_tensor(typed, offset, size, stride)


def _first(value: Any, *_rest: Any) -> Any:
    """Parameter and Var: the tensor or array itself."""
    return value


def _tuple_of(values: Any = ()) -> tuple[int, ...]:
    return _integers(tuple(values))


def _text_of(*parts: Any) -> str:
    return ":".join(str(part) for part in parts)


def _reconstruct(*_class_shape_type: Any) -> _Array:
    return _Array()


def _scalar(dtype: Any, raw: Any) -> Any:
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    if not isinstance(dtype, _Dtype) or len(raw) != dtype.dtype().itemsize:
        raise ValueError(f"scalar of {len(raw)} bytes")
    return np.frombuffer(raw, dtype.dtype().newbyteorder("="))[0]


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError(f"encode to {encoding!r:.20}")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    return b""


def _plain_dict(_factory: Any = None) -> dict:
    return {}


class _Mark:
    """A class that a pickle names as an argument, and that is never called."""


_NDARRAY = _Mark()
_DICT = _Mark()

_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): _plain_dict,
    ("_codecs", "encode"): _encode,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch", "Size"): _tuple_of,
    ("torch", "device"): _text_of,
    ("jittor", "Var"): _first,
    ("jittor_core", "Var"): _first,
    ("jittor", "jittor_core.Var"): _first,
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Dtype,
}
for _numpy in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ALLOWED[(_numpy, "_reconstruct")] = _reconstruct
    _ALLOWED[(_numpy, "scalar")] = _scalar
for _builtins in ("builtins", "__builtin__"):
    _ALLOWED[(_builtins, "set")] = set
    _ALLOWED[(_builtins, "frozenset")] = frozenset
    _ALLOWED[(_builtins, "bytes")] = _empty_bytes
    _ALLOWED[(_builtins, "dict")] = _DICT
