"""Every hyper-parameter of the pipeline: one frozen dataclass per stage.

The defaults are those of ImageNet-S50 (the competition's setting, corrected where the reference was
wrong); a preset (``uss.presets``) states only its differences. Batch sizes are global: they are
split over the ranks. A field holds the rule for its values (``core.config.setting``); the stages
check what concerns several settings.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.config import (
    at_least,
    between,
    each,
    fraction,
    no_percentage,
    one_of,
    positive,
    positive_fraction,
    setting,
)
from refine.settings import Masks, Predict, Refine

ARCHS = ("resnet18", "resnet50")
HEADS = ("upernet", "plain")
#: Pixels of a side: one cell of the deepest features at least.
_CROP = between(32, 4096)
_MAX_SEED = 2**32 - 1
_LARC = "layer-wise rate scaling; off: plain SGD, which wants about a hundredth of the rate"
_BATCH = "images a step, over all ranks"
_DISTORTION = "of colours: a short run cannot learn to ignore all of it"
_SQUARE = "squash images to resize x resize, see predict.square"
_INPUT = "shorter side of the network's input, pixels"


@dataclass(frozen=True)
class Heads:
    """Widths of the PASS heads; pretraining and pixel attention share them, so they live here."""

    hidden_mlp: int = setting(512, positive(), "hidden channels of the projection heads")
    feat_dim: int = setting(128, positive(), "channels of the embeddings")
    prototypes: int = setting(500, positive(), "prototypes; about ten per class")


@dataclass(frozen=True)
class Assignment:
    """Swapped prediction over prototypes (SwAV): softmax and Sinkhorn-Knopp."""

    temperature: float = setting(0.1, positive(), "of the predicted softmax")
    epsilon: float = setting(0.05, positive(), "entropy regularisation of Sinkhorn-Knopp")
    sinkhorn_iterations: int = setting(3, at_least(0), "rounds of Sinkhorn-Knopp")


@dataclass(frozen=True)
class Pretrain:
    """Step 1: image-to-image, deep-to-shallow and pixel-to-pixel self-supervision."""

    epochs: int = setting(200, at_least(1), "passes over the training images")
    batch_size: int = setting(32, at_least(1), _BATCH)
    base_lr: float = setting(0.6, positive(), "rate at the start of the cosine, scaled by LARC")
    final_lr: float = setting(0.0006, at_least(0), "rate at its end")
    weight_decay: float = setting(1e-6, at_least(0), "of all weights")
    momentum: float = setting(0.9, at_least(0), "of SGD")
    larc: bool = setting(True, help=_LARC)
    crop_sizes: tuple[int, ...] = setting(
        (224, 96), each(_CROP), "sides of the crops, pixels; the first size feeds the assignments"
    )
    crop_counts: tuple[int, ...] = setting((2, 6), each(at_least(1)), "crops of each size")
    min_scales: tuple[float, ...] = setting(
        (0.14, 0.05), each(positive_fraction()), "smallest fraction of the image's area in a crop"
    )
    max_scales: tuple[float, ...] = setting(
        (1.0, 0.14), each(positive_fraction()), "largest fraction of the image's area in a crop"
    )
    distortion: float = setting(1.0, fraction(), _DISTORTION)
    queue_length: int = setting(3840, at_least(0), "embeddings kept, over all ranks; 0: none")
    queue_start_epoch: int = setting(15, at_least(0), "epoch from which on they are used")
    freeze_prototypes_steps: int = setting(1001, at_least(0), "steps before prototypes learn")
    shallow: tuple[int, ...] = setting(
        (3,), each(one_of(1, 2, 3)), "stages supervised from the deepest one"
    )
    loss_weights: tuple[float, ...] = setting(
        (1.0, 1.0), help="of the image loss, then of each shallow stage"
    )


@dataclass(frozen=True)
class PixelAttention:
    """Step 2.1: learn a per-channel attention over layer4 and the prototypes; trunk frozen."""

    epochs: int = setting(20, at_least(1), "passes over the training images")
    batch_size: int = setting(32, at_least(1), _BATCH)
    base_lr: float = setting(6.0, positive(), "rate at the start of the cosine, scaled by LARC")
    final_lr: float = setting(0.0006, at_least(0), "rate at its end")
    weight_decay: float = setting(1e-6, at_least(0), "of all weights")
    momentum: float = setting(0.9, at_least(0), "of SGD")
    larc: bool = setting(True, help=_LARC)
    crop_size: int = setting(224, _CROP, "side of the crops, pixels")
    crop_count: int = setting(2, at_least(2), "crops that are compared")
    min_scale: float = setting(
        0.08, positive_fraction(), "smallest fraction of the image's area in a crop"
    )
    max_scale: float = setting(
        1.0, positive_fraction(), "largest fraction of the image's area in a crop"
    )
    distortion: float = setting(1.0, fraction(), _DISTORTION)
    queue_length: int = setting(3840, at_least(0), "embeddings kept, over all ranks; 0: none")
    queue_start_epoch: int = setting(0, at_least(0), "epoch from which on they are used")
    freeze_prototypes_steps: int = setting(0, at_least(0), "steps before prototypes learn")
    threshold: float = setting(
        0.24, fraction(), "attention below it counts as 0, in every channel by itself"
    )


@dataclass(frozen=True)
class Cluster:
    """Step 2.2: k-means of attended image features; k is the number of classes."""

    batch_size: int = setting(256, positive(), "images that the network looks at together")
    resize: int = setting(256, positive(), "shorter side, pixels")
    square: bool = setting(False, help=_SQUARE)
    crop: int = setting(224, positive(), "side of the crop from the middle, pixels")
    iterations: int = setting(20, positive(), "of k-means")
    redo: int = setting(30, positive(), "starts of k-means, of which the best is kept")


@dataclass(frozen=True)
class PseudoLabels:
    """Steps 2.3 and 2.4: nearest centres, kept where the attention reaches a threshold."""

    per_mask: bool = setting(
        True, help="average over each mask; false: each pixel by itself, as in PASS"
    )
    resize: int = setting(256, positive(), _INPUT)
    square: bool = setting(False, help=_SQUARE)
    min_threshold: float = setting(
        0.20, fraction(), "start of the sweep over the validation split, in hundredths"
    )
    max_threshold: float = setting(0.80, fraction(), "its end, included")
    threshold: float = setting(
        -1.0, no_percentage(), "of the attention; negative: take the sweep's best"
    )
    uncovered: str = setting(
        "pixels",
        one_of("pixels", "background"),
        "what pixels outside every mask become: their own label, or 0",
    )


@dataclass(frozen=True)
class Finetune:
    """Step 3: train the segmenter on the pseudo labels, background included."""

    head: str = setting("upernet", one_of(*HEADS), "plain: the 1x1 convolution of PASS")
    head_width: int = setting(
        512, positive(), "channels inside the UPerNet; its cost grows with the square"
    )
    epochs: int = setting(20, at_least(1), "passes over the training images")
    batch_size: int = setting(64, at_least(2), _BATCH)
    base_lr: float = setting(0.6, positive(), "rate at the start of the cosine, scaled by LARC")
    final_lr: float = setting(0.0006, at_least(0), "rate at its end")
    weight_decay: float = setting(1e-6, at_least(0), "of all weights")
    momentum: float = setting(0.9, at_least(0), "of SGD")
    larc: bool = setting(True, help=_LARC)
    crop_size: int = setting(224, _CROP, "side of the crops, pixels")
    min_scale: float = setting(
        0.08, positive_fraction(), "smallest fraction of the image's area in a crop"
    )
    label_scale: float = setting(
        0.5, positive_fraction(), "the loss is taken at this fraction of the crop"
    )


@dataclass(frozen=True)
class DistanceMatching:
    """Evaluation of a trunk without training: labelled images name the pixels they resemble."""

    neighbours: int = setting(10, positive(), "nearest labelled regions that vote on a pixel")
    temperature: float = setting(0.07, positive(), "of the cosine similarity in a vote's weight")
    resize: int = setting(256, positive(), _INPUT)


@dataclass(frozen=True)
class Config:
    """Everything that decides a result; kept in the run folder and in each checkpoint."""

    preset: str = setting("luss50", help="name of the preset that this began with")
    arch: str = setting("resnet50", one_of(*ARCHS), "trunk")
    num_classes: int = setting(50, positive(), "clusters and classes, background not counted")
    seed: int = setting(31, between(0, _MAX_SEED), "of all that is drawn")
    workers: int = setting(
        4, at_least(0), "processes that read images; never changes a result; 0: none beside"
    )
    heads: Heads = Heads()
    assignment: Assignment = Assignment()
    pretrain: Pretrain = Pretrain()
    pixel_attention: PixelAttention = PixelAttention()
    cluster: Cluster = Cluster()
    masks: Masks = Masks()
    pseudo_labels: PseudoLabels = PseudoLabels()
    finetune: Finetune = Finetune()
    predict: Predict = Predict()
    refine: Refine = Refine()
    distance_matching: DistanceMatching = DistanceMatching()
