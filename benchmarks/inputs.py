"""Deterministic arrays that fill both sides of a case: noise, and weights by their names."""

from __future__ import annotations

import zlib

import numpy as np


def noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """float32 standard normal values."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def random_weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 value of a weight that depends on its name only and keeps activations near one."""
    values = noise(zlib.crc32(key.encode()), shape)
    if len(shape) < 2:
        return np.float32(key.endswith(".weight")) + np.float32(0.1) * values
    if key.endswith(("pos_embed", "rel_pos_h", "rel_pos_w")):
        return np.float32(0.2) * values
    return values * np.float32(np.prod(shape[1:]) ** -0.5)
