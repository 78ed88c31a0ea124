"""Weights and inputs of the golden files, from names and seeds, with numpy alone.

A golden file holds what the official code answered; what it was given is drawn here instead of
stored. Every draw is numpy's ``RandomState`` (the Mersenne Twister, whose numbers numpy promises
never to change), cast to float32 before it is scaled.
"""

from __future__ import annotations

import zlib

import numpy as np

#: Last parts of keys whose tables of positions are scaled by 0.2.
POSITION_TABLES = ("pos_embed", "rel_pos_h", "rel_pos_w", "attention_biases")

#: Parts of the keys of SAM's embeddings, which stay as drawn.
EMBEDDINGS = (
    "point_embeddings.",
    "not_a_point_embed.",
    "no_mask_embed.",
    "iou_token.",
    "mask_tokens.",
    "fbg.atten.0.weight",  # sees features of length one; smaller weights would flatten its map
)


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """One entry of a network's state.

    Args:
        key: the official name, without ``module.``; its CRC-32 is the seed.
        shape: of the entry, as in the official code.

    Returns:
        float32 of ``shape``; None for batch norms' counters, which take no part.
    """
    if key.endswith("num_batches_tracked"):
        return None
    drawn = _draw(zlib.crc32(key.encode()), tuple(int(n) for n in shape))
    if key.endswith("running_var"):
        return np.float32(1) + np.float32(0.1) * np.abs(drawn)
    if key.split(".")[-1] in POSITION_TABLES:
        return np.float32(0.2) * drawn
    if key.endswith("positional_encoding_gaussian_matrix"):
        return drawn
    if any(name in key for name in EMBEDDINGS):
        return drawn
    if key.endswith("fbg.threshold"):
        return np.float32(0.1) * drawn
    if len(shape) > 1:
        inputs = int(np.prod(shape[1:]))  # He's rule keeps the variance behind a ReLU
        return drawn * np.float32(np.sqrt(2.0 / inputs))
    gain = key.endswith(".weight")  # vectors that are weights belong to norms
    return np.float32(1) + np.float32(0.1) * drawn if gain else np.float32(0.1) * drawn


def normal(seed: int, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    """Normal noise of standard deviation ``scale``; float32 of ``shape``."""
    return _draw(seed, shape) * np.float32(scale)


def uniform(seed: int, shape: tuple[int, ...], lo: float = 0.0, hi: float = 1.0) -> np.ndarray:
    """Uniform noise in [lo, hi); float32 of ``shape``."""
    return np.random.RandomState(seed).uniform(lo, hi, shape).astype(np.float32)


def varied(seed: int, shape: tuple[int, int, int, int]) -> np.ndarray:
    """A batch (N, C, H, W) of float32 images that differ in colour, layout and contrast.

    The pooled features of white noise are nearly equal, and a batch norm over them would enlarge
    rounding errors. So each image is a colour, plus cells of 16 pixels, plus noise of its own
    strength (0.1 to 1).
    """
    n, c, h, w = shape
    random = np.random.RandomState(seed)
    colour = random.standard_normal((n, c, 1, 1))
    cells = random.standard_normal((n, c, -(-h // 16), -(-w // 16)))
    contrast = random.uniform(0.1, 1.0, (n, 1, 1, 1))
    noise = random.standard_normal(shape)
    layout = cells.repeat(16, axis=2).repeat(16, axis=3)[:, :, :h, :w]
    return (colour + layout + contrast * noise).astype(np.float32)


def image_u8(seed: int, height: int, width: int, cell: int = 24) -> np.ndarray:
    """An RGB image of coloured cells, six rectangles and noise below 32; uint8 (H, W, 3).

    It is made of integers alone, so it is the same to the last bit everywhere.
    """
    random = np.random.RandomState(seed)
    cells = random.randint(0, 160, (-(-height // cell), -(-width // cell), 3))
    image = cells.repeat(cell, axis=0).repeat(cell, axis=1)[:height, :width].copy()
    for _ in range(6):
        top, left = random.randint(0, height), random.randint(0, width)
        tall = random.randint(height // 8, height // 2 + 1)
        broad = random.randint(width // 8, width // 2 + 1)
        image[top : top + tall, left : left + broad] = random.randint(0, 224, 3)
    return (image + random.randint(0, 32, (height, width, 3))).astype(np.uint8)


def _draw(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    drawn = np.random.RandomState(seed).standard_normal(shape)
    return np.asarray(drawn).astype(np.float32)
