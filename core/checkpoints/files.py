"""The checkpoint file of a run, and how weights get into a network and out of it.

A checkpoint is a dict of plain values and NumPy arrays in Jittor's own container (pickle, SHA-1,
mark), so that ``jt.load`` reads it too. A new checkpoint is written beside the old one and renamed;
the old one is kept as ``previous.pth.tar``. One whose checksum does not match is never used, and
never replaces a whole one.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from core import log, runtime
from core.checkpoints.plain_pickle import printable
from core.checkpoints.torch_reader import JITTOR_MARK, SHA1_BYTES, read_checkpoint
from core.errors import UserError
from core.files import atomic_write

LATEST = "checkpoint.pth.tar"
PREVIOUS = "previous.pth.tar"
_PICKLE_PROTOCOL = 4  # what jt.save writes
_LISTED_KEYS = 8
# Output layers whose first axis counts the classes or prototypes. Where only this axis differs, the
# number of classes or prototypes is set wrongly.
_CLASS_LAYERS = ("last_layer.weight", "last_layer.bias", "conv_seg.weight", "conv_seg.bias")
_PROTOTYPE_LAYERS = ("prototypes.weight",)


def model_state(model: Any) -> dict[str, np.ndarray]:
    """Weights and running statistics of a Jittor module by name, as NumPy copies."""
    return {key: np.array(var.numpy()) for key, var in model.state_dict().items()}


def load_state(
    model: Any,
    state: Mapping[str, np.ndarray],
    where: str,
    missing_ok: Sequence[str] = (),
    unexpected_ok: Sequence[str] = (),
) -> None:
    """Copy ``state`` into a Jittor module. If anything does not fit, nothing is copied.

    Args:
        model: the module; all its names (weights and running statistics) must be in ``state``, with
            the same shapes.
        state: arrays by name.
        where: what the state is, for the error; usually the path of its file.
        missing_ok: prefixes of names that ``state`` may lack; the model keeps its values of these.
        unexpected_ok: prefixes of names that the model may lack; their values are not used.

    Raises:
        UserError: lists the missing, unexpected and misshapen names and says what is probably
            wrong.
    """
    variables = model.state_dict()
    missing = [
        key for key in variables if key not in state and not key.startswith(tuple(missing_ok))
    ]
    unexpected = [
        key for key in state if key not in variables and not key.startswith(tuple(unexpected_ok))
    ]
    shared = [key for key in variables if key in state]
    shapes = {key: (tuple(variables[key].shape), _stored_shape(state[key])) for key in shared}
    misshapen = {key: pair for key, pair in shapes.items() if pair[0] != pair[1]}
    if missing or unexpected or misshapen:
        raise UserError(_misfit(type(model).__name__, where, missing, unexpected, misshapen))
    values = {key: np.ascontiguousarray(state[key]) for key in shared}
    broken = [key for key in shared if not np.isfinite(values[key]).all()]
    if broken:
        raise UserError(
            f"{where}: not finite in {_listed(broken)}; the run that wrote it had diverged"
        )
    jt = runtime.start()
    for key in shared:
        kind = str(variables[key].dtype)
        variables[key].update(jt.array(values[key].astype(kind).reshape(shapes[key][0])))
        variables[key].sync(False, False)


def save_checkpoint(folder: Path, payload: Mapping[str, Any]) -> Path:
    """Write ``folder/checkpoint.pth.tar`` atomically and flushed to disk; the one before becomes
    ``previous``.

    Args:
        payload: dicts, lists, tuples, sets, plain values and numeric NumPy arrays; convert Jittor
            variables first (:func:`model_state`).

    Raises:
        TypeError: ``payload`` holds something that could not be read back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    latest, fresh = folder / LATEST, folder / f".{LATEST}.fresh"
    content = dict(payload)
    _require_plain(content, "payload")
    _remove_leftovers(folder)
    write_pickle(fresh, content)
    if is_whole(latest):
        _keep_as_previous(folder)
    os.replace(fresh, latest)
    _sync_folder(folder)
    return latest


def write_pickle(path: Path, content: Any) -> None:
    """Write plain values and NumPy arrays in Jittor's container, atomically and flushed to disk."""
    with atomic_write(path, sync=True) as file:
        hashing = _HashingFile(file)
        pickle.Pickler(hashing, _PICKLE_PROTOCOL).dump(content)
        file.write(hashing.digest.digest() + JITTOR_MARK)


def is_whole(path: Path) -> bool:
    """True for a file of :func:`write_pickle` with the right checksum."""
    try:
        with open(path, "rb") as file:
            left = os.fstat(file.fileno()).st_size - SHA1_BYTES - len(JITTOR_MARK)
            digest = hashlib.sha1()
            while left > 0 and (block := file.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
            return left == 0 and file.read() == digest.digest() + JITTOR_MARK
    except FileNotFoundError:
        return False


def load_latest(folder: Path) -> dict[str, Any] | None:
    """Payload of the newest readable checkpoint in ``folder``; None when there is none.

    Falls back to the previous checkpoint with a warning when the newest one is damaged.

    Raises:
        UserError: there are checkpoints and none can be read.
    """
    errors = []
    for path in (folder / LATEST, folder / PREVIOUS):
        if not path.is_file():
            continue
        try:
            payload = read_checkpoint(path)
        except UserError as error:
            errors.append(str(error))
            continue
        if not isinstance(payload, dict):
            errors.append(f"{path}: expected a run's checkpoint, found a {type(payload).__name__}")
            continue
        for error_text in errors:
            log.warn("checkpoint", f"{error_text}; continuing from {path}")
        return payload
    if errors:
        raise UserError(
            f"no readable checkpoint ({'; '.join(errors)}); delete {folder} to start afresh"
        )
    return None


def _stored_shape(value: Any) -> tuple[int, ...]:
    """Shape as Jittor has it: it knows no 0-d arrays, a single number has shape (1,)."""
    return tuple(np.shape(value)) or (1,)


def _misfit(
    model: str,
    where: str,
    missing: list[str],
    unexpected: list[str],
    misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]],
) -> str:
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing: {_listed(missing)}")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected: {_listed(unexpected)}")
    if misshapen:
        texts = [
            f"{key} is {found}, expected {wanted}" for key, (wanted, found) in misshapen.items()
        ]
        parts.append(f"{len(misshapen)} of another shape: {_listed(texts)}")
    return f"{where} does not fit {model}: {'; '.join(parts)}. {_probable_cause(misshapen)}"


def _probable_cause(misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> str:
    """Which setting is likely wrong, told from what does not fit."""
    counted = {
        key: pair
        for key, pair in misshapen.items()
        if key.endswith(_CLASS_LAYERS + _PROTOTYPE_LAYERS)
    }
    same_width = all(wanted[1:] == found[1:] for wanted, found in counted.values())
    if misshapen and len(counted) == len(misshapen) and same_width:
        key, (wanted, found) = next(iter(counted.items()))
        if key.endswith(_PROTOTYPE_LAYERS):
            return (
                f"It was trained with {found[0]} prototypes, not {wanted[0]}: set their number so."
            )
        return (
            f"It was trained with another class count: {found[0]} outputs (background included), "
            f"not {wanted[0]}: set the number of classes so."
        )
    return "It is a checkpoint of another architecture or stage: check -a/--arch and the file."


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _LISTED_KEYS
    shown = [printable(name, 120) for name in names[:_LISTED_KEYS]]
    return ", ".join(shown) + (f", and {rest} more" if rest > 0 else "")


class _HashingFile:
    """Hands bytes on to a file and to SHA-1, so that a large pickle is never whole in memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha1()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._file.write(data)


def _require_plain(value: Any, name: str) -> None:
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return
    if isinstance(value, (np.ndarray, np.generic)):
        if value.dtype.kind not in "biufcSU":
            raise TypeError(f"{name} has element type {value.dtype}")
    elif type(value) is dict:
        for key, entry in value.items():
            _require_plain(key, f"key of {name}")
            _require_plain(entry, f"{name}[{key!r}]")
    elif type(value) in (list, tuple, set, frozenset):
        for entry in value:
            _require_plain(entry, f"an entry of {name}")
    else:
        raise TypeError(f"{name} is a {type(value).__name__}, which a checkpoint cannot hold")


def _keep_as_previous(folder: Path) -> None:
    """A second name for the latest checkpoint, so that at no moment there is a folder without
    one.
    """
    latest, link = folder / LATEST, folder / f".{PREVIOUS}.link"
    try:
        os.link(latest, link)
    except OSError:  # file systems without hard links
        os.replace(latest, folder / PREVIOUS)
        return
    os.replace(link, folder / PREVIOUS)
    link.unlink(missing_ok=True)  # a rename between two names of one file leaves both


def _remove_leftovers(folder: Path) -> None:
    """Files of a process that was killed while it saved; only one process saves here."""
    for pattern in (f".{LATEST}.*", f".{PREVIOUS}.*", f"..{LATEST}.*"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the renames themselves survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
