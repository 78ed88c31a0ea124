"""Image labels: which classes an image shows, from the annotations and label files of others.

A label is a sorted tuple of class ids 1..C; () says that an image shows no class at all, which is
not the same as an image about which nothing is known.

A label file is one of

* ``.npy``: a pickled dict, image id -> vector (C,) of 0 and 1, as P-NOC, RIB and IRN publish them.
  It is read by ``core.checkpoints.plain_pickle``, which runs nothing that the file says.
* ``.npz``: array ``keys`` (N,), ids as text or integers, and array ``labels`` (N, C) of 0 and 1.
* ``.json``: image id -> list of class names or of class ids 1..C.

Ids that are numbers become keys by a rule of the data set ("000000000009", "2007_000032").
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree

import numpy as np

from core.arrays import read_arrays
from core.checkpoints import plain_pickle
from core.checkpoints.budget import ARRAYS, OBJECTS, Budget
from core.checkpoints.pickled_values import resolve
from core.errors import UserError

#: Key of an image -> its classes.
ImageLabels = dict[str, tuple[int, ...]]
_DAMAGED = (Exception,)  # what a damaged pickle or archive raises is of any kind
_MAX_BYTES = 1 << 30  # of the arrays of an archive
_MAX_XML = 1 << 20  # bytes; VOC's largest annotation has 20 thousand


def read_annotation(path: Path, key: str, names: Sequence[str]) -> tuple[int, ...]:
    """The classes of the objects in a VOC annotation file, ``<key>.xml``.

    Objects whose box has no width or no height after it was clipped to the image are left out;
    objects marked "difficult" count. Both are so in P-NOC.

    Raises:
        UserError: unreadable, of another image, a class that is not in ``names``, or a broken box.
    """
    root = _xml_root(path)
    stated = (root.findtext("filename") or "").strip()
    if stated and stated != key and stated.rpartition(".")[0] != key:
        raise UserError(f"{path} describes {stated}, another image than {key}; mend its filename")
    size_wh = [_number(path, root, f"size/{side}", None) for side in ("width", "height")]
    found = set()
    for entry in root.iter("object"):
        name = (entry.findtext("name") or "").strip()
        if name not in names:
            raise UserError(
                f"{path}: unknown class {name[:40]!r}; expected one of the {len(names)} of the "
                f"data set, such as {names[0]!r}"
            )
        if _has_area(path, entry, size_wh):
            found.add(names.index(name) + 1)
    return tuple(sorted(found))


def read_label_file(
    path: Path, names: Sequence[str], key_of: Callable[[int], str] = str
) -> ImageLabels:
    """All labels of a label file; see the module's text for its forms.

    Args:
        names: of the classes 1..C.
        key_of: key of an image whose id in the file is a number.

    Raises:
        UserError: unreadable, or labels of other classes; names the file.
    """
    if path.suffix == ".json":
        entries = _json_object(path)
    elif path.suffix == ".npz":
        entries = _archived(path)
    else:
        entries = _pickled(path)
    labels: ImageLabels = {}
    for raw, value in entries.items():
        is_number = isinstance(raw, (int, np.integer)) and not isinstance(raw, bool)
        key = key_of(int(raw)) if is_number else str(raw)
        if key in labels:
            raise UserError(f"{path} labels {key} twice; remove one of them")
        try:
            labels[key] = _ids_of(value, names)
        except ValueError as error:
            raise UserError(f"{path}: the label of {key} {error}") from error
    return labels


def label_vector(ids: Sequence[int], num_classes: int) -> np.ndarray:
    """float32 (C,): 1 for each class of an image, else 0."""
    vector = np.zeros(num_classes, np.float32)
    vector[[index - 1 for index in ids]] = 1
    return vector


# Annotations ------------------------------------------------------------------------------------


def _xml_root(path: Path) -> ElementTree.Element:
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_XML + 1)
    except OSError as error:
        raise UserError(f"annotation {path} cannot be read: {error.strerror}") from error
    if len(content) > _MAX_XML or b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        # Entities may name each other: a small file that unfolds to gigabytes.
        raise UserError(f"annotation {path}: expected a VOC annotation, without entities")
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(f"annotation {path} cannot be read: {error}") from error


def _number(
    path: Path, entry: ElementTree.Element, name: str, default: float | None
) -> float | None:
    text = entry.findtext(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise UserError(f"annotation {path}: {name} is {text[:20]!r}, no number")
    return value


def _has_area(path: Path, entry: ElementTree.Element, size_wh: Sequence[float | None]) -> bool:
    """Whether the object's box has an area inside the image; True where it states no box."""
    if entry.find("bndbox") is None:
        return True
    for axis, limit in zip("xy", size_wh):
        low = _number(path, entry, f"bndbox/{axis}min", 0.0)
        high = _number(path, entry, f"bndbox/{axis}max", limit)
        if low is None or high is None:
            continue
        ends = [max(0.0, end if limit is None else min(end, limit)) for end in (low, high)]
        if ends[1] <= ends[0]:
            return False
    return True


# Label files ------------------------------------------------------------------------------------


def _ids_of(value: Any, names: Sequence[str]) -> tuple[int, ...]:
    """Class ids of a vector (C,) of 0 and 1, or of a list of names or ids."""
    if isinstance(value, np.ndarray):
        if value.shape != (len(names),) or value.dtype.kind not in "biuf":
            raise ValueError(f"has shape {value.shape}, expected ({len(names)},)")
        if not np.isin(value, (0, 1)).all():
            raise ValueError("holds other values than 0 and 1")
        return tuple(int(index) + 1 for index in np.flatnonzero(value))
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"is {type(value).__name__}, expected a list of classes")
    found = set()
    for entry in value:
        if isinstance(entry, str) and entry in names:
            found.add(names.index(entry) + 1)
        elif type(entry) is int and 1 <= entry <= len(names):
            found.add(entry)
        else:
            # Of other values only the type: they may be nested as deeply as the file likes.
            plain = entry if isinstance(entry, (str, int)) else type(entry).__name__
            raise ValueError(f"names the unknown class {plain!r:.40}")
    return tuple(sorted(found))


def _json_object(path: Path) -> Mapping[Any, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"label file {path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"label file {path}: expected an object, image id -> classes")
    return value


def _archived(path: Path) -> Mapping[Any, Any]:
    try:
        keys, labels = read_arrays(path, ("keys", "labels"), _MAX_BYTES)
    except ValueError as error:
        raise UserError(f"label file {path} cannot be read: {error}") from error
    if keys.ndim != 1 or keys.dtype.kind not in "iuU" or len(labels) != len(keys):
        raise UserError(f"label file {path}: expected `keys` (N,) and `labels` (N, classes)")
    if len(set(keys.tolist())) != len(keys):
        raise UserError(f"label file {path} labels an image twice; remove one of them")
    return dict(zip(keys.tolist(), labels))


def _pickled(path: Path) -> Mapping[Any, Any]:
    """The dict of a ``.npy`` file that holds one as a pickled array of no dimensions."""
    try:
        with open(path, "rb") as file:
            _skip_header(file)
            size = path.stat().st_size
            content = plain_pickle.load(file, Budget(size, OBJECTS), object_arrays=True)
            value = resolve(content, _no_storage, Budget(size, ARRAYS))
    except UserError as error:
        raise UserError(f"label file {path}: {error}") from error
    except _DAMAGED as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"label file {path} cannot be read: {reason}") from error
    # An array of no dimensions holds one object; an array of one object is taken alike.
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(value, dict):
        raise UserError(f"label file {path}: expected a pickled dict, image id -> vector")
    return value


def _skip_header(file: BinaryIO) -> None:
    """Read a ``.npy`` header up to the pickle, which it must announce."""
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise UserError(f"unknown .npy version {version}")
    _shape, _order, dtype = read(file)
    if not dtype.hasobject:
        raise UserError(f"expected a pickled dict, image id -> vector, found {dtype}")


def _no_storage(key: str) -> np.ndarray:
    raise UserError("it refers to data outside the file")
