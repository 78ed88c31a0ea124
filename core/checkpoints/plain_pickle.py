"""An unpickler that builds plain Python values and NumPy arrays, and nothing else.

A pickle is a program: whoever unpickles a file that he was sent runs it. Checkpoints need only a
few of its instructions, so this module knows those few and stops with :class:`UserError` at
anything else, naming it. Tensors and arrays come out of the pickle as the descriptions of
``core.checkpoints.pickled_values``; no class of ``torch``, ``jittor`` or ``numpy`` is ever called
with what the file says.

Objects that trainers leave beside the weights, such as the parsed arguments, become dicts of their
attributes where the caller allows it. Their classes are not imported, and nothing of them is
called. A call of anything that is not on the list is always refused.

A short file may also describe something that takes for ever, or all memory. So each instruction
spends from a :class:`~core.checkpoints.budget.Budget`, keys are plain values, and no value of the
file is turned into text, not even for an error.

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

from core.checkpoints.budget import Budget
from core.checkpoints.pickle_calls import (
    ALLOWED,
    dtype_or_objects,
    keyed,
    record_of,
    refused_call,
    set_of,
)
from core.checkpoints.pickled_values import (
    TORCH_STORAGES,
    TORCH_TYPES,
    Array,
    Dtype,
    ElementType,
    ObjectClass,
    ObjectDtype,
    Record,
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
# About how many bytes an instruction takes in memory: an entry of the stack and a small value, ...
_COST = 40
# ... and where it makes more than that.
_COSTS = {
    **dict.fromkeys((pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.LIST, pickle.DICT), 80),
    **dict.fromkeys((pickle.EMPTY_SET, pickle.FROZENSET), 224),
    **dict.fromkeys((pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE), 100),
    **dict.fromkeys((pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.BINPERSID), 300),
    **dict.fromkeys((pickle.REDUCE, pickle.NEWOBJ, pickle.NEWOBJ_EX), 400),
}
_COST_OF_ENTRY = 100  # of a list or dict that a call copies
_MAX_MARKS = 1000  # sequences within sequences
_MAX_BITS = 512
_MAX_NAME = 200  # characters of a class and of its module


def load(
    file: Any,
    budget: Budget,
    persistent_load: Callable[[Any], Any] | None = None,
    inert_objects: bool = False,
    object_arrays: bool = False,
) -> Any:
    """Read one pickle from ``file`` (``read`` and ``readline``); give the result to
    :func:`core.checkpoints.pickled_values.resolve`.

    Args:
        budget: what the objects may take in memory.
        persistent_load: what a torch file's references to storages become; without it they are
            refused.
        inert_objects: objects of any class become dicts of their attributes; else only those of
            ``argparse.Namespace`` do, and others are refused.
        object_arrays: NumPy arrays of Python objects become flat lists of them; else refused.

    Raises:
        UserError: the pickle asks for something that is not on the list.
        Exception: of any kind, when the bytes are damaged; the caller says which file.
    """
    return _Unpickler(file, budget, persistent_load, inert_objects, object_arrays).load()


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
        budget: Budget,
        persistent_load: Callable[[Any], Any] | None,
        inert_objects: bool,
        object_arrays: bool,
    ) -> None:
        # latin1: what Python 2 wrote as `str` may be an array's bytes.
        super().__init__(file, encoding="latin1")
        self.budget = budget
        self._storage_of = persistent_load
        self._inert_objects = inert_objects
        self._object_arrays = object_arrays

    def persistent_load(self, reference: Any) -> Any:
        if self._storage_of is None or not isinstance(reference, tuple):
            raise UserError("it refers to data outside the file")
        return self._storage_of(reference)

    def find_class(self, module: str, name: str) -> Any:
        module, name = module[:_MAX_NAME], name[:_MAX_NAME]
        if module in ("torch", "torch.storage") and name in TORCH_STORAGES:
            return ElementType(TORCH_STORAGES[name])
        if module == "torch" and name in TORCH_TYPES:
            return ElementType(name)
        found = ALLOWED.get((module, name))
        if found is Dtype and self._object_arrays:
            return dtype_or_objects
        if found is None and self._inert_objects:
            return ObjectClass(f"{module}.{name}")
        if found is None:
            raise refused_call(f"{module}.{name}")
        return found

    def load_reduce(self) -> None:
        """A call, only of what is on the list."""
        arguments = self.stack.pop()
        function = self.stack[-1]
        if isinstance(function, ObjectClass):
            raise refused_call(function.name)
        if not isinstance(arguments, tuple):
            raise ValueError("a call without its arguments")
        self.budget.spend(_copied((arguments, *arguments)))
        self.stack[-1] = function(*arguments)

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_newobj(self) -> None:
        """An object without a call of its class: a record, whatever its arguments."""
        self.stack.pop()
        self.stack[-1] = record_of(self.stack[-1])

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
            self.budget.spend(_copied(state if isinstance(state, tuple) else (state,)))
            instance.set_state(state)
        elif not isinstance(instance, OrderedDict):
            # torch hangs `_metadata` on a state dict, which is not needed.
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

    # What makes keys: Python would ask any value for its hash.

    def load_dict(self) -> None:
        """A dict of all that stands above the mark."""
        entries = self.pop_mark()
        self.append(keyed(zip(entries[::2], entries[1::2])))

    dispatch[pickle.DICT[0]] = load_dict

    def load_setitem(self) -> None:
        """One entry more for a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        _dict_of(self.stack[-1]).update(keyed([(key, value)]))

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        """More entries for a dict."""
        entries = self.pop_mark()
        _dict_of(self.stack[-1]).update(keyed(zip(entries[::2], entries[1::2])))

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_additems(self) -> None:
        """More entries for a set."""
        entries = self.pop_mark()
        target = self.stack[-1]
        if not isinstance(target, set):
            raise ValueError("entries for something that is no set")
        target |= set_of(entries)

    dispatch[pickle.ADDITEMS[0]] = load_additems

    def load_frozenset(self) -> None:
        """A frozenset of all that stands above the mark."""
        self.append(frozenset(set_of(self.pop_mark())))

    dispatch[pickle.FROZENSET[0]] = load_frozenset


def _watched(code: int, method: Callable[[Any], None]) -> Callable[[Any], None]:
    """An instruction that is paid for first."""
    cost = _COSTS.get(bytes([code]), _COST)
    makes_integer = bytes([code]) in (pickle.INT, pickle.LONG, pickle.LONG1, pickle.LONG4)
    makes_mark = code == pickle.MARK[0]

    def run(self: Any) -> None:
        self.budget.spend(cost)
        method(self)
        if makes_integer and int(self.stack[-1]).bit_length() > _MAX_BITS:
            raise ValueError(f"an integer of more than {_MAX_BITS} bits")
        if makes_mark and len(self.metastack) > _MAX_MARKS:
            raise ValueError("nested too deeply")

    return run


_Unpickler.dispatch = {code: _watched(code, method) for code, method in _Unpickler.dispatch.items()}


def _copied(values: tuple) -> int:
    """Bytes that a copy of each of these values may take; not of what is inside them."""
    size = 0
    for value in values:
        if isinstance(value, (list, tuple, dict, set, frozenset)):
            size += _COST_OF_ENTRY * len(value)
        elif isinstance(value, (str, bytes)):
            size += len(value) * (4 if isinstance(value, str) else 1)
    return size


def _dict_of(target: Any) -> dict:
    if not isinstance(target, dict):
        raise ValueError("entries for something that is no dict")
    return target
