"""Making a generated data set: whole or not at all, and again only where its settings differ."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import json_or_empty, write_json

MARKER = "dataset.json"


def require_seed(seed: int) -> None:
    """Refuse a seed that generators of random numbers do not take.

    Raises:
        UserError: not 0..2**32 - 1.
    """
    if not 0 <= seed < 1 << 32:
        raise UserError(f"the seed must lie in 0..{(1 << 32) - 1}, got {seed}")


def generate(root: Path, settings: dict[str, Any], fill: Callable[[Path], object]) -> bool:
    """Make the data set at ``root`` unless it is there with these settings; returns whether it was
    made.

    It is built in a temporary folder beside ``root`` and renamed, so ``root`` is never half-made;
    one that was made with other settings, or lacks files, is replaced.

    Args:
        settings: everything that decides the files, with the ``generator``'s name.
        fill: makes the files in a folder that does not exist yet.

    Raises:
        UserError: ``root`` holds something that this generator has not made.
    """
    if _is_complete(root, settings):
        return False
    _check_replaceable(root, settings["generator"])
    root.parent.mkdir(parents=True, exist_ok=True)
    build = Path(tempfile.mkdtemp(prefix=f".{root.name}.", suffix=".tmp", dir=root.parent))
    try:
        fill(build / "new")
        write_json(build / "new" / MARKER, {**settings, "files": _count_files(build / "new")})
        if root.exists():
            root.rename(build / "old")
        (build / "new").rename(root)
    finally:
        shutil.rmtree(build, ignore_errors=True)
    return True


def _is_complete(root: Path, settings: dict[str, Any]) -> bool:
    marker = _read_marker(root, settings["generator"])
    if marker is None:
        return False
    files = marker.pop("files", None)
    return marker == settings and files == _count_files(root)


def _read_marker(root: Path, generator: str) -> dict[str, Any] | None:
    """The marker of a generated data set, or None where there is none."""
    marker = json_or_empty(root / MARKER)
    return marker if marker.get("generator") == generator else None


def _check_replaceable(root: Path, generator: str) -> None:
    if not root.exists() or _read_marker(root, generator) is not None:
        return
    if not root.is_dir() or any(root.iterdir()):
        raise UserError(
            f"{root} exists and was not generated here; it is left alone: choose another folder"
        )


def _count_files(root: Path) -> int:
    return sum(1 for path in root.rglob("*") if path.is_file() and path.name != MARKER)
