"""How long ago files were written, by the clock of the file system that stamped them."""

from __future__ import annotations

import time
from pathlib import Path

from core.files import file_system_time

# Clocks of two machines drift apart by less than a second in this time.
_COMPARE_S = 300.0


class FileClock:
    """Ages of files in some folders, each of which may lie on a file system of its own.

    A folder is asked for its time now and then, with an empty file that is removed at once. Where
    it cannot be written, this machine's clock has to do.

    Args:
        folders: whatever lies in one of them is judged by its clock, anything else by that of the
            first.
    """

    def __init__(self, *folders: Path) -> None:
        self._folders = folders
        self._compared: dict[Path, tuple[float, float]] = {}

    def age(self, path: Path) -> float | None:
        """Seconds since a file was written, at least 0; None without one."""
        try:
            return self.since(path, path.stat().st_mtime)
        except OSError:
            return None

    def since(self, path: Path, moment: float) -> float:
        """Seconds, at least 0, since a time (Unix s) by the clock of the folder of ``path``."""
        # The innermost: a result folder may lie in the run.
        inside = [folder for folder in self._folders if path.is_relative_to(folder)]
        folder = max(inside, key=lambda each: len(each.parts), default=self._folders[0])
        return max(self._now(folder) - moment, 0.0)

    def _now(self, folder: Path) -> float:
        local = time.monotonic()
        if folder not in self._compared or local - self._compared[folder][0] > _COMPARE_S:
            try:
                ahead = file_system_time(folder) - local
            except OSError:
                ahead = time.time() - local
            self._compared[folder] = (local, ahead)
        return local + self._compared[folder][1]
