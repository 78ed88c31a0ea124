"""Masks of images on disk, one small file for each image. All runs with the same weights and
settings share them, and several processes and machines may use them at a time.

A file is gzipped text, a JSON object a line. The first line names the key, the image that was seen
(CRC-32 of its pixels, height and width) and the number of masks. A line for each mask follows, its
record. The same masks give the same bytes.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import zlib
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.data import rle
from core.errors import UserError
from core.files import (
    atomic_write,
    file_system_time,
    flat_name,
    json_or_empty,
    read_json,
    sha256_of_json,
    write_json,
)
from core.schema import stamped, unstamped
from core.work.claims import CLAIMS_FOLDER
from core.work.ledger import SETTINGS_FILE

# It is a part of the fingerprint, so that files of another format are never read.
_FORMAT = 2
_SUFFIX = ".json.gz"
_HEADER_BYTES = 1 << 16
# Masks of plain noise need 12 bytes per pixel. A file that would unpack to more than these is
# refused.
_BYTES_PER_PIXEL = 32
_MIN_BYTES, _MAX_BYTES = 1 << 20, 1 << 28
_MAX_PIXELS = 1 << 32
_LEFTOVER_S = 3600.0


class ImageIdentity(NamedTuple):
    """What tells an image from another one of the same name."""

    crc32: int
    height: int
    width: int

    @classmethod
    def of(cls, rgb: np.ndarray) -> ImageIdentity:
        """Identity of a uint8 image (H, W, 3)."""
        return cls(zlib.crc32(np.ascontiguousarray(rgb).data), rgb.shape[0], rgb.shape[1])


class MaskStore:
    """Records of masks (see ``core.data.rle``) by image key.

    Files lie at ``<folder>/<digest of the fingerprint>/<2 digits of the key's CRC>/<key>.json.gz``
    (a slash in the key is written %2F), so that masks of other weights or settings live beside
    these and never mix with them, and a million of images makes 256 folders of four thousand.
    ``settings.json`` in the digest's folder holds the fingerprint itself.

    Args:
        folder: root of the store, made when missing.
        fingerprint: whatever decides the masks (weights, generator settings), JSON serialisable.

    Raises:
        UserError: ``settings.json`` in that folder is broken, states another fingerprint or a newer
            schema.
    """

    def __init__(self, folder: Path, fingerprint: Any) -> None:
        text = json.dumps({"format": _FORMAT, "masks": fingerprint}, sort_keys=True)
        self.fingerprint = json.loads(text)
        self.folder = Path(folder) / _digest(self.fingerprint)
        #: For ``core.work.claims``, of processes that fill this store together.
        self.claims_folder = self.folder / CLAIMS_FOLDER
        settings = self.folder / SETTINGS_FILE
        if not settings.exists():
            write_json(settings, stamped(self.fingerprint))
            return
        stated = unstamped(read_json(settings, "the settings of a mask store"), settings)
        if stated != self.fingerprint:
            raise UserError(
                f"expected masks of these settings in {self.folder}, but {settings} states others; "
                "remove that folder"
            )

    @staticmethod
    def fingerprints(folder: Path) -> list[Any]:
        """The fingerprints of the stores that lie in a folder; nothing is written.

        Raises:
            UserError: a newer version of the project made one of them.
        """
        found = []
        for path in sorted(Path(folder).glob(f"*/{SETTINGS_FILE}")):
            content = unstamped(json_or_empty(path), path)
            ours = set(content) == {"format", "masks"} and content["format"] == _FORMAT
            if ours and path.parent.name == _digest(content):
                found.append(content["masks"])
        return found

    def path(self, key: str) -> Path:
        """The file of image ``key`` ("<class folder>/<stem>" or "<stem>")."""
        return self.folder / _bucket(key) / f"{flat_name(key)}{_SUFFIX}"

    def has(self, key: str) -> bool:
        """Whether there is a file of this image; it is not opened."""
        return self.path(key).exists()

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys without a file, in order; lists folders and opens no file."""
        keys = list(keys)
        by_bucket: dict[str, array[int]] = defaultdict(lambda: array("L"))
        for place, key in enumerate(keys):
            by_bucket[_bucket(key)].append(place)
        absent = bytearray(len(keys))  # with a million keys a set would take 64 MB
        for bucket, places in by_bucket.items():
            names = set(_names(self.folder / bucket))
            for place in places:
                absent[place] = f"{flat_name(keys[place])}{_SUFFIX}" not in names
        return [key for key, away in zip(keys, absent) if away]

    def get(self, key: str, image: ImageIdentity) -> list[rle.Record] | None:
        """The records of an image, ``segmentation`` as COCO RLE; None when they are missing,
        broken, or of another image.
        """
        try:
            found, records = _read(self.path(key), key)
        except (OSError, ValueError):
            return None
        return records if found == image else None

    def put(self, key: str, image: ImageIdentity, records: list[rle.Record]) -> int:
        """Keep the records of an image, in any form of ``segmentation``; replaces what was there,
        atomically. Returns the size of the file in bytes.

        Raises:
            UserError: more than any masks of an image of this size can be.
        """
        header = {"crc32": image.crc32, "size": [image.height, image.width], "key": key}
        lines = [{**header, "masks": len(records)}]
        lines += [
            {**record, "segmentation": rle.compressed(record["segmentation"])} for record in records
        ]
        text = "".join(f"{json.dumps(line, separators=(',', ':'))}\n" for line in lines).encode()
        if len(text) > _limit(image):
            raise UserError(
                f"{len(records)} masks of image {key} take {len(text)} bytes, expected at most "
                f"{_limit(image)}; let the generator keep fewer"
            )
        # The gzip form without a time stamp.
        packer = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS | 16)
        packed = packer.compress(text) + packer.flush()
        with atomic_write(self.path(key)) as file:
            file.write(packed)
        return len(packed)

    def fault(self, key: str) -> str | None:
        """What is wrong with the file of an image, which is read as a whole; None for nothing.

        Raises:
            FileNotFoundError: there is none.
        """
        try:
            _read(self.path(key), key)
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            return str(error) or type(error).__name__
        return None

    def remove(self, key: str) -> None:
        """Remove the file of an image, if there is one."""
        self.path(key).unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Remove half-written files of processes that were killed more than an hour ago."""
        now = file_system_time(self.folder)
        for folder in (self.folder, *(self.folder / name for name in _names(self.folder))):
            for name in _names(folder):
                path = folder / name
                if not (name.startswith(".") and name.endswith(".tmp")):
                    continue
                try:
                    if now - path.stat().st_mtime > _LEFTOVER_S:
                        path.unlink()
                except FileNotFoundError:
                    continue


def _digest(fingerprint: Any) -> str:
    return sha256_of_json(fingerprint)[:16]


def _bucket(key: str) -> str:
    return f"{zlib.crc32(os.fsencode(key)) & 0xFF:02x}"


def _names(folder: Path) -> Iterator[str]:
    """Names of what lies in a folder; nothing where it is missing or is a file."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                yield entry.name
    except (FileNotFoundError, NotADirectoryError):
        return


# Reading what may be broken or hostile ----------------------------------------------------------


def _read(path: Path, key: str) -> tuple[ImageIdentity, list[rle.Record]]:
    """The image and the records in a file.

    Unpacks line by line and stops at the limit for the image's size.

    Raises:
        OSError: no such file, or it cannot be read.
        ValueError: anything but whole records of image ``key``; says what.
    """
    try:
        with gzip.open(path) as file:
            header = _parse(file.readline(_HEADER_BYTES))
            image = _image_of(header, key)
            left = _limit(image)
            records = []
            for _ in range(header["masks"]):
                line = file.readline(left + 1)
                left -= len(line)
                if left < 0:
                    raise ValueError(f"unpacks to more than {_limit(image)} bytes")
                records.append(_record_of(_parse(line), image))
            if file.read(1):
                raise ValueError("more follows the last mask")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(str(error)) from error
    return image, records


def _limit(image: ImageIdentity) -> int:
    return min(_MIN_BYTES + _BYTES_PER_PIXEL * image.height * image.width, _MAX_BYTES)


def _parse(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("expected a JSON object in each line")
    return value


def _image_of(header: dict[str, Any], key: str) -> ImageIdentity:
    size: Any = header.get("size")
    crc32: Any = header.get("crc32")
    if not (_are_integers([crc32, header.get("masks")], 2) and _are_integers(size, 2)):
        raise ValueError("the first line does not describe an image")
    if header.get("key") != key:
        raise ValueError(f"holds the masks of image {str(header.get('key'))[:200]!r}")
    height, width = size
    if height * width > _MAX_PIXELS:
        raise ValueError(f"an image of {height} x {width} pixels")
    return ImageIdentity(crc32, height, width)


def _record_of(record: dict[str, Any], image: ImageIdentity) -> rle.Record:
    """The record itself, checked.

    Raises:
        ValueError: its mask is not one of the image, its area is another, or a value is neither
            finite numbers nor (where a score is not defined) NaN.
    """
    mask = record.get("segmentation")
    if not isinstance(mask, dict) or set(mask) != {"size", "counts"}:
        raise ValueError("a mask without run lengths")
    size = (image.height, image.width)
    if not _are_integers(mask["size"], 2) or tuple(mask["size"]) != size:
        raise ValueError(f"a mask of size {str(mask['size'])[:50]} in an image of {list(size)}")
    if not isinstance(mask["counts"], str):
        raise ValueError("run lengths in another form than COCO's string")
    if record.get("area") != _area_of(mask, image.height * image.width):
        raise ValueError("a mask of another area than stated")
    for name, value in record.items():
        if name != "segmentation" and not _is_plain(value):
            raise ValueError(f"{name[:50]!r} is not made of numbers")
    return record


def _area_of(mask: rle.Rle, pixels: int) -> int:
    """Pixels in a mask whose run lengths are checked to be those of an image."""
    codes = np.frombuffer(mask["counts"].encode("ascii"), np.uint8)
    if len(codes) and not (48 <= codes.min() and codes.max() < 112 and codes[-1] < 80):
        raise ValueError("run lengths with characters that do not belong there")
    runs = rle.run_lengths(mask)
    # Each of them first: the sum of hostile ones could come round to the right number.
    if (runs < 0).any() or (runs > pixels).any() or int(runs.sum()) != pixels:
        raise ValueError("run lengths that do not add up to the image")
    return int(runs[1::2].sum())


def _are_integers(value: Any, count: int) -> bool:
    """Whether this is a list of so many integers, none negative, each fit for 63 bits."""
    return (
        isinstance(value, list)
        and len(value) == count
        and all(type(number) is int and 0 <= number < 1 << 63 for number in value)
    )


def _is_plain(value: Any) -> bool:
    """Whether a value is a finite number or NaN, or (nested, at most twice) a list of those."""
    for _ in range(2):
        if isinstance(value, list) and all(isinstance(entry, list) for entry in value):
            value = [number for entry in value for number in entry]
    numbers = value if isinstance(value, list) else [value]
    return all(isinstance(n, (int, float)) and not math.isinf(n) for n in numbers)
