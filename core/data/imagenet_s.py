"""Folders of images in the ImageNet-S layout: ``<data>/<split>/<class>/<stem>.JPEG`` and masks.

A folder holds either class folders, one level deep, or plain images.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.data.label_maps import require_class_count
from core.errors import UserError
from core.files import sha256_of

SUFFIXES = (".jpeg", ".jpg", ".png")
MASKS_SUFFIX = "-segmentation"
_KINDS = ".JPEG, .jpg or .png"


@dataclass(frozen=True)
class ImageItem:
    """One image file and the key under which its products are filed.

    ``key`` is "<class folder>/<stem>", or "<stem>" in a plain folder; the stem ends at the first
    dot of the file name.
    """

    path: Path
    key: str


def list_images(folder: Path) -> list[ImageItem]:
    """The images of a folder of class folders or of plain images, sorted by key.

    Suffixes are matched without case; hidden files and files of other types are ignored.

    Raises:
        UserError: missing folder, no image at all, an empty class folder, images beside class
            folders, or two files with one key (``a.jpg`` and ``a.png``), all named.
    """
    folder = Path(folder)
    plain, classes = scan_folder(folder)
    inside = {name: scan_folder(folder / name)[0] for name in classes}
    if plain and any(inside.values()):
        name = next(name for name in classes if inside[name])
        raise UserError(
            f"{folder} holds both images ({plain[0]}) and folders of images ({name}); "
            f"keep either class folders or plain images in it"
        )
    if plain:
        return _items(folder, "", plain)
    if not any(inside.values()):
        raise UserError(
            f"no images in {folder}: expected {_KINDS} files, or one level of class folders"
        )
    for name in classes:
        if not inside[name]:
            raise UserError(
                f"class folder {folder / name} has no images ({_KINDS}); fill or remove it"
            )
    items = [item for name in classes for item in _items(folder, name, inside[name])]
    return sorted(items, key=lambda item: item.key)


def anonymous_order(items: Sequence[ImageItem]) -> list[ImageItem]:
    """The same items in an order that the names of class folders have no part in: by file stem.

    Files of one stem in several folders are ordered by content. What is learnt or clustered without
    labels takes this order, so that the labels, which these names are, cannot enter through it.

    Raises:
        UserError: a file cannot be read.
    """
    by_stem: dict[str, list[ImageItem]] = {}
    for item in items:
        by_stem.setdefault(item.key.rpartition("/")[2], []).append(item)
    return [
        item
        for stem in sorted(by_stem)
        for item in (by_stem[stem] if len(by_stem[stem]) == 1 else _by_content(by_stem[stem]))
    ]


def _by_content(items: list[ImageItem]) -> list[ImageItem]:
    try:
        return sorted(items, key=lambda item: (item.path.stat().st_size, sha256_of(item.path)))
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error


def split_folder(data: Path, split: str) -> Path:
    """``<data>/<split>``.

    Raises:
        UserError: the data folder or the split is missing; says which splits there are.
    """
    data = Path(data)
    if not data.is_dir():
        raise UserError(f"data folder {data} does not exist; give a folder that holds {split}/")
    folder = data / split
    if not folder.is_dir():
        found = ", ".join(scan_folder(data)[1]) or "no folders"
        raise UserError(f"{data} has no folder {split!r}; found: {found}")
    return folder


def masks_folder(data: Path, split: str) -> Path:
    """``<data>/<split>-segmentation``: the ground-truth masks of a split."""
    return Path(data) / f"{split}{MASKS_SUFFIX}"


def mask_path(data: Path, split: str, key: str) -> Path:
    """``<data>/<split>-segmentation/<key>.png``: the ground-truth mask of image ``key``."""
    return masks_folder(data, split) / f"{key}.png"


def class_names(data: Path, split: str) -> list[str]:
    """Sorted names of the class folders of a split; the class id is the place in this list plus 1.

    Raises:
        UserError: missing split, or one without class folders.
    """
    folder = split_folder(data, split)
    names = scan_folder(folder)[1]
    if not names:
        raise UserError(
            f"{folder} has no class folders; expected one folder of images for each class"
        )
    return names


def class_count(data: Path, split: str, asked: int | None) -> int:
    """The number of classes that -c asks for; without it, that of the class folders of a split.

    Raises:
        UserError: a number that label maps cannot hold, or nothing to count.
    """
    return len(class_names(data, split)) if asked is None else require_class_count(asked)


def scan_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Sorted names of the images and of the folders in ``folder``, hidden ones left out.

    Raises:
        UserError: it cannot be listed.
    """
    images: list[str] = []
    folders: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith(SUFFIXES):
                    (folders if _is_folder(entry) else images).append(entry.name)
                elif _is_folder(entry):
                    folders.append(entry.name)
    except OSError as error:
        raise UserError(f"cannot list the images of {folder}: {error.strerror}") from error
    return sorted(images), sorted(folders)


def stem_of(name: str) -> str:
    """The part of a file's name that names its products: up to the first dot."""
    return name.split(".", 1)[0]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """False also for a link that leads nowhere or round in a circle."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _items(folder: Path, name: str, files: list[str]) -> list[ImageItem]:
    """Items of the image files of one folder, sorted by key; ``name`` is its class folder or ""."""
    base = folder / name
    first: dict[str, str] = {}
    for file in files:
        stem = stem_of(file)
        if stem in first:
            raise UserError(
                f"{base} has {first[stem]} and {file}, both of which would write {stem}.png "
                f"(names count up to the first dot); rename one"
            )
        first[stem] = file
    prefix = f"{name}/" if name else ""
    return [ImageItem(base / first[stem], prefix + stem) for stem in sorted(first)]
