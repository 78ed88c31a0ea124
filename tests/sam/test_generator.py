"""The automatic mask generator: its filters on a stand-in model, and whole runs against golden
ones.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from core.data import rle
from core.errors import UserError
from sam import masks as M
from sam import weights
from sam.mask_generator import SamAutomaticMaskGenerator
from sam.resize_logits import MaskUpscaler
from sam.transforms import ResizeLongestSide

SIDE, LOW = 64, 16
IMAGE = np.zeros((48, 64, 3), np.uint8)
KEYS = {
    "segmentation",
    "area",
    "bbox",
    "predicted_iou",
    "point_coords",
    "stability_score",
    "crop_box",
}


class StandInPredictor:
    """In place of SAM: a point's masks are squares around it, 2, 4 and 8 low-resolution pixels
    wide.

    All points in the same 16 x 16 block give the same squares, so that there is something to
    suppress. The predicted IoU is .9, .8, .7; ``soft`` makes the largest square unstable.
    """

    def __init__(self, soft: bool = False) -> None:
        self.model = SimpleNamespace(mask_threshold=0.0)
        self.transform = ResizeLongestSide(SIDE)
        self.soft = soft
        self.batches: list[int] = []
        self.sizes: list[tuple[int, int]] = []
        self.most, self.too_many = 10**6, Exception()

    def set_image(self, image: np.ndarray) -> None:
        h, w = image.shape[:2]
        self.sizes.append((h, w))
        size = self.transform.get_preprocess_shape(h, w, SIDE)
        self._upscaler = MaskUpscaler(LOW, SIDE, size, (h, w))

    def reset_image(self) -> None:
        del self._upscaler

    def upscaler(self) -> MaskUpscaler:
        return self._upscaler

    def decode(
        self, coords: np.ndarray, labels: np.ndarray, iou_limit: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assert coords.shape == (len(coords), 1, 2) and (labels == 1).all()
        self.batches.append(len(coords))
        if len(coords) > self.most:
            raise self.too_many
        logits = np.full((len(coords), 3, LOW, LOW), -5.0, np.float32)
        for masks, (x, y) in zip(logits, (coords[:, 0] // 16 * 4 + 2).astype(int)):
            for mask, half in zip(masks, (1, 2, 4)):
                inside = 0.5 if self.soft and half == 4 else 5.0
                mask[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = inside
        iou = np.tile(np.array([0.9, 0.8, 0.7], np.float32), (len(coords), 1))
        decoded = np.flatnonzero((iou > np.float32(iou_limit)).any(axis=1))
        return logits[decoded], iou, decoded


def generator(predictor: StandInPredictor | None = None, **settings: Any) -> Any:
    """A generator of 8 x 8 points whose predictor is the stand-in; filters off unless set."""
    off = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "points_per_side": 8}
    model = SimpleNamespace(image_encoder=SimpleNamespace(img_size=SIDE))
    made = SamAutomaticMaskGenerator(model, **{**off, **settings})
    made.predictor = predictor or StandInPredictor()
    return made


def test_a_record_has_the_official_keys_and_types() -> None:
    records = generator().generate(IMAGE)
    assert records
    for record in records:
        mask = record["segmentation"]
        assert set(record) == KEYS and mask.shape == (48, 64) and mask.dtype == bool
        assert record["area"] == mask.sum()
        assert record["bbox"] == rle.to_xywh(rle.box_of(mask)).tolist()
        assert record["crop_box"] == [0, 0, 64, 48]
        [[x, y]] = record["point_coords"]
        # The smallest square need not reach the point, the others hold its whole block.
        assert mask[int(y), int(x)] or record["predicted_iou"] > 0.85
        assert type(record["predicted_iou"]) is float and type(record["stability_score"]) is float


def test_duplicates_go_and_the_better_mask_comes_first() -> None:
    records = generator().generate(IMAGE)
    # Three squares in each of 4 x 3 blocks, seen by four points or more each, different enough to
    # stay.
    boxes = {tuple(record["bbox"]) for record in records}
    assert len(boxes) == len(records) == 36
    scores = [record["predicted_iou"] for record in records]
    assert scores == sorted(scores, reverse=True)
    fewer = generator(box_nms_thresh=0.2).generate(IMAGE)
    assert {round(record["predicted_iou"], 1) for record in fewer} == {0.9, 0.7}


def test_filters_of_predicted_iou_and_stability() -> None:
    assert len(generator(pred_iou_thresh=0.75).generate(IMAGE)) == 24
    # A predicted IoU equal to the threshold is not enough.
    assert len(generator(pred_iou_thresh=float(np.float32(0.8))).generate(IMAGE)) == 12
    soft = StandInPredictor(soft=True)
    stable = generator(soft, stability_score_thresh=0.5).generate(IMAGE)
    assert {round(record["predicted_iou"], 1) for record in stable} == {0.9, 0.8}
    assert all(record["stability_score"] >= 0.5 for record in stable)


def test_batches_bound_the_points_and_never_change_the_masks() -> None:
    predictors = [StandInPredictor(), StandInPredictor()]
    one, many = (
        generator(predictor, points_per_batch=size).generate(IMAGE)
        for predictor, size in zip(predictors, (64, 10))
    )
    assert predictors[0].batches == [64] and predictors[1].batches == [10] * 6 + [4]
    assert [rle.encode(r.pop("segmentation")) for r in one] == [
        rle.encode(r.pop("segmentation")) for r in many
    ]
    assert one == many


def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = generator(points_per_batch=64).generate(IMAGE)
    predictor = StandInPredictor()
    predictor.most, predictor.too_many = 20, MemoryError()
    small = generator(predictor, points_per_batch=64)
    found = small.generate(IMAGE)
    assert predictor.batches == [64, 32, 16, 16, 16, 16] and small.points_per_batch == 16
    assert "out of memory with 32 points at a time; going on with 16" in capsys.readouterr().err
    for a, b in zip(expected, found):
        assert (a.pop("segmentation") == b.pop("segmentation")).all()
    assert found == expected

    predictor.most = 0
    with pytest.raises(UserError, match="out of memory with a single point"):
        generator(predictor).generate(IMAGE)


def test_a_halved_batch_grows_again_when_the_memory_is_free(
    capsys: pytest.CaptureFixture[str],
) -> None:
    predictor = StandInPredictor()
    predictor.most, predictor.too_many = 20, MemoryError()
    recovering = generator(predictor, points_per_batch=64)
    expected = len(recovering.generate(IMAGE))
    assert recovering.points_per_batch == 16
    for _ in range(8):  # once it is tried again while memory is still short
        recovering.generate(IMAGE)
    assert recovering.points_per_batch == 16 and predictor.batches.count(32) == 2
    predictor.most = 1000
    sizes = []
    for _ in range(16):
        assert len(recovering.generate(IMAGE)) == expected
        sizes.append(recovering.points_per_batch)
    assert sizes[-1] == 64 and sorted(set(sizes)) == [16, 32, 64]
    recovering.generate(IMAGE)
    assert predictor.batches[-1] == 64


def test_an_error_that_is_not_about_memory_comes_through() -> None:
    predictor = StandInPredictor()
    predictor.most, predictor.too_many = 0, RuntimeError("shapes do not fit together")
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        generator(predictor).generate(IMAGE)
    assert predictor.batches == [64]


def test_crops_cover_the_image_and_masks_cut_off_by_them_go() -> None:
    image = np.zeros((120, 160, 3), np.uint8)
    predictor = StandInPredictor()
    records = generator(predictor, crop_n_layers=1, crop_n_points_downscale_factor=2).generate(
        image
    )
    assert predictor.sizes[0] == (120, 160) and len(predictor.sizes) == 5
    assert predictor.batches == [64, 16, 16, 16, 16]
    boxes, _ = M.crop_boxes((120, 160), 1, 512 / 1500)
    crops = {tuple(rle.to_xywh(np.array(box)).tolist()) for box in boxes}
    assert {tuple(record["crop_box"]) for record in records} == crops
    for record in records:
        x, y, w, h = record["bbox"]
        left, top, width, height = record["crop_box"]
        assert left <= x and x + w <= left + width and top <= y and y + h <= top + height
        near = M.near_crop_edge(
            np.array([[x - left, y - top, x + w - left, y + h - top]]),
            [left, top, left + width, top + height],
            (120, 160),
        )
        assert not near[0]


def test_small_regions_are_cleaned_and_fall_out_when_they_became_duplicates() -> None:
    class Speckled(StandInPredictor):
        def decode(self, *arguments: Any, **limit: float) -> Any:
            logits, iou, decoded = super().decode(*arguments, **limit)
            logits[:, 1] = logits[:, 2]
            logits[:, 1, 0, 0] = logits[:, 1, 11, 15] = 5.0
            return logits, iou, decoded

    untouched = generator(Speckled()).generate(IMAGE)
    cleaned = generator(Speckled(), min_mask_region_area=40).generate(IMAGE)
    assert len(cleaned) == 24 < len(untouched)
    for record in cleaned:
        mask = record["segmentation"]
        assert not M.drop_small_islands(mask, 40)[1] and not M.fill_small_holes(mask, 40)[1]
        assert record["area"] == mask.sum()
        assert record["bbox"] == rle.to_xywh(rle.box_of(mask)).tolist()


def test_output_modes_hold_the_same_masks() -> None:
    binary, plain, coco = (
        generator(output_mode=mode).generate(IMAGE)
        for mode in ("binary_mask", "uncompressed_rle", "coco_rle")
    )
    for a, b, c in zip(binary, plain, coco):
        assert rle.uncompressed(a["segmentation"]) == b["segmentation"]
        assert rle.encode(a["segmentation"]) == c["segmentation"]


def test_no_mask_at_all_is_an_empty_list() -> None:
    assert generator(pred_iou_thresh=0.95, crop_n_layers=1).generate(IMAGE) == []
    assert generator(pred_iou_thresh=0.95, min_mask_region_area=10).generate(IMAGE) == []


def test_own_point_grids() -> None:
    predictor = StandInPredictor()
    grid = np.array([[0.5, 0.5]])
    assert len(generator(predictor, points_per_side=None, point_grids=[grid]).generate(IMAGE)) == 3
    assert predictor.batches == [1]
    with pytest.raises(ValueError, match="exactly one"):
        generator(point_grids=[grid])
    with pytest.raises(ValueError, match="exactly one"):
        generator(points_per_side=None)
    with pytest.raises(ValueError, match="output_mode"):
        generator(output_mode="png")


# Whole runs with the real TinyViT weights


@pytest.fixture(scope="module")
def mobile_sam() -> Any:
    """The fetched TinyViT SAM; skips where it was not fetched."""
    path = weights.cache_folder() / weights.manifest()["fetched"]["file"]
    if not path.is_file():
        pytest.skip(f"{path} is not there; run: python -m uss weights")
    from sam import sam_model_registry

    return sam_model_registry["vit_t"](checkpoint=path)


def photos(full_goldens: Any) -> dict[str, np.ndarray]:
    return {key.split(".")[0]: rgb for key, rgb in full_goldens("G_photos_rgb").items()}


def check_against_golden(f: dict[str, np.ndarray], sam: Any, rgb: np.ndarray, case: str) -> None:
    """Run the generator with the settings of case PHOTO.pN[_crop1][_area100] and match its
    masks.
    """
    settings = case.split(".")[1].split("_")
    records = SamAutomaticMaskGenerator(
        sam,
        points_per_side=int(settings[0][1:]),
        pred_iou_thresh=0.7,
        stability_score_thresh=0.85,
        crop_n_layers=int("crop1" in settings),
        min_mask_region_area=100 if "area100" in settings else 0,
    ).generate(rgb)
    counts = np.split(f[f"{case}.rle_counts"], np.cumsum(f[f"{case}.rle_len"])[:-1])
    size = f[f"{case}.size_hw"].tolist()
    expected = [rle.decode({"size": size, "counts": runs}) for runs in counts]
    assert abs(len(records) - len(expected)) <= max(1, 0.03 * len(expected))
    partners = 0
    for i, mask in enumerate(expected):
        ious = [
            np.count_nonzero(mask & r["segmentation"]) / np.count_nonzero(mask | r["segmentation"])
            for r in records
        ]
        partner = records[int(np.argmax(ious))]
        if max(ious) < 0.99:
            continue
        partners += 1
        assert abs(partner["predicted_iou"] - f[f"{case}.predicted_iou"][i]) < 1e-3
        assert abs(partner["stability_score"] - f[f"{case}.stability_score"][i]) < 1e-2
        assert partner["crop_box"] == f[f"{case}.crop_box"][i].tolist()
        assert np.abs(np.array(partner["bbox"]) - f[f"{case}.bbox"][i]).max() <= 2
    assert partners >= 0.97 * len(expected)


def test_golden_sam_automatic_masks_of_a_photograph(full_goldens: Any, mobile_sam: Any) -> None:
    from sam import SamPredictor
    from tests.conftest import relative_error

    f = full_goldens("G_mobilesam_amg")
    photo, rgb = next(iter(photos(full_goldens).items()))
    predictor = SamPredictor(mobile_sam)
    predictor.set_image(rgb)
    assert relative_error(f, f"{photo}.embedding", predictor.get_image_embedding().numpy()) < 1e-4
    h, w = rgb.shape[:2]
    masks, iou, low_res = predictor.predict(np.array([[w / 2, h / 2]]), np.array([1]))
    assert relative_error(f, f"{photo}.centre_point.low_res", low_res) < 1e-4
    np.testing.assert_allclose(iou, f[f"{photo}.centre_point.iou"], atol=1e-4)
    np.testing.assert_allclose(masks.sum((1, 2)), f[f"{photo}.centre_point.area"], rtol=1e-3)
    check_against_golden(f, mobile_sam, rgb, f"{photo}.p8")


@pytest.mark.slow
def test_golden_sam_automatic_masks_of_all_settings(full_goldens: Any, mobile_sam: Any) -> None:
    f = full_goldens("G_mobilesam_amg")
    cases = sorted(key.rsplit(".", 1)[0] for key in f if key.endswith(".rle_len"))
    assert cases
    rgb_of = photos(full_goldens)
    for case in cases:
        check_against_golden(f, mobile_sam, rgb_of[case.split(".")[0]], case)
