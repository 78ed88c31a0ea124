"""Pictures for people: label colours, overlays, and a sheet of results beside their images."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from core.data.label_maps import IGNORE
from core.files import atomic_write

# Okabe and Ito's palette, told apart under the common colour-vision deficiencies, plus two of
# clearly different lightness. Ids beyond these get evenly spread hues.
_FIRST_COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (120, 60, 20),
    (170, 255, 195),
    (90, 30, 130),
)
_BACKGROUND = (0, 0, 0)
_IGNORED = (255, 255, 255)
_GOLDEN_RATIO = 0.618034  # successive multiples spread hues evenly for any number of ids

_PAGE = (255, 255, 255)
_INK = (20, 20, 20)
_GAP = 8


@dataclass(frozen=True)
class SheetRow:
    """One row of a sheet: the image's name and its cells, as many as the sheet has headers.

    A cell is a uint8 RGB (H, W, 3) picture, a label map (H, W) of integers, which is laid over the
    row's first cell, or None for an empty place.
    """

    name: str
    cells: Sequence[np.ndarray | None]


def label_colours(num_ids: int) -> np.ndarray:
    """uint8 RGB (num_ids, 3): the colour of each id; an id has the same colour in every picture."""
    colours = [_BACKGROUND, *_FIRST_COLOURS]
    for index in range(len(colours), num_ids):
        lightness = (0.9, 0.65, 0.8)[index % 3]
        hue = index * _GOLDEN_RATIO % 1
        red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.55)[index // 3 % 2], lightness)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return np.array(colours[:num_ids], np.uint8)


def colour_label(label: np.ndarray) -> np.ndarray:
    """uint8 RGB (H, W, 3) of a label map: background black, ignored white."""
    ids = np.where(label == IGNORE, 0, label)
    picture = label_colours(int(ids.max()) + 1)[ids]
    picture[label == IGNORE] = _IGNORED
    return picture


def heat(level: np.ndarray) -> np.ndarray:
    """Values in 0..1 (H, W) as uint8 RGB (H, W, 3), from dark blue to light yellow: the lightness
    rises with the value, so that it can be read without colours too.
    """
    steps = np.clip(255 * level, 0, 255).astype(np.uint8)
    return cv2.applyColorMap(steps, cv2.COLORMAP_CIVIDIS)[..., ::-1]


def overlay(rgb: np.ndarray, label: np.ndarray, opacity: float = 0.6) -> np.ndarray:
    """uint8 RGB (H, W, 3): the regions of ``label`` (H, W) tinted and outlined, background dimmed.

    Raises:
        ValueError: the sizes differ.
    """
    if rgb.shape[:2] != label.shape:
        raise ValueError(f"image {rgb.shape[:2]} and label map {label.shape} differ in size")
    colours = colour_label(label).astype(np.float32)
    grey = rgb.mean(axis=2, keepdims=True)
    # Tints over grey read as the palette's colours, whatever the photograph's own colours are.
    tinted = (1 - opacity) * grey + opacity * colours
    mixed = np.where((label == 0)[..., None], 0.55 * rgb, tinted)
    narrow = label.astype(np.uint16)
    rim = cv2.morphologyEx(narrow, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    mixed[rim & (label > 0)] = colours[rim & (label > 0)]
    return mixed.round().astype(np.uint8)


def picture_sheet(
    rows: Sequence[SheetRow],
    path: Path,
    headers: Sequence[str] = ("image", "prediction", "refined", "truth"),
    cell_hw: tuple[int, int] = (180, 240),
) -> None:
    """Write a PNG with one row per image and one column per header; cells keep their aspect ratio.

    Raises:
        ValueError: no rows, or a row with another number of cells than there are headers.
    """
    if not rows or any(len(row.cells) != len(headers) for row in rows):
        raise ValueError(f"expected rows of {len(headers)} cells: {', '.join(headers)}")
    height, width = cell_hw
    font = ImageFont.load_default(size=15)
    line = 22
    page = Image.new(
        "RGB",
        (_GAP + len(headers) * (width + _GAP), line + _GAP + len(rows) * (height + line + _GAP)),
        _PAGE,
    )
    draw = ImageDraw.Draw(page)
    for column, header in enumerate(headers):
        draw.text((_GAP + column * (width + _GAP), _GAP // 2), header, fill=_INK, font=font)
    for index, row in enumerate(rows):
        top = line + _GAP + index * (height + line + _GAP)
        for column, picture in enumerate(_pictures(row)):
            if picture is not None:
                cell = _fit(picture, cell_hw)
                left = _GAP + column * (width + _GAP)
                page.paste(cell, (left, top + (height - cell.height) // 2))
        draw.text((_GAP, top + height + 1), row.name, fill=_INK, font=font)
    with atomic_write(path) as file:
        page.save(file, format="PNG")


def _pictures(row: SheetRow) -> list[np.ndarray | None]:
    """The row's cells as RGB pictures."""
    image = row.cells[0]
    pictures: list[np.ndarray | None] = []
    for cell in row.cells:
        if cell is None or cell.ndim == 3:
            pictures.append(cell)
        elif image is not None and image.ndim == 3:
            pictures.append(overlay(image, cell))
        else:
            pictures.append(colour_label(cell))
    return pictures


def _fit(picture: np.ndarray, cell_hw: tuple[int, int]) -> Image.Image:
    """The picture scaled to the largest size that fits the cell."""
    height, width = picture.shape[:2]
    scale = min(cell_hw[0] / height, cell_hw[1] / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)
