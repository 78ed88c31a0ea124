"""Pictures of the report: which images, and layers that lie where they should."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from core.data import rle
from core.data.imagenet_s import ImageItem
from core.pictures import label_colours
from tools.report import gallery, pictures
from tools.report.label_scores import SplitScores


def test_a_large_split_shows_the_worst_the_most_changed_and_the_rest() -> None:
    items = [ImageItem(Path(f"{n:03d}.jpg"), f"{n:03d}") for n in range(300)]
    gains = {item.key: {"before": 0.5, "after": 0.5} for item in items}
    gains["007"] = {"before": 0.0, "after": 0.0}
    gains["205"] = {"before": 0.1, "after": 0.9}
    judgement = SplitScores({}, np.zeros((1, 1)), gains, True)
    chosen = [item.key for item in gallery.choose(items, judgement, 30)]
    assert len(chosen) == len(set(chosen)) == 30 and chosen == sorted(chosen)
    assert {"007", "205"} <= set(chosen)
    spread = [int(item.key) for item in gallery.choose(items, None, 30)]
    assert np.diff(spread).max() <= 10
    assert gallery.choose(items, None, 0) == []


def test_layers_hold_the_palettes_colours_and_clear_background() -> None:
    label = np.zeros((40, 60), np.int32)
    label[10:30, 10:30] = 4
    label[10:30, 40:] = 1000
    content = base64.b64decode(pictures.label_layer(label).partition(",")[2])
    rgba = np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))
    assert rgba.shape == (40, 60, 4)
    assert tuple(rgba[20, 20, :3]) == tuple(label_colours(5)[4]) and 0 < rgba[20, 20, 3] < 255
    assert rgba[10, 20, 3] == 255  # the outline
    assert tuple(rgba[20, 50, :3]) == (255, 255, 255)
    assert not rgba[:8, :, 3].any() and not rgba[:, :8, 3].any()


def test_masks_in_a_layer_lie_where_they_are_and_small_ones_on_top() -> None:
    left = rle.decode(rle.encode(np.arange(900)[None] < np.full((500, 1), 450)))
    corner = np.zeros((500, 900), bool)
    corner[:100, :90] = True
    uri = pictures.mask_layer(iter([left, corner]), (500, 900))
    content = base64.b64decode(uri.partition(",")[2])
    rgba = np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))
    assert rgba.shape == (222, 400, 4)
    assert not rgba[:, 205:, 3].any()
    assert tuple(rgba[150, 100, :3]) == tuple(label_colours(3)[1])
    assert tuple(rgba[20, 20, :3]) == tuple(label_colours(3)[2])


def test_many_ids_in_one_layer() -> None:
    label = np.arange(400, dtype=np.int32).reshape(20, 20)
    content = base64.b64decode(pictures.label_layer(label).partition(",")[2])
    rgba = np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))
    assert np.array_equal(rgba[..., :3].reshape(-1, 3), label_colours(400))
