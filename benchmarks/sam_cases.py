"""Segment Anything beside the official PyTorch code: same weights, same image, same settings.

The encoders run on noise. The mask decoder and automatic mask generation run with trained weights
(``benchmarks.sam_models``), on a photograph, so that masks survive the filters as in real use.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import onnx_encoder
from benchmarks.cases import (
    STAGE,
    Agreement,
    Arrays,
    Case,
    Inputs,
    Loaded,
    Side,
    Suite,
    in_torch,
    our_side,
)
from benchmarks.compare import ROOT
from benchmarks.inputs import noise
from benchmarks.sam_models import our_tiny_vit, our_vit_b, torch_tiny_vit, torch_vit_b
from core.log import info
from core.pipeline.folders import WEIGHTS

_PHOTO_HW = (375, 500)
_POINTS = 64
_REFERENCE = {
    "crop_n_layers": 1,
    "crop_n_points_downscale_factor": 2,
    "min_mask_region_area": 100,
}
_WARM_UP_POINTS = 16
_ENCODER_TOLERANCE = 1e-4  # of the largest value
# Ours over the official code, tuned, on two cores.
_MASKS_AIM, _PEAK_AIM = 0.15, 0.15
_MASK_IOU, _MATCHED_SHARE, _SCORE_DIFFERENCE = 0.98, 0.98, 1e-3

Build = Callable[[Inputs], Any]


@dataclass(frozen=True)
class _Encoder:
    """An image encoder: the SAMs of both sides that have it, the official one's package, and
    thresholds of the automatic masks that let tens of them pass.
    """

    name: str
    ours: Build
    official: Build
    package: str
    thresholds: Mapping[str, float]


# Below the official defaults (0.88, 0.95): the small SAM is less sure of its masks.
_TINY_VIT = _Encoder(
    "TinyViT",
    our_tiny_vit,
    torch_tiny_vit,
    "mobile_sam",
    {"pred_iou_thresh": 0.7, "stability_score_thresh": 0.85},
)
# Lower still: masks after a random encoder are scattered.
_VIT_B = _Encoder(
    "ViT-B",
    our_vit_b,
    torch_vit_b,
    "segment_anything",
    {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.2},
)


# Inputs -----------------------------------------------------------------------------------------


def prepare(folder: Path) -> Inputs:
    """The photograph as ``photo`` (.npy, uint8 RGB), the trained TinyViT SAM as ``weights``, the
    official ViT-B checkpoint as ``vit_b`` ("": none) and a folder for ``exports``.

    The photograph is the first of the folder ``USS_CALTECH4`` (default ``../shared/data/caltech4``)
    where there is one, else a generated picture.
    """
    from sam.weights import fetch_sam

    weights = fetch_sam().path
    photo = folder / "photo.npy"
    np.save(photo, _photo())
    vit_b = official_vit_b()
    which = vit_b or "a random encoder before the trained mask decoder"
    info(STAGE, f"ViT-B: {which}")
    return {
        "photo": str(photo),
        "weights": str(weights),
        "vit_b": str(vit_b or ""),
        "exports": str(folder),
    }


def official_vit_b(weights_dir: Path = WEIGHTS) -> Path | None:
    """The official checkpoint of the SAM with ViT-B, where it has been put into ``weights/``."""
    from sam.weights import manifest

    files = [entry["file"] for entry in manifest()["by_hand"] if entry.get("model") == "vit_b"]
    return next((weights_dir / name for name in files if (weights_dir / name).is_file()), None)


def _photo() -> np.ndarray:
    height, width = _PHOTO_HW
    root = Path(os.environ.get("USS_CALTECH4", ROOT.parent / "shared" / "data" / "caltech4"))
    for path in sorted(root.glob("validation/*/*")):
        info(STAGE, f"photograph: {path}, resized to {width} x {height}")
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize((width, height)))
    from core.synthetic.scenes import KINDS, render

    info(STAGE, f"photograph: none in {root}, a generated picture of {width} x {height} instead")
    return render(KINDS[0], height, width, np.random.RandomState(0))[0]


# Encoders and mask decoder ----------------------------------------------------------------------


def _our_encoder(build: Build, inputs: Inputs) -> Loaded:
    encoder = build(inputs).image_encoder
    from core.runtime import jt

    image = jt.array(noise(0, (1, 3, 1024, 1024)))

    def run() -> Any:
        with jt.no_grad():
            embedding = encoder(image)
            embedding.sync()
        return embedding

    return Loaded(run, run, lambda embedding: {"embedding": embedding.numpy()})


def _torch_encoder(build: Build, inputs: Inputs) -> Loaded:
    encoder = build(inputs).image_encoder
    import torch

    image = torch.from_numpy(noise(0, (1, 3, 1024, 1024)))

    @torch.no_grad()
    def run() -> Any:
        return encoder(image)

    return Loaded(run, run, lambda embedding: {"embedding": embedding.numpy()})


def _decoder_inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image embedding and single points with their labels."""
    points = np.random.default_rng(1).uniform(0, 1024, (_POINTS, 1, 2)).astype(np.float32)
    return noise(2, (1, 256, 64, 64)), points, np.ones((_POINTS, 1), np.int32)


def _our_decoder(inputs: Inputs) -> Loaded:
    sam = our_tiny_vit(inputs)
    from core.runtime import jt

    embedding, points, labels = _decoder_inputs()
    image = jt.array(embedding)
    sparse, dense = sam.prompt_encoder(points=(points, labels), boxes=None, masks=None)

    def run() -> Any:
        with jt.no_grad():
            masks, iou = sam.mask_decoder(
                image_embeddings=image,
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
            jt.sync([masks, iou])
        return masks, iou

    return Loaded(run, run, _decoder_result)


def _torch_decoder(inputs: Inputs) -> Loaded:
    sam = torch_tiny_vit(inputs)
    import torch

    embedding, points, labels = _decoder_inputs()
    image = torch.from_numpy(embedding)

    @torch.no_grad()
    def run() -> Any:
        return sam.mask_decoder(
            image_embeddings=image,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )

    with torch.no_grad():
        prompts = (torch.from_numpy(points), torch.from_numpy(labels))
        sparse, dense = sam.prompt_encoder(points=prompts, boxes=None, masks=None)
    return Loaded(run, run, _decoder_result)


def _decoder_result(outcome: Any) -> Arrays:
    # Every fourth row and column: the whole would be 50 MB on disk.
    return {"masks": outcome[0].numpy()[..., ::4, ::4], "iou": outcome[1].numpy()}


def same_values(ours: Arrays, torch: Arrays) -> Agreement:
    """Largest difference of any array, relative to its largest value."""
    errors = [
        float(np.abs(ours[key] - torch[key]).max() / np.abs(torch[key]).max()) for key in torch
    ]
    return Agreement(max(errors) <= _ENCODER_TOLERANCE, f"relative error {max(errors):.1e}")


# Automatic mask generation ----------------------------------------------------------------------


def _our_generator(encoder: _Encoder, settings: Mapping[str, Any], inputs: Inputs) -> Loaded:
    from sam import SamAutomaticMaskGenerator

    return _generation(SamAutomaticMaskGenerator, encoder.ours(inputs), settings, inputs)


def _torch_generator(encoder: _Encoder, settings: Mapping[str, Any], inputs: Inputs) -> Loaded:
    sam = encoder.official(inputs)
    kind = import_module(encoder.package).SamAutomaticMaskGenerator
    return _generation(kind, sam, settings, inputs)


def _generation(kind: Any, sam: Any, settings: Mapping[str, Any], inputs: Inputs) -> Loaded:
    photo = np.load(inputs["photo"], allow_pickle=False)
    generator = kind(sam, **settings)
    # Batches of the full size, but few of them.
    small = kind(sam, **{**settings, "points_per_side": _WARM_UP_POINTS})
    return Loaded(
        lambda: small.generate(photo), lambda: generator.generate(photo), _generation_result
    )


def _generation_result(records: list[dict[str, Any]]) -> Arrays:
    return {
        "masks": np.array([record["segmentation"] for record in records], bool),
        "predicted_iou": np.array([record["predicted_iou"] for record in records]),
        "stability_score": np.array([record["stability_score"] for record in records]),
    }


def same_masks(ours: Arrays, torch: Arrays) -> Agreement:
    """Match the masks one to one by IoU and compare the scores of each pair."""
    from scipy.optimize import linear_sum_assignment

    counts = len(ours["masks"]), len(torch["masks"])
    if min(counts) == 0:
        return Agreement(counts[0] == counts[1], f"{counts[0]} masks, the other {counts[1]}")
    iou = _pairwise_iou(ours["masks"], torch["masks"])
    rows, columns = linear_sum_assignment(-iou)
    matched = iou[rows, columns] >= _MASK_IOU
    share = matched.sum() / max(counts)
    pairs = rows[matched], columns[matched]
    difference = max(
        float(np.abs(ours[key][pairs[0]] - torch[key][pairs[1]]).max(initial=0))
        for key in ("predicted_iou", "stability_score")
    )
    text = (
        f"{counts[0]} masks, the other {counts[1]}, {share:.1%} matched at IoU >= {_MASK_IOU}, "
        f"scores within {difference:.1e}"
    )
    return Agreement(share >= _MATCHED_SHARE and difference <= _SCORE_DIFFERENCE, text)


def _pairwise_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    a, b = (masks.reshape(len(masks), -1).astype(np.float32) for masks in (first, second))
    shared = a @ b.T
    return shared / np.maximum(a.sum(1)[:, None] + b.sum(1)[None] - shared, 1)


def _encoder_case(encoder: _Encoder, aim: float) -> Case:
    return Case(
        f"image encoder {encoder.name}, one image of 1024 px",
        {
            **our_side(partial(_our_encoder, encoder.ours)),
            **in_torch("official code", partial(_torch_encoder, encoder.official)),
            "onnxruntime": Side("ONNX Runtime", partial(onnx_encoder.load, encoder.official)),
        },
        same_values,
        aim=aim,
        peak_aim=_PEAK_AIM,
    )


def _generator_case(encoder: _Encoder, settings: Mapping[str, Any]) -> Case:
    settings = {**encoder.thresholds, **settings}
    named = ", ".join(f"{key} {value}" for key, value in settings.items())
    height, width = _PHOTO_HW
    return Case(
        f"all masks by {encoder.name} of a photograph of {width} x {height}: {named}",
        {
            **our_side(partial(_our_generator, encoder, settings)),
            **in_torch("official code", partial(_torch_generator, encoder, settings)),
        },
        same_masks,
        aim=_MASKS_AIM,
        peak_aim=_PEAK_AIM,
    )


SUITE = Suite(
    module=__name__,
    prepare=prepare,
    needs=("torch", "segment_anything", "mobile_sam", "onnxruntime"),
    cases={
        "vit_b_encoder": _encoder_case(_VIT_B, 0.45),
        "tiny_vit_encoder": _encoder_case(_TINY_VIT, 0.55),
        "mask_decoder_64": Case(
            f"mask decoder of the TinyViT SAM, {_POINTS} points on one image, three masks each",
            {**our_side(_our_decoder), **in_torch("official code", _torch_decoder)},
            same_values,
            aim=0.15,
            peak_aim=_PEAK_AIM,
        ),
        "amg_32": _generator_case(_TINY_VIT, {"points_per_side": 32}),
        "amg_32_vit_b": _generator_case(_VIT_B, {"points_per_side": 32}),
        "amg_reference": _generator_case(_TINY_VIT, {"points_per_side": 64, **_REFERENCE}),
        "amg_reference_vit_b": _generator_case(_VIT_B, {"points_per_side": 64, **_REFERENCE}),
    },
)
