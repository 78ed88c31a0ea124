"""Every hyper-parameter of the pipeline: one frozen dataclass per stage.

The defaults are those of Pascal VOC 2012; a preset (``wsss.presets``) states only its differences.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.config import at_least, between, fraction, one_of, positive, positive_fraction, setting

ARCHS = ("resnet18", "resnet50")


@dataclass(frozen=True)
class Classifier:
    """Step 1: which classes an image shows."""

    split: str = setting("train", None, "list of the images to train on")
    epochs: int = setting(15, at_least(1), "passes over the training images")
    batch_size: int = setting(16, at_least(2), "images a step, over all ranks")
    base_lr: float = setting(0.1, positive(), "rate of the classifier's own layer")
    trunk_rate: float = setting(0.1, fraction(), "rate of the trunk, relative to that")
    power: float = setting(0.9, positive(), "of the polynomial by which the rate falls to 0")
    weight_decay: float = setting(1e-4, at_least(0), "of all weights")
    momentum: float = setting(0.9, fraction(), "share of the velocity that is kept")
    crop_size: int = setting(512, between(32, 4096), "side of the crops, pixels")
    min_scale: float = setting(0.3, positive_fraction(), "smallest crop, share of the image's area")


@dataclass(frozen=True)
class Config:
    """Everything that decides a result; kept in the run folder and in each checkpoint."""

    preset: str = "voc12_resnet50"
    arch: str = setting("resnet50", one_of(*ARCHS), "trunk")
    num_classes: int = setting(20, at_least(1), "classes, background not counted")
    seed: int = setting(0, between(0, 2**32 - 1), "of everything that is drawn")
    workers: int = setting(4, at_least(0), "processes that read images; never changes a result")
    classifier: Classifier = Classifier()
