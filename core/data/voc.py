"""Data sets in the layout of Pascal VOC 2012.

::

    JPEGImages/<id>.jpg
    SegmentationClass/<id>.png      masks; SegmentationClassAug/<id>.png where that has none
    Annotations/<id>.xml            objects of an image, for image labels
    ImageSets/Segmentation/<split>.txt    lists of ids; else ImageSets/Main/, else ImageSets/
    classes.txt                     names of the classes, one a line, where they are not VOC's 20
    cls_labels.npy|.npz, image_labels.json    image labels where there is no Annotations/

A key is an image's id, "2007_000032". A list has an id a line; further columns are left out, and
a path ("/JPEGImages/2007_000032.jpg") counts by its file name. A mask is a PNG whose pixels are
class ids, with a palette or in 8-bit grey; 255 is ignored and becomes IGNORE on reading.

Where only some images of a list have masks (``train_aug`` with the masks of VOC alone), the split
counts as one without truth.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from core.data.image_labels import ImageLabels, read_annotation, read_label_file
from core.data.imagenet_s import SUFFIXES, scan_folder, stem_of
from core.data.images import opened
from core.data.items import ImageItem
from core.data.label_maps import IGNORE
from core.errors import UserError
from core.text import named

IMAGES = "JPEGImages"
MASKS = ("SegmentationClass", "SegmentationClassAug")
ANNOTATIONS = "Annotations"
VOID = 255  # the value of an ignored pixel in a mask's file
CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
LABEL_FILES = ("cls_labels.npy", "cls_labels.npz", "image_labels.json")

_LISTS = ("ImageSets/Segmentation", "ImageSets/Main", "ImageSets")
_NAMES = ("classes.txt", "class_names.txt", "classes.json")
_PNG_DEPTH = 24  # place of the byte that says how many bits a channel has


@dataclass(frozen=True)
class Voc:
    """A data set in the VOC layout; see :class:`core.data.layout.Layout`."""

    root: Path

    def splits(self) -> list[str]:
        """Names of the lists; those of single classes in ImageSets/Main are left out."""
        return sorted(find_lists(self.root))

    def ids(self, split: str) -> list[str]:
        """The ids that a list names, in its order.

        Raises:
            UserError: no such list, or one that is empty or names an image twice.
        """
        return read_list(list_path(self.root, split))

    def images(self, split: str) -> list[ImageItem]:
        """The images that a list names, sorted by key.

        Raises:
            UserError: no such list, a broken one, or one that names a missing image.
        """
        listed = list_path(self.root, split)
        return listed_items(listed, self.ids(split), self.files(split), self.root / IMAGES)

    def files(self, split: str) -> dict[str, Path]:
        """Key -> image file of all images, those that a list does not name included."""
        return files_by_key(self.root / IMAGES)

    def has_truth(self, split: str) -> bool:
        """Whether every image of the list has a mask; False where there is no such list."""
        if split not in find_lists(self.root):
            return False
        masks = {name for folder in MASKS for name in names_in(self.root / folder)}
        return all(f"{key}.png" in masks for key in self.ids(split))

    def truth_folder(self, split: str) -> Path:
        """The first folder of masks that exists; the same for every split."""
        return _first(self.root, MASKS)

    def truth_path(self, split: str, key: str) -> Path:
        """The mask in SegmentationClass or, where it is not there, in SegmentationClassAug."""
        return _first(self.root, [f"{folder}/{key}.png" for folder in MASKS])

    def truth(self, split: str, key: str) -> np.ndarray:
        """int32 (H, W): see :func:`load_id_mask`."""
        return load_id_mask(self.truth_path(split, key))

    def class_names(self, split: str | None = None) -> list[str]:
        """VOC's twenty, or those that the data set states; the same for every split."""
        return stated_names(self.root) or list(CLASSES)

    def has_image_labels(self) -> bool:
        """Whether there are annotations or a label file."""
        return any((self.root / name).exists() for name in (ANNOTATIONS, *LABEL_FILES))

    def image_labels(self, split: str) -> ImageLabels:
        """Key -> sorted class ids of the images of a list that are annotated.

        Images about which nothing is known (no XML, or no entry of the label file) are left out;
        an annotated image without object has ().

        Raises:
            UserError: neither annotations nor a label file, or broken ones.
        """
        keys, names = sorted(self.ids(split)), self.class_names()
        folder = self.root / ANNOTATIONS
        if folder.is_dir():
            there = names_in(folder)
            annotated = [key for key in keys if f"{key}.xml" in there]
            return {key: read_annotation(folder / f"{key}.xml", key, names) for key in annotated}
        labels = self.label_file_content()
        return {key: labels[key] for key in keys if key in labels}

    def label_file_content(self) -> ImageLabels:
        """All labels of the label file, of every split.

        Raises:
            UserError: none, or a broken one.
        """
        path = label_file(self.root, LABEL_FILES)
        return read_label_file(path, self.class_names(), _key_of_number)

    def mask_folders(self) -> list[Path]:
        """The folders of masks that there are."""
        return [self.root / name for name in MASKS if (self.root / name).is_dir()]


def is_voc(root: Path) -> bool:
    """Whether a folder has the folder of images of this layout."""
    return (root / IMAGES).is_dir()


def load_id_mask(path: Path) -> np.ndarray:
    """int32 label map (H, W) of a PNG whose pixels are class ids; 255 becomes IGNORE.

    Raises:
        UserError: missing, broken, or neither a palette PNG nor one of 8-bit grey.
    """
    with opened(path, "mask") as image:
        depth = _png_depth(path) if image.format == "PNG" else 0
        if image.mode != "P" and (image.mode != "L" or depth != 8) or not depth:
            raise UserError(
                f"mask {path}: expected a PNG whose pixels are class ids (a palette or 8-bit "
                f"grey), found {image.format} in mode {image.mode}"
            )
        ids = np.asarray(image).astype(np.int32)
    ids[ids == VOID] = IGNORE
    return ids


# Lists ------------------------------------------------------------------------------------------


def find_lists(root: Path) -> dict[str, Path]:
    """Lists of the splits by name, of the first of the folders for them that has some."""
    for folder in _LISTS:
        names = sorted(name for name in names_in(root / folder) if name.endswith(".txt"))
        if folder.endswith("Main"):  # "cat_train.txt" says for each image whether it shows a cat
            classes = set(stated_names(root) or CLASSES)
            names = [name for name in names if name.rpartition("_")[0] not in classes]
        if names:
            return {name[:-4]: root / folder / name for name in names}
    return {}


def list_path(root: Path, split: str) -> Path:
    """The list of a split.

    Raises:
        UserError: there is none; says which splits there are.
    """
    lists = find_lists(root)
    if split not in lists:
        found = ", ".join(sorted(lists)) or "no lists"
        raise UserError(f"{root} has no list of a split {split!r}; found: {found}")
    return lists[split]


def read_list(path: Path) -> list[str]:
    """The ids that a list names, in its order.

    Raises:
        UserError: it cannot be read, names none, or names one twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"list {path} cannot be read: {error}") from error
    places: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        columns = line.split()
        if not columns:
            continue
        key = _id_of(columns[0])
        if not key or key.startswith("."):
            raise UserError(f"list {path}, line {number}: expected an id, found {line[:40]!r}")
        if key in places:
            raise UserError(
                f"list {path} names {key} twice (lines {places[key]} and {number}); remove one"
            )
        places[key] = number
    if not places:
        raise UserError(f"list {path} names no image; expected one id a line")
    return list(places)


def listed_items(
    listed: Path, ids: Sequence[str], files: dict[str, Path], folder: Path
) -> list[ImageItem]:
    """Items of the ids of a list, sorted by key.

    Args:
        listed: the list, for the error.
        files: key -> image file.
        folder: where the files lie, for the error.

    Raises:
        UserError: an id has no file.
    """
    missing = [key for key in ids if key not in files]
    if missing:
        raise UserError(
            f"list {listed} names {len(missing)} images that {folder} does not hold: "
            f"{named(missing)}; add them or mend the list"
        )
    return [ImageItem(files[key], key) for key in sorted(ids)]


def files_by_key(folder: Path) -> dict[str, Path]:
    """The images of a folder by key.

    Raises:
        UserError: it cannot be listed, or two files have one key.
    """
    found: dict[str, Path] = {}
    for name in scan_folder(folder)[0]:
        key = _id_of(name)
        if key in found:
            raise UserError(f"{folder} has {found[key].name} and {name}, both image {key}")
        found[key] = folder / name
    return found


def _id_of(text: str) -> str:
    """The key of an image by its id, its file's name or its file's path."""
    name = PurePosixPath(text).name
    stem = stem_of(name) if name.lower().endswith(SUFFIXES) else name
    parts = stem.split("_")
    # COCO's own file names repeat the split: COCO_val2014_000000000042.
    return parts[2] if len(parts) == 3 and parts[0] == "COCO" else stem


# Files that a data set may hold ------------------------------------------------------------------


def stated_names(root: Path) -> list[str] | None:
    """The class names that a data set states in a file of its own, without background; None where
    it states none.

    Raises:
        UserError: the file is broken, or names a class twice or none.
    """
    path = _first(root, _NAMES)
    if not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"class names {path} cannot be read: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"class names {path}: expected a list of names")
    names = [name.strip() for name in names if name.strip()]
    names = names[1:] if names[:1] == ["background"] else names
    if not 0 < len(names) < VOID or len(set(names)) != len(names):
        raise UserError(f"class names {path}: expected 1 to {VOID - 1} names, each once")
    return names


def label_file(root: Path, names: Sequence[str]) -> Path:
    """The file of image labels in a data set.

    Raises:
        UserError: there is none.
    """
    path = _first(root, names)
    if not path.is_file():
        raise UserError(
            f"{root} has no image labels; expected {ANNOTATIONS}/ (VOC) or one of "
            f"{', '.join(names)}"
        )
    return path


def _key_of_number(number: int) -> str:
    """ "2007_000032" of 2007000032, as label files of VOC number its images."""
    text = str(number)
    return f"{text[:4]}_{text[4:]}" if len(text) == 10 else text


def _first(root: Path, names: Sequence[str]) -> Path:
    """The first of the paths that exists, else the first of all."""
    return next((root / name for name in names if (root / name).exists()), root / names[0])


def names_in(folder: Path) -> set[str]:
    """Names of the entries of a folder; none where there is no such folder."""
    try:
        return {name for name in os.listdir(folder) if not name.startswith(".")}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror}") from error


def _png_depth(path: Path) -> int:
    with open(path, "rb") as file:
        return file.read(_PNG_DEPTH + 1)[_PNG_DEPTH]
