"""SHA-256 of large files, remembered in the user's cache: hashing gigabytes at each start takes
longer than reading them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path

from core import runtime
from core.files import json_or_empty, sha256_of, write_json

# Smaller files are hashed in a moment.
_LARGE = 16 << 20
# A file that was written just now may change again without another time stamp.
_SETTLED_S = 5.0


def remembered_sha256(path: Path) -> str:
    """Hex SHA-256 of a file. A large one is not read again while its size and its times stay as
    they were; the cache that remembers it may be lost at any time.
    """
    place = Path(path).resolve()
    facts = os.stat(place)
    if facts.st_size < _LARGE:
        return sha256_of(place)
    stamp = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
    name = hashlib.sha256(os.fsencode(place)).hexdigest()[:16]
    memory = runtime.cache_dir() / "checksums" / f"{name}.json"
    known = json_or_empty(memory)
    if known.get("stamp") == stamp and isinstance(known.get("sha256"), str):
        return known["sha256"]
    found = sha256_of(place)
    if time.time() - max(facts.st_mtime, facts.st_ctime) > _SETTLED_S:
        with contextlib.suppress(OSError):  # a cache that cannot be written costs only time
            write_json(memory, {"file": str(place), "stamp": stamp, "sha256": found})
    return found
