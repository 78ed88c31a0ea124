"""Folders of images in the ImageNet-S layout: ``<data>/<split>/<class>/<stem>.JPEG`` and masks.

A split holds either class folders, one level deep, or plain images. Its masks lie in
``<data>/<split>-segmentation/<class>/<stem>.png``, in the encoding of ``core.data.label_maps``;
the id of a class is the place of its folder in the sorted list, from 1. A key is
"<class folder>/<stem>", or "<stem>" in a plain folder; the stem ends at the first dot of the file
name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.data.items import ImageItem as ImageItem
from core.data.label_maps import load_label
from core.errors import UserError
from core.files import sha256_of

SUFFIXES = (".jpeg", ".jpg", ".png")
MASKS_SUFFIX = "-segmentation"
_KINDS = ".JPEG, .jpg or .png"


@dataclass(frozen=True)
class ImageNetS:
    """A data set in the ImageNet-S layout; see :class:`core.data.layout.Layout`."""

    root: Path

    def splits(self) -> list[str]:
        """Sorted names of the folders that are not masks."""
        folders = scan_folder(self.root)[1] if self.root.is_dir() else []
        return [name for name in folders if not name.endswith(MASKS_SUFFIX)]

    def images(self, split: str) -> list[ImageItem]:
        """The images of ``<root>/<split>``, sorted by key; see :func:`list_images`."""
        return list_images(split_folder(self.root, split))

    def has_truth(self, split: str) -> bool:
        """Whether there is a folder ``<split>-segmentation``."""
        return masks_folder(self.root, split).is_dir()

    def truth_folder(self, split: str) -> Path:
        """``<root>/<split>-segmentation``, whether it exists or not."""
        return masks_folder(self.root, split)

    def truth_path(self, split: str, key: str) -> Path:
        """``<root>/<split>-segmentation/<key>.png``, whether it exists or not."""
        return mask_path(self.root, split, key)

    def truth(self, split: str, key: str) -> np.ndarray:
        """int32 label map (H, W) of an image; see ``core.data.label_maps.load_label``."""
        return load_label(mask_path(self.root, split, key))

    def class_names(self, split: str | None = None) -> list[str]:
        """Names of the class folders of a split; None takes the first split that has some.

        Raises:
            UserError: missing split, or one without class folders.
        """
        if split is not None:
            return class_names(self.root, split)
        for name in sorted(self.splits(), key=lambda name: name != "train"):
            folders = scan_folder(self.root / name)[1]
            if folders:
                return folders
        return class_names(self.root, "train")


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
    # With a million images their names count: those of a class go when its items are there.
    items = [item for name in classes for item in _items(folder, name, inside.pop(name))]
    items.sort(key=lambda item: item.key)
    return items


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
