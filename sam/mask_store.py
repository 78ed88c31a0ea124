"""Masks of images on disk: one small file per image, shared by every run with the same weights and
settings.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import atomic_write, read_json, write_json
from sam import masks as M

SETTINGS_FILE = "settings.json"


class MaskStore:
    """Records (see ``sam.masks``) by image key.

    Files lie at ``<folder>/<digest of the fingerprint>/<key>.json.gz``, so that masks of other
    weights or settings live beside these and never mix with them; ``settings.json`` in that folder
    holds the fingerprint itself.

    Args:
        folder: root of the store, made when missing.
        fingerprint: whatever decides the masks (weights, generator settings), JSON serialisable.

    Raises:
        UserError: ``settings.json`` in that folder is broken or states another fingerprint.
    """

    def __init__(self, folder: Path, fingerprint: Any) -> None:
        text = json.dumps(fingerprint, sort_keys=True)
        self.fingerprint = json.loads(text)
        self.folder = Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:16]
        settings = self.folder / SETTINGS_FILE
        if not settings.exists():
            write_json(settings, self.fingerprint)
        elif read_json(settings, "the settings of a mask store") != self.fingerprint:
            raise UserError(
                f"expected masks of these settings in {self.folder}, but {settings} states others; "
                "remove that folder"
            )

    def path(self, key: str) -> Path:
        """The file of image ``key`` ("<class folder>/<stem>" or "<stem>")."""
        return self.folder / f"{key}.json.gz"

    def get(self, key: str) -> list[M.Record] | None:
        """The records of an image, ``segmentation`` as COCO RLE; None when missing or
        unreadable.
        """
        try:
            records = json.loads(gzip.decompress(self.path(key).read_bytes()))
        except (OSError, EOFError, ValueError, zlib.error):
            return None
        return records if _valid(records) else None

    def put(self, key: str, records: list[M.Record]) -> None:
        """Keep the records of an image, in any form of ``segmentation``; replaces what was there,
        atomically.
        """
        slim = [
            {**record, "segmentation": M.compressed(record["segmentation"])} for record in records
        ]
        with atomic_write(self.path(key)) as file:
            # No time stamp inside: the same masks are the same bytes.
            file.write(gzip.compress(json.dumps(slim).encode(), compresslevel=6, mtime=0))


def _valid(records: Any) -> bool:
    return isinstance(records, list) and all(
        isinstance(record, dict) and "area" in record and "counts" in record.get("segmentation", ())
        for record in records
    )
