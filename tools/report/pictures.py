"""Small pictures for the page, as data URIs: photographs, and layers that lie over them."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Iterable

import cv2
import numpy as np
from PIL import Image

from core.data.label_maps import IGNORE
from core.pictures import heat, label_colours

SIDE = 400  # pixels of the longer side
_QUALITY = 74
_FILL, _RIM = 150, 255  # opacity of a region and of its outline
_WHITE = (255, 255, 255)
# Masks have no class: colours only separate neighbours, and are used again after so many.
_MASK_COLOURS = 60
_PALETTE = 256


def small_size(size_hw: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a picture for an image of this size; never larger than it."""
    scale = min(1.0, SIDE / max(size_hw))
    return max(1, round(size_hw[0] * scale)), max(1, round(size_hw[1] * scale))


def photo(rgb: np.ndarray) -> str:
    """Data URI of a uint8 RGB image (H, W, 3) at :func:`small_size`."""
    height, width = small_size((rgb.shape[0], rgb.shape[1]))
    return _webp(cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA))


def label_layer(label: np.ndarray) -> str:
    """Data URI of a label map (H, W) as a layer: regions tinted and outlined in the colours of
    their ids, background clear, ignored pixels white.
    """
    height, width = small_size((label.shape[0], label.shape[1]))
    small = cv2.resize(label.astype(np.uint16), (width, height), interpolation=cv2.INTER_NEAREST)
    rim = cv2.morphologyEx(small, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    ids, places = np.unique(small, return_inverse=True)
    colours = label_colours(int(max(ids[ids != IGNORE], default=0)) + 1)
    rgb = [_WHITE if i == IGNORE else tuple(colours[i].tolist()) for i in ids]
    index = 2 * places.reshape(small.shape) + rim
    entries = [
        (*colour, 0 if i == 0 else opacity)
        for i, colour in zip(ids, rgb)
        for opacity in (_FILL, _RIM)
    ]
    return _png(index, np.array(entries, np.uint8))


def mask_layer(masks: Iterable[np.ndarray], size_hw: tuple[int, int]) -> str:
    """Data URI of masks (H, W) bool, largest first, as a layer; colours only tell them apart."""
    height, width = small_size(size_hw)
    label = np.zeros((height, width), np.int32)
    for index, mask in enumerate(masks):
        small = cv2.resize(mask.view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
        label[np.asarray(small) > 0] = 1 + index % _MASK_COLOURS
    return label_layer(label)


def attention_picture(rgb: np.ndarray, attention: np.ndarray) -> str:
    """Data URI of a map (h, w) over a uint8 RGB image (H, W, 3): its lowest value blue, its highest
    yellow.
    """
    height, width = small_size((rgb.shape[0], rgb.shape[1]))
    level = np.asarray(cv2.resize(attention.astype(np.float32), (width, height)))
    low, high = float(level.min()), float(level.max())
    spread = (level - low) / max(high - low, 1e-6)
    grey = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA).mean(axis=2)
    mixed = 0.7 * heat(spread) + 0.3 * grey[..., None]
    return _webp(mixed.round().astype(np.uint8))


@functools.cache
def hex_colour(index: int) -> str:
    """The palette's colour of an id as "#rrggbb"."""
    return "#" + bytes(label_colours(index + 1)[index].tolist()).hex()


def _webp(rgb: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, format="WEBP", quality=_QUALITY)
    return _uri("image/webp", file.getvalue())


def _png(index: np.ndarray, rgba: np.ndarray) -> str:
    """A PNG of palette indices (H, W) into ``rgba`` (N, 4); of four channels where N is large."""
    file = io.BytesIO()
    if len(rgba) <= _PALETTE:
        size = (index.shape[1], index.shape[0])
        picture = Image.frombytes("P", size, index.astype(np.uint8).tobytes())
        picture.putpalette(rgba[:, :3].tobytes())
        picture.save(file, format="PNG", transparency=rgba[:, 3].tobytes(), optimize=True)
    else:
        Image.fromarray(rgba[index]).save(file, format="PNG")
    return _uri("image/png", file.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
