"""What is wrong with an archive that somebody is about to hand in.

The archive is untrusted: names, sizes and contents may be anything. Nothing is extracted, no entry
is read beyond the size that its image allows, and whatever breaks becomes a line in the list.
"""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from core import log
from core.data.folders import ImageItem, list_images, split_folder
from core.data.images import BROKEN, image_size
from core.labels import decode
from core.matching import identity_match, parse_match

MATCH_NAME = "match.json"
METHOD_NAME = "method.txt"

_BROKEN_ZIP = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    NotImplementedError,
)
_MAX_TEXT = 1 << 20
_PNG_OVERHEAD = 1 << 16  # metadata and zlib's growth on noise, beyond the raw pixels
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_RGB = 2
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass
class ZipReport:
    """``problems`` as lines of text, ``match`` when it is valid, number of good ``images``."""

    problems: list[str] = field(default_factory=list)
    match: dict[int, int] | None = None
    images: int = 0


def check_zip(
    zip_path: Path, data: Path, split: str, num_classes: int, ids: str | None = None
) -> list[str]:
    """The problems of an archive, one line each; empty when it is fine. See :func:`inspect_zip`."""
    return inspect_zip(zip_path, data, split, num_classes, ids).problems


def inspect_zip(
    zip_path: Path, data: Path, split: str, num_classes: int, ids: str | None = None
) -> ZipReport:
    """Check an archive against the images of ``<data>/<split>``.

    Args:
        zip_path: the archive.
        data, split: the images that it must cover, one PNG each.
        num_classes: number of classes C; ids must lie in 0..C.
        ids: "matched": class ids are expected inside, so ``match.json`` must be the identity;
            "unmatched" or None: any valid ``match.json``.

    Raises:
        UserError: the data set itself cannot be read.
    """
    items = {f"{item.key}.png": item for item in list_images(split_folder(data, split))}
    report = ZipReport()
    try:
        archive = zipfile.ZipFile(zip_path)
    except _BROKEN_ZIP as error:
        report.problems.append(f"the archive cannot be read: {error}")
        return report
    with archive:
        entries = _index(archive, items, report.problems)
        _check_match(archive, entries, num_classes, ids, report)
        _check_method(archive, entries, report.problems)
        _check_images(archive, entries, items, num_classes, report)
    return report


def _index(
    archive: zipfile.ZipFile, items: dict[str, ImageItem], problems: list[str]
) -> dict[str, zipfile.ZipInfo]:
    """The expected entries by name; everything else is a problem."""
    folders = {name.rsplit("/", 1)[0] + "/" for name in items if "/" in name}
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename
        problem = _name_problem(info)
        if problem:
            problems.append(f"{name!r}: {problem}")
        elif name in folders:
            continue
        elif name in entries:
            problems.append(f"{name}: occurs twice")
        elif name in items or name in (MATCH_NAME, METHOD_NAME):
            entries[name] = info
        else:
            problems.append(f"{name!r}: does not belong here{_advice(name, items)}")
    return entries


def _name_problem(info: zipfile.ZipInfo) -> str:
    name = info.orig_filename
    if name.startswith(("/", "\\")) or name[1:2] == ":":
        return "absolute name"
    if ".." in name.replace("\\", "/").split("/"):
        return "name that leaves the archive"
    if "\\" in name or not name.isprintable():
        return "name with odd characters"
    return ""


def _advice(name: str, items: dict[str, ImageItem]) -> str:
    inner = name.split("/", 1)[-1]
    if inner != name and inner in (*items, MATCH_NAME, METHOD_NAME):
        return f"; {inner} should lie at the root"
    return ""


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    """Content of an entry, at most ``limit`` bytes.

    Raises:
        ValueError: why it is not read.
        others of _BROKEN_ZIP: it is broken.
    """
    if info.flag_bits & 0x1:
        raise ValueError("is encrypted")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise ValueError("is a link")
    if info.compress_type not in _METHODS:
        raise ValueError("is neither stored nor deflated")
    if info.file_size > limit:
        raise ValueError(f"claims {info.file_size} bytes, more than the {limit} that are plausible")
    with archive.open(info) as file:
        # A bounded read: reading to the end would inflate whatever a false header hides.
        content = file.read(info.file_size + 1)
    if len(content) != info.file_size:
        raise ValueError(f"holds {len(content)} bytes instead of {info.file_size}")
    return content


def _read_text(
    archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], name: str, problems: list[str]
) -> str | None:
    if name not in entries:
        problems.append(f"{name}: missing")
        return None
    try:
        return _read(archive, entries[name], _MAX_TEXT).decode("utf-8")
    except _BROKEN_ZIP as error:
        problems.append(f"{name}: {error}")
        return None


def _check_match(
    archive: zipfile.ZipFile,
    entries: dict[str, zipfile.ZipInfo],
    num_classes: int,
    ids: str | None,
    report: ZipReport,
) -> None:
    text = _read_text(archive, entries, MATCH_NAME, report.problems)
    if text is None:
        return
    try:
        report.match = parse_match(text, num_classes)
    except ValueError as error:
        report.problems.append(f"{MATCH_NAME}: {error}")
        return
    if ids == "matched" and report.match != identity_match(num_classes):
        report.problems.append(
            f"{MATCH_NAME}: class ids are expected inside, but it does not map each id to itself"
        )


def _check_method(
    archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], problems: list[str]
) -> None:
    text = _read_text(archive, entries, METHOD_NAME, problems)
    if text is not None and not text.strip():
        problems.append(f"{METHOD_NAME}: is empty")


def _check_images(
    archive: zipfile.ZipFile,
    entries: dict[str, zipfile.ZipInfo],
    items: dict[str, ImageItem],
    num_classes: int,
    report: ZipReport,
) -> None:
    for name, item in log.progress(items.items(), "submission check", total=len(items)):
        if name not in entries:
            report.problems.append(f"{name}: missing")
            continue
        size_hw = image_size(item.path)
        limit = size_hw[0] * (3 * size_hw[1] + 1) + _PNG_OVERHEAD
        try:
            _check_label(_read(archive, entries[name], limit), size_hw, num_classes)
        except (*_BROKEN_ZIP, *BROKEN) as error:
            report.problems.append(f"{name}: {error}")
        else:
            report.images += 1


def _check_label(content: bytes, size_hw: tuple[int, int], num_classes: int) -> None:
    """Raise an error that says why ``content`` is no label map of this size and class count."""
    if content[:8] != _PNG_SIGNATURE or content[12:16] != b"IHDR" or len(content) < 33:
        raise ValueError("is not a PNG")
    width, height, depth, kind = struct.unpack(">IIBB", content[16:26])
    if (depth, kind) != (8, _PNG_RGB):
        raise ValueError("is not an RGB PNG with 8 bits a channel")
    if (height, width) != size_hw:
        raise ValueError(
            f"is {height}x{width} but its image is {size_hw[0]}x{size_hw[1]} (height x width)"
        )
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        ids = decode(np.asarray(image))
    if ids.max() > num_classes:
        raise ValueError(f"holds id {int(ids.max())} but ids go from 0 to {num_classes}")
