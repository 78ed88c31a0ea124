"""All settings that this package reads; a pipeline's configuration has a section for each class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from core.config import at_least, fraction, one_of, positive, setting

SOURCES = ("sam", "superpixels")
VOTES = ("count", "confidence", "sequential")


@dataclass(frozen=True)
class Masks:
    """Class-agnostic masks of an image, used by pseudo labels and refinement."""

    source: str = setting("sam", one_of(*SOURCES), "superpixels: where no SAM weights can be had")
    points_per_side: int = setting(64, at_least(1), "of the grid of points that SAM is asked at")
    points_per_batch: int = setting(64, at_least(1), "points decoded at once: memory, never a mask")
    pred_iou_thresh: float = setting(0.86, help="masks that SAM rates lower are dropped")
    stability_score_thresh: float = setting(0.92, help="less stable masks are dropped")
    crop_n_layers: int = setting(1, at_least(0), "layers of crops that SAM looks at as well")
    crop_n_points_downscale_factor: int = setting(
        2, at_least(1), "the points per side are divided by it in each further layer"
    )
    min_mask_region_area: int = setting(100, help="pixels; smaller holes and islands are removed")


@dataclass(frozen=True)
class Predict:
    """Labels of whole images at their own size."""

    resize: int = setting(256, positive(), "shorter side of the network's input, pixels")
    square: bool = setting(
        False, help="squash to resize x resize, as Jittor-made checkpoints were used"
    )
    fixed_pool: bool = setting(
        False, help="pool the UPerNet's pyramid as the Jittor of its checkpoint did"
    )
    max_res: int = setting(
        1000, help="logits of images above max_res^2 pixels are capped to that area; 0: never"
    )


@dataclass(frozen=True)
class Refine:
    """Refinement of predictions with masks; the defaults are the reference's rule.

    ``vote`` says which label a mask takes. "count": the one that most of its pixels have.
    "confidence": the one of the highest mean softmax inside it. "sequential": that of most pixels
    as larger masks have painted them, by which the reference's own results were made.
    """

    vote: str = setting("count", one_of(*VOTES), "how a mask takes its label")
    min_agreement: float = setting(
        0.0,
        fraction(),
        "share of its pixels (or mean softmax) that a mask's winner needs, or it does not vote",
    )
    keep_regions: float = setting(
        0.0,
        fraction(),
        "a region that no mask meets with this IoU stays as the network drew it; 0: none does",
    )
    max_prompted: float = setting(
        1.0, fraction(), "a prompted mask of more than this share of the image is not painted"
    )


@dataclass(frozen=True)
class Sections:
    """What making one label map needs of a pipeline's configuration."""

    masks: Masks = Masks()
    predict: Predict = Predict()
    refine: Refine = Refine()

    @classmethod
    def of(cls, config: Any) -> Sections:
        """The sections ``masks``, ``predict`` and ``refine`` of any pipeline's configuration."""
        return cls(config.masks, config.predict, config.refine)
