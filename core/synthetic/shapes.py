"""Outlines and textures of the synthetic objects, in whole numbers so that every machine draws the
same pixels.

Lengths are in units of 1/``UNIT`` of an object's radius, angles in steps of 1/``TURN`` of a turn.
Trigonometry is rounded to whole numbers before anything is computed with it, since its last bit
differs between machines.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

UNIT = 1024
TURN = 360
_POINTS = 120


def sine(step: int) -> int:
    """UNIT * sin of ``step`` / TURN of a turn, rounded."""
    return round(UNIT * math.sin(2 * math.pi * (step % TURN) / TURN))


def cosine(step: int) -> int:
    """UNIT * cos of ``step`` / TURN of a turn, rounded."""
    return sine(step + TURN // 4)


# --- outlines: lists of closed contours, each an int array (N, 2) of x, y; a second one is a hole


def _polar(radius: Callable[[float], float], points: int = _POINTS) -> np.ndarray:
    angles = [2 * math.pi * i / points for i in range(points)]
    return np.array(
        [
            (round(UNIT * radius(a) * math.cos(a)), round(UNIT * radius(a) * math.sin(a)))
            for a in angles
        ],
        np.int64,
    )


def _ellipse() -> list[np.ndarray]:
    return [_polar(lambda a: 0.74 / math.sqrt(1 - 0.45 * math.cos(a) ** 2))]


def _star() -> list[np.ndarray]:
    corners = _polar(lambda a: 1.0 if round(a * 10 / (2 * math.pi)) % 2 == 0 else 0.52, 10)
    return [corners]


def _box() -> list[np.ndarray]:
    return [_polar(lambda a: 0.86 * (abs(math.cos(a)) ** 7 + abs(math.sin(a)) ** 7) ** (-1 / 7))]


def _flower() -> list[np.ndarray]:
    return [_polar(lambda a: 0.84 + 0.16 * math.cos(6 * a))]


def _drop() -> list[np.ndarray]:
    angles = [2 * math.pi * i / _POINTS for i in range(_POINTS)]
    points = [(math.cos(a) + 0.15, 0.86 * math.sin(a) * math.sin(a / 2) ** 1.4) for a in angles]
    return [np.array([(round(UNIT * x), round(UNIT * y)) for x, y in points], np.int64)]


def _ring() -> list[np.ndarray]:
    return [_polar(lambda a: 1.0), _polar(lambda a: 0.42)]


def _cross() -> list[np.ndarray]:
    arm = 0.36
    quarter = [(1.0, -arm), (1.0, arm), (arm, arm)]
    points = []
    for turn in range(4):
        for x, y in quarter:
            for _ in range(turn):
                x, y = -y, x
            points.append((round(UNIT * x), round(UNIT * y)))
    return [np.array(points, np.int64)]


def _crescent() -> list[np.ndarray]:
    outer = [2 * math.pi * i / _POINTS for i in range(18, _POINTS - 17)]
    points = [(math.cos(a), math.sin(a)) for a in outer]
    middle, radius = 0.62, math.hypot(points[0][0] - 0.62, points[0][1])
    first = math.atan2(points[-1][1], points[-1][0] - middle) % (2 * math.pi)
    last = math.atan2(points[0][1], points[0][0] - middle)
    inner = [first + (last - first) * i / 40 for i in range(1, 40)]
    points += [(middle + radius * math.cos(a), radius * math.sin(a)) for a in inner]
    shift = 0.3  # puts the middle of the body, not of the circle, at the origin
    return [np.array([(round(UNIT * (x + shift)), round(UNIT * y)) for x, y in points], np.int64)]


def _capsule() -> list[np.ndarray]:
    half, radius = 0.58, 0.42
    arc = [math.pi * (i / 30 - 0.5) for i in range(31)]
    right = [(half + radius * math.cos(a), radius * math.sin(a)) for a in arc]
    points = right + [(-x, -y) for x, y in right]
    return [np.array([(round(UNIT * x), round(UNIT * y)) for x, y in points], np.int64)]


def _hexagon() -> list[np.ndarray]:
    return [_polar(lambda a: 1.0, 6)]


OUTLINES: dict[str, Callable[[], list[np.ndarray]]] = {
    "ellipse": _ellipse,
    "star": _star,
    "box": _box,
    "flower": _flower,
    "drop": _drop,
    "ring": _ring,
    "cross": _cross,
    "crescent": _crescent,
    "capsule": _capsule,
    "hexagon": _hexagon,
}


# --- textures: 0..255 at object coordinates u, v (int arrays in UNITs), feature size ``period`` ---


def triangle_wave(x: np.ndarray, period: int) -> np.ndarray:
    """0 at multiples of ``period``, 255 half-way between."""
    phase = np.mod(x, period)
    return np.minimum(phase, period - phase) * 510 // period


def sharpen(wave: np.ndarray, level: int = 128, gain: int = 6) -> np.ndarray:
    """A wave of 0..255 turned into soft-edged steps around ``level``."""
    return np.clip((wave - level) * gain + 128, 0, 255)


def value_noise(
    rng: np.random.RandomState, height: int, width: int, cells: tuple[int, ...]
) -> np.ndarray:
    """Smooth random field (height, width), 0..255; each cell size in pixels adds an octave of half
    the weight.
    """
    total = np.zeros((height, width), np.int64)
    weight, weights = 1 << len(cells), 0
    for cell in cells:
        cell = max(cell, 2)
        grid = rng.randint(0, 256, (height // cell + 2, width // cell + 2)).astype(np.int64)
        total += weight * _smooth(_smooth(grid, height, cell).T, width, cell).T
        weights += weight
        weight //= 2
    return total // weights


def _smooth(grid: np.ndarray, extent: int, cell: int) -> np.ndarray:
    """Rows of ``grid`` spread over ``extent`` rows, smoothstep between them."""
    position = np.arange(extent)
    row, part = position // cell, (position % cell) * 256 // cell
    weight = (part * part * (768 - 2 * part) >> 16)[:, None]
    return (grid[row] * (256 - weight) + grid[row + 1] * weight) >> 8


Noise = Callable[[int], np.ndarray]  # feature size in UNITs -> smooth field 0..255 over the picture


def _stripes(u: np.ndarray, v: np.ndarray, period: int, noise: Noise) -> np.ndarray:
    return sharpen(triangle_wave(u + (noise(4 * period) * period >> 9), period))


def _dots(u: np.ndarray, v: np.ndarray, period: int, noise: Noise) -> np.ndarray:
    u = u + np.mod(v // period, 2) * (period // 2)
    x, y = np.mod(u, period) - period // 2, np.mod(v, period) - period // 2
    radius = period * 34 // 100
    return np.clip((radius * radius - x * x - y * y) * 700 // (radius * radius) + 128, 0, 255)


def _checker(u: np.ndarray, v: np.ndarray, period: int, noise: Noise) -> np.ndarray:
    a, b = triangle_wave(u, 2 * period) - 128, triangle_wave(v, 2 * period) - 128
    return sharpen(128 + a * b // 128, gain=8)


def _rings(u: np.ndarray, v: np.ndarray, period: int, noise: Noise) -> np.ndarray:
    radius = np.sqrt((u * u + v * v).astype(np.float64)).astype(np.int64)
    return sharpen(triangle_wave(radius + (noise(3 * period) * period >> 9), period))


def _mottle(u: np.ndarray, v: np.ndarray, period: int, noise: Noise) -> np.ndarray:
    return sharpen(noise(period), level=132, gain=10)


def _zigzag(u: np.ndarray, v: np.ndarray, period: int, noise: Noise) -> np.ndarray:
    return sharpen(triangle_wave(u + triangle_wave(v, period) * period // 400, period))


def _bricks(u: np.ndarray, v: np.ndarray, period: int, noise: Noise) -> np.ndarray:
    row = v // (period // 2)
    across = np.mod(u + np.mod(row, 2) * (period // 2), period)
    along = np.mod(v, period // 2)
    gap = max(period // 9, 1)
    return np.where((across < gap) | (along < gap), 255, noise(period // 2) // 3)


def _net(u: np.ndarray, v: np.ndarray, period: int, noise: Noise) -> np.ndarray:
    a, b = triangle_wave(u + v, period), triangle_wave(u - v, period)
    return sharpen(255 - np.minimum(a, b), level=190)


def _waves(u: np.ndarray, v: np.ndarray, period: int, noise: Noise) -> np.ndarray:
    wave = triangle_wave(v, 2 * period)
    bent = u + (wave * wave >> 8) * period // 300
    return sharpen(triangle_wave(bent, period))


def _speckle(u: np.ndarray, v: np.ndarray, period: int, noise: Noise) -> np.ndarray:
    return sharpen(noise(period // 2), level=165, gain=12)


TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray, int, Noise], np.ndarray]] = {
    "stripes": _stripes,
    "dots": _dots,
    "checker": _checker,
    "rings": _rings,
    "mottle": _mottle,
    "zigzag": _zigzag,
    "bricks": _bricks,
    "net": _net,
    "waves": _waves,
    "speckle": _speckle,
}
