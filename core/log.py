"""One log line format, one JSONL log per stage, one progress bar."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from core.errors import names_file

Item = TypeVar("Item")


def info(stage: str, message: str) -> None:
    """Print ``HH:MM:SS stage: message`` on stderr without tearing a progress bar apart."""
    tqdm.write(f"{time.strftime('%H:%M:%S')} {stage}: {message}", file=sys.stderr)
    sys.stderr.flush()


def warn(stage: str, message: str) -> None:
    """Like :func:`info`, marked as a warning."""
    info(stage, f"warning: {message}")


def progress(
    items: Iterable[Item], stage: str, total: int | None = None, unit: str = "image"
) -> Generator[Item, None, None]:
    """Iterate with a bar that shows rate and ETA; on a file or pipe it prints a line every ten
    seconds.

    A caller that stops early and then prints something should close the generator first; otherwise
    the last state of the bar is printed after it.
    """
    interval = 0.5 if sys.stderr.isatty() else 10.0
    return iter(
        tqdm(items, desc=stage, total=total, unit=unit, mininterval=interval, dynamic_ncols=True)
    )


def progress_of_bytes(stage: str, total: int | None, done: int = 0) -> tqdm:
    """A bar for a transfer of ``total`` bytes (None: unknown), of which ``done`` are there already:
    a context manager, told by ``update(n)`` how many more came.
    """
    interval = 0.5 if sys.stderr.isatty() else 10.0
    shown = {"unit": "B", "unit_scale": True, "mininterval": interval, "dynamic_ncols": True}
    return tqdm(desc=stage, total=total, initial=done, **shown)


class StageLog:
    """Append-only JSONL log of a stage: one object a line, each with ``time`` (Unix seconds).

    Args:
        path: the log file; its folder is made when missing.
        enabled: False on ranks other than 0, which then write nothing.
    """

    def __init__(self, path: Path, enabled: bool = True) -> None:
        self.path = path
        self.enabled = enabled

    def write(self, **values: Any) -> None:
        """Append one line; values must be JSON serialisable (convert numpy scalars first)."""
        if not self.enabled:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"time": round(time.time(), 3), **values}, sort_keys=True)
        with names_file(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
