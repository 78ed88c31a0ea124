"""Segment Anything beside the official PyTorch code: same weights, same image, same settings.

The encoders run on noise. The mask decoder and automatic mask generation run with the small trained
SAM that ``python -m uss weights`` fetches (TinyViT), on a photograph, so that as many masks survive
the filters as in real use; ViT-B has seeded random weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.compare import ROOT, STAGE, Agreement, Arrays, Case, Inputs, Side, Suite
from benchmarks.inputs import noise, random_weight
from core.log import info

_PHOTO_HW = (375, 500)
_POINTS = 64
# Below the official defaults (0.88, 0.95): the small SAM is less sure of its masks.
_THRESHOLDS = {"pred_iou_thresh": 0.7, "stability_score_thresh": 0.85}
_REFERENCE = {
    "crop_n_layers": 1,
    "crop_n_points_downscale_factor": 2,
    "min_mask_region_area": 100,
}
_WARM_UP_POINTS = 16
_ENCODER_TOLERANCE = 1e-4  # of the largest value
_MASK_IOU, _MATCHED_SHARE, _SCORE_DIFFERENCE = 0.98, 0.98, 1e-3

Build = Callable[[Inputs], Any]


# Inputs -----------------------------------------------------------------------------------------


def prepare(folder: Path) -> Inputs:
    """The photograph as ``photo`` (.npy, uint8 RGB) and the trained TinyViT SAM as ``weights``.

    The photograph is the first of the folder ``USS_CALTECH4`` (default ``../shared/data/caltech4``)
    where there is one, else a generated picture.
    """
    from sam.weights import fetch_sam

    weights = fetch_sam().path
    photo = folder / "photo.npy"
    np.save(photo, _photo())
    return {"photo": str(photo), "weights": str(weights)}


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


# The models of both sides -----------------------------------------------------------------------


def our_tiny_sam(inputs: Inputs) -> Any:
    """Our TinyViT SAM with the trained weights."""
    from sam import sam_model_registry

    return sam_model_registry["vit_t"](checkpoint=inputs["weights"])


def torch_tiny_sam(inputs: Inputs) -> Any:
    """The official TinyViT SAM (MobileSAM) with the trained weights."""
    import torch

    from benchmarks import shims
    from core.checkpoints.torch_reader import state_dict_of

    shims.install()
    from mobile_sam import sam_model_registry

    sam = sam_model_registry["vit_t"]()
    state = {k: torch.from_numpy(v) for k, v in state_dict_of(inputs["weights"]).items()}
    missing, unexpected = sam.load_state_dict(state, strict=False)
    unused = ("image_encoder.norm_head.", "image_encoder.head.")
    # The classifier of the pretraining is not part of a SAM.
    missing = [k for k in missing if not k.startswith(unused) and "num_batches_tracked" not in k]
    if missing or unexpected:
        raise RuntimeError(f"the weights do not fit: {missing} missing, {unexpected} unexpected")
    # TinyViT expands its attention biases when it enters eval mode: again, for those just loaded.
    return sam.eval()


def our_vit_b(inputs: Inputs) -> Any:
    """Our SAM with ViT-B and random weights."""
    from sam import sam_model_registry

    sam = sam_model_registry["vit_b"]()
    for key, var in sam.state_dict().items():
        var.assign(random_weight(key, tuple(var.shape)))
    return sam


def torch_vit_b(inputs: Inputs) -> Any:
    """The official SAM with ViT-B and the same random weights."""
    import torch

    from benchmarks import shims

    shims.install()
    from segment_anything import sam_model_registry

    sam = sam_model_registry["vit_b"]()
    for key, tensor in sam.state_dict().items():
        tensor.copy_(torch.from_numpy(random_weight(key, tuple(tensor.shape))))
    return sam


# Encoders and mask decoder ----------------------------------------------------------------------


def _our_encoder(build: Build, inputs: Inputs) -> Side:
    encoder = build(inputs).image_encoder
    from core.runtime import jt

    image = jt.array(noise(0, (1, 3, 1024, 1024)))

    def run() -> Any:
        with jt.no_grad():
            embedding = encoder(image)
            embedding.sync()
        return embedding

    return Side(run, run, lambda embedding: {"embedding": embedding.numpy()})


def _torch_encoder(build: Build, inputs: Inputs) -> Side:
    encoder = build(inputs).image_encoder
    import torch

    image = torch.from_numpy(noise(0, (1, 3, 1024, 1024)))

    @torch.no_grad()
    def run() -> Any:
        return encoder(image)

    return Side(run, run, lambda embedding: {"embedding": embedding.numpy()})


def _decoder_inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image embedding and single points with their labels."""
    points = np.random.default_rng(1).uniform(0, 1024, (_POINTS, 1, 2)).astype(np.float32)
    return noise(2, (1, 256, 64, 64)), points, np.ones((_POINTS, 1), np.int32)


def _our_decoder(inputs: Inputs) -> Side:
    sam = our_tiny_sam(inputs)
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

    return Side(run, run, _decoder_result)


def _torch_decoder(inputs: Inputs) -> Side:
    sam = torch_tiny_sam(inputs)
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
    return Side(run, run, _decoder_result)


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


def _our_generator(settings: Mapping[str, Any], inputs: Inputs) -> Side:
    from sam import SamAutomaticMaskGenerator

    return _generation(SamAutomaticMaskGenerator, our_tiny_sam(inputs), settings, inputs)


def _torch_generator(settings: Mapping[str, Any], inputs: Inputs) -> Side:
    sam = torch_tiny_sam(inputs)
    from mobile_sam import SamAutomaticMaskGenerator

    return _generation(SamAutomaticMaskGenerator, sam, settings, inputs)


def _generation(kind: Any, sam: Any, settings: Mapping[str, Any], inputs: Inputs) -> Side:
    photo = np.load(inputs["photo"], allow_pickle=False)
    generator = kind(sam, **settings)
    # Batches of the full size, but few of them.
    small = kind(sam, **{**settings, "points_per_side": _WARM_UP_POINTS})
    return Side(
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
        return Agreement(counts[0] == counts[1], f"{counts[0]} masks, torch {counts[1]}")
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
        f"{counts[0]} masks, torch {counts[1]}, {share:.1%} matched at IoU >= {_MASK_IOU}, "
        f"scores within {difference:.1e}"
    )
    return Agreement(share >= _MATCHED_SHARE and difference <= _SCORE_DIFFERENCE, text)


def _pairwise_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    a, b = (masks.reshape(len(masks), -1).astype(np.float32) for masks in (first, second))
    shared = a @ b.T
    return shared / np.maximum(a.sum(1)[:, None] + b.sum(1)[None] - shared, 1)


def _generator_case(what: str, settings: Mapping[str, Any]) -> Case:
    settings = {**_THRESHOLDS, **settings}
    named = ", ".join(f"{key} {value}" for key, value in settings.items())
    return Case(
        f"{what} with TinyViT: {named}; else the defaults",
        {
            "ours": partial(_our_generator, settings),
            "torch": partial(_torch_generator, settings),
        },
        same_masks,
    )


SUITE = Suite(
    module=__name__,
    prepare=prepare,
    needs=("torch", "segment_anything", "mobile_sam"),
    cases={
        "vit_b_encoder": Case(
            "image encoder ViT-B, one image of 1024 px, random weights",
            {
                "ours": partial(_our_encoder, our_vit_b),
                "torch": partial(_torch_encoder, torch_vit_b),
            },
            same_values,
        ),
        "tiny_vit_encoder": Case(
            "image encoder TinyViT, one image of 1024 px",
            {
                "ours": partial(_our_encoder, our_tiny_sam),
                "torch": partial(_torch_encoder, torch_tiny_sam),
            },
            same_values,
        ),
        "mask_decoder_64": Case(
            f"mask decoder, {_POINTS} points on one image, three masks each",
            {"ours": _our_decoder, "torch": _torch_decoder},
            same_values,
        ),
        "amg_32": _generator_case("all masks of a photograph", {"points_per_side": 32}),
        "amg_reference": _generator_case(
            "all masks of a photograph", {"points_per_side": 64, **_REFERENCE}
        ),
    },
)
