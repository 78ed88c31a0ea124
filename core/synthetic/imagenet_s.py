"""A small generated data set in the ImageNet-S layout, to try the whole pipeline without
downloading anything.

Class folders ``n00000001``.. with textured objects on muted backgrounds (see
``core.synthetic.scenes``), odd sizes and aspect ratios, exact masks for validation and test, mostly
colour ``.JPEG`` files with a few ``.jpg``, ``.png``, gray and palette ones. The same seed gives the
same bytes with the pinned versions of Pillow and OpenCV.
"""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from core import log
from core.data.imagenet_s import mask_path
from core.data.label_maps import save_label
from core.errors import UserError
from core.synthetic.generated import MARKER as MARKER
from core.synthetic.generated import generate, require_seed
from core.synthetic.scenes import KINDS, render

MIN_CLASSES, MAX_CLASSES = 2, len(KINDS)

# Rises whenever other pixels or files come out for the same settings.
_VERSION = 1
_GENERATOR = "core.data.synthetic"
_LONG_SIDE = (120, 220)
_SHORT_PERCENT = (55, 100)
_JPEG_QUALITY = 92
_PALETTE_COLOURS = 128
_SPLITS = ("train", "validation", "test")


def make_dataset(
    root: Path,
    seed: int = 0,
    classes: int = 5,
    train: int = 12,
    validation: int = 4,
    test: int = 4,
) -> Path:
    """Generate the data set at ``root`` unless it is there with these settings; returns ``root``.

    Built in a temporary folder beside ``root`` and renamed, so ``root`` is never half-made; one
    that was made with other settings, or lacks files, is replaced.

    Args:
        root: folder of the splits ``train``, ``validation``, ``test`` and ``<split>-segmentation``
            of the latter two.
        seed: 0..2**32 - 1.
        classes: 2..10 classes.
        train, validation, test: images of each class.

    Raises:
        UserError: a setting out of range, or ``root`` holds something that was not generated here.
    """
    root = Path(root)
    counts = dict(zip(_SPLITS, (train, validation, test)))
    if not MIN_CLASSES <= classes <= MAX_CLASSES or min(counts.values()) < 1:
        raise UserError(
            f"expected {MIN_CLASSES}..{MAX_CLASSES} classes with at least one image each, "
            f"got {classes} classes and {counts}"
        )
    require_seed(seed)
    settings = {
        "generator": _GENERATOR,
        "version": _VERSION,
        "seed": seed,
        "classes": classes,
        "images_per_class": counts,
    }
    if generate(root, settings, lambda folder: _fill(folder, seed, classes, counts)):
        images = classes * sum(counts.values())
        log.info("data", f"made {images} images of {classes} classes at {root}")
    return root


def class_folder(index: int) -> str:
    """Folder name of the class with 0-based ``index``, in the form of a WordNet id."""
    return f"n{index + 1:08d}"


def _fill(root: Path, seed: int, classes: int, counts: dict[str, int]) -> None:
    for split_index, split in enumerate(_SPLITS):
        for class_index in range(classes):
            for number in range(counts[split]):
                # A generator for each picture: its pixels do not depend on how many others there
                # are. RandomState, because its stream is frozen for all versions of numpy.
                rng = np.random.RandomState([seed, split_index, class_index, number])
                key = f"{class_folder(class_index)}/{split}_{class_index + 1}_{number + 1:04d}"
                height, width = _random_size(rng)
                rgb, mask = render(KINDS[class_index], height, width, rng)
                _save_image(root / split / key, rgb, split, class_index, number)
                if split != "train":
                    ids = mask.astype(np.int32) * (class_index + 1)
                    save_label(mask_path(root, split, key), ids)


def _random_size(rng: np.random.RandomState) -> tuple[int, int]:
    """(height, width), upright or lying, of any aspect from about 1:2 to 2:1."""
    long_side = int(rng.randint(_LONG_SIDE[0], _LONG_SIDE[1] + 1))
    short_side = long_side * int(rng.randint(_SHORT_PERCENT[0], _SHORT_PERCENT[1] + 1)) // 100
    return (long_side, short_side) if rng.randint(2) else (short_side, long_side)


def _save_image(base: Path, rgb: np.ndarray, split: str, class_index: int, number: int) -> None:
    """Write a picture in a format that its place decides, as real data sets mix formats."""
    base.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(rgb)
    if (split, class_index, number) == ("train", 0, 3):
        data, suffix = _jpeg(image.convert("L")), ".JPEG"
    elif (split, class_index, number) == ("train", 1, 3):
        data, suffix = _palette_png(image), ".png"
    elif number % 6 == 5:
        # OpenCV's wheel has the classic zlib, whose output does not depend on the processor.
        data = cv2.imencode(".png", np.ascontiguousarray(rgb[..., ::-1]))[1].tobytes()
        suffix = ".png"
    else:
        data, suffix = _jpeg(image), ".jpg" if number % 6 == 2 else ".JPEG"
    Path(f"{base}{suffix}").write_bytes(data)


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _palette_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    reduced = image.quantize(
        _PALETTE_COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE
    )
    # Stored without compression, for the reason given above: Pillow's zlib is another one.
    reduced.save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()
