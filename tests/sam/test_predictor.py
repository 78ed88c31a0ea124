"""The predictor on a small SAM with golden weights, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.conftest import golden_values, relative_error

# Stored call -> which of the stored points are given.
CALLS = {
    "point1": slice(0, 1),
    "points": slice(None),
    "box": slice(0, 0),
    "point_box": slice(1, 2),
    "point_mask": slice(None),
}


@pytest.fixture(scope="module")
def predictor() -> Any:
    """A predictor with a SAM of input size 256 whose weights are those of initialisation."""
    from sam import SamPredictor
    from sam.build import sam_around
    from sam.image_encoder import ImageEncoderViT

    encoder = ImageEncoderViT(
        img_size=256,
        patch_size=16,
        embed_dim=96,
        depth=4,
        num_heads=3,
        window_size=4,
        global_attn_indexes=(1, 3),
    )
    return SamPredictor(sam_around(encoder))


@pytest.fixture(scope="module")
def golden_predictor(predictor: Any, recipe: Any) -> Any:
    """The same with the recipe's weights."""
    from core.checkpoints.files import load_state

    state = {
        key: recipe.weight(key, value.shape) for key, value in predictor.model.state_dict().items()
    }
    load_state(predictor.model, state, "recipe")
    return predictor


def prompt(f: dict[str, np.ndarray], image: str, call: str) -> dict[str, np.ndarray]:
    """Arguments of ``predict`` for one of the stored calls."""
    coords, labels = f[f"{image}.point_coords"], f[f"{image}.point_labels"]
    arguments: dict[str, np.ndarray] = {}
    if call != "box":
        chosen = CALLS[call]
        arguments = {"point_coords": coords[chosen], "point_labels": labels[chosen]}
    if "box" in call:
        arguments["box"] = f[f"{image}.box"]
    if "mask" in call:
        arguments["mask_input"] = f[f"{image}.mask_prompt_low_res"]
    return arguments


@pytest.mark.parametrize("image", ["0", "1"])
def test_golden_sam_predictor(goldens: Any, golden_predictor: Any, image: str) -> None:
    f = goldens("F_sam_small_predictor")
    rgb, size = f[f"img{image}"], f[f"img{image}"].shape[:2]
    transform = golden_predictor.transform
    resized, expected = golden_values(f, f"{image}.resized_u8", transform.apply_image(rgb))
    assert (resized == expected).all()
    golden_predictor.set_image(rgb)
    assert list(golden_predictor.input_size) == f[f"{image}.input_size"].tolist()
    embedding = golden_predictor.get_image_embedding().numpy()
    assert relative_error(f, f"{image}.image_embedding", embedding) < 5e-5
    coords = transform.apply_coords(f[f"{image}.point_coords"], size)
    np.testing.assert_allclose(coords, f[f"{image}.coords_transformed"], atol=1e-9)
    box = transform.apply_boxes(f[f"{image}.box"], size)
    np.testing.assert_allclose(box, f[f"{image}.box_transformed"], atol=1e-9)
    for call in CALLS:
        for multi in (0, 1):
            key = f"{image}.{call}.multi{multi}"
            arguments = prompt(f, image, call)
            logits, iou, low_res = golden_predictor.predict(
                **arguments, multimask_output=bool(multi), return_logits=True
            )
            assert relative_error(f, f"{key}.logits", logits) < 5e-5, key
            assert relative_error(f, f"{key}.low_res", low_res) < 5e-5, key
            np.testing.assert_allclose(iou, f[f"{key}.iou"], atol=1e-4, err_msg=key)
            packed = f[f"{key}.mask_packbits"]
            wanted = np.unpackbits(packed, axis=1)[:, : size[0] * size[1]].astype(bool)
            differing = (logits.reshape(len(logits), -1) > 0) ^ wanted
            near = f[f"{key}.near_threshold_pixels"]
            assert (differing.sum(axis=1) <= near).all(), key


def test_bool_masks_are_the_logits_above_the_threshold(predictor: Any) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    predictor.set_image(rgb)
    point = {"point_coords": np.array([[30.0, 40.0]]), "point_labels": np.array([1])}
    masks, iou, low_res = predictor.predict(**point)
    logits, _, _ = predictor.predict(**point, return_logits=True)
    assert masks.shape == (3, 90, 120) and masks.dtype == bool
    assert iou.shape == (3,) and low_res.shape == (3, 64, 64)
    assert (masks == (logits > 0)).all()
    single, _, _ = predictor.predict(**point, multimask_output=False)
    assert single.shape == (1, 90, 120)


def test_a_batch_of_prompts_is_the_prompts_one_by_one(predictor: Any) -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (77, 130, 3)).astype(np.uint8)
    predictor.set_image(rgb)
    points = np.array([[[3.0, 4.0]], [[90.0, 60.0]]])
    coords = predictor.transform.apply_coords(points, (77, 130))
    batch = predictor.predict_torch(coords, np.ones((2, 1), np.int32), return_logits=True)
    assert batch[0].shape == (2, 3, 77, 130) and batch[2].shape == (2, 3, 64, 64)
    for i, point in enumerate(points):
        single = predictor.predict(point, np.array([1]), return_logits=True)
        for together, alone in zip(batch, single):
            np.testing.assert_allclose(together[i], alone, atol=1e-5 * np.abs(alone).max())


def test_channel_order_is_the_caller_s_choice(predictor: Any) -> None:
    rgb = np.random.default_rng(2).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    predictor.set_image(rgb)
    embedding = predictor.get_image_embedding().numpy()
    predictor.set_image(rgb[..., ::-1], image_format="BGR")
    np.testing.assert_array_equal(predictor.get_image_embedding().numpy(), embedding)


def test_an_image_that_is_set_already_is_not_encoded_again(
    predictor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgb = np.random.default_rng(3).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    sizes = []
    set_torch_image = predictor.set_torch_image

    def counted(pixels: np.ndarray, size: tuple[int, int]) -> None:
        sizes.append(size)
        set_torch_image(pixels, size)

    monkeypatch.setattr(predictor, "set_torch_image", counted)
    predictor.reset_image()
    predictor.set_image(rgb)
    predictor.set_image(rgb.copy())
    assert len(sizes) == 1
    rgb[0, 0, 0] += 1
    predictor.set_image(rgb)
    assert len(sizes) == 2
    predictor.reset_image()
    predictor.set_image(rgb)
    assert len(sizes) == 3


def test_only_prompts_above_the_limit_get_masks(predictor: Any) -> None:
    rgb = np.random.default_rng(4).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    predictor.set_image(rgb)
    coords = np.random.default_rng(5).uniform(0, 256, (37, 1, 2))
    labels = np.ones((37, 1), np.int32)
    masks, iou, everyone = predictor.decode(coords, labels)
    assert masks.shape == (37, 3, 64, 64) and (everyone == np.arange(37)).all()
    limit = float(np.median(iou.max(axis=1)))
    some, same_iou, chosen = predictor.decode(coords, labels, iou_limit=limit)
    assert (chosen == np.flatnonzero(iou.max(axis=1) > np.float32(limit))).all()
    assert 0 < len(chosen) < 37
    np.testing.assert_array_equal(same_iou, iou)
    np.testing.assert_array_equal(some, masks[chosen])
    none, _, nobody = predictor.decode(coords, labels, iou_limit=float(iou.max()))
    assert none.shape == (0, 3, 64, 64) and len(nobody) == 0


def test_what_is_refused(predictor: Any) -> None:
    rgb = np.zeros((20, 30, 3), np.uint8)
    predictor.reset_image()
    with pytest.raises(RuntimeError, match="no image is set"):
        predictor.predict(np.zeros((1, 2)), np.ones(1))
    with pytest.raises(RuntimeError, match="no image is set"):
        predictor.get_image_embedding().numpy()
    for wrong in (rgb.astype(np.float32), rgb[..., 0], rgb.transpose(2, 0, 1)):
        with pytest.raises(ValueError, match="expected a uint8 image"):
            predictor.set_image(wrong)
    with pytest.raises(ValueError, match="image_format"):
        predictor.set_image(rgb, "HSV")
    with pytest.raises(ValueError, match="longest side 256"):
        predictor.set_torch_image(np.zeros((1, 3, 20, 30)), (20, 30))
    predictor.set_image(rgb)
    with pytest.raises(ValueError, match="point_labels"):
        predictor.predict(np.zeros((1, 2)))
