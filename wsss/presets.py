"""The presets: which settings each data set and purpose changes from their defaults."""

from __future__ import annotations

from dataclasses import replace

from core.errors import UserError
from wsss.config import ARCHS, Config


def voc12_resnet50(arch: str) -> Config:
    """Pascal VOC 2012; not run to the end yet.

    Command: ``python -m wsss classifier --data /data/VOC2012 --pretrained resnet50.pth``.
    """
    return Config(arch=arch)


def demo(arch: str) -> Config:
    """The generated data set of ``python -m wsss data demo``, in a minute on two cores.

    Command: ``python -m wsss classifier --preset demo --data DATA``.
    """
    config = Config(preset="demo", arch=arch, num_classes=5, workers=2)
    settings = replace(
        config.classifier, epochs=12, batch_size=8, base_lr=0.05, trunk_rate=1.0, crop_size=96
    )
    return replace(config, classifier=settings)


# Name -> (function of the trunk, its usual trunk).
PRESETS = {"voc12_resnet50": (voc12_resnet50, "resnet50"), "demo": (demo, "resnet18")}
PRESET_NAMES = tuple(PRESETS)


def preset(name: str, arch: str | None = None) -> Config:
    """The configuration of a preset for a trunk (None: the usual one).

    Raises:
        UserError: an unknown preset or trunk.
    """
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}: expected one of {', '.join(PRESET_NAMES)}")
    make, usual = PRESETS[name]
    if arch not in (None, *ARCHS):
        raise UserError(f"unknown architecture {arch!r}: expected one of {', '.join(ARCHS)}")
    return make(arch or usual)
