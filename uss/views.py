"""The views of an image that self-supervised training compares (PASS): crops at several sizes, and
where two of them show the same places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from core.data.crops import (
    FLIP,
    RATIO,
    REDUCING_GAP,
    cut,
    distort,
    normalise,
    random_box,
)
from core.data.datasets import ImageDataset
from core.data.imagenet_s import ImageItem
from core.data.images import load_rgb
from core.errors import UserError

# The reference trains steps 1 and 2.1 with .228 in red; published weights expect it.
PRETRAIN_STD = (0.228, 0.224, 0.225)

GRID_SIZE = 7
NO_OVERLAP = -2.0


class Placement(NamedTuple):
    """Where a crop lies in its image (pixels), and whether it was mirrored afterwards."""

    left: int
    top: int
    width: int
    height: int
    flipped: bool


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
        #: reduced by ``REDUCING_GAP`` at least: what a larger image adds cannot be seen.
        self.enough = max(
            REDUCING_GAP * size / math.sqrt(low * RATIO[0]) for size, low, _ in self.views
        )
        #: The same for the shorter side: of a panorama the crops are as high as it is, whatever
        #: their area should be.
        self.shortest = REDUCING_GAP * max(size for size, _, _ in self.views)

    def __call__(
        self, rgb: np.ndarray, rng: np.random.Generator
    ) -> tuple[list[np.ndarray], tuple[Placement, Placement]]:
        """All views, float32 (3, size, size), and the placements of the first two."""
        crops, placements = [], []
        for size, low, high in self.views:
            box = random_box(rgb.shape[0], rgb.shape[1], low, high, rng)
            flipped = bool(rng.random() < FLIP)
            view = distort(cut(rgb, box, size, flipped), rng, self.distortion)
            crops.append(normalise(np.asarray(view), PRETRAIN_STD))
            placements.append(Placement(*box, flipped))
        return crops, (placements[0], placements[1])


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


class MultiCropDataset(ImageDataset):
    """Views of an image for steps 1 and 2.1."""

    def __init__(self, items: Sequence[ImageItem], multi_crop: MultiCrop) -> None:
        super().__init__(items)
        self.multi_crop = multi_crop

    def get(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """(one float32 (3, size, size) for each view in group order, gridq, gridk).

        The grids, float32 (7, 7, 2), tie the first two views:
        :func:`uss.views.correspondence_grids`.
        """
        crops = self.multi_crop
        rgb = load_rgb(self.path(index), enough=crops.enough, shortest=crops.shortest)
        views, (first, second) = self.multi_crop(rgb, rng)
        return (*views, *correspondence_grids(first, second))
