"""An unpickler that builds plain Python values and NumPy arrays, and nothing else.

A pickle is a program: whoever unpickles a file that he was sent runs it. Checkpoints need only a
few of its instructions, so this module knows those few and stops with :class:`UserError` at
anything else, naming it. Tensors and arrays come out of the pickle as the descriptions of
``core.checkpoints.pickled_values``; no class of ``torch``, ``jittor`` or ``numpy`` is ever called
with what the file says.

Objects that trainers leave beside the weights, such as the parsed arguments, become dicts of their
attributes where the caller allows it. Their classes are not imported, and nothing of them is
called. A call of anything that is not on the list is always refused.

The base is Python's own unpickler in Python. The compiled one reserves up to 64 GiB when a damaged
file asks for a distant memo slot. A checkpoint has a few thousand instructions, so the slower one
costs milliseconds.
"""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from core.checkpoints.pickled_values import (
    TORCH_STORAGES,
    TORCH_TYPES,
    Array,
    Dtype,
    ElementType,
    ObjectClass,
    ObjectDtype,
    Record,
    Storage,
    Tensor,
)
from core.errors import UserError

# Instructions that no checkpoint needs: they call classes, or refer to data outside the file.
_REFUSED_OPCODES = (
    pickle.INST,
    pickle.OBJ,
    pickle.EXT1,
    pickle.EXT2,
    pickle.EXT4,
    pickle.NEXT_BUFFER,
    pickle.READONLY_BUFFER,
)


def load(
    file: Any,
    persistent_load: Callable[[Any], Any] | None = None,
    inert_objects: bool = False,
    object_arrays: bool = False,
) -> Any:
    """Read one pickle from ``file`` (``read`` and ``readline``); give the result to
    :func:`core.checkpoints.pickled_values.resolve`.

    Args:
        persistent_load: what a torch file's references to storages become; without it they are
            refused.
        inert_objects: objects of any class become dicts of their attributes; else only those of
            ``argparse.Namespace`` do, and others are refused.
        object_arrays: NumPy arrays of Python objects become flat lists of them; else refused.

    Raises:
        UserError: the pickle asks for something that is not on the list.
        Exception: of any kind, when the bytes are damaged; the caller says which file.
    """
    return _Unpickler(file, persistent_load, inert_objects, object_arrays).load()


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

    def __init__(
        self,
        file: Any,
        persistent_load: Callable[[Any], Any] | None,
        inert_objects: bool,
        object_arrays: bool,
    ) -> None:
        # latin1: what Python 2 wrote as `str` may be an array's bytes.
        super().__init__(file, encoding="latin1")
        self._storage_of = persistent_load
        self._inert_objects = inert_objects
        self._object_arrays = object_arrays

    def persistent_load(self, reference: Any) -> Any:
        if self._storage_of is None or not isinstance(reference, tuple):
            raise UserError("it refers to data outside the file")
        return self._storage_of(reference)

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage") and name in TORCH_STORAGES:
            return ElementType(TORCH_STORAGES[name])
        if module == "torch" and name in TORCH_TYPES:
            return ElementType(name)
        found = _ALLOWED.get((module, name))
        if found is Dtype and self._object_arrays:
            return _dtype_or_objects
        if found is None and self._inert_objects:
            return ObjectClass(f"{module}.{name}")
        if found is None:
            raise _refused_call(f"{module}.{name}")
        return found

    def load_reduce(self) -> None:
        """A call, only of what is on the list."""
        arguments = self.stack.pop()
        function = self.stack[-1]
        if isinstance(function, ObjectClass):
            raise _refused_call(function.name)
        self.stack[-1] = function(*arguments)

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_newobj(self) -> None:
        """An object without a call of its class: a record, whatever its arguments."""
        self.stack.pop()
        self.stack[-1] = _record_of(self.stack[-1])

    dispatch[pickle.NEWOBJ[0]] = load_newobj

    def load_newobj_ex(self) -> None:
        """The same with keyword arguments."""
        self.stack.pop()
        self.load_newobj()

    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex

    def load_build(self) -> None:
        """Python would write the state into any object; here only descriptions take one."""
        state = self.stack.pop()
        instance = self.stack[-1]
        if isinstance(instance, (Array, Dtype, ObjectDtype, Record)):
            instance.set_state(state)
        elif not isinstance(
            instance, OrderedDict
        ):  # torch hangs `_metadata` on a state dict: not needed
            raise UserError(f"refused: it wants to change a {type(instance).__name__}")

    dispatch[pickle.BUILD[0]] = load_build

    def load_bytearray8(self) -> None:
        """Protocol 5; Python would reserve the stated size before it looks for the bytes."""
        (size,) = struct.unpack("<Q", self.read(8))
        data = self.read(size)
        if len(data) != size:
            raise EOFError(f"{len(data)} of {size} bytes")
        self.append(bytes(data))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def _refused_call(name: str) -> UserError:
    return UserError(
        f"refused: it wants to call {name}, and only tensors, arrays and plain values are read"
    )


# What a pickle may call. Each of these checks its arguments, because the file chooses them.


def _integers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or any(type(value) is not int for value in values):
        raise ValueError(f"expected integers, found {values!r:.80}")
    return values


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_rest: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise ValueError(f"a tensor without a storage: {storage!r:.80}")
    return Tensor(storage, _integers((offset,))[0], _integers(size), _integers(stride))


def _rebuild_tensor_v3(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    _grad: Any,
    _hooks: Any,
    kind: Any,
    *_rest: Any,
) -> Tensor:
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


def _record_of(kind: Any, *_base_and_state: Any) -> Record:
    """An object of a class that is not called; protocols 0 and 1 say so by ``_reconstructor``."""
    if not isinstance(kind, ObjectClass):
        raise UserError("refused: it wants to make an object of something that is no class")
    return Record()


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any) -> Array:
    """An array of protocol 5."""
    array = Array()
    array.set_state((1, _integers(shape), dtype, order == "F", raw))
    return array


def _dtype_or_objects(text: Any, *flags: Any) -> Dtype | ObjectDtype:
    """The element type of an array where arrays of objects are allowed."""
    if text in ("O", "O8", "O4", "|O"):
        return ObjectDtype()
    return Dtype(text, *flags)


def _path(*parts: Any) -> str:
    return "/".join(str(part) for part in parts)


def _reconstruct(*_class_shape_type: Any) -> Array:
    return Array()


def _scalar(dtype: Any, raw: Any) -> Any:
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    if not isinstance(dtype, Dtype) or len(raw) != dtype.dtype().itemsize:
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
    ("numpy", "dtype"): Dtype,
    ("argparse", "Namespace"): ObjectClass("argparse.Namespace"),
    ("pathlib", "PosixPath"): _path,
    ("pathlib._local", "PosixPath"): _path,
    ("pathlib", "WindowsPath"): _path,
}
for _numpy in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ALLOWED[(_numpy, "_reconstruct")] = _reconstruct
    _ALLOWED[(_numpy, "scalar")] = _scalar
for _builtins in ("builtins", "__builtin__"):
    _ALLOWED[(_builtins, "set")] = set
    _ALLOWED[(_builtins, "frozenset")] = frozenset
    _ALLOWED[(_builtins, "bytes")] = _empty_bytes
    _ALLOWED[(_builtins, "dict")] = _DICT
    _ALLOWED[(_builtins, "object")] = _Mark()
for _numpy in ("numpy.core.numeric", "numpy._core.numeric"):
    _ALLOWED[(_numpy, "_frombuffer")] = _frombuffer
for _copyreg in ("copyreg", "copy_reg"):
    _ALLOWED[(_copyreg, "_reconstructor")] = _record_of
