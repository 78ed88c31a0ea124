"""One synthetic picture: textured objects of one class on a muted background, with their exact
mask.

Drawn at twice the size and averaged down, in whole numbers throughout (see
:mod:`core.synthetic.shapes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from core.synthetic.shapes import OUTLINES, TEXTURES, UNIT, cosine, sharpen, sine, value_noise

Colour = tuple[int, int, int]

_SUPER = 2
# The main object's visible share of the picture, in percent.
MIN_COVER, MAX_COVER = 15, 50
_FRACTION_BITS = 4  # of the vertex coordinates that are handed to OpenCV


@dataclass(frozen=True)
class Kind:
    """What objects of a class share: outline, texture, its feature size, two RGB colours."""

    outline: str
    texture: str
    period: int
    main: Colour
    second: Colour


KINDS = (
    Kind("ellipse", "stripes", 420, (232, 178, 40), (92, 58, 20)),
    Kind("star", "dots", 400, (206, 46, 40), (250, 226, 200)),
    Kind("box", "checker", 330, (38, 92, 190), (206, 224, 246)),
    Kind("flower", "rings", 400, (176, 66, 172), (246, 196, 226)),
    Kind("drop", "mottle", 300, (58, 140, 54), (178, 206, 74)),
    Kind("ring", "zigzag", 360, (214, 118, 44), (255, 214, 150)),
    Kind("cross", "bricks", 460, (152, 70, 54), (226, 212, 196)),
    Kind("crescent", "waves", 380, (30, 152, 158), (196, 240, 226)),
    Kind("capsule", "net", 380, (226, 120, 148), (120, 30, 66)),
    Kind("hexagon", "speckle", 340, (52, 56, 70), (228, 222, 120)),
)


@dataclass(frozen=True)
class Pose:
    """Where an object lies on the enlarged canvas, in its pixels, and how it is turned."""

    x: int
    y: int
    radius: int
    turn: int
    squeeze: int  # height relative to width, in percent
    mirrored: bool


def render(
    kind: Kind, height: int, width: int, rng: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """uint8 RGB (height, width, 3); bool mask (height, width), True where at least half object."""
    size_hw = (height * _SUPER, width * _SUPER)
    pose, visible = _place(kind, size_hw, rng)
    layers = [(pose, visible)]
    if rng.randint(100) < 20:
        other = _companion(pose, size_hw, rng)
        layers.insert(0, (other, _silhouette(kind, other, size_hw)))
    picture = _background(size_hw, rng)
    covered = np.zeros(size_hw, bool)
    for layer_pose, silhouette in layers:
        _darken(picture, silhouette, layer_pose.radius)
        surface = _surface(kind, layer_pose, size_hw, rng)
        picture[silhouette] = surface[silhouette]
        covered |= silhouette
    _light(picture, rng)
    rgb = _shrink(picture)
    rgb += rng.randint(-5, 6, (height, width, 1)) + rng.randint(-2, 3, (height, width, 3))
    share = _shrink(covered[..., None].astype(np.int64) * 100)[..., 0]
    return np.clip(rgb, 0, 255).astype(np.uint8), share >= 50


def render_many(
    kinds: Sequence[Kind], height: int, width: int, rng: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """A picture of one object of each of one to three kinds, later ones in front.

    Centres lie side by side; half of the neighbours touch or overlap.

    Returns:
        uint8 RGB (height, width, 3); int64 (height, width), the place of the object (from 1) that
        covers at least half of a pixel, else 0.
    """
    size_hw = (height * _SUPER, width * _SUPER)
    picture = _background(size_hw, rng)
    owners = np.zeros(size_hw, np.int64)
    for place, (kind, pose) in enumerate(zip(kinds, _poses(len(kinds), size_hw, rng)), 1):
        silhouette = _silhouette(kind, pose, size_hw)
        _darken(picture, silhouette, pose.radius)
        picture[silhouette] = _surface(kind, pose, size_hw, rng)[silhouette]
        owners[silhouette] = place
    _light(picture, rng)
    rgb = _shrink(picture)
    rgb += rng.randint(-5, 6, (height, width, 1)) + rng.randint(-2, 3, (height, width, 3))
    layers = [owners == place for place in range(len(kinds) + 1)]
    shares = _shrink(np.stack(layers, axis=2).astype(np.int64) * 100)
    return np.clip(rgb, 0, 255).astype(np.uint8), np.where(shares.max(2) >= 50, shares.argmax(2), 0)


# --- placing --------------------------------------------------------------------------------------


def _place(
    kind: Kind, size_hw: tuple[int, int], rng: np.random.RandomState
) -> tuple[Pose, np.ndarray]:
    """A pose whose visible part covers MIN_COVER..MAX_COVER percent, and its silhouette."""
    for _ in range(100):
        pose = _random_pose(size_hw, rng)
        target = int(rng.randint(MIN_COVER + 4, MAX_COVER - 6))
        for _ in range(8):
            silhouette = _silhouette(kind, pose, size_hw)
            cover = int(np.count_nonzero(silhouette)) * 100 // silhouette.size
            if abs(cover - target) <= 3:
                return pose, silhouette
            # Halve the way to the radius that would give the target if nothing were cut off.
            wanted = int(np.sqrt(float(pose.radius * pose.radius * target // max(cover, 1))))
            radius = (pose.radius + min(wanted, 2 * pose.radius)) // 2
            pose = replace(pose, radius=min(radius, max(size_hw)))
    raise RuntimeError(f"no {kind.outline} of the wanted size fits a canvas of {size_hw}")


def _random_pose(size_hw: tuple[int, int], rng: np.random.RandomState) -> Pose:
    """An object near the middle, or in one of four cases near a border that may cut it."""
    height, width = size_hw
    spread = 42 if rng.randint(100) < 25 else 13  # percent of the side, from the middle
    return Pose(
        x=width // 2 + width * int(rng.randint(-spread, spread + 1)) // 100,
        y=height // 2 + height * int(rng.randint(-spread, spread + 1)) // 100,
        radius=min(height, width) // 2,
        turn=int(rng.randint(360)),
        squeeze=int(rng.randint(78, 112)),
        mirrored=bool(rng.randint(2)),
    )


def _poses(count: int, size_hw: tuple[int, int], rng: np.random.RandomState) -> list[Pose]:
    """Objects side by side along the longer side, each visible; close ones touch."""
    height, width = size_hw
    long_side, short_side = max(size_hw), min(size_hw)
    step = long_side // count
    poses = []
    for place in range(count):
        # At 62 % of the step neighbours overlap, at 40 % there is ground between them.
        percent = 62 if rng.randint(2) else 40
        radius = min(step * percent // 100, short_side * 42 // 100)
        along = step * place + step // 2
        across = short_side * int(rng.randint(42, 59)) // 100
        x, y = (along, across) if width >= height else (across, along)
        turn, squeeze, mirrored = int(rng.randint(360)), int(rng.randint(85, 112)), rng.randint(2)
        poses.append(Pose(x, y, radius, turn, squeeze, bool(mirrored)))
    return poses


def _companion(main: Pose, size_hw: tuple[int, int], rng: np.random.RandomState) -> Pose:
    """A smaller object of the same class, on the other side of the picture."""
    height, width = size_hw
    x = width * 82 // 100 if main.x < width // 2 else width * 18 // 100
    y = int(rng.randint(height // 5, height * 4 // 5))
    radius = main.radius * int(rng.randint(38, 56)) // 100
    return Pose(x, y, radius, int(rng.randint(360)), main.squeeze, bool(rng.randint(2)))


def _silhouette(kind: Kind, pose: Pose, size_hw: tuple[int, int]) -> np.ndarray:
    """bool (H, W): the pixels of the canvas inside the outline."""
    canvas = np.zeros(size_hw, np.uint8)
    cos, sin = cosine(pose.turn), sine(pose.turn)
    scale = pose.radius << _FRACTION_BITS
    contours: list[np.ndarray] = []
    for contour in OUTLINES[kind.outline]():
        u = -contour[:, 0] if pose.mirrored else contour[:, 0]
        v = contour[:, 1] * pose.squeeze // 100
        x = (pose.x << _FRACTION_BITS) + (u * cos - v * sin) * scale // (UNIT * UNIT)
        y = (pose.y << _FRACTION_BITS) + (u * sin + v * cos) * scale // (UNIT * UNIT)
        contours.append(np.stack([x, y], axis=1).astype(np.int32))
    # One call for all contours: the even-odd rule makes a contour inside another a hole.
    cv2.fillPoly(canvas, contours, (1,), lineType=cv2.LINE_8, shift=_FRACTION_BITS)
    return canvas.astype(bool)


# --- surfaces -------------------------------------------------------------------------------------


def _surface(
    kind: Kind, pose: Pose, size_hw: tuple[int, int], rng: np.random.RandomState
) -> np.ndarray:
    """int64 RGB (H, W, 3) of the object's texture and shading, over the whole canvas."""
    height, width = size_hw
    y, x = np.mgrid[:height, :width]
    x, y = x - pose.x, y - pose.y
    cos, sin = cosine(pose.turn), sine(pose.turn)
    u, v = (x * cos + y * sin) // pose.radius, (y * cos - x * sin) // pose.radius

    def noise(feature: int) -> np.ndarray:
        return value_noise(rng, height, width, (max(feature * pose.radius // UNIT, 3),))

    period = kind.period * int(rng.randint(85, 119)) // 100
    pattern = TEXTURES[kind.texture](u, v, period, noise)
    main, second = _vary(kind.main, rng), _vary(kind.second, rng)
    colour = _mix(main, second, pattern)
    # Light from the upper left of the picture, darker towards the rim, and a little unevenness.
    across = (x * -5 + y * -9) * 10 // pose.radius
    rim = (u * u + v * v) * 34 // (UNIT * UNIT)
    shade = 262 + np.clip(across, -60, 50) - np.minimum(rim, 60) + (noise(600) - 128) // 6
    return colour * shade[..., None] // 256


def _background(size_hw: tuple[int, int], rng: np.random.RandomState) -> np.ndarray:
    """int64 RGB (H, W, 3): one of four muted scenes in two random colours, with fine grain."""
    height, width = size_hw
    side = max(height, width)
    first, second = _muted(rng), _muted(rng)
    clouds = value_noise(rng, height, width, (side // 3, side // 6, side // 12))
    y, x = np.mgrid[:height, :width]
    scene = int(rng.randint(4))
    if scene == 0:
        pattern = sharpen(clouds, gain=2)
    elif scene == 1:  # a horizon with rough ground below
        horizon = height * int(rng.randint(35, 70)) // 100
        edge = (y - horizon) * 24 * 256 // height + (clouds - 128) * 2 + 128
        pattern = np.clip(edge, 0, 255)
    elif scene == 2:  # slanted boards or folds of low contrast
        step = side // int(rng.randint(4, 8))
        slant = int(rng.randint(-100, 101))
        fold = np.mod(x + y * slant // 100 + clouds // 8, step)
        pattern = fold * 150 // step + clouds // 3
    else:  # leaves or pebbles
        pattern = sharpen(value_noise(rng, height, width, (side // 14, side // 28)), gain=4)
        pattern = (pattern + clouds) // 2
    fine = (value_noise(rng, height, width, (7, 4)) - 128) * int(rng.randint(8, 32)) // 128
    return _mix(first, second, np.clip(pattern, 0, 255)) + fine[..., None]


def _darken(picture: np.ndarray, silhouette: np.ndarray, radius: int) -> None:
    """Lay a soft shadow to the lower right of a silhouette, in place."""
    shift, reach = max(radius // 9, 2), max(radius // 7, 2)
    height, width = silhouette.shape
    moved = np.zeros((height, width), np.int64)
    moved[shift:, shift:] = silhouette[: height - shift, : width - shift]
    for _ in range(2):
        moved = _box_sum(_box_sum(moved, reach).T, reach).T
    strength = moved * 96 // (2 * reach + 1) ** 4
    picture *= (256 - strength)[..., None]
    picture //= 256


def _box_sum(field: np.ndarray, reach: int) -> np.ndarray:
    """Sum over rows within ``reach``, repeating the border."""
    padded = np.pad(field, ((reach + 1, reach), (0, 0)), mode="edge")
    total = np.cumsum(padded, axis=0)
    return total[2 * reach + 1 :] - total[: -2 * reach - 1]


def _light(picture: np.ndarray, rng: np.random.RandomState) -> None:
    """Brighten one side of the picture and darken the other, in place."""
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width]
    slope_x, slope_y = (int(value) for value in rng.randint(-36, 37, 2))
    level = 250 + int(rng.randint(-16, 17))
    level = level + (2 * x - width) * slope_x // width + (2 * y - height) * slope_y // height
    picture *= level[..., None]
    picture //= 256


# --- colours and sizes ----------------------------------------------------------------------------


def _muted(rng: np.random.RandomState) -> Colour:
    """A grayish colour of middle brightness."""
    gray = int(rng.randint(80, 186))
    red, green, blue = (gray + int(shift) for shift in rng.randint(-20, 21, 3))
    return red, green, blue


def _vary(colour: Colour, rng: np.random.RandomState) -> Colour:
    """The same colour under other light: common and single shifts of the channels."""
    common = int(rng.randint(-16, 17))
    red, green, blue = (
        value + common + int(shift) for value, shift in zip(colour, rng.randint(-12, 13, 3))
    )
    return red, green, blue


def _mix(first: Colour, second: Colour, pattern: np.ndarray) -> np.ndarray:
    """int64 RGB (H, W, 3): ``first`` where the pattern is 0, ``second`` where it is 255."""
    low, high = np.asarray(first, np.int64), np.asarray(second, np.int64)
    return low + (high - low) * pattern[..., None].astype(np.int64) // 255


def _shrink(canvas: np.ndarray) -> np.ndarray:
    """Mean over blocks of _SUPER x _SUPER pixels, rounded; int64 (H, W, channels)."""
    height, width, channels = canvas.shape
    blocks = canvas.reshape(height // _SUPER, _SUPER, width // _SUPER, _SUPER, channels)
    return (blocks.sum(axis=(1, 3)) + _SUPER * _SUPER // 2) // (_SUPER * _SUPER)
