"""One small set of pictures, written in each of the three layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from core.data.imagenet_s import mask_path
from core.data.label_maps import IGNORE, save_label
from core.synthetic.voc import palette_png

CLASSES = 3
KEYS = ("2007_000001", "2007_000002", "2007_000003", "2007_000004")
COCO_KEYS = tuple(f"{index:012d}" for index in range(1, len(KEYS) + 1))


def picture(seed: int, size_hw: tuple[int, int] = (41, 53)) -> Image.Image:
    """A noisy picture, another one for each seed."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (*size_hw, 3)).astype(np.uint8))


def truth(index: int) -> np.ndarray:
    """int32 (41, 53) of picture ``index``: two or three objects and an ignored strip."""
    ids = np.zeros((41, 53), np.int32)
    ids[4:20, 5:25] = index % CLASSES + 1
    ids[22:38, 20:50] = (index + 1) % CLASSES + 1
    ids[18:24] = IGNORE
    return ids


def prediction(index: int) -> np.ndarray:
    """int32 (41, 53): the truth moved by three pixels, 0 where it was ignored."""
    return np.roll(np.where(truth(index) == IGNORE, 0, truth(index)), 3, axis=1)


def annotation(key: str, names: list[str], box: str = "1 1 20 20", **extra: str) -> str:
    """A VOC annotation of objects of these classes, all with one box."""
    ends = zip(("xmin", "ymin", "xmax", "ymax"), box.split())
    inside = "".join(f"<{name}>{value}</{name}>" for name, value in ends)
    objects = "".join(
        f"<object><name>{name}</name><difficult>{extra.get('difficult', 0)}</difficult>"
        f"<bndbox>{inside}</bndbox></object>"
        for name in names
    )
    size = "<size><width>53</width><height>41</height></size>"
    return f"<annotation><filename>{key}.jpg</filename>{size}{objects}</annotation>"


def write_voc(root: Path, split: str = "val") -> Path:
    """The pictures in VOC form; the classes are one, two, three."""
    names = ["one", "two", "three"]
    for folder in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("one\ntwo\nthree\n")
    (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(KEYS))
    for index, key in enumerate(KEYS):
        picture(index).save(root / "JPEGImages" / f"{key}.jpg", quality=95)
        ids = np.where(truth(index) == IGNORE, 255, truth(index)).astype(np.uint8)
        (root / "SegmentationClass" / f"{key}.png").write_bytes(palette_png(ids))
        shown = [names[i - 1] for i in np.unique(ids) if i not in (0, 255)]
        (root / "Annotations" / f"{key}.xml").write_text(annotation(key, shown))
    return root


def write_coco(root: Path) -> Path:
    """The same in COCO's form, with masks in 8-bit grey."""
    for folder in ("val2014", "coco_seg_anno", "ImageSets"):
        (root / folder).mkdir(parents=True)
    (root / "classes.json").write_text('["one", "two", "three"]')
    (root / "ImageSets" / "val2014.txt").write_text("".join(f"{key}\r\n" for key in COCO_KEYS))
    for index, key in enumerate(COCO_KEYS):
        picture(index).save(root / "val2014" / f"COCO_val2014_{key}.jpg", quality=95)
        ids = np.where(truth(index) == IGNORE, 255, truth(index)).astype(np.uint8)
        Image.fromarray(ids).save(root / "coco_seg_anno" / f"{key}.png")
    return root


def write_imagenet_s(root: Path) -> Path:
    """The same in ImageNet-S form, spread over three class folders."""
    for index, key in enumerate(KEYS):
        name = f"{('one', 'three', 'two')[index % CLASSES]}/{key}"
        path = root / "validation" / f"{name}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(index).save(path, quality=95)
        save_label(mask_path(root, "validation", name), truth(index))
    return root


def write_predictions(folder: Path, keys: tuple[str, ...] | list[str]) -> Path:
    """The predictions of the pictures, in their order, under these keys."""
    for index, key in enumerate(keys):
        save_label(folder / f"{key}.png", prediction(index))
    return folder


def iou_by_hand(num_classes: int) -> np.ndarray:
    """(C+1,): IoU of the predictions over all pictures, ignored pixels left out, in plain numpy."""
    truths = np.concatenate([truth(index).ravel() for index in range(len(KEYS))])
    predicted = np.concatenate([prediction(index).ravel() for index in range(len(KEYS))])
    judged = truths != IGNORE
    truths, predicted = truths[judged], predicted[judged]
    return np.array(
        [
            ((truths == i) & (predicted == i)).sum() / ((truths == i) | (predicted == i)).sum()
            for i in range(num_classes + 1)
        ]
    )
