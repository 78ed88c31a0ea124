"""In which settings two runs differ, in words for the user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_VALUES = 100_000


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each setting whose value has changed, "name was A, is B", in the order of names.

    Nested settings are named with dots; one that is missing on a side counts as unset.
    """
    old, new = _flat(before), _flat(now)
    missing = object()
    changed = sorted(key for key in {*old, *new} if old.get(key, missing) != new.get(key, missing))
    return [f"{key} was {_short(old.get(key))}, is {_short(new.get(key))}" for key in changed]


def comparable(value: Any) -> bool:
    """Whether there are few enough values in nested containers to compare and name them. A file may
    refer to one list from so many places that they would never end.
    """
    left, count = [value], 0
    while left and count < _VALUES:
        entry = left.pop()
        count += 1
        if isinstance(entry, (list, tuple, set, frozenset)):
            left += entry
        elif isinstance(entry, dict):
            left += entry.values()
    return not left


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys."""
    if not isinstance(value, dict):
        return {prefix.rstrip("."): value}
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        flat.update(_flat(entry, f"{prefix}{key}."))
    return flat
