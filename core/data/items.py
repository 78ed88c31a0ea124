"""One image of a data set, in any layout."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any


class ImageItem:
    """One image file and the key under which its products are filed; it does not change.

    Data sets have millions of images, so an item holds its key and, shared with other items, what
    stands before and after the key in the path: 140 bytes, a fourth of what a ``Path`` takes.

    Args:
        path: the image file.
        key: names the image within its split: "<class folder>/<stem>" or "<stem>" in the ImageNet-S
            layout, the image's id, such as "2007_000032", in the others.
    """

    __slots__ = ("_key", "_place")

    def __init__(self, path: Path, key: str) -> None:
        before, found, after = str(path).rpartition(key) if key else ("", "", "")
        self._key = key
        # Where the path does not hold the key, it is kept as it is.
        self._place = _place(before, after) if found else (str(path), None)

    @property
    def path(self) -> Path:
        """The image file."""
        before, after = self._place
        return Path(before if after is None else f"{before}{self._key}{after}")

    @property
    def key(self) -> str:
        """What names the image within its split."""
        return self._key

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ImageItem):
            return NotImplemented
        return self._key == other._key and self.path == other.path

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"ImageItem(path={self.path!r}, key={self._key!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageItem, (self.path, self._key)


@functools.lru_cache(maxsize=64)
def _place(before: str, after: str) -> tuple[str, str | None]:
    """The same tuple for all items of a folder."""
    return before, after
