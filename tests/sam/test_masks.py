"""Masks as arrays and run lengths, against hand-made masks, brute force and the official utilities'
golden values.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data import rle
from sam import masks as M
from sam.resize_logits import MaskUpscaler
from sam.transforms import ResizeLongestSide
from tests.helpers.processes import PATIENCE_S

RING = np.array(
    [
        [0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 0, 1, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 1],
    ],
    bool,
)


def random_masks(seed: int, count: int, h: int, w: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.random((count, h, w)) < rng.random((count, 1, 1))


# Run lengths


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40))
def test_every_form_of_a_mask_decodes_to_the_same_pixels(seed: int, h: int, w: int) -> None:
    for mask in [*random_masks(seed, 3, h, w), np.zeros((h, w), bool), np.ones((h, w), bool)]:
        packed = rle.encode(mask)
        plain = rle.uncompressed(mask)
        assert (rle.decode(packed) == mask).all() and (rle.decode(plain) == mask).all()
        assert rle.uncompressed(packed) == plain
        assert rle.compressed(plain) == packed == rle.compressed(mask)
        assert rle.area(packed) == rle.area(plain) == rle.area(mask) == mask.sum()


def test_long_runs_survive_the_compressed_string() -> None:
    mask = np.zeros((3000, 1500), bool)
    mask[17:2900, 3] = True
    mask[5, 900:1400] = True
    assert (rle.decode(rle.encode(mask)) == mask).all()
    assert rle.uncompressed(mask)["counts"][0] == 3 * 3000 + 17


def test_run_lengths_that_do_not_fit_the_size_are_refused() -> None:
    with pytest.raises(ValueError, match="add up to 7, expected 2 x 4"):
        rle.decode({"size": [2, 4], "counts": [3, 4]})


def test_golden_sam_run_lengths(goldens) -> None:
    f = goldens("F_sam_utils")
    counts = np.split(f["rle.counts"], np.cumsum(f["rle.len"])[:-1])
    for mask, expected, area, text in zip(f["masks"], counts, f["rle.area"], f["rle.coco_string"]):
        assert rle.uncompressed(mask) == {"size": list(mask.shape), "counts": expected.tolist()}
        assert rle.encode(mask)["counts"] == str(text)
        assert rle.area(rle.encode(mask)) == area
        assert (rle.decode({"size": list(mask.shape), "counts": expected.tolist()}) == mask).all()


# Boxes


def test_boxes_have_their_last_pixel_inside() -> None:
    assert rle.box_of(RING).tolist() == [1, 1, 5, 4]
    assert rle.to_xywh(rle.box_of(RING)).tolist() == [1, 1, 4, 3]
    assert rle.box_of(np.zeros((3, 4), bool)).tolist() == [0, 0, 0, 0]


def test_golden_sam_boxes(goldens) -> None:
    f = goldens("F_sam_utils")
    assert (M.boxes_of(f["masks"]) == f["mask_to_box"]).all()
    assert M.boxes_of(f["masks"][None, :2]).shape == (1, 2, 4)


def test_golden_sam_nms(goldens) -> None:
    f = goldens("F_sam_utils")
    cases = sorted(key.split(".")[0] for key in f if key.startswith("nms") and key.endswith("keep"))
    assert cases
    for case in cases:
        keep = M.nms(f[f"{case}.boxes"], f[f"{case}.scores"], float(f[f"{case}.thr"]))
        assert keep.tolist() == f[f"{case}.keep"].tolist(), case


def test_nms_suppresses_strictly_above_the_threshold_and_keeps_ties_in_order() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 10], [20, 20, 20, 20]])
    assert M.nms(boxes, np.array([0.5, 0.9, 0.5, 0.5]), 0.5).tolist() == [1, 0, 3]
    assert M.nms(boxes, np.array([0.5, 0.9, 0.5, 0.5]), 0.49).tolist() == [1, 3]
    assert M.nms(np.zeros((0, 4)), np.zeros(0), 0.5).tolist() == []


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.floats(0.05, 0.95))
def test_nms_equals_brute_force(seed: int, count: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 30, (count, 2))
    boxes = np.concatenate([low, low + rng.integers(1, 20, (count, 2))], axis=1)
    scores = rng.integers(0, 6, count) / 5

    def iou(a: np.ndarray, b: np.ndarray) -> np.float32:
        sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
        shared = np.float32(np.prod(np.maximum(sides, 0)))
        return shared / (np.float32(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - shared)

    kept: list[int] = []
    for i in sorted(range(count), key=lambda i: -scores[i]):
        if all(iou(boxes[i], boxes[j]) <= np.float32(threshold) for j in kept):
            kept.append(i)
    assert M.nms(boxes, scores, threshold).tolist() == kept


# Points and crops


def test_golden_sam_point_grids(goldens) -> None:
    f = goldens("F_sam_utils")
    for n in (1, 2, 5, 8):
        np.testing.assert_allclose(M.point_grid(n), f[f"point_grid{n}"], atol=1e-12)
    for i, grid in enumerate(M.layer_point_grids(16, 2, 2)):
        np.testing.assert_allclose(grid, f[f"layer_grid{i}"], atol=1e-12)


def test_golden_sam_crop_boxes(goldens) -> None:
    f = goldens("F_sam_utils")
    for case in sorted(key.split(".")[0] for key in f if key.endswith(".cfg")):
        h, w, layers, overlap = f[f"{case}.cfg"]
        boxes, layer_of = M.crop_boxes((int(h), int(w)), int(layers), float(overlap))
        assert boxes == f[f"{case}.boxes"].tolist() and layer_of == f[f"{case}.layers"].tolist()


def test_golden_sam_crop_edges_and_uncrop(goldens) -> None:
    f = goldens("F_sam_utils")
    crop, (x0, y0, w, h) = f["edge.crop"].tolist(), f["edge.orig"].tolist()
    assert (x0, y0) == (0, 0)
    near = M.near_crop_edge(f["edge.boxes"], crop, (h, w))
    assert (near == f["edge.near"]).all() and near.any() and not near.all()
    close = M.near_crop_edge(f["edge.boxes"], crop, (h, w), tolerance=5.0)
    assert (close == f["edge.near_atol5"]).all()
    assert (M.uncrop_boxes(f["edge.boxes"], crop) == f["uncrop.boxes"]).all()
    assert (M.uncrop_points(f["edge.boxes"][:, :2], crop) == f["uncrop.points"]).all()


def test_a_crop_s_mask_lands_at_its_place() -> None:
    whole = M.uncrop_masks(RING[None], [2, 1, 8, 6], (9, 10))
    assert whole.shape == (1, 9, 10) and whole.sum() == RING.sum()
    assert (whole[0, 1:6, 2:8] == RING).all()
    assert M.uncrop_masks(RING, [0, 0, 6, 5], (5, 6)) is RING


# Quality


def test_golden_sam_stability_score(goldens) -> None:
    f = goldens("F_sam_utils")
    logits = f["stability.in"]
    expected = f["stability.out_off1"]
    np.testing.assert_allclose(
        M.stability_score(logits[: len(expected)], 0.0, 1.0), expected, atol=1e-6
    )
    np.testing.assert_allclose(
        M.stability_score(logits, 0.2, 0.7), f["stability.out_all_off0.7_thr0.2"], atol=1e-6
    )


def test_small_holes_and_islands_by_hand() -> None:
    filled, changed = M.fill_small_holes(RING, 2)
    assert changed and filled[2, 2] and filled.sum() == RING.sum() + 1
    unconnected, changed = M.drop_small_islands(RING, 2)
    assert changed and not unconnected[4, 5] and unconnected.sum() == RING.sum() - 1
    same, changed = M.fill_small_holes(RING, 1)
    assert not changed and (same == RING).all()
    largest, changed = M.drop_small_islands(RING, 1000)
    assert changed and (largest == unconnected).all()


def test_golden_sam_small_regions(goldens) -> None:
    f = goldens("F_sam_utils")
    seen = 0
    for key in [key for key in f if key.startswith("small") and key.endswith(("holes", "islands"))]:
        case, area, mode = key.split(".")
        clean = M.fill_small_holes if mode == "holes" else M.drop_small_islands
        mask, changed = clean(f[f"{case}.in"], float(area))
        assert changed == bool(f[f"{key}.changed"]) and (mask == f[key]).all(), key
        seen += 1
    assert seen


# Geometry of the input and of the output


def test_golden_sam_resize_longest_side(goldens) -> None:
    f = goldens("F_sam_utils")
    for case in sorted(key.split(".")[0] for key in f if key.endswith(".long_h_w")):
        side, h, w = f[f"{case}.long_h_w"].tolist()
        transform = ResizeLongestSide(side)
        assert list(transform.get_preprocess_shape(h, w, side)) == f[f"{case}.new_hw"].tolist()
        coords = transform.apply_coords(f[f"{case}.coords"], (h, w))
        np.testing.assert_allclose(coords, f[f"{case}.coords_out"], atol=1e-9)
        boxes = transform.apply_boxes(f[f"{case}.boxes"], (h, w))
        np.testing.assert_allclose(boxes, f[f"{case}.boxes_out"], atol=1e-9)
    for side in (40, 128):
        image = ResizeLongestSide(side).apply_image(f["apply_image.in"])
        assert (image == f[f"apply_image.out_{side}"]).all()


def test_upscaler_is_two_bilinear_steps_with_the_padding_cut_off() -> None:
    low = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)

    def bilinear(values: np.ndarray, h: int, w: int) -> np.ndarray:
        def axis(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            source = np.maximum((np.arange(new) + 0.5) * old / new - 0.5, 0)
            left = np.floor(source).astype(int)
            return left, np.minimum(left + 1, old - 1), source - left

        top, bottom, v = axis(values.shape[0], h)
        left, right, u = axis(values.shape[1], w)
        rows = values[top] * (1 - v)[:, None] + values[bottom] * v[:, None]
        return rows[:, left] * (1 - u) + rows[:, right] * u

    expected = bilinear(bilinear(low.astype(np.float64), 64, 64)[:48, :64], 90, 121)
    got = MaskUpscaler(16, 64, (48, 64), (90, 121))(low)
    assert got.dtype == np.float32 and got.flags.f_contiguous
    np.testing.assert_allclose(got, expected, atol=2e-5)
    small = MaskUpscaler(16, 64, (48, 64), (9, 12))(low)
    np.testing.assert_allclose(
        small, bilinear(bilinear(low.astype(np.float64), 64, 64)[:48], 9, 12), atol=2e-5
    )


def test_numpy_modules_do_not_start_jittor() -> None:
    import subprocess
    import sys

    code = (
        "import sam, sam.masks, core.work.mask_store, refine.superpixels, sam.transforms\n"
        "import sam.resize_logits, sam.onnx_weights, sam.weights, sys\n"
        "assert 'jittor' not in sys.modules and not sam.__dict__.get('SamPredictor')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)
