"""Presets: complete, serialisable, and different only where they say so."""

from __future__ import annotations

import dataclasses

import pytest

from core import config as core_config
from core.errors import UserError
from uss.config import ARCHS, Config
from uss.presets import PRESETS, luss50_r18, luss50_r50, preset


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("arch", ARCHS)
def test_presets_survive_json(name: str, arch: str) -> None:
    config = preset(name, arch)
    assert (config.preset, config.arch) == (name, arch)
    assert core_config.from_dict(Config, core_config.to_dict(config), "test") == config


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("arch", ARCHS)
def test_presets_obey_the_rules_of_their_settings(name: str, arch: str) -> None:
    config = preset(name, arch)
    core_config.check(config)
    # What is described can be given again, setting by setting.
    lines = core_config.describe(config)
    assert core_config.override(Config(), [line.partition("  ")[0] for line in lines]) == config
    assert all("  " in line for line in lines), "a setting without help"


def test_a_bad_value_is_named_when_it_is_given() -> None:
    for assignment, message in (
        ("pretrain.epochs=0", r"pretrain\.epochs must be at least 1, is 0"),
        ("finetune.head=fcn", r"finetune\.head must be one of upernet, plain, not 'fcn'"),
        ("masks.source=hands", r"masks\.source must be one of sam, superpixels, not 'hands'"),
        ("pixel_attention.threshold=24", r"pixel_attention\.threshold is a fraction .*, not 24"),
        ("pseudo_labels.threshold=41", r"pseudo_labels\.threshold is a fraction, .* mean 0\.41"),
        ("pretrain.crop_sizes=224,8", r"pretrain\.crop_sizes must be 32 to 4096 each, is"),
        ("num_classes=0", "num_classes must be positive, is 0"),
    ):
        with pytest.raises(UserError, match=message):
            core_config.override(Config(), [assignment])


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


# The reference's constants: step 1 (epochs, batch, rate, final rate, queue, its first epoch, frozen
# steps), step 2.1 (epochs, batch, rate, queue), step 3 (epochs, batch, rate, label scale).
PASS_CONSTANTS = {
    "pass50": ((200, 256, 0.6, 0.0006, 2048, 15, 1001), (20, 256, 6.0, 3840), (20, 256, 0.6, 0.5)),
    "pass300": ((100, 256, 0.6, 0.0006, 3840, 15, 5005), (20, 256, 0.6, 3840), (20, 256, 0.6, 0.5)),
    "pass919": ((100, 256, 0.6, 0.0006, 3840, 15, 5005), (20, 256, 0.6, 3840), (20, 256, 0.6, 0.5)),
}


@pytest.mark.parametrize("name", sorted(PASS_CONSTANTS))
def test_constants_of_pass(name: str) -> None:
    config = preset(name)
    first, attention, third = config.pretrain, config.pixel_attention, config.finetune
    got = (
        (
            first.epochs,
            first.batch_size,
            first.base_lr,
            first.final_lr,
            first.queue_length,
            first.queue_start_epoch,
            first.freeze_prototypes_steps,
        ),
        (attention.epochs, attention.batch_size, attention.base_lr, attention.queue_length),
        (third.epochs, third.batch_size, third.base_lr, third.label_scale),
    )
    assert got == PASS_CONSTANTS[name]
    small = name == "pass50"
    assert (config.arch, config.num_classes) == ("resnet18" if small else "resnet50", int(name[4:]))
    heads = (512, 128, 500) if small else (2048, 128, 3000)
    assert dataclasses.astuple(config.heads) == heads
    assert dataclasses.astuple(config.assignment) == (0.1, 0.05, 3)
    crops = ((224, 96), (2, 6), (0.14, 0.05), (1.0, 0.14))
    if not small:
        crops = ((224,), (2,), (0.08,), (1.0,))
    assert (first.crop_sizes, first.crop_counts, first.min_scales, first.max_scales) == crops
    assert (first.shallow, first.loss_weights) == ((3,), (1.0, 1.0))
    for section in (first, attention, third):
        assert (section.momentum, section.weight_decay, section.larc) == (0.9, 1e-6, True)
        assert section.final_lr == 0.0006
    assert (attention.queue_start_epoch, attention.freeze_prototypes_steps) == (0, 0)
    assert (attention.crop_size, attention.min_scale, attention.threshold) == (224, 0.08, 0.0)
    assert (config.cluster.iterations, config.cluster.redo) == (20, 30)
    assert (config.cluster.resize, config.cluster.crop) == (256, 224)
    labels = config.pseudo_labels
    assert (labels.per_mask, labels.min_threshold, labels.max_threshold) == (False, 0.0, 0.8)
    assert (third.head, third.crop_size, third.min_scale) == ("plain", 224, 0.08)
    assert (config.predict.resize, config.predict.max_res) == (256, 1000)
    assert config.seed == 10010
    assert dataclasses.astuple(config.distance_matching) == (10, 0.07, 256)


def test_the_first_jittor_version_had_other_settings_of_the_largest_set() -> None:
    config = preset("luss919")
    assert (config.finetune.label_scale, config.predict.max_res, config.seed) == (0.25, 600, 31)


def test_names_that_state_the_trunk() -> None:
    assert preset("luss50_r18") == preset("luss50", "resnet18") == luss50_r18()
    assert preset("luss50_r50", "resnet50") == preset("luss50") == luss50_r50()
    with pytest.raises(UserError, match="luss50_r18 is for resnet18, but resnet50"):
        preset("luss50_r18", "resnet50")


def test_unknown_names_are_one_line() -> None:
    with pytest.raises(UserError, match="unknown preset 'luss5': expected one of"):
        preset("luss5", "resnet50")
    with pytest.raises(UserError, match="unknown architecture 'vgg'"):
        preset("luss50", "vgg")
