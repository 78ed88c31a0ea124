"""The presets: which settings each data set and purpose changes from their defaults."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from core.errors import UserError
from uss.config import ARCHS, Config

PROTOTYPES_PER_CLASS = 10  # as in every preset

#: Classes -> images of train, validation and test, as ImageNet-S was published.
PUBLISHED = {
    50: {"train": 64431, "validation": 752, "test": 1682},
    300: {"train": 384862, "validation": 4097, "test": 9088},
    919: {"train": 1183322, "validation": 12419, "test": 27423},
}
_IMAGENET_S = ("luss", "pass")  # how the names of presets for it begin

#: Of the attention; in this range lies what the published settings take for all ImageNet-S sets.
USUAL_THRESHOLD = 0.35
#: The command where there are no validation masks that could choose one.
GIVE_THRESHOLD = f"bash train_3.sh --threshold {USUAL_THRESHOLD}"


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

    The smaller labels of step 3 and cap of step 4 are those of the baseline's first Jittor version,
    which reaches 11.4 / 10.3.

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
    config = Config(preset="pass50", arch=arch)
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
    return _as_published(replace(luss300(arch), preset="pass919", num_classes=919))


def _as_published(config: Config) -> Config:
    """PASS's own seed and steps 2.4 and 3: a label for each pixel by itself, a head of one
    layer.
    """
    return replace(
        config,
        seed=10010,
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


def published_counts(config: Config) -> dict[str, int] | None:
    """Images by split that a preset's data set was published with; None where that is open."""
    if config.preset.startswith(_IMAGENET_S):
        return PUBLISHED.get(config.num_classes)
    return None


def demo_data(root: Path, seed: int) -> Path:
    """Make the data set of ``make demo``; returns its folder."""
    from core.synthetic.imagenet_s import make_dataset

    return make_dataset(root, seed=seed, train=10)
