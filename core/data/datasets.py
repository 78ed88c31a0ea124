"""Data sets of the stages: what one sample is; :mod:`core.data.loader` makes batches of them.

Each has ``len``, ``get(index, rng)`` -> tuple of arrays of fixed shapes, and ``path(index)``, the
image file.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from core.data import crops
from core.data.image_labels import ImageLabels, label_vector
from core.data.imagenet_s import ImageItem
from core.data.images import load_rgb
from core.data.label_maps import load_label
from core.errors import UserError

Images = TypeVar("Images", bound="ImageDataset")


class ImageDataset:
    """Base of the data sets below: a list of images."""

    def __init__(self, items: Sequence[ImageItem]) -> None:
        self.items: Sequence[ImageItem] | Mapping[int, ImageItem] = items

    def __len__(self) -> int:
        return len(self.items)

    def only(self: Images, index: int) -> Images:
        """This data set with one image, under its index: little to hand to another process."""
        part = copy.copy(self)
        part.items = {index: self.items[index]}
        return part

    def path(self, index: int) -> Path:
        """The image file of a sample."""
        return self.items[index].path


class EvalDataset(ImageDataset):
    """Images for clustering: shorter side to ``resize`` (or squashed square), then central crop."""

    def __init__(
        self, items: Sequence[ImageItem], resize: int = 256, crop: int = 224, square: bool = False
    ) -> None:
        super().__init__(items)
        self.resize = crops.resize_square if square else crops.resize_short_side
        self.resize_to = resize
        self.crop = crop

    def get(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """(float32 (3, crop, crop), int64 index of the image that these pixels come from).

        The index tells a caller that must not mix images up where a broken one was replaced by the
        next.
        """
        del rng  # nothing is random here
        rgb = load_rgb(self.path(index))
        try:
            scaled = self.resize(rgb, self.resize_to)
        except UserError as error:
            raise UserError(f"{self.path(index)}: {error}") from error
        return crops.normalise(crops.center_crop(scaled, self.crop)), np.asarray(index, np.int64)


class JointDataset(ImageDataset):
    """Images with their pseudo labels for fine-tuning: the same random crop of both.

    Args:
        items: the images.
        label_dir: folder with ``<key>.png`` label maps; one of another size than its image is
            resized to it (nearest), as labels may have been made on a smaller grid.
        size: side of the crops in pixels.
        min_scale: smallest area of a crop relative to the image.
    """

    def __init__(
        self, items: Sequence[ImageItem], label_dir: Path, size: int, min_scale: float = 0.08
    ) -> None:
        super().__init__(items)
        self.label_dir = Path(label_dir)
        self.joint_crop = crops.JointCrop(size, min_scale)

    def get(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """(float32 (3, size, size), int32 label map (size, size))."""
        item = self.items[index]
        rgb = load_rgb(item.path)
        label = load_label(self.label_dir / f"{item.key}.png")
        height, width = rgb.shape[:2]
        return self.joint_crop(rgb, crops.resize_nearest(label, (height, width)), rng)


class ClassesDataset(ImageDataset):
    """Images with the classes that they show: a random crop, mirrored or not, of each.

    Args:
        items: the images.
        labels: key -> classes 1..C; of the whole image, whatever the crop shows.
        num_classes: C.
        size: side of the crops in pixels.
        min_scale: smallest area of a crop relative to the image.
    """

    def __init__(
        self,
        items: Sequence[ImageItem],
        labels: ImageLabels,
        num_classes: int,
        size: int,
        min_scale: float,
    ) -> None:
        super().__init__(items)
        self._labels, self._num_classes = labels, num_classes
        self._crop = crops.JointCrop(size, min_scale)

    def get(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """(float32 (3, size, size), float32 (C,) of zeros and ones)."""
        item = self.items[index]
        rgb = load_rgb(item.path)
        image, _ = self._crop(rgb, np.zeros(rgb.shape[:2], np.int32), rng)
        return image, label_vector(self._labels[item.key], self._num_classes)
