"""Resizing, normalisation and random crops, with the semantics of PIL-based torchvision.

Images are uint8 RGB (H, W, 3); networks get float32 (3, h, w). PIL's bilinear filter widens with
the factor when it shrinks, so it does not alias. All randomness comes from the generator that the
caller passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageStat

from core.errors import UserError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# The reference trains steps 1 and 2.1 with .228 in red; published weights expect it.
PRETRAIN_STD = (0.228, 0.224, 0.225)

GRID_SIZE = 7
_MAX_RESIZED = 1 << 24  # pixels of an image for a network, whose maps take a hundred times as much
NO_OVERLAP = -2.0

_RATIO = (3 / 4, 4 / 3)
_REDUCING_GAP = 2.0  # of two steps of reduction, from which on they look like one
_TRIES = 10
_FLIP = 0.5
_JITTER, _JITTER_STRENGTH, _HUE = 0.8, 0.8, 0.2
_GRAYSCALE = 0.2
_BLUR, _BLUR_RADIUS = 0.5, (0.1, 2.0)


class Placement(NamedTuple):
    """Where a crop lies in its image (pixels), and whether it was mirrored afterwards."""

    left: int
    top: int
    width: int
    height: int
    flipped: bool


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


class MultiCrop:
    """Random views of one image for self-supervised training (PASS, section on multi-crop).

    A view is a random resized crop (aspect 3/4..4/3), mirrored at .5, colour-jittered (.8, .8, .8,
    .2 in random order) at .8, made gray at .2, blurred (Gaussian radius .1..2) at .5, and
    normalised with the pretraining std.

    Args:
        sizes: side of the square views of each group, in pixels; the first group needs at least two
            views.
        counts: number of views of each group.
        min_scales, max_scales: area of the crop relative to the image, for each group.
        distortion: 0..1, how far colours are changed: it scales the jitter's strengths and how
            often a view is made gray or blurred.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        counts: Sequence[int],
        min_scales: Sequence[float],
        max_scales: Sequence[float],
        distortion: float = 1.0,
    ) -> None:
        lengths = {len(sizes), len(counts), len(min_scales), len(max_scales)}
        if len(lengths) != 1 or not counts or counts[0] < 2:
            raise UserError(
                "crop sizes, counts, min_scales and max_scales need one value for each group, "
                f"and two crops in the first; got {sizes}, {counts}, {min_scales}, {max_scales}"
            )
        for low, high in zip(min_scales, max_scales):
            if not 0 < low <= high <= 1:
                raise UserError(f"crop scales need 0 < min <= max <= 1, got {low}..{high}")
        if not 0 <= distortion <= 1:
            raise UserError(f"the distortion of the views must lie in 0..1, got {distortion}")
        self.distortion = distortion
        self.views = [
            (size, low, high)
            for size, count, low, high in zip(sizes, counts, min_scales, max_scales)
            for _ in range(count)
        ]
        #: Side of a square with as many pixels as an image needs for its smallest crop to be
        #: reduced by ``_REDUCING_GAP`` at least: what a larger image adds cannot be seen.
        self.enough = max(
            _REDUCING_GAP * size / math.sqrt(low * _RATIO[0]) for size, low, _ in self.views
        )

    def __call__(
        self, rgb: np.ndarray, rng: np.random.Generator
    ) -> tuple[list[np.ndarray], tuple[Placement, Placement]]:
        """All views, float32 (3, size, size), and the placements of the first two."""
        crops, placements = [], []
        for size, low, high in self.views:
            box = random_box(rgb.shape[0], rgb.shape[1], low, high, rng)
            flipped = bool(rng.random() < _FLIP)
            view = _distort(_cut(rgb, box, size, flipped), rng, self.distortion)
            crops.append(normalise(np.asarray(view), PRETRAIN_STD))
            placements.append(Placement(*box, flipped))
        return crops, (placements[0], placements[1])


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
        flipped = bool(rng.random() < _FLIP)
        image = np.asarray(_cut(rgb, box, self.size, flipped))
        left, top, width, height = box
        cut = resize_nearest(label[top : top + height, left : left + width], (self.size, self.size))
        if flipped:
            cut = cut[:, ::-1]
        return normalise(image), np.ascontiguousarray(cut, dtype=np.int32)


def random_box(
    height: int, width: int, min_scale: float, max_scale: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a random crop: area uniform, aspect log-uniform in 3/4..4/3.

    After ten boxes that do not fit, the largest central box of an allowed aspect.
    """
    area = height * width
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
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
    if width < height * _RATIO[0]:
        box_height = int(round(width / _RATIO[0]))
    elif width > height * _RATIO[1]:
        box_width = int(round(height * _RATIO[1]))
    return (width - box_width) // 2, (height - box_height) // 2, box_width, box_height


def correspondence_grids(
    view_q: Placement, view_k: Placement, size: int = GRID_SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Sampling grids that meet at the same image points in two crops.

    A lattice of ``size`` x ``size`` points spans the overlap of both crops, edges included; its
    points are given in each crop's own coordinates, -1..1 from edge to edge, mirrored where the
    crop was.

    Returns:
        (gridq, gridk): float32 (size, size, 2), x first; -2 everywhere where the crops do not
        overlap, so that sampling with zero padding yields zeros.
    """
    left = max(view_q.left, view_k.left)
    top = max(view_q.top, view_k.top)
    right = min(view_q.left + view_q.width, view_k.left + view_k.width)
    bottom = min(view_q.top + view_q.height, view_k.top + view_k.height)
    if right <= left or bottom <= top:
        empty = np.full((size, size, 2), NO_OVERLAP, np.float32)
        return empty, empty.copy()
    xs, ys = np.linspace(left, right, size), np.linspace(top, bottom, size)
    return _grid_in(view_q, xs, ys), _grid_in(view_k, xs, ys)


def _grid_in(view: Placement, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    x = 2 * (xs - view.left) / view.width - 1
    y = 2 * (ys - view.top) / view.height - 1
    grid = np.empty((len(ys), len(xs), 2), np.float32)
    grid[..., 0] = -x if view.flipped else x
    grid[..., 1] = y[:, None]
    return grid


def _nearest_indices(extent: int, size: int) -> np.ndarray:
    """Source index below the centre of each of ``size`` cells laid over ``extent`` cells."""
    return (2 * np.arange(size) + 1) * extent // (2 * size)


def _floor_indices(extent: int, size: int) -> np.ndarray:
    """Source index of the first edge of each of ``size`` cells laid over ``extent`` cells."""
    step = np.float32(extent) / np.float32(size)
    return np.minimum((np.arange(size, dtype=np.float32) * step).astype(np.int64), extent - 1)


def _cut(rgb: np.ndarray, box: tuple[int, int, int, int], size: int, flipped: bool) -> Image.Image:
    """The crop at (left, top, width, height) as a square view."""
    left, top, width, height = box
    # Cut before resizing: the filter must not see pixels outside the crop.
    crop = Image.fromarray(rgb[top : top + height, left : left + width])
    if (width, height) != (size, size):
        crop = crop.resize((size, size), Image.Resampling.BILINEAR)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else crop


def _distort(view: Image.Image, rng: np.random.Generator, amount: float) -> Image.Image:
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
