"""Resizes images and prompts as SAM expects them: the longest side gets the encoder's size (numpy
and Pillow only).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image


class ResizeLongestSide:
    """Resize images, points and boxes so that the longest side becomes ``target_length`` pixels."""

    def __init__(self, target_length: int) -> None:
        self.target_length = target_length

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) -> uint8 (h, w, 3) with Pillow's (antialiased) bilinear filter."""
        h, w = self.get_preprocess_shape(image.shape[0], image.shape[1], self.target_length)
        return np.array(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR))

    def apply_coords(self, coords: np.ndarray, original_size: tuple[int, int]) -> np.ndarray:
        """Points (..., 2) as (x, y) of the original image -> float64 points of the resized one."""
        old_h, old_w = original_size
        new_h, new_w = self.get_preprocess_shape(old_h, old_w, self.target_length)
        return np.asarray(coords, np.float64) * np.array([new_w / old_w, new_h / old_h])

    def apply_boxes(self, boxes: np.ndarray, original_size: tuple[int, int]) -> np.ndarray:
        """xyxy boxes (N, 4) of the original image -> float64 boxes (N, 4) of the resized one."""
        return self.apply_coords(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)

    def apply_coords_torch(self, coords: Any, original_size: tuple[int, int]) -> np.ndarray:
        """:meth:`apply_coords` under its official name for tensors, float32; Vars or arrays."""
        return self.apply_coords(to_numpy(coords), original_size).astype(np.float32)

    def apply_boxes_torch(self, boxes: Any, original_size: tuple[int, int]) -> np.ndarray:
        """:meth:`apply_boxes` under its official name for tensors, float32; Vars or arrays."""
        return self.apply_boxes(to_numpy(boxes), original_size).astype(np.float32)

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        """(h, w) after the resize, each rounded half up."""
        scale = long_side_length * 1.0 / max(oldh, oldw)
        return int(oldh * scale + 0.5), int(oldw * scale + 0.5)


def to_numpy(values: Any) -> np.ndarray:
    """The values of a Var, or anything that numpy takes, without starting Jittor."""
    return values.numpy() if hasattr(values, "numpy") else np.asarray(values)
