"""The Segment Anything networks against outputs of the official code, with the golden files' own
weights.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from core.nn import inference
from core.runtime import jt
from sam import decoder_ops
from sam.build import build_sam_vit_b, build_sam_vit_t, sam_around
from sam.image_encoder import ImageEncoderViT
from tests.conftest import relative_error

Load = Callable[[str], "dict[str, np.ndarray]"]
TOLERANCE = 2e-5


def fill(model: Any, recipe: ModuleType) -> Any:
    """Give every state entry the value that the golden files used for its key."""
    for key, var in model.state_dict().items():
        var.assign(recipe.weight(key, var.shape))
    return model


@pytest.fixture(scope="module")
def small_sam(recipe: ModuleType) -> Any:
    encoder = ImageEncoderViT(
        img_size=256,
        embed_dim=96,
        depth=4,
        num_heads=3,
        window_size=4,
        global_attn_indexes=(1, 3),
    )
    return fill(sam_around(encoder), recipe)


def prompts(arrays: dict[str, np.ndarray], recipe: ModuleType, name: str) -> dict[str, Any]:
    """Arguments of the prompt encoder for the golden prompt `name`."""
    seed = int(arrays["seed"])
    points = (jt.array(arrays["in.points"]), jt.array(arrays["in.labels"]))
    masks = jt.array(recipe.normal(seed + 3, (3, 1, 64, 64), 3.0))
    return {
        "points": points if name in ("points", "all", "points_boxes") else None,
        "boxes": jt.array(arrays["in.boxes"]) if name in ("boxes", "all", "points_boxes") else None,
        "masks": masks if name in ("masks", "all") else None,
    }


def test_golden_sam_small_image_encoder(goldens: Load, recipe: ModuleType, small_sam: Any) -> None:
    arrays = goldens("F_sam_small_modules")
    image = recipe.normal(int(arrays["seed"]), (2, 3, 256, 256))
    got = small_sam.image_encoder(jt.array(image)).numpy()
    assert relative_error(arrays, "image_embedding", got) < TOLERANCE


@pytest.mark.parametrize("name", ["points", "boxes", "masks", "all", "points_boxes"])
def test_golden_sam_small_prompts_and_decoder(
    goldens: Load, recipe: ModuleType, small_sam: Any, name: str
) -> None:
    arrays = goldens("F_sam_small_modules")
    sparse, dense = small_sam.prompt_encoder(**prompts(arrays, recipe, name))
    assert sparse.shape == list(arrays[f"prompt.{name}.sparse"].shape)
    if sparse.shape[1]:
        assert relative_error(arrays, f"prompt.{name}.sparse", sparse.numpy()) < TOLERANCE
    if f"prompt.{name}.dense" in arrays:
        full = np.broadcast_to(dense.numpy(), (3, *dense.shape[1:]))
        assert relative_error(arrays, f"prompt.{name}.dense", full) < TOLERANCE
    image = recipe.normal(int(arrays["seed"]) + 4, (1, 256, 16, 16))
    pe = small_sam.prompt_encoder.get_dense_pe()
    assert relative_error(arrays, "dense_pe", pe.numpy()) < TOLERANCE
    for multimask in (False, True):
        masks, iou = small_sam.mask_decoder(jt.array(image), pe, sparse, dense, multimask)
        key = f"decoder.{name}.multi{int(multimask)}"
        assert relative_error(arrays, f"{key}.low_res", masks.numpy()) < TOLERANCE
        assert relative_error(arrays, f"{key}.iou", iou.numpy()) < TOLERANCE


@pytest.mark.slow  # a second by itself, but it has some thirty more kernels compiled
def test_golden_sam_small_in_plain_jittor(
    goldens: Load, recipe: ModuleType, small_sam: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs on CUDA, where the CPU kernels cannot."""
    for module in (inference, decoder_ops):
        monkeypatch.setattr(module, "on_cpu", lambda: False)
    test_golden_sam_small_image_encoder(goldens, recipe, small_sam)
    test_golden_sam_small_prompts_and_decoder(goldens, recipe, small_sam, "all")
    test_golden_sam_small_prompts_and_decoder(goldens, recipe, small_sam, "points")


def test_golden_sam_small_transformer(goldens: Load, recipe: ModuleType, small_sam: Any) -> None:
    arrays = goldens("F_sam_small_modules")
    seed = int(arrays["seed"])
    queries, keys = small_sam.mask_decoder.transformer(
        jt.array(recipe.normal(seed + 4, (1, 256, 16, 16))),
        small_sam.prompt_encoder.get_dense_pe(),
        jt.array(recipe.normal(seed + 5, (1, 7, 256))),
    )
    assert relative_error(arrays, "transformer.queries", queries.numpy()) < TOLERANCE
    assert relative_error(arrays, "transformer.keys", keys.numpy()) < TOLERANCE


def test_golden_sam_small_pre_and_postprocessing(
    goldens: Load, recipe: ModuleType, small_sam: Any
) -> None:
    arrays = goldens("F_sam_small_modules")
    seed = int(arrays["seed"])
    pixels = recipe.uniform(seed + 6, (3, 206, 246), 0, 255)
    got = small_sam.preprocess(jt.array(pixels)).numpy()
    assert relative_error(arrays, "preprocess", got) < 1e-6
    sparse, dense = small_sam.prompt_encoder(**prompts(arrays, recipe, "all"))
    low_res, _ = small_sam.mask_decoder(
        jt.array(recipe.normal(seed + 4, (1, 256, 16, 16))),
        small_sam.prompt_encoder.get_dense_pe(),
        sparse,
        dense,
        multimask_output=True,
    )
    size_hw = tuple(int(n) for n in arrays["postprocess_masks.all.multi1__shape"][-2:])
    got = small_sam.postprocess_masks(low_res, (192, 256), size_hw).numpy()
    assert relative_error(arrays, "postprocess_masks.all.multi1", got) < TOLERANCE


def test_golden_sam_tiny_vit(goldens: Load, recipe: ModuleType) -> None:
    arrays = goldens("G_mobilesam_tinyvit")
    encoder = fill(build_sam_vit_t(), recipe).image_encoder
    x = jt.array(recipe.normal(int(arrays["seed"]), (1, 3, 1024, 1024)))
    with jt.no_grad():
        x = encoder.patch_embed(x)
        got = x.permute(0, 3, 1, 2).numpy()
        assert relative_error(arrays, "patch_embed", got) < TOLERANCE
        for i, stage in enumerate(encoder.layers):
            x = stage(x)
            got = x.reshape(1, -1, x.shape[-1]).numpy()
            assert relative_error(arrays, f"layer{i}", got) < TOLERANCE
        assert relative_error(arrays, "embedding", encoder.neck(x).numpy()) < TOLERANCE


def test_golden_sam_vit_b_1024(goldens: Load, recipe: ModuleType) -> None:
    arrays = goldens("F_sam_vitb_1024")
    sam = fill(build_sam_vit_b(), recipe)
    encoder = sam.image_encoder
    image = jt.array(recipe.normal(int(arrays["seed"]), (1, 3, 1024, 1024)))
    with jt.no_grad():
        x = encoder.patch_embed(image) + encoder.pos_embed
        assert relative_error(arrays, "patch_plus_pos", x.numpy()) < TOLERANCE
        for i, block in enumerate(encoder.blocks):
            x = block(x)
            if f"after_block{i}" in arrays:
                assert relative_error(arrays, f"after_block{i}", x.numpy()) < TOLERANCE
        embedding = encoder.neck(x)
    assert relative_error(arrays, "embedding", embedding.numpy()) < TOLERANCE
    points = np.array([[[300, 500]], [[800, 200]]], np.float32)
    sparse, dense = sam.prompt_encoder(
        points=(jt.array(points), jt.ones((2, 1))), boxes=None, masks=None
    )
    pe = sam.prompt_encoder.get_dense_pe()
    low_res, iou = sam.mask_decoder(embedding, pe, sparse, dense, multimask_output=True)
    key = "decoder_points_300_500__800_200"
    assert relative_error(arrays, f"{key}.low_res", low_res.numpy()) < TOLERANCE
    assert relative_error(arrays, f"{key}.iou", iou.numpy()) < TOLERANCE
