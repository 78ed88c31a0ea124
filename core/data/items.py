"""One image of a data set, in any layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ImageItem:
    """One image file and the key under which its products are filed.

    ``key`` names the image within its split: "<class folder>/<stem>" or "<stem>" in the ImageNet-S
    layout, the image's id, such as "2007_000032", in the others.
    """

    path: Path
    key: str
