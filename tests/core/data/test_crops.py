"""Crops, colour changes, resizing and correspondence grids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageStat

from core.data import crops
from core.errors import UserError
from uss.views import NO_OVERLAP, PRETRAIN_STD, MultiCrop, Placement, correspondence_grids


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_golden_get_grid(goldens) -> None:
    file = goldens("C_get_grid")
    for index, (first, second) in enumerate(file["rects"]):
        got = correspondence_grids(Placement(*first), Placement(*second))
        for name, grid in zip(("gridq", "gridk"), got):
            assert grid.dtype == np.float32
            np.testing.assert_allclose(grid, file[name][index], rtol=0, atol=1e-6)
    sized = [key.split("_") for key in file if key.endswith("_gridq") and "size" in key]
    for pair, size, _ in sized:
        rects = file["rects"][int(pair[len("pair") :])]
        got = correspondence_grids(
            Placement(*rects[0]), Placement(*rects[1]), int(size[len("size") :])
        )
        for name, grid in zip(("gridq", "gridk"), got):
            np.testing.assert_allclose(grid, file[f"{pair}_{size}_{name}"], rtol=0, atol=1e-6)


boxes = st.builds(
    Placement,
    st.integers(0, 50),
    st.integers(0, 50),
    st.integers(1, 60),
    st.integers(1, 60),
    st.booleans(),
)


def to_image(grid: np.ndarray, view: Placement) -> np.ndarray:
    """Image coordinates of grid points of a crop."""
    x = -grid[..., 0] if view.flipped else grid[..., 0]
    return np.stack(
        [view.left + (x + 1) / 2 * view.width, view.top + (grid[..., 1] + 1) / 2 * view.height],
        axis=-1,
    )


@given(boxes, boxes)
def test_both_grids_meet_at_the_same_image_points(first: Placement, second: Placement) -> None:
    grid_q, grid_k = correspondence_grids(first, second)
    if (grid_q == NO_OVERLAP).all():
        assert (grid_k == NO_OVERLAP).all()
        return
    assert np.abs(grid_q).max() <= 1 + 1e-6 and np.abs(grid_k).max() <= 1 + 1e-6
    np.testing.assert_allclose(to_image(grid_q, first), to_image(grid_k, second), atol=1e-3)


@given(
    st.integers(1, 80), st.integers(1, 80), st.sampled_from([(0.05, 0.14), (0.14, 1), (0.08, 1)])
)
def test_random_boxes_lie_inside(height: int, width: int, scale: tuple[float, float]) -> None:
    rng = np.random.default_rng(height * 100 + width)
    for _ in range(5):
        left, top, w, h = crops.random_box(height, width, *scale, rng)
        assert left >= 0 and top >= 0 and w >= 1 and h >= 1
        assert left + w <= width and top + h <= height


def test_random_boxes_have_the_wanted_areas_and_aspects() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([crops.random_box(400, 400, 0.14, 1.0, rng) for _ in range(3000)])
    area = drawn[:, 2] * drawn[:, 3] / 400**2
    aspect = np.log(drawn[:, 2] / drawn[:, 3])
    assert 0.13 < area.min() < 0.16 and area.max() <= 1
    assert np.abs(aspect).max() < np.log(4 / 3) + 0.02
    assert abs(aspect.mean()) < 0.02
    # Nearly uniform in area (large areas of uneven aspect do not fit and are drawn again).
    small = area[area < 0.6]
    assert np.histogram(small, 4, (0.14, 0.6))[0].std() / (len(small) / 4) < 0.12


def test_a_strip_falls_back_to_its_centre() -> None:
    rng = np.random.default_rng(0)
    assert crops.random_box(10, 400, 0.9, 1.0, rng) == ((400 - 13) // 2, 0, 13, 10)
    assert crops.random_box(400, 10, 0.9, 1.0, rng) == (0, (400 - 13) // 2, 10, 13)


def test_normalise_matches_the_formula() -> None:
    rgb = picture(5, 7)
    for std in (crops.STD, PRETRAIN_STD):
        got = crops.normalise(rgb, std)
        expected = (rgb / 255 - np.array(crops.MEAN)) / np.array(std)
        assert got.dtype == np.float32 and got.shape == (3, 5, 7)
        np.testing.assert_allclose(got, expected.transpose(2, 0, 1), atol=1e-6)
    assert crops.normalise(rgb[:, ::-1]).flags.c_contiguous


@pytest.mark.parametrize(
    ("size_hw", "expected"), [((100, 150), (64, 96)), ((333, 100), (213, 64)), ((30, 30), (64, 64))]
)
def test_short_side_keeps_the_aspect(size_hw: tuple[int, int], expected: tuple[int, int]) -> None:
    assert crops.resize_short_side(picture(*size_hw), 64).shape[:2] == expected
    assert crops.resize_square(picture(*size_hw), 64).shape[:2] == (64, 64)


def test_a_strip_that_would_fill_the_memory_is_refused() -> None:
    strip = np.zeros((1, 66_000, 3), np.uint8)
    assert crops.resize_short_side(strip, 8).shape == (8, 8 * 66_000, 3)
    with pytest.raises(UserError, match="66000 x 1 pixels .* shorter side of 256"):
        crops.resize_short_side(strip, 256)


def test_shrinking_does_not_alias() -> None:
    board = np.zeros((256, 256, 3), np.uint8)
    board[::2, ::2] = board[1::2, 1::2] = 255
    small = crops.resize_square(board, 32).astype(int)
    assert np.abs(small - 128).max() < 8


@pytest.mark.parametrize("size_hw", [(10, 10), (9, 20), (20, 9), (3, 4), (11, 10)])
def test_center_crop_works_on_any_size(size_hw: tuple[int, int]) -> None:
    rgb = picture(*size_hw)
    got = crops.center_crop(rgb, 10)
    assert got.shape == (10, 10, 3)
    centre = rgb[size_hw[0] // 2, size_hw[1] // 2]
    assert (got[4:7, 4:7] == centre).all(axis=-1).any()


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 15), st.integers(1, 15))
def test_nearest_takes_the_value_below_each_centre(h: int, w: int, oh: int, ow: int) -> None:
    label = np.arange(h * w).reshape(h, w)
    got = crops.resize_nearest(label, (oh, ow))
    rows = [int((i + 0.5) * h / oh) for i in range(oh)]
    columns = [int((j + 0.5) * w / ow) for j in range(ow)]
    assert np.array_equal(got, label[np.ix_(rows, columns)])


def test_nearest_by_the_floor() -> None:
    grid = np.array([[1, 2], [3, 4]])
    enlarged = crops.resize_nearest_floor(grid, (3, 2))
    np.testing.assert_array_equal(enlarged, [[1, 2], [1, 2], [3, 4]])
    labels = np.arange(2 * 6 * 4).reshape(2, 6, 4)
    np.testing.assert_array_equal(crops.resize_nearest_floor(labels, (3, 2)), labels[:, ::2, ::2])


@pytest.mark.torch
def test_torch_judges_nearest_by_the_floor() -> None:
    torch = pytest.importorskip("torch")
    for grid in (1, 7, 8, 15, 29, 32, 64):
        small = np.arange(grid * 2, dtype=np.float32).reshape(grid, 2)
        for size in (1, 3, grid, 41, 99, 103, 375, 500):
            judge = torch.nn.functional.interpolate(torch.from_numpy(small[None, None]), (size, 3))
            got = crops.resize_nearest_floor(small, (size, 3))
            np.testing.assert_array_equal(got, judge[0, 0])


def test_nearest_agrees_with_the_filter_of_the_image() -> None:
    image = np.zeros((13, 29), np.uint8)
    image[3:9, 5:21] = 200
    got = crops.resize_nearest(image, (40, 37))
    judge = np.asarray(Image.fromarray(image).resize((37, 40), Image.Resampling.NEAREST))
    assert np.array_equal(got, judge)


def test_brightness_and_contrast_match_pillow() -> None:
    rng = np.random.default_rng(3)
    for seed in range(40):
        image = Image.fromarray(picture(9, 11, seed))
        factor = float(rng.uniform(0.2, 1.8))
        mean = int(ImageStat.Stat(image.convert("L")).mean[0] + 0.5)
        for base, judge in [(0, ImageEnhance.Brightness), (mean, ImageEnhance.Contrast)]:
            got = image.point(crops._blend_table(base, factor) * 3)
            assert np.array_equal(np.asarray(got), np.asarray(judge(image).enhance(factor)))


def test_hue_turns_and_keeps_gray() -> None:
    red = Image.new("RGB", (2, 2), (200, 0, 0))
    turned = np.asarray(crops.shift_hue(red, 1 / 3))[0, 0].astype(int)
    assert turned[1] > 190 and turned[0] < 12 and turned[2] < 12
    assert (
        np.abs(np.asarray(crops.shift_hue(red, -0.2))[0, 0].astype(int) - [160, 0, 200]).max() < 8
    )
    gray = Image.new("RGB", (2, 2), (90, 90, 90))
    assert np.asarray(crops.shift_hue(gray, 0.2)).tolist() == np.asarray(gray).tolist()


def test_multi_crop_gives_every_view_and_repeats_itself() -> None:
    crop = MultiCrop((32, 16), (2, 3), (0.14, 0.05), (1.0, 0.14))
    rgb = picture(50, 70)
    views, placements = crop(rgb, np.random.default_rng(5))
    assert [view.shape for view in views] == [(3, 32, 32)] * 2 + [(3, 16, 16)] * 3
    assert all(view.dtype == np.float32 and np.isfinite(view).all() for view in views)
    again, same = crop(rgb, np.random.default_rng(5))
    assert same == placements and all(map(np.array_equal, views, again))
    other, _ = crop(rgb, np.random.default_rng(6))
    assert not np.array_equal(views[0], other[0])


def test_placements_say_where_the_views_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ramp in x and y tells from a view's borders which part of the image it shows."""
    monkeypatch.setattr("uss.views.distort", lambda view, rng, amount: view)
    y, x = np.mgrid[:200, :200]
    rgb = np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8)
    crop = MultiCrop((64, 32), (2, 1), (0.14, 0.05), (1.0, 0.14))
    mirrored = 0
    for seed in range(40):
        views, placements = crop(rgb, np.random.default_rng(seed))
        for view, place in zip(views, placements):
            left, right = (255 * (view[0, 32, i] * 0.228 + 0.485) for i in (0, -1))
            top, bottom = (255 * (view[1, i, 32] * 0.224 + 0.456) for i in (0, -1))
            if place.flipped:
                left, right = right, left
            assert abs(left - place.left) <= 3 and abs(top - place.top) <= 3
            assert abs(right - (place.left + place.width - 1)) <= 3
            assert abs(bottom - (place.top + place.height - 1)) <= 3
            mirrored += place.flipped
    assert 20 < mirrored < 60


def test_distortions_come_at_their_rates() -> None:
    """Count, over many draws, how often a flat coloured view changes colour, and how often it turns
    gray.
    """
    flat = Image.new("RGB", (4, 4), (180, 90, 40))
    rng = np.random.default_rng(0)
    results = [np.asarray(crops.distort(flat, rng, 1.0))[0, 0].astype(int) for _ in range(1500)]
    changed = np.mean([value.tolist() != [180, 90, 40] for value in results])
    assert abs(changed - (1 - 0.2 * 0.8)) < 0.04
    gray = np.mean([np.ptp(value) == 0 for value in results])
    assert 0.17 < gray < 0.26  # .2, and what jitter clipped to black or white


def test_a_smaller_distortion_changes_colours_less_and_none_leaves_them() -> None:
    flat = Image.new("RGB", (4, 4), (180, 90, 40))

    def change(amount: float) -> np.ndarray:
        rng = np.random.default_rng(0)
        views = [np.asarray(crops.distort(flat, rng, amount))[0, 0] for _ in range(400)]
        return np.abs(np.stack(views).astype(int) - [180, 90, 40]).mean(axis=1)

    # Where nothing is changed, the round trip through hue, saturation and value may be off by one.
    assert change(0.0).max() <= 2
    assert 0.1 * change(1.0).mean() < change(0.25).mean() < 0.4 * change(1.0).mean()
    scales = (0.14,), (1.0,)
    with pytest.raises(UserError, match="distortion"):
        MultiCrop((32,), (2,), *scales, distortion=1.5)


def test_small_images_give_full_crops() -> None:
    views, placements = MultiCrop((32, 16), (2, 1), (0.14, 0.05), (1.0, 0.14))(
        picture(1, 3), np.random.default_rng(0)
    )
    assert views[0].shape == (3, 32, 32) and placements[0].height == 1
    image, label = crops.JointCrop(32)(
        picture(2, 2), np.ones((2, 2), int), np.random.default_rng(0)
    )
    assert image.shape == (3, 32, 32) and (label == 1).all() and label.dtype == np.int32


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_joint_crops_keep_image_and_label_together(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = np.zeros((60, 80), np.int64)
    top, left = rng.integers(0, 30), rng.integers(0, 40)
    label[top : top + 25, left : left + 30] = 919
    rgb = np.where((label > 0)[..., None], 255, 0).astype(np.uint8).repeat(3, 2)
    image, cut = crops.JointCrop(48, 0.2)(rgb, label, rng)
    white = image[0] * crops.STD[0] + crops.MEAN[0]
    assert set(np.unique(cut)) <= {0, 919}
    # Away from edges, where the image is blended, both say the same.
    sure = (white < 0.01) | (white > 0.99)
    assert sure.mean() > 0.7
    assert ((white > 0.5) == (cut == 919))[sure].all()


def test_bad_settings_are_refused() -> None:
    for arguments in [
        ((32,), (1,), (0.1,), (1.0,)),
        ((32, 16), (2,), (0.1,), (1.0,)),
        ((32,), (2,), (0.5,), (0.1,)),
        ((32,), (2,), (0.0,), (1.0,)),
    ]:
        with pytest.raises(UserError, match="crop"):
            MultiCrop(*arguments)
    with pytest.raises(UserError):
        crops.JointCrop(32, 0)
    with pytest.raises(ValueError, match="does not fit"):
        crops.JointCrop(8)(picture(4, 4), np.zeros((4, 5), int), np.random.default_rng(0))


@pytest.mark.torch
def test_torch_judges_sampling_at_the_grids() -> None:
    """Crop contents sampled at both grids agree, by torch's grid_sample with this project's
    settings.
    """
    torch = pytest.importorskip("torch")
    y, x = np.mgrid[:120, :120]
    rgb = np.stack([x * 2, y * 2, np.zeros_like(x)], -1).astype(np.uint8)
    views = [Placement(10, 5, 60, 80, True), Placement(30, 20, 70, 70, False)]
    samples = []
    for view, grid in zip(views, correspondence_grids(*views)):
        crop = np.asarray(crops.cut(rgb, view[:4], 64, view.flipped)).astype(np.float32)
        tensor = torch.from_numpy(crop.transpose(2, 0, 1)[None])
        sampled = torch.nn.functional.grid_sample(
            tensor, torch.from_numpy(grid[None]), align_corners=False
        )
        samples.append(sampled.numpy()[0, :2, 1:-1, 1:-1])
    assert np.abs(samples[0] - samples[1]).max() < 4
