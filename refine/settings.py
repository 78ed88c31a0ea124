"""The settings of masks, of prediction and of refinement, which pipelines put into their own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Masks:
    """Class-agnostic masks of an image, used by pseudo labels and refinement."""

    source: str = "sam"  # "sam", or "superpixels" where no SAM weights can be had
    points_per_side: int = 64
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.86
    stability_score_thresh: float = 0.92
    crop_n_layers: int = 1
    crop_n_points_downscale_factor: int = 2
    min_mask_region_area: int = 100  # pixels; smaller holes and islands are removed


@dataclass(frozen=True)
class Predict:
    """Step 4: labels of whole images at their own size."""

    resize: int = 256  # shorter side of the network's input, pixels
    square: bool = False  # squash to resize x resize, as Jittor-made checkpoints were used
    fixed_pool: bool = False  # pool the UPerNet's pyramid as the Jittor of its checkpoint did
    max_res: int = (
        1000  # logits of images above max_res^2 pixels are capped to that area; 0 = never
    )


@dataclass(frozen=True)
class Refine:
    """Refinement of predictions with masks (test.py); the defaults are the reference's rule."""

    # "count": a mask takes the label that most of its pixels have; "confidence": the one of the
    # highest mean softmax inside it; "sequential": that of most pixels as larger masks have painted
    # them, by which the reference's own results were made.
    vote: str = "count"
    # A mask does not vote where its winner has less than this share of its pixels (or a lower mean
    # softmax).
    min_agreement: float = 0.0
    # A region of the prediction that no mask meets with at least this IoU stays as the network drew
    # it; 0 = none does.
    keep_regions: float = 0.0
    # A prompted mask of more than this share of the image is not painted.
    max_prompted: float = 1.0
