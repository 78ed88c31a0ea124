"""Every hyper-parameter of the pipeline: one frozen dataclass per stage, and the presets.

The defaults are those of ImageNet-S50 (the competition's setting, corrected where the reference was
wrong); a preset states only its differences. Batch sizes are global: they are split over the ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from core.errors import UserError

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
    # highest mean softmax inside it.
    vote: str = "count"
    # A mask does not vote where its winner has less than this share of its pixels (or a lower mean
    # softmax).
    min_agreement: float = 0.0
    # A region of the prediction that no mask meets with at least this IoU stays as the network drew
    # it; 0 = none does.
    keep_regions: float = 0.0
    # A prompted mask of more than this share of the image is not painted.
    max_prompted: float = 1.0


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


def luss50_r50() -> Config:
    """ImageNet-S50, ResNet50: the competition's train_1 and the segmenter of train_4.

    The published baseline reaches 29.2 / 29.3 mIoU (val / test, ResNet18, plain head).
    Command: ``DATA=/data/ImageNetS50 LAUNCH="mpirun -np 8" bash train_1.sh``.
    """
    return Config()


def luss50_r18() -> Config:
    """ImageNet-S50, ResNet18: the competition's train_2 and the labeller of train_3.

    Command: ``DATA=/data/ImageNetS50 LAUNCH="mpirun -np 8" bash train_2.sh``.
    """
    config = Config(arch="resnet18")
    return replace(
        config,
        pretrain=replace(config.pretrain, batch_size=64, queue_length=2048),
        pixel_attention=replace(config.pixel_attention, threshold=0.34),
    )


def luss300(arch: str) -> Config:
    """ImageNet-S300; the published ResNet50 baseline reaches 18.0 / 18.1 mIoU (val / test).

    Command: ``PRESET=luss300 DATA=/data/ImageNetS300 LAUNCH="mpirun -np 8" bash train_1.sh``.
    """
    config = Config(preset="luss300", arch=arch, num_classes=300)
    return replace(
        config,
        heads=replace(config.heads, hidden_mlp=2048, prototypes=3000),
        pretrain=replace(
            config.pretrain,
            epochs=100,
            batch_size=256,
            crop_sizes=(224,),
            crop_counts=(2,),
            min_scales=(0.08,),
            max_scales=(1.0,),
            freeze_prototypes_steps=5005,
        ),
        pixel_attention=replace(config.pixel_attention, batch_size=256, base_lr=0.6, threshold=0.0),
        finetune=replace(config.finetune, batch_size=256),
    )


def luss919(arch: str) -> Config:
    """ImageNet-S919; the published ResNet50 baseline reaches 11.5 / 11.0 mIoU (val / test).

    Command: ``PRESET=luss919 DATA=/data/ImageNetS919 LAUNCH="mpirun -np 8" bash train_1.sh``.
    """
    config = luss300(arch)
    return replace(
        config,
        preset="luss919",
        num_classes=919,
        finetune=replace(config.finetune, label_scale=0.25),
        predict=replace(config.predict, max_res=600),
    )


def pass50(arch: str) -> Config:
    """PASS as published for ImageNet-S50: no masks, plain head, 8 processes of 32 images.

    Published with ResNet18: 29.2 / 29.3 mIoU (val / test), at threshold 0.41.
    Command: ``DATA=/data/ImageNetS50 LAUNCH="mpirun -np 8" bash scripts/pass50.sh``.
    """
    config = Config(preset="pass50", arch=arch, seed=10010)
    return _as_published(
        replace(
            config,
            pretrain=replace(config.pretrain, batch_size=256, queue_length=2048),
            pixel_attention=replace(config.pixel_attention, batch_size=256, threshold=0.0),
            finetune=replace(config.finetune, batch_size=256),
        )
    )


def pass300(arch: str) -> Config:
    """PASS as published for ImageNet-S300: 18.0 / 18.1 mIoU with ResNet50, at threshold 0.40.

    Command: ``DATA=/data/ImageNetS300 LAUNCH="mpirun -np 8" bash scripts/pass300.sh``.
    """
    return _as_published(replace(luss300(arch), preset="pass300"))


def pass919(arch: str) -> Config:
    """PASS as published for ImageNet-S919: 11.5 / 11.0 mIoU with ResNet50, at threshold 0.37.

    Command: ``DATA=/data/ImageNetS919 LAUNCH="mpirun -np 8" bash scripts/pass919.sh``.
    """
    return _as_published(replace(luss919(arch), preset="pass919"))


def _as_published(config: Config) -> Config:
    """PASS's own steps 2.4 and 3: a label for each pixel by itself, and a head of one layer."""
    return replace(
        config,
        pseudo_labels=replace(config.pseudo_labels, per_mask=False, min_threshold=0.0),
        finetune=replace(config.finetune, head="plain"),
    )


def small(arch: str) -> Config:
    """A few hundred photographs of four classes on a machine with two cores, in half an hour.

    Command: ``PRESET=small DATA=../shared/data/caltech4 bash train_1.sh``; other class counts with
    ``--set num_classes=C``. The README states what it reached.
    """
    config = Config(preset="small", arch=arch, num_classes=4, workers=2)
    return replace(
        config,
        heads=replace(config.heads, hidden_mlp=256, prototypes=40),
        pretrain=replace(
            config.pretrain,
            epochs=10,
            base_lr=6.0,  # LARC moves a weight by a thousandth of it a step: few steps need more
            crop_sizes=(128, 64),
            crop_counts=(2, 2),
            queue_length=256,
            queue_start_epoch=8,
            freeze_prototypes_steps=10,
        ),
        pixel_attention=replace(
            config.pixel_attention,
            epochs=20 if arch == "resnet18" else 4,  # the labeller's is used, the other is costly
            base_lr=0.6,
            crop_size=128,
            queue_length=256,
            threshold=0.5,
        ),
        cluster=replace(config.cluster, batch_size=32, resize=160, crop=160),
        masks=replace(
            config.masks,
            points_per_side=12,
            crop_n_layers=0,
            pred_iou_thresh=0.7,
            stability_score_thresh=0.85,
        ),
        pseudo_labels=replace(config.pseudo_labels, resize=192, min_threshold=0.0),
        finetune=replace(
            config.finetune, head_width=128, epochs=8, batch_size=16, base_lr=3.0, crop_size=128
        ),
        predict=replace(config.predict, resize=192),
    )


def demo(arch: str) -> Config:
    """The generated data set of ``make demo``: every stage for real, minutes instead of days.

    Command: ``make demo``. The README states what it reached.
    """
    config = small(arch)
    return replace(
        config,
        preset="demo",
        num_classes=5,
        # Few dimensions, two prototypes a class, sharp targets: a hundred steps are enough to leave
        # the plateau on which all prototypes are equally likely.
        heads=replace(config.heads, feat_dim=16, prototypes=10),
        assignment=replace(config.assignment, epsilon=0.03),
        pretrain=replace(
            config.pretrain,
            epochs=30,
            batch_size=16,
            base_lr=1.0,
            crop_sizes=(64, 32),
            min_scales=(0.5, 0.2),
            max_scales=(1.0, 0.5),
            distortion=0.25,
            queue_length=0,
            freeze_prototypes_steps=1001,  # always: moving ones meet each other on the plateau
        ),
        pixel_attention=replace(
            config.pixel_attention,
            epochs=24 if arch == "resnet18" else 2,
            batch_size=16,
            base_lr=6.0,
            crop_size=128 if arch == "resnet18" else 96,
            min_scale=0.5,
            distortion=0.25,
            queue_length=0,
            threshold=0.0,
        ),
        cluster=replace(config.cluster, resize=192, crop=192),
        masks=replace(config.masks, points_per_side=8),
        # Enlarged images: the trunk has learnt on small crops, and its grid becomes finer.
        pseudo_labels=replace(config.pseudo_labels, resize=320),
        finetune=replace(config.finetune, epochs=12, batch_size=8, base_lr=6.0, crop_size=96),
        predict=replace(config.predict, resize=128),
        refine=replace(config.refine, max_prompted=0.35),
    )


def _luss50(arch: str) -> Config:
    return luss50_r50() if arch == "resnet50" else luss50_r18()


# Name -> function of the trunk.
PRESETS = {
    "luss50": _luss50,
    "luss300": luss300,
    "luss919": luss919,
    "pass50": pass50,
    "pass300": pass300,
    "pass919": pass919,
    "small": small,
    "demo": demo,
}


# Names that state the trunk too -> (preset, trunk).
_WITH_TRUNK = {
    "luss50_r18": ("luss50", "resnet18"),
    "luss50_r50": ("luss50", "resnet50"),
}
PRESET_NAMES = (*PRESETS, *_WITH_TRUNK)


def preset(name: str, arch: str | None = None) -> Config:
    """The configuration of preset ``name`` for trunk ``arch``.

    Args:
        name: one of :data:`PRESET_NAMES`.
        arch: None takes the trunk that the preset was published with.

    Raises:
        UserError: an unknown preset or trunk, or a trunk that contradicts the name.
    """
    if name in _WITH_TRUNK:
        base, trunk = _WITH_TRUNK[name]
        if arch not in (None, trunk):
            raise UserError(f"preset {name} is for {trunk}, but {arch} was asked for")
        return PRESETS[base](trunk)
    arch = ("resnet18" if name == "pass50" else "resnet50") if arch is None else arch
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}: expected one of {', '.join(PRESET_NAMES)}")
    if arch not in ARCHS:
        raise UserError(f"unknown architecture {arch!r}: expected one of {', '.join(ARCHS)}")
    return PRESETS[name](arch)
