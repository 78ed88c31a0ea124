"""Enlarges the decoder's low-resolution logits to the image's size, one mask at a time (numpy and
scipy only).

The official post-processing interpolates every mask to the encoder's 1024 x 1024, cuts off the
padding, and interpolates again to the image's size. Both steps are linear and separable. So their
product is a sparse matrix for each axis, with at most four entries in a row. It gives the same
numbers, up to rounding, without an array of 1024 x 1024, and only for the masks that are wanted.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse


class MaskUpscaler:
    """Logits (low, low) -> logits (H, W) of one image.

    Args:
        low_size: side of the decoder's square output (256 for the official models).
        image_size: side of the encoder's square input (1024).
        input_size_hw: size of the resized image inside that square, before padding.
        original_size_hw: size of the image, (H, W).
    """

    def __init__(
        self,
        low_size: int,
        image_size: int,
        input_size_hw: tuple[int, int],
        original_size_hw: tuple[int, int],
    ) -> None:
        enlarge = _bilinear(low_size, image_size)
        rows, columns = (
            _bilinear(inside, outside) @ enlarge[:inside]
            for inside, outside in zip(input_size_hw, original_size_hw)
        )
        self._rows, self._columns = sparse.csr_matrix(rows), sparse.csr_matrix(columns)

    def __call__(self, low_res_logits: np.ndarray) -> np.ndarray:
        """float32 (low, low) -> float32 (H, W) in Fortran order, the order of COCO run lengths."""
        return (self._columns @ np.ascontiguousarray((self._rows @ low_res_logits).T)).T


def _bilinear(old: int, new: int) -> sparse.csr_matrix:
    """float32 (new, old) matrix of PyTorch's bilinear interpolation of one axis, align_corners
    False.

    Source positions are rounded to float32 as there: at size 1024 that moves the weights by up to
    6e-5.
    """
    half = np.float32(0.5)
    step = np.float32(old) / np.float32(new)
    source = np.maximum(step * (np.arange(new, dtype=np.float32) + half) - half, np.float32(0))
    left = np.minimum(source.astype(np.int64), old - 1)
    right = np.minimum(left + 1, old - 1)
    share = (source - left).astype(np.float32)
    rows = np.tile(np.arange(new), 2)
    columns = np.concatenate([left, right])
    values = np.concatenate([np.float32(1) - share, share])
    return sparse.csr_matrix((values, (rows, columns)), shape=(new, old), dtype=np.float32)
