"""What a pickle may call, and what is done instead. Each function checks its arguments, because the
file chooses them; none turns a value of the file into text.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np

from core.checkpoints.pickled_values import (
    Array,
    Dtype,
    ElementType,
    ObjectClass,
    ObjectDtype,
    Record,
    Storage,
    Tensor,
    integers,
    is_plain,
)
from core.errors import UserError


def keyed(pairs: Any) -> dict:
    """The dict of some pairs.

    Raises:
        ValueError: a key is no plain value, or they are no pairs.
    """
    entries = list(pairs)
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in entries):
        raise ValueError("a dict of something else than pairs")
    return {_key(key): value for key, value in entries}


def _key(value: Any) -> Any:
    if not is_plain(value):
        raise ValueError(f"a {type(value).__name__} as a key; expected a text or a number")
    return value


def refused_call(name: str) -> UserError:
    """The error about a call of ``name``."""
    return UserError(
        f"refused: it wants to call {name}, and only tensors, arrays and plain values are read"
    )


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_rest: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    return Tensor(storage, integers((offset,))[0], integers(size), integers(stride))


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
        raise ValueError("a tensor without a storage or type")
    typed = Storage(kind, storage.key, storage.numel // kind.itemsize)
    return _rebuild_tensor(typed, offset, size, stride)


def _first(value: Any, *_rest: Any) -> Any:
    """Parameter and Var: the tensor or array itself."""
    return value


def _tuple_of(values: Any = ()) -> tuple[int, ...]:
    return integers(tuple(values) if isinstance(values, list) else values)


def _device(kind: Any, *index: Any) -> str:
    if not isinstance(kind, str):
        raise ValueError("a device without a name")
    return ":".join([kind, *(str(number) for number in integers(index))])


def _ordered_dict(pairs: Any = ()) -> OrderedDict:
    if not isinstance(pairs, (list, tuple, dict)):
        raise ValueError("a dict of something else than pairs")
    return OrderedDict(keyed(pairs.items() if isinstance(pairs, dict) else pairs))


def set_of(values: Any = ()) -> set:
    """The set of some plain values.

    Raises:
        ValueError: they are something else.
    """
    if not isinstance(values, (list, tuple, set, frozenset)):
        raise ValueError("a set of something else than entries")
    return {_key(value) for value in values}


def _frozenset_of(values: Any = ()) -> frozenset:
    return frozenset(set_of(values))


def record_of(kind: Any, *_base_and_state: Any) -> Record:
    """An object of a class that is not called; protocols 0 and 1 say so by ``_reconstructor``."""
    if not isinstance(kind, ObjectClass):
        raise UserError("refused: it wants to make an object of something that is no class")
    return Record()


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any) -> Array:
    """An array of protocol 5."""
    array = Array()
    array.set_state((1, shape, dtype, order == "F", raw))
    return array


def dtype_or_objects(text: Any, *flags: Any) -> Dtype | ObjectDtype:
    """The element type of an array where arrays of objects are allowed."""
    if isinstance(text, str) and text in ("O", "O8", "O4", "|O"):
        return ObjectDtype()
    return Dtype(text, *flags)


def _path(*parts: Any) -> str:
    return "/".join(parts)  # a TypeError where one is no text


def _reconstruct(*_class_shape_type: Any) -> Array:
    return Array()


def _scalar(dtype: Any, raw: Any) -> Any:
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    if not isinstance(dtype, Dtype) or not isinstance(raw, bytes):
        raise ValueError("a number without its type or bytes")
    if len(raw) != dtype.dtype().itemsize:
        raise ValueError(f"scalar of {len(raw)} bytes")
    return np.frombuffer(raw, dtype.dtype().newbyteorder("="))[0]


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("a text to encode in another way than latin1")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    return b""


def _plain_dict(_factory: Any = None) -> dict:
    return {}


class _Mark:
    """A class that a pickle names as an argument, and that is never called."""


_NDARRAY = _Mark()
_DICT = _Mark()

#: By module and name: what is called instead, or a mark that only stands for itself.
ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("collections", "defaultdict"): _plain_dict,
    ("_codecs", "encode"): _encode,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch", "Size"): _tuple_of,
    ("torch", "device"): _device,
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
    ALLOWED[(_numpy, "_reconstruct")] = _reconstruct
    ALLOWED[(_numpy, "scalar")] = _scalar
for _builtins in ("builtins", "__builtin__"):
    ALLOWED[(_builtins, "set")] = set_of
    ALLOWED[(_builtins, "frozenset")] = _frozenset_of
    ALLOWED[(_builtins, "bytes")] = _empty_bytes
    ALLOWED[(_builtins, "dict")] = _DICT
    ALLOWED[(_builtins, "object")] = _Mark()
for _numpy in ("numpy.core.numeric", "numpy._core.numeric"):
    ALLOWED[(_numpy, "_frombuffer")] = _frombuffer
for _copyreg in ("copyreg", "copy_reg"):
    ALLOWED[(_copyreg, "_reconstructor")] = record_of
