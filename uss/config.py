"""Every hyper-parameter of the pipeline: one frozen dataclass per stage.

The defaults are those of ImageNet-S50 (the competition's setting, corrected where the reference was
wrong); a preset (``uss.presets``) states only its differences. Batch sizes are global: they are
split over the ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

from refine.settings import Masks, Predict, Refine

ARCHS = ("resnet18", "resnet50")


@dataclass(frozen=True)
class Heads:
    """Widths of the PASS heads; pretraining and pixel attention share them, so they live here."""

    hidden_mlp: int = 512  # hidden channels of the projection heads
    feat_dim: int = 128  # channels of the embeddings
    prototypes: int = 500  # about ten per class


@dataclass(frozen=True)
class Assignment:
    """Swapped prediction over prototypes (SwAV): softmax and Sinkhorn-Knopp."""

    temperature: float = 0.1  # of the predicted softmax
    epsilon: float = 0.05  # entropy regularisation of Sinkhorn-Knopp
    sinkhorn_iterations: int = 3


@dataclass(frozen=True)
class Pretrain:
    """Step 1: image-to-image, deep-to-shallow and pixel-to-pixel self-supervision."""

    epochs: int = 200
    batch_size: int = 32  # images a step, over all ranks
    base_lr: float = 0.6  # LARC scale; a plain SGD would want about a hundredth
    final_lr: float = 0.0006
    weight_decay: float = 1e-6
    momentum: float = 0.9
    larc: bool = True  # layer-wise rate scaling; off = plain SGD
    crop_sizes: tuple[int, ...] = (224, 96)  # pixels; the first size feeds the assignments
    crop_counts: tuple[int, ...] = (2, 6)
    min_scales: tuple[float, ...] = (0.14, 0.05)  # fraction of the image's area
    max_scales: tuple[float, ...] = (1.0, 0.14)
    distortion: float = 1.0  # of colours, 0..1: a short run cannot learn to ignore all of it
    queue_length: int = 3840  # embeddings, over all ranks
    queue_start_epoch: int = 15
    freeze_prototypes_steps: int = 1001
    shallow: tuple[int, ...] = (3,)  # stages supervised from the deepest one
    loss_weights: tuple[float, ...] = (1.0, 1.0)  # image loss, then one per shallow stage


@dataclass(frozen=True)
class PixelAttention:
    """Step 2.1: learn a per-channel attention over layer4 and the prototypes; trunk frozen."""

    epochs: int = 20
    batch_size: int = 32
    base_lr: float = 6.0
    final_lr: float = 0.0006
    weight_decay: float = 1e-6
    momentum: float = 0.9
    larc: bool = True
    crop_size: int = 224
    crop_count: int = 2
    min_scale: float = 0.08
    max_scale: float = 1.0
    distortion: float = 1.0  # as in pretraining
    queue_length: int = 3840
    queue_start_epoch: int = 0
    freeze_prototypes_steps: int = 0
    threshold: float = 0.24  # attention below it counts as 0, in every channel by itself


@dataclass(frozen=True)
class Cluster:
    """Step 2.2: k-means of attended image features; k is the number of classes."""

    batch_size: int = 256
    resize: int = 256  # shorter side, pixels
    square: bool = False  # see Predict.square
    crop: int = 224
    iterations: int = 20
    redo: int = 30  # the best of so many starts is kept


@dataclass(frozen=True)
class PseudoLabels:
    """Steps 2.3 and 2.4: nearest centres, kept where the attention reaches a threshold."""

    per_mask: bool = True  # averaged over each mask; False = each pixel by itself, as in PASS
    resize: int = 256  # shorter side of the network's input, pixels
    square: bool = False  # see Predict.square
    min_threshold: float = 0.20  # the sweep over the validation split, inclusive, in hundredths
    max_threshold: float = 0.80
    threshold: float = -1.0  # negative: take the sweep's best
    uncovered: str = "pixels"  # pixels outside every mask: "pixels" = own label, "background" = 0


@dataclass(frozen=True)
class Finetune:
    """Step 3: train the segmenter on the pseudo labels, background included."""

    head: str = "upernet"  # "upernet", or "plain" for the 1x1 convolution of PASS
    head_width: int = 512  # channels inside the UPerNet; its cost grows with the square
    epochs: int = 20
    batch_size: int = 64
    base_lr: float = 0.6
    final_lr: float = 0.0006
    weight_decay: float = 1e-6
    momentum: float = 0.9
    larc: bool = True
    crop_size: int = 224
    min_scale: float = 0.08
    label_scale: float = 0.5  # the loss is taken at this fraction of the crop


@dataclass(frozen=True)
class DistanceMatching:
    """Evaluation of a trunk without training: labelled images name the pixels they resemble."""

    neighbours: int = 10  # nearest labelled regions that vote on a pixel
    temperature: float = 0.07  # of the cosine similarity in a vote's weight
    resize: int = 256  # shorter side of the network's input, pixels


@dataclass(frozen=True)
class Config:
    """Everything that decides a result; kept in the run folder and in each checkpoint."""

    preset: str = "luss50"
    arch: str = "resnet50"
    num_classes: int = 50  # clusters = classes, background not counted
    seed: int = 31
    workers: int = 4  # processes that read images; never changes a result
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
