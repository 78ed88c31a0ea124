"""What a figure depends on beside the code: processor, cores, versions and how busy it was."""

from __future__ import annotations

import contextlib
import os
import platform
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from core.memory import machine_bytes
from core.work.pool import usable_cores

_PACKAGES = (
    "numpy",
    "jittor",
    "opencv-python-headless",
    "torch",
    "onnxruntime",
    "segment-anything",
    "mobilesam-mirror",
)
_BUSY = 0.25  # of the cores at work for others


def describe() -> dict[str, Any]:
    """This machine now, as it is written into ``--json``: ``load`` is the average of the last
    minute, ``busy`` whether it is so high that times are not to be quoted.
    """
    cores, load = usable_cores(), os.getloadavg()[0]
    memory = machine_bytes()
    return {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "cores": cores,
        "memory_gib": None if memory is None else round(memory[0] / 2**30, 1),
        "system": platform.platform(),
        "c_library": " ".join(platform.libc_ver()).strip(),
        "versions": {"python": platform.python_version(), **_versions()},
        "load": round(load, 2),
        "busy": load > cores * _BUSY,
    }


def in_words(machine: dict[str, Any]) -> str:
    """:func:`describe` in a sentence, with a second one where the machine is busy."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    text = (
        f"{machine['processor']}, {machine['cores']} cores for each side, "
        f"{machine['memory_gib']} GiB, {machine['system']}, {versions}, {machine['date']}; "
        f"load {machine['load']:.1f} at the start."
    )
    return f"{text} {busy_warning(machine)}" if machine["busy"] else text


def busy_warning(machine: dict[str, Any]) -> str:
    """That the times are not to be quoted."""
    return (
        f"The machine was busy (load {machine['load']:.1f} on {machine['cores']} cores): "
        "the times are not to be quoted."
    )


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _processor() -> str:
    """The processor's name as Linux states it, else the machine's kind."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
