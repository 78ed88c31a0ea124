"""Durations and lists of names as text for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def duration(seconds: float | None) -> str:
    """Seconds as 45 s, 12 min, 3.4 h or 5.1 days; "?" for None."""
    if seconds is None:
        return "?"
    for unit, size, below in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < below * size:
            return f"{seconds / size:.{0 if seconds / size >= 10 else 1}f} {unit}"
    return f"{seconds / 86400:.1f} days"


_NAMED = 5  # how many keys a summary names before it only counts


def named(keys: Sequence[str] | Mapping[str, str]) -> str:
    """The first keys, comma separated, and how many more there are."""
    first = ", ".join(list(keys)[:_NAMED])
    return first if len(keys) <= _NAMED else f"{first} and {len(keys) - _NAMED} more"


def trunk_name(name: str) -> str:
    """Name of a network's trunk for people: "ResNet50" of "resnet50"."""
    return name.replace("resnet", "ResNet")
