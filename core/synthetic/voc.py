"""A small generated data set in the VOC layout, to try weak supervision without downloading
anything.

Images show one to three objects of different classes (see ``core.synthetic.scenes``), half of the
pairs touching or overlapping. Masks are palette PNGs with a band of 255 around every object,
annotations name the objects and their boxes, lists are ``train`` and ``val`` in
ImageSets/Segmentation. Sizes are odd and vary; a few JPEGs are grey. The same seed gives the same
bytes with the pinned versions of Pillow and OpenCV.
"""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from core import log
from core.data.voc import ANNOTATIONS, IMAGES, MASKS, VOID
from core.errors import UserError
from core.synthetic.generated import generate, require_seed
from core.synthetic.scenes import KINDS, render_many

MIN_CLASSES, MAX_CLASSES = 5, len(KINDS)

# Rises whenever other pixels or files come out for the same settings.
_VERSION = 1
_GENERATOR = "core.synthetic.voc"
_LONG_SIDE = (100, 160)
_SHORT_PERCENT = (60, 100)
_BAND = 2  # pixels on either side of an object's outline that are ignored
_JPEG_QUALITY = 92
_GREY_EVERY = 7
_YEAR = {"train": 2007, "val": 2008}
_MAX_OBJECTS = 3


def make_dataset(
    root: Path, seed: int = 0, classes: int = 5, train: int = 20, val: int = 8
) -> Path:
    """Generate the data set at ``root`` unless it is there with these settings; returns ``root``.

    Built in a temporary folder beside ``root`` and renamed, so ``root`` is never half-made; one
    that was made with other settings, or lacks files, is replaced. ``classes.txt`` holds the names
    of the classes.

    Args:
        root: folder to make.
        seed: 0..2**32 - 1.
        classes: 5..10 classes.
        train, val: images of each list.

    Raises:
        UserError: a setting out of range, or ``root`` holds something that was not generated here.
    """
    root = Path(root)
    counts = {"train": train, "val": val}
    if not MIN_CLASSES <= classes <= MAX_CLASSES or min(counts.values()) < 1:
        raise UserError(
            f"expected {MIN_CLASSES}..{MAX_CLASSES} classes and at least one image in each list, "
            f"got {classes} classes and {counts}"
        )
    require_seed(seed)
    settings = {
        "generator": _GENERATOR,
        "version": _VERSION,
        "seed": seed,
        "classes": classes,
        "images": counts,
    }
    if generate(root, settings, lambda folder: _fill(folder, seed, classes, counts)):
        log.info("data", f"made {sum(counts.values())} images of {classes} classes at {root}")
    return root


def class_names(classes: int) -> list[str]:
    """Names of the classes 1..classes: the outlines of their objects."""
    return [kind.outline for kind in KINDS[:classes]]


def _fill(root: Path, seed: int, classes: int, counts: dict[str, int]) -> None:
    lists = root / "ImageSets" / "Segmentation"
    for folder in (root / IMAGES, root / MASKS[0], root / ANNOTATIONS, lists):
        folder.mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in class_names(classes)))
    for index, (split, count) in enumerate(counts.items()):
        keys = [f"{_YEAR[split]}_{number + 1:06d}" for number in range(count)]
        for number, key in enumerate(keys):
            # A generator for each picture: its pixels do not depend on how many others there are.
            rng = np.random.RandomState([seed, index, number])
            _make_image(root, key, number, classes, rng)
        (lists / f"{split}.txt").write_text("".join(f"{key}\n" for key in keys))


def _make_image(
    root: Path, key: str, number: int, classes: int, rng: np.random.RandomState
) -> None:
    """Write the picture, the mask and the annotation of one image; its first object's class takes
    turns, so that every class occurs.
    """
    height, width = _random_size(rng)
    others = [index for index in rng.permutation(classes).tolist() if index != number % classes]
    chosen = [number % classes, *others[: int(rng.randint(_MAX_OBJECTS))]]
    rgb, owners = render_many([KINDS[index] for index in chosen], height, width, rng)
    ids = np.array([0, *(index + 1 for index in chosen)], np.uint8)[owners]
    image = Image.fromarray(rgb)
    image = image.convert("L") if number % _GREY_EVERY == _GREY_EVERY - 1 else image
    image.save(root / IMAGES / f"{key}.jpg", "JPEG", quality=_JPEG_QUALITY)
    mask = _with_band(ids)
    (root / MASKS[0] / f"{key}.png").write_bytes(palette_png(mask))
    objects = {}
    for place, index in enumerate(chosen, 1):
        if (mask == index + 1).any():  # the others hide it, or the band does
            objects[KINDS[index].outline] = owners == place
    (root / ANNOTATIONS / f"{key}.xml").write_text(_annotation(key, objects, height, width))


def _random_size(rng: np.random.RandomState) -> tuple[int, int]:
    """(height, width), both odd, upright or lying."""
    long_side = int(rng.randint(_LONG_SIDE[0], _LONG_SIDE[1] + 1)) | 1
    short_side = long_side * int(rng.randint(_SHORT_PERCENT[0], _SHORT_PERCENT[1] + 1)) // 100 | 1
    return (long_side, short_side) if rng.randint(2) else (short_side, long_side)


def _with_band(ids: np.ndarray) -> np.ndarray:
    """The mask (H, W) uint8 with 255 where another id is not farther than the band."""
    square = np.ones((2 * _BAND + 1, 2 * _BAND + 1), np.uint8)
    return np.where(cv2.dilate(ids, square) != cv2.erode(ids, square), VOID, ids).astype(np.uint8)


def voc_palette() -> list[int]:
    """The 768 values of VOC's colour table: the bits of an id, spread over red, green and blue."""
    colours = np.zeros((256, 3), np.int64)
    for index in range(256):
        rest = index
        for shift in range(7, -1, -1):
            for channel in range(3):
                colours[index, channel] |= (rest >> channel & 1) << shift
            rest >>= 3
    return colours.reshape(-1).tolist()


def palette_png(ids: np.ndarray) -> bytes:
    """A palette PNG in VOC's colours whose pixels are ``ids`` (H, W) uint8."""
    image = Image.fromarray(ids)
    image.putpalette(voc_palette())
    buffer = io.BytesIO()
    # Stored without compression: Pillow's zlib does not give the same bytes on every machine.
    image.save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def _annotation(key: str, objects: dict[str, np.ndarray], height: int, width: int) -> str:
    """A VOC annotation; boxes count pixels from 1 and include their ends."""
    lines = [
        "<annotation>",
        f"\t<folder>generated</folder>\n\t<filename>{key}.jpg</filename>",
        f"\t<size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
        "\t<segmented>1</segmented>",
    ]
    for name, mask in objects.items():
        rows, columns = np.flatnonzero(mask.any(1)) + 1, np.flatnonzero(mask.any(0)) + 1
        box = (
            f"<xmin>{columns[0]}</xmin><ymin>{rows[0]}</ymin>"
            f"<xmax>{columns[-1]}</xmax><ymax>{rows[-1]}</ymax>"
        )
        lines += [
            "\t<object>",
            f"\t\t<name>{name}</name>\n\t\t<difficult>0</difficult>",
            f"\t\t<bndbox>{box}</bndbox>\n\t</object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])
