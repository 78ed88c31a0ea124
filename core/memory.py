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
    """VmRSS (now) or VmHWM (peak) of this process in MiB; NaN where the system does not say.

    Not ``ru_maxrss``, which a child takes over from the process that started it.
    """
    found = _bytes_of(Path("/proc/self/status"), entry)
    return float("nan") if found is None else found / 2**20


def machine_bytes() -> tuple[int, int] | None:
    """(all, available) bytes that this process may use, a container's limit included; None where
    the system does not say.
    """
    file = Path("/proc/meminfo")
    total, free = _bytes_of(file, "MemTotal"), _bytes_of(file, "MemAvailable")
    if total is None or free is None:
        return None
    limit, left = container_bytes() or (total, free)
    # Without a limit of its own, a container of version 1 states more than any machine has.
    return (limit, min(free, left)) if limit < total else (total, free)


def container_bytes(folder: Path = _CGROUP) -> tuple[int, int] | None:
    """(limit, what it leaves) in bytes of the container that this process runs in; None without a
    limit.
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
