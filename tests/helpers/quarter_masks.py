"""Small photographs, and masks that cost nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core.data import rle
from core.data.label_maps import save_label

SIZES = ((40, 56), (61, 45), (50, 50))


def write_photographs(data: Path, split: str, count: int, masks: bool = False) -> list[str]:
    """``count`` images of a bright square on noise, in class folders by its colour, blue or red.

    With ``masks``, their ground truth goes to ``<split>-segmentation``: 1 = blue, 2 = red.

    Returns:
        the keys, sorted.
    """
    rng = np.random.default_rng(len(split) + count)
    keys = []
    for index in range(count):
        height, width = SIZES[index % len(SIZES)]
        pixels = rng.integers(0, 80, (height, width, 3), dtype=np.uint8)
        truth = np.zeros((height, width), np.int32)
        square = np.s_[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4]
        pixels[square][..., 0 if index % 2 else 2] = 250
        truth[square] = 1 + index % 2
        key = f"{('blue', 'red')[index % 2]}/image{index}"
        path = data / split / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        if masks:
            save_label(data / f"{split}-segmentation" / f"{key}.png", truth)
        keys.append(key)
    return sorted(keys)


class QuarterMasks:
    """A mask source that cuts every image into its central half and the upper left quarter."""

    def __init__(self) -> None:
        self.fingerprint: dict[str, Any] = {"masks": "quarters"}
        self.generated: list[tuple[int, int]] = []
        self.prompted: list[np.ndarray] = []
        self.encoding_s = 0.0

    def generate(self, rgb: np.ndarray) -> list[rle.Record]:
        height, width = rgb.shape[:2]
        self.generated.append((height, width))
        masks = np.zeros((2, height, width), dtype=bool)
        masks[0, : height // 2, : width // 2] = True
        masks[1, height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = True
        return [{"segmentation": rle.encode(mask), "area": int(mask.sum())} for mask in masks]

    def prompt(self, rgb: np.ndarray, points_xy: np.ndarray, signs: np.ndarray) -> np.ndarray:
        self.prompted.append(points_xy)
        mask = np.zeros(rgb.shape[:2], dtype=bool)
        mask[:5, :7] = True
        return mask
