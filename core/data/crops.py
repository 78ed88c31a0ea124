"""Resizing, normalisation and random crops, with the semantics of PIL-based torchvision.

Images are uint8 RGB (H, W, 3); networks get float32 (3, h, w). PIL's bilinear filter widens with
the factor when it shrinks, so it does not alias. All randomness comes from the generator that the
caller passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageStat

from core.errors import StopWork, UserError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
_MAX_RESIZED = 1 << 24  # pixels of an image for a network, whose maps take a hundred times as much

RATIO = (3 / 4, 4 / 3)
MIN_SIDE = 32  # pixels; the networks' deepest features have one cell for so many
REDUCING_GAP = 2.0  # of two steps of reduction, from which on they look like one
_TRIES = 10
FLIP = 0.5
_JITTER, _JITTER_STRENGTH, _HUE = 0.8, 0.8, 0.2
_GRAYSCALE = 0.2
_BLUR, _BLUR_RADIUS = 0.5, (0.1, 2.0)


def normalise(rgb: np.ndarray, std: Sequence[float] = STD) -> np.ndarray:
    """float32 (3, H, W) of uint8 RGB (H, W, 3): (value / 255 - mean) / std, channel by channel."""
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    chw = np.empty((3, *rgb.shape[:2]), np.float32)
    for channel in range(3):
        table = (levels - np.float32(MEAN[channel])) / np.float32(std[channel])
        np.take(table, rgb[..., channel], out=chw[channel], mode="clip")
    return chw


def resize(rgb: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """uint8 RGB resized bilinearly (antialiased) to (height, width)."""
    if rgb.shape[:2] == size_hw:
        return rgb
    image = Image.fromarray(rgb).resize((size_hw[1], size_hw[0]), Image.Resampling.BILINEAR)
    return np.asarray(image)


def resize_short_side(rgb: np.ndarray, size: int) -> np.ndarray:
    """uint8 RGB with its shorter side at ``size``, aspect kept (other side rounded down).

    Raises:
        UserError: the image is so long a strip that the result would fill the memory.
    """
    height, width = rgb.shape[:2]
    longer = int(size * max(height, width) / min(height, width))
    if size * longer > _MAX_RESIZED:
        raise UserError(
            f"an image of {width} x {height} pixels would have {size} x {longer} with a shorter "
            f"side of {size}, more than {_MAX_RESIZED} in all; cut it into pieces"
        )
    return resize(rgb, (longer, size) if width <= height else (size, longer))


def resize_square(rgb: np.ndarray, size: int) -> np.ndarray:
    """uint8 RGB squashed to (size, size), as the Jittor baseline feeds its networks."""
    return resize(rgb, (size, size))


def network_input(rgb: np.ndarray, size: int, square: bool = False) -> np.ndarray:
    """float32 (1, 3, h, w) of a uint8 RGB image (H, W, 3): the shorter side (both sides, where
    ``square``) brought to ``size`` pixels, then normalised.

    Raises:
        StopWork: ``size`` is no size. UserError: see :func:`resize_short_side`.
    """
    if size < 1:
        raise StopWork(f"images cannot be brought to {size} pixels: set resize to 1 or more")
    scaled = resize_square(rgb, size) if square else resize_short_side(rgb, size)
    return normalise(scaled)[None]


def resize_nearest(label: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """A label map (H, W) resized to (height, width): each pixel takes the value at its centre."""
    if label.shape == size_hw:
        return label
    rows = _nearest_indices(label.shape[0], size_hw[0])
    columns = _nearest_indices(label.shape[1], size_hw[1])
    return label[rows[:, None], columns]


def resize_nearest_floor(maps: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Maps (..., h, w) resized to (height, width): row i takes the one at floor(i * (h / height)).

    In float32, whose rounding decides where a row falls on an edge. It is PyTorch's nearest
    interpolation, by which the reference brings label maps to the networks' grids and back;
    :func:`resize_nearest` follows the centres instead, as the filters of images do.
    """
    rows, columns = (_floor_indices(*pair) for pair in zip(maps.shape[-2:], size_hw))
    return maps[..., rows[:, None], columns]


def center_crop(rgb: np.ndarray, size: int) -> np.ndarray:
    """The central (size, size) of an image; a smaller one is first padded with black all round."""
    missing = [max(size - extent, 0) for extent in rgb.shape[:2]]
    if any(missing):
        pads = [(pad // 2, (pad + 1) // 2) for pad in missing]
        rgb = np.pad(rgb, [*pads, (0, 0)])
    top, left = (int(round((extent - size) / 2)) for extent in rgb.shape[:2])
    return rgb[top : top + size, left : left + size]


class JointCrop:
    """One random resized crop and mirroring shared by an image and its label map.

    Args:
        size: side of the square result in pixels.
        min_scale: smallest area of the crop relative to the image (the largest is 1).
    """

    def __init__(self, size: int, min_scale: float = 0.08) -> None:
        if not 0 < min_scale <= 1:
            raise UserError(f"the smallest crop scale must lie in (0, 1], got {min_scale}")
        self.size = size
        self.min_scale = min_scale

    def __call__(
        self, rgb: np.ndarray, label: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """(float32 (3, size, size), int32 (size, size)) of RGB (H, W, 3) and label map (H, W)."""
        if label.shape != rgb.shape[:2]:
            raise ValueError(f"label map {label.shape} does not fit the image {rgb.shape[:2]}")
        box = random_box(rgb.shape[0], rgb.shape[1], self.min_scale, 1.0, rng)
        flipped = bool(rng.random() < FLIP)
        image = np.asarray(cut(rgb, box, self.size, flipped))
        left, top, width, height = box
        part = label[top : top + height, left : left + width]
        part = resize_nearest(part, (self.size, self.size))
        if flipped:
            part = part[:, ::-1]
        return normalise(image), np.ascontiguousarray(part, dtype=np.int32)


def random_box(
    height: int, width: int, min_scale: float, max_scale: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a random crop: area uniform, aspect log-uniform in 3/4..4/3.

    After ten boxes that do not fit, the largest central box of an allowed aspect.
    """
    area = height * width
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for _ in range(_TRIES):
        target = area * rng.uniform(min_scale, max_scale)
        aspect = math.exp(rng.uniform(low, high))
        box_width = int(round(math.sqrt(target * aspect)))
        box_height = int(round(math.sqrt(target / aspect)))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(rng.integers(0, height - box_height + 1))
            left = int(rng.integers(0, width - box_width + 1))
            return left, top, box_width, box_height
    box_width, box_height = width, height
    if width < height * RATIO[0]:
        box_height = int(round(width / RATIO[0]))
    elif width > height * RATIO[1]:
        box_width = int(round(height * RATIO[1]))
    return (width - box_width) // 2, (height - box_height) // 2, box_width, box_height


def _nearest_indices(extent: int, size: int) -> np.ndarray:
    """Source index below the centre of each of ``size`` cells laid over ``extent`` cells."""
    return (2 * np.arange(size) + 1) * extent // (2 * size)


def _floor_indices(extent: int, size: int) -> np.ndarray:
    """Source index of the first edge of each of ``size`` cells laid over ``extent`` cells."""
    step = np.float32(extent) / np.float32(size)
    return np.minimum((np.arange(size, dtype=np.float32) * step).astype(np.int64), extent - 1)


def cut(rgb: np.ndarray, box: tuple[int, int, int, int], size: int, flipped: bool) -> Image.Image:
    """The crop at (left, top, width, height) as a square view."""
    left, top, width, height = box
    # Cut before resizing: the filter must not see pixels outside the crop.
    crop = Image.fromarray(rgb[top : top + height, left : left + width])
    if (width, height) != (size, size):
        crop = crop.resize((size, size), Image.Resampling.BILINEAR)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else crop


def distort(view: Image.Image, rng: np.random.Generator, amount: float) -> Image.Image:
    if rng.random() < _JITTER:
        view = _jitter(view, rng, amount)
    if rng.random() < _GRAYSCALE * amount:
        view = view.convert("L").convert("RGB")
    if rng.random() < _BLUR * amount:
        view = view.filter(ImageFilter.GaussianBlur(float(rng.uniform(*_BLUR_RADIUS))))
    return view


def _jitter(view: Image.Image, rng: np.random.Generator, amount: float) -> Image.Image:
    """Brightness, contrast, saturation by factors .2..1.8, hue by up to .2 turns (all of it in
    proportion to ``amount``); random order.
    """
    strength, hue = _JITTER_STRENGTH * amount, _HUE * amount
    factors = rng.uniform(1 - strength, 1 + strength, 3)
    turn = float(rng.uniform(-hue, hue))
    for step in rng.permutation(4):
        if step == 0:
            view = view.point(_blend_table(0, factors[0]) * 3)
        elif step == 1:
            mean = int(ImageStat.Stat(view.convert("L")).mean[0] + 0.5)
            view = view.point(_blend_table(mean, factors[1]) * 3)
        elif step == 2:
            view = ImageEnhance.Color(view).enhance(float(factors[2]))
        else:
            view = shift_hue(view, turn)
    return view


def _blend_table(base: int, factor: float) -> list[int]:
    """What PIL's Brightness (base 0) and Contrast (base mean gray) make of each level; faster."""
    levels = np.float32(base) + np.float32(factor) * (np.arange(256, dtype=np.float32) - base)
    return np.clip(levels, 0, 255).astype(np.uint8).tolist()


def shift_hue(view: Image.Image, turn: float) -> Image.Image:
    """An RGB image with its hue moved by ``turn`` (-.5..+.5), on PIL's 256 hue steps."""
    hue, saturation, value = view.convert("HSV").split()
    step = int(turn * 255)
    hue = hue.point([(level + step) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
