"""Presets: complete, serialisable, and different only where they say so."""

from __future__ import annotations

import dataclasses

import pytest

from core import config as core_config
from core.errors import UserError
from uss.config import ARCHS, PRESETS, Config, preset


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("arch", ARCHS)
def test_presets_survive_json(name: str, arch: str) -> None:
    config = preset(name, arch)
    assert (config.preset, config.arch) == (name, arch)
    assert core_config.from_dict(Config, core_config.to_dict(config), "test") == config


def test_competition_settings() -> None:
    deep, shallow = preset("luss50", "resnet50"), preset("luss50", "resnet18")
    assert (deep.pretrain.batch_size, deep.pretrain.queue_length) == (32, 3840)
    assert (shallow.pretrain.batch_size, shallow.pretrain.queue_length) == (64, 2048)
    assert (deep.pixel_attention.threshold, shallow.pixel_attention.threshold) == (0.24, 0.34)
    assert (deep.masks.points_per_side, deep.masks.crop_n_layers) == (64, 1)
    assert deep.seed == 31
    assert (
        dataclasses.replace(
            shallow,
            arch="resnet50",
            pretrain=deep.pretrain,
            pixel_attention=deep.pixel_attention,
        )
        == deep
    )


def test_unknown_names_are_one_line() -> None:
    with pytest.raises(UserError, match="unknown preset 'luss5': expected one of"):
        preset("luss5", "resnet50")
    with pytest.raises(UserError, match="unknown architecture 'vgg'"):
        preset("luss50", "vgg")
