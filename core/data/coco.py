"""COCO 2014 as a segmentation data set in VOC form, as P-NOC and others use it.

::

    train2014/COCO_train2014_<id>.jpg, val2014/COCO_val2014_<id>.jpg    or all in JPEGImages/
    coco_seg_anno/<id>.png         masks: 0 background, 1..80, 255 ignored; palette or 8-bit grey
    ImageSets/<split>.txt          lists of ids; without them every folder of images is a split
    cls_labels_coco.npy            image labels; see core.data.image_labels for its forms
    classes.json                   names of the classes, where they are not COCO's 80

A key is an image's id with its zeros, "000000000042"; a list may also name files. The classes are
numbered 1..80 without the gaps of COCO's own category ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.data.image_labels import ImageLabels, read_label_file
from core.data.items import ImageItem
from core.data.voc import (
    IMAGES,
    LABEL_FILES,
    files_by_key,
    find_lists,
    label_file,
    list_path,
    listed_items,
    load_id_mask,
    names_in,
    read_list,
    stated_names,
)
from core.errors import UserError

MASKS = "coco_seg_anno"
FOLDERS = ("train2014", "val2014")
CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat"),
    *("dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack"),
    *("umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball"),
    *("kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket"),
    *("bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair"),
    *("couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse"),
    *("remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink"),
    *("refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier"),
    "toothbrush",
)

_LABEL_FILES = ("cls_labels_coco.npy", "cls_labels_coco.npz", *LABEL_FILES)
_DIGITS = 12


def is_coco(root: Path) -> bool:
    """Whether a folder has the folders of this layout."""
    return (root / MASKS).is_dir() or any((root / name).is_dir() for name in FOLDERS)


@dataclass(frozen=True)
class Coco:
    """A data set in this layout; see :class:`core.data.layout.Layout`."""

    root: Path

    def splits(self) -> list[str]:
        """Names of the lists; without any, those of the folders of images."""
        lists = sorted(find_lists(self.root))
        return lists or [name for name in FOLDERS if (self.root / name).is_dir()]

    def ids(self, split: str) -> list[str]:
        """The ids that a list names, in its order; without lists, those of a folder's images.

        Raises:
            UserError: no such split, or a list that is empty or names an image twice.
        """
        if find_lists(self.root) or split not in self.splits():
            return read_list(list_path(self.root, split))
        ids = sorted(files_by_key(self.root / split))
        if not ids:
            raise UserError(f"no images in {self.root / split}: expected COCO_{split}_<id>.jpg")
        return ids

    def images(self, split: str) -> list[ImageItem]:
        """The images of a split, sorted by key.

        Raises:
            UserError: no such split, a broken list, or one that names a missing image.
        """
        listed = find_lists(self.root).get(split, self.root / split)
        return listed_items(listed, self.ids(split), self.files(split), self.root)

    def files(self, split: str) -> dict[str, Path]:
        """Key -> image file of the folder with the split's name, or else of all folders."""
        files: dict[str, Path] = {}
        own = self.root / split
        for folder in [own] if own.is_dir() else self._image_folders():
            files = {**files_by_key(folder), **files}
        return files

    def has_truth(self, split: str) -> bool:
        """Whether every image of the split has a mask; False where there is no such split."""
        if split not in self.splits():
            return False
        masks = names_in(self.root / MASKS)
        return all(f"{key}.png" in masks for key in self.ids(split))

    def truth_folder(self, split: str) -> Path:
        """``coco_seg_anno``, for every split."""
        return self.root / MASKS

    def truth_path(self, split: str, key: str) -> Path:
        """``coco_seg_anno/<key>.png``, whether it exists or not."""
        return self.root / MASKS / f"{key}.png"

    def truth(self, split: str, key: str) -> np.ndarray:
        """int32 (H, W): see :func:`core.data.voc.load_id_mask`."""
        return load_id_mask(self.truth_path(split, key))

    def class_names(self, split: str | None = None) -> list[str]:
        """COCO's eighty, or those that the data set states; the same for every split."""
        return stated_names(self.root) or list(CLASSES)

    def has_image_labels(self) -> bool:
        """Whether there is a label file."""
        return any((self.root / name).exists() for name in _LABEL_FILES)

    def image_labels(self, split: str) -> ImageLabels:
        """Key -> sorted class ids of the images of a split that the label file knows; () where an
        image shows no object.

        Raises:
            UserError: no label file, or a broken one.
        """
        labels = self.label_file_content()
        return {key: labels[key] for key in sorted(self.ids(split)) if key in labels}

    def label_file_content(self) -> ImageLabels:
        """All labels of the label file, of every split.

        Raises:
            UserError: none, or a broken one.
        """
        path = label_file(self.root, _LABEL_FILES)
        return read_label_file(path, self.class_names(), _key_of_number)

    def mask_folders(self) -> list[Path]:
        """The folders of masks that there are."""
        return [self.root / MASKS] if (self.root / MASKS).is_dir() else []

    def _image_folders(self) -> list[Path]:
        folders = [self.root / name for name in (*FOLDERS, IMAGES)]
        return [folder for folder in folders if folder.is_dir()] or [self.root / IMAGES]


def _key_of_number(number: int) -> str:
    return f"{number:0{_DIGITS}d}"
