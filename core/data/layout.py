"""Data sets have a layout: where images, masks, lists and class names lie, and how masks are read.

Three layouts are known; :func:`open_layout` tells them apart by their folders.

* ImageNet-S (``core.data.imagenet_s``): ``train/<class>/*.JPEG``, ``validation-segmentation/...``
* Pascal VOC (``core.data.voc``): ``JPEGImages/``, ``SegmentationClass/``, ``ImageSets/...``
* COCO 2014 in VOC form (``core.data.coco``): ``train2014/``, ``val2014/``, ``coco_seg_anno/``

Whatever the layout, a truth is an int32 map (H, W) of class ids 1..C, 0 for background and
:data:`core.data.label_maps.IGNORE` for pixels that do not count.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from core.data.coco import Coco, is_coco
from core.data.image_labels import ImageLabels
from core.data.imagenet_s import ImageNetS, scan_folder
from core.data.items import ImageItem
from core.data.label_maps import require_class_count
from core.data.voc import IMAGES, Voc, find_lists, is_voc
from core.errors import UserError

# Splits with masks by which a threshold is chosen or a method scored, by layout.
_VALIDATION = ("validation", "val", "val2014")


class Layout(Protocol):
    """A data set on disk. Layouts are small frozen values: worker processes get them as they are.

    Every method raises :class:`UserError` for files that are missing, broken or contradict each
    other, and names the file.
    """

    @property
    def root(self) -> Path:
        """The folder of the data set."""

    def splits(self) -> list[str]:
        """Names of the splits that there are, sorted."""

    def images(self, split: str) -> list[ImageItem]:
        """The images of a split, sorted by key, at least one; keys are unique."""

    def has_truth(self, split: str) -> bool:
        """Whether the split has masks; False where there is no such split."""

    def truth_folder(self, split: str) -> Path:
        """The folder in which the masks of a split are looked for, whether it exists or not."""

    def truth_path(self, split: str, key: str) -> Path:
        """The file of the mask of an image, whether it exists or not."""

    def truth(self, split: str, key: str) -> np.ndarray:
        """int32 (H, W): the mask of an image: 0, class ids 1..C, or IGNORE."""

    def class_names(self, split: str | None = None) -> list[str]:
        """Names of the classes 1..C, without background; ``split`` matters where splits differ."""


def open_layout(data: Path) -> Layout:
    """The data set in a folder.

    >>> layout = open_layout(Path("/data/VOC2012"))
    >>> layout.splits()
    ['train', 'train_aug', 'trainval', 'val']
    >>> layout.images("val")[0].key
    '2007_000033'

    Raises:
        UserError: no folder, or none of a known layout.
    """
    data = Path(data)
    if not data.is_dir():
        raise UserError(
            f"data folder {data} does not exist; give one that holds train/ (ImageNet-S), "
            f"{IMAGES}/ (VOC) or train2014/ (COCO)"
        )
    if is_coco(data):
        return Coco(data)
    if is_voc(data):
        if not find_lists(data):
            raise UserError(
                f"{data} has {IMAGES}/ but no list of a split; expected "
                "ImageSets/Segmentation/train.txt, val.txt, ..."
            )
        return Voc(data)
    if not scan_folder(data)[1]:
        raise UserError(
            f"{data} is no data set: it has no folder; expected train/ (ImageNet-S), {IMAGES}/ and "
            "ImageSets/ (VOC) or train2014/ (COCO)"
        )
    return ImageNetS(data)


def class_count(data: Path, split: str, asked: int | None) -> int:
    """The number of classes that -c asks for; without it, that of the class names of a split.

    Raises:
        UserError: a number that label maps cannot hold, or nothing to count.
    """
    if asked is not None:
        return require_class_count(asked)
    return len(open_layout(data).class_names(split))


def validation_split(layout: Layout) -> str:
    """The split to score on where none was named: "validation", "val" or "val2014"."""
    found = layout.splits()
    return next((name for name in _VALIDATION if name in found), _VALIDATION[0])


def image_labels(layout: Layout, split: str) -> ImageLabels:
    """Key -> sorted class ids 1..C of the annotated images of a split.

    Raises:
        UserError: a layout without image labels, or broken ones.
    """
    if isinstance(layout, (Voc, Coco)):
        return layout.image_labels(split)
    raise UserError(f"{layout.root} has no image labels: expected a set in VOC or COCO form")
