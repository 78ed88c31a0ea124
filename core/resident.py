"""Resident memory of this process."""

from __future__ import annotations

from pathlib import Path


def resident_mib(entry: str = "VmRSS") -> float:
    """VmRSS (now) or VmHWM (peak) of this process in MiB, as Linux states it; NaN elsewhere.

    Not ``ru_maxrss``, which a child takes over from the process that started it.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    for line in lines:
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) / 1024
    return float("nan")
