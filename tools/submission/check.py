"""What is wrong with an archive that somebody is about to hand in.

The archive is untrusted: names, sizes and contents may be anything. Nothing is extracted, no entry
is read beyond the size that its image allows, and whatever breaks becomes a line in the list.
"""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from core import log
from core.data.images import BROKEN, image_size
from core.data.items import ImageItem
from core.data.label_maps import decode
from core.data.layout import open_layout
from core.errors import UserError
from core.files import BROKEN_ZIP
from core.scoring.matching import identity_match, parse_match

MATCH_NAME = "match.json"
METHOD_NAME = "method.txt"

_MAX_TEXT = 1 << 20
_UNKNOWN_PIXELS = 1 << 24  # of a prediction whose image is broken
_PNG_OVERHEAD = 1 << 16  # metadata and zlib's growth on noise, beyond the raw pixels
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_RGB = 2
_HAS_DESCRIPTOR = 0x8
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass
class ZipReport:
    """``problems`` as lines of text, ``match`` when it is valid, and counts."""

    problems: list[str] = field(default_factory=list)
    match: dict[int, int] | None = None
    expected: int = 0  # images that must be there
    images: int = 0  # good ones
    archive_bytes: int = 0
    image_bytes: int = 0  # of the good ones
    largest_hw: tuple[int, int] = (0, 0)

    def summary(self) -> str:
        """Sizes and counts in words."""
        height, width = self.largest_hw
        mean = self.image_bytes / max(self.images, 1)
        return (
            f"{self.archive_bytes / 2**20:.1f} MiB, {self.images} of {self.expected} images good, "
            f"{mean / 1024:.1f} KiB each, the largest {height} x {width} (height x width)"
        )


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
    items = {f"{item.key}.png": item for item in open_layout(data).images(split)}
    report = ZipReport(expected=len(items))
    try:
        report.archive_bytes = Path(zip_path).stat().st_size
        archive = zipfile.ZipFile(zip_path)
    except BROKEN_ZIP as error:
        report.problems.append(f"the archive cannot be read: {error}")
        return report
    with archive:
        report.problems += _layout_problems(archive)
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


def _layout_problems(archive: zipfile.ZipFile) -> list[str]:
    """What Python forgives and other readers do not."""
    problems = []
    entries = archive.infolist()
    # zipfile has added to each offset what stands before the archive proper.
    before = min((info.header_offset for info in entries), default=0)
    if before:
        problems.append(f"{before} bytes stand before the first entry")
    streamed = [
        info.filename
        for info in entries
        if info.compress_type == zipfile.ZIP_STORED and info.flag_bits & _HAS_DESCRIPTOR
    ]
    if streamed:
        problems.append(
            f"{streamed[0]!r}: is stored with its size behind it, which Java's reader refuses "
            f"({len(streamed)} such entries)"
        )
    return problems


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
        others of BROKEN_ZIP: it is broken.
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
    except BROKEN_ZIP as error:
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
        size_hw = _size_of(item)
        pixels = _UNKNOWN_PIXELS if size_hw is None else size_hw[0] * (size_hw[1] + 1)
        try:
            content = _read(archive, entries[name], 3 * pixels + _PNG_OVERHEAD)
            found_hw = _check_label(content, size_hw, num_classes)
        except (*BROKEN_ZIP, *BROKEN) as error:
            report.problems.append(f"{name}: {error}")
        else:
            report.images += 1
            report.image_bytes += len(content)
            report.largest_hw = max(report.largest_hw, found_hw, key=lambda hw: hw[0] * hw[1])


def _size_of(item: ImageItem) -> tuple[int, int] | None:
    """(height, width) of the image; None where it is broken."""
    try:
        return image_size(item.path)
    except UserError:
        return None


def _check_label(
    content: bytes, size_hw: tuple[int, int] | None, num_classes: int
) -> tuple[int, int]:
    """Raise an error that says why ``content`` is no label map of this size (None: of any size that
    is plausible) and class count; returns its size.
    """
    if content[:8] != _PNG_SIGNATURE or content[12:16] != b"IHDR" or len(content) < 33:
        raise ValueError("is not a PNG")
    width, height, depth, kind = struct.unpack(">IIBB", content[16:26])
    if (depth, kind) != (8, _PNG_RGB):
        raise ValueError("is not an RGB PNG with 8 bits a channel")
    if size_hw is None and height * width > _UNKNOWN_PIXELS:
        raise ValueError(f"is {height}x{width}, which is not plausible")
    if size_hw is not None and (height, width) != size_hw:
        raise ValueError(
            f"is {height}x{width} but its image is {size_hw[0]}x{size_hw[1]} (height x width)"
        )
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        ids = decode(np.asarray(image))
    if ids.max() > num_classes:
        raise ValueError(f"holds id {int(ids.max())} but ids go from 0 to {num_classes}")
    return height, width
