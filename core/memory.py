"""Memory of this process, and what the machine or its container has left, as Linux states it."""

from __future__ import annotations

import contextlib
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
# (limit, use) in bytes, version 2 and version 1.
_CGROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def resident_mib(entry: str = "VmRSS") -> float:
    """Memory of this process in MiB: "VmRSS" is what it takes now, "VmHWM" the most that it took.
    NaN where the system does not say.

    ``ru_maxrss`` would not do: a child begins with that of the process that started it.
    """
    found = _bytes_of(Path("/proc/self/status"), entry)
    return float("nan") if found is None else found / 2**20


def machine_bytes() -> tuple[int, int] | None:
    """Bytes that this process may use, all of them and those that are free, within the limit of its
    container; None where the system does not say.
    """
    file = Path("/proc/meminfo")
    total, free = _bytes_of(file, "MemTotal"), _bytes_of(file, "MemAvailable")
    if total is None or free is None:
        return None
    limit, left = container_bytes() or (total, free)
    # A container of version 1 that has no limit states one that is larger than any machine's
    # memory.
    return (limit, min(free, left)) if limit < total else (total, free)


def container_bytes(folder: Path = _CGROUP) -> tuple[int, int] | None:
    """The memory limit of the container that this process runs in, and how much of it is free, in
    bytes; None where there is no limit.
    """
    for limit, used in _CGROUP_FILES:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the limit is "max"
            most, now = (int((folder / name).read_text()) for name in (limit, used))
            return most, most - now
    return None


def _bytes_of(file: Path, entry: str) -> int | None:
    """A number that a file of /proc states in kB."""
    with contextlib.suppress(OSError):
        for line in file.read_text().splitlines():
            if line.startswith(f"{entry}:"):
                return int(line.split()[1]) << 10
    return None
