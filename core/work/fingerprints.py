"""A set of very many values in eight bytes of memory each: of every value it keeps a
64-bit hash. With millions of values a wrong "yes" has a chance of about one in 10 ** 12.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

# So many new hashes wait in a set of Python's, where each takes ten times the memory.
_MOST_NEW = 1 << 14


class Fingerprints:
    """A set to which values are added; values are anything whose ``repr`` tells them apart."""

    def __init__(self) -> None:
        self._sorted = np.empty(0, np.uint64)
        self._new: set[int] = set()

    def add(self, value: Any) -> None:
        """Add a value; nothing happens where it is there."""
        self._new.add(_hash(value))
        if len(self._new) > _MOST_NEW:
            new = np.sort(np.fromiter(self._new, np.uint64, len(self._new)))
            self._new = set()
            places = np.searchsorted(self._sorted, new)
            there = places < len(self._sorted)
            there[there] = self._sorted[places[there]] == new[there]
            self._sorted = np.insert(self._sorted, places[~there], new[~there])

    def __contains__(self, value: Any) -> bool:
        digest = _hash(value)
        if digest in self._new:
            return True
        place = int(np.searchsorted(self._sorted, np.uint64(digest)))
        return place < len(self._sorted) and int(self._sorted[place]) == digest


def _hash(value: Any) -> int:
    text = repr(value).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
