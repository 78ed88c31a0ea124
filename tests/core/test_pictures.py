"""Colours stay with their ids; overlays and sheets have the right shape and content."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from core.data.label_maps import IGNORE
from core.pictures import SheetRow, colour_label, label_colours, overlay, picture_sheet


def test_colours_are_fixed_and_distinct():
    many = label_colours(51)
    assert np.array_equal(many[:5], label_colours(5))
    assert len(np.unique(many, axis=0)) == 51 and not many[0].any()


def test_first_ten_colours_differ_without_red_green_vision():
    # A dichromat's signals, roughly: luminance, and blue against yellow.
    colours = label_colours(11)[1:].astype(float)
    luminance = colours @ [0.3, 0.59, 0.11]
    blue = colours[:, 2] - colours[:, :2].mean(1)
    seen = np.stack([luminance, blue / 2], 1)
    distance = np.linalg.norm(seen[:, None] - seen[None], axis=2)
    assert distance[~np.eye(10, dtype=bool)].min() > 12


def test_ignored_pixels_are_white():
    picture = colour_label(np.array([[0, 1, IGNORE]]))
    assert picture.tolist() == [[[0, 0, 0], [230, 159, 0], [255, 255, 255]]]


def test_overlay_tints_regions_only():
    rgb = np.full((12, 12, 3), 200, np.uint8)
    label = np.zeros((12, 12), np.int32)
    label[3:9, 3:9] = 2
    picture = overlay(rgb, label)
    assert picture.dtype == np.uint8 and picture[0, 0].tolist() == [110, 110, 110]
    assert picture[3, 3].tolist() == label_colours(3)[2].tolist()
    assert picture[6, 6].tolist() == np.round(0.4 * 200 + 0.6 * label_colours(3)[2]).tolist()
    with pytest.raises(ValueError, match="differ in size"):
        overlay(rgb, label[:5])


def test_sheet_has_a_cell_for_each_column(tmp_path):
    image = np.full((30, 60, 3), 90, np.uint8)
    label = np.zeros((30, 60), np.int32)
    label[10:20, 10:40] = 1
    rows = [SheetRow("cat/a", (image, label, None, label)), SheetRow("b", (image,) * 4)]
    picture_sheet(rows, tmp_path / "sheet.png", cell_hw=(40, 50))
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (30 + 2 * 70, 8 + 4 * 58, 3)
    first, empty = pixels[30:70, 8:58], pixels[30:70, 124:174]
    assert (first == 90).any() and (empty == 255).all()
    with pytest.raises(ValueError, match="4 cells"):
        picture_sheet([SheetRow("a", (image,))], tmp_path / "bad.png")
