"""Unsupervised semantic segmentation, stage by stage: PASS, with SAM for labels and refinement."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from core.config import number
from core.pipeline.folders import SPLITS, TRAIN, VALIDATION, ResultFolder
from core.pipeline.stage import Cost, Flag, Kind, Pipeline, SegmenterAccess, Stage
from tools import flags
from uss import presets
from uss.config import ARCHS, Config
from uss.paths import DEFAULT_DATA, RunFolder, segmenter_input

# The larger trunk first, as the scripts run them.
_TRUNKS = tuple(reversed(ARCHS))

_PRETRAINED = Flag(
    ("--pretrained",),
    "checkpoint to start from (default: this run's)",
    argument="given_checkpoint",
    options={"type": Path},
)
_KEEP_FEATURES = Flag(
    ("--keep-features",),
    "leave the blocks of features on disk when the stage is finished",
    argument="keep_features",
    options={"action": "store_true"},
)
_ATTENTION_THRESHOLD = Flag(
    ("--threshold", "-t"),
    "fraction below which attention counts as 0 (default: the preset's)",
    setting="pixel_attention.threshold",
    options={"type": number(float), "metavar": "T"},
)
_MATCH_FILE = Flag(
    flags.MATCH_FILE,
    "match to use (default: found on validation masks)",
    argument="match_file",
    options={"type": Path},
)
_IMAGE_TIMEOUT = Flag(
    flags.IMAGE_TIMEOUT,
    flags.IMAGE_TIMEOUT_HELP,
    argument="image_timeout_s",
    options=flags.IMAGE_TIMEOUT_OPTIONS,
)
_VERIFY = Flag(flags.VERIFY, flags.VERIFY_HELP, argument="verify", options={"action": "store_true"})


def _split(default: str) -> Flag:
    return Flag(
        flags.SPLIT,
        f"folder below --data (default {default})",
        argument="split",
        options={"default": default},
    )


def _photo(resize: int) -> float:
    """Pixels of a 4:3 image whose shorter side is ``resize``."""
    return resize * resize * 4 / 3


def _completed(config: Config, given: frozenset[str]) -> Config:
    """Where --shallow was given without --weights, every loss weighs 1."""
    if "pretrain.shallow" not in given or "pretrain.loss_weights" in given:
        return config
    weights = (1.0,) * (1 + len(config.pretrain.shallow))
    return replace(config, pretrain=replace(config.pretrain, loss_weights=weights))


PRETRAIN = Stage(
    command="pretrain",
    step="1",
    title="pretraining",
    help="self-supervised pretraining",
    module="uss.pretrain",
    kind=Kind.TRAINING,
    section="pretrain",
    folder=RunFolder.pretrain,
    of=_TRUNKS,
    per_trunk=True,
    script="train_1.sh, train_2.sh",
    product="trunk, prototypes",
    flags=(
        Flag(
            ("--shallow",),
            "shallow stages out of 1, 2, 3 that are supervised too; none: --shallow",
            setting="pretrain.shallow",
            options={"type": number(int), "nargs": "*", "metavar": "STAGE"},
        ),
        Flag(
            ("--weights",),
            "of the image loss and of each shallow stage (default: all 1)",
            setting="pretrain.loss_weights",
            options={"type": number(float), "nargs": "+", "metavar": "W"},
        ),
    ),
)
PIXEL_ATTENTION = Stage(
    command="pixel-attention",
    step="2.1",
    title="pixel attention",
    help="pixel attention on the frozen trunk",
    module="uss.pixel_attention",
    kind=Kind.TRAINING,
    section="pixel_attention",
    folder=RunFolder.pixel_attention,
    of=_TRUNKS,
    per_trunk=True,
    script="train_1.sh, train_2.sh",
    product="attention",
    flags=(_PRETRAINED, _ATTENTION_THRESHOLD),
)
CLUSTER = Stage(
    command="cluster",
    step="2.2",
    title="clustering",
    help="k-means of attended image features",
    module="uss.cluster",
    kind=Kind.WHOLE,
    section="cluster",
    folder=RunFolder.cluster,
    of=_TRUNKS,
    per_trunk=True,
    script="train_1.sh, train_2.sh",
    product="centres",
    flags=(_PRETRAINED, _ATTENTION_THRESHOLD, _KEEP_FEATURES),
    cost=Cost(
        network=PIXEL_ATTENTION.section,
        pixels=lambda config: config.cluster.crop**2,
        splits=(TRAIN, VALIDATION),
        measured=True,
    ),
)
MASKS = Stage(
    command="masks",
    help="masks of a split, for step 2.3 and test.py; any number of processes",
    module="refine.fill_masks",
    kind=Kind.PER_IMAGE,
    section="masks",
    folder=RunFolder.masks,
    of=SPLITS,
    flags=(
        Flag(
            ("--check",),
            "make nothing: read every stored file, name and remove the broken ones",
            argument="check",
            options={"action": "store_true"},
        ),
        _split(TRAIN),
        _IMAGE_TIMEOUT,
    ),
)
PSEUDO_LABELS = Stage(
    command="pseudo-labels",
    step="2.3",
    title="pseudo labels",
    help="labels from masks, at the threshold that validation masks choose (step 2.4)",
    module="uss.pseudo_labels",
    kind=Kind.PER_IMAGE,
    section="pseudo_labels",
    folder=RunFolder.pseudo_labels,
    of=(VALIDATION, TRAIN),
    script="train_3.sh",
    product="pseudo labels",
    flags=(
        _PRETRAINED,
        Flag(
            ("--threshold", "-t"),
            "fraction below which attention is background (default: the sweep's best)",
            setting="pseudo_labels.threshold",
            options={"type": number(float), "metavar": "T"},
        ),
        Flag(
            ("--centroids",),
            "cluster centres, .npy (default: this run's)",
            argument="given_centroids",
            options={"type": Path},
        ),
        Flag(
            ("--mode",),
            "validation: choose the threshold; train: label (default: both)",
            argument="mode",
            options={"default": "all", "choices": ("all", VALIDATION, TRAIN)},
        ),
        _IMAGE_TIMEOUT,
        _VERIFY,
    ),
    cost=Cost(
        network=PIXEL_ATTENTION.section,
        pixels=lambda config: _photo(config.pseudo_labels.resize),
        splits=(TRAIN, VALIDATION),
        masks=lambda config: config.pseudo_labels.per_mask,
    ),
)
FINETUNE = Stage(
    command="finetune",
    step="3",
    title="segmenter",
    help="train the segmenter on the pseudo labels",
    module="uss.finetune",
    kind=Kind.TRAINING,
    section="finetune",
    folder=lambda run: run.segmenter,
    script="train_4.sh",
    product="segmenter",
    flags=(_PRETRAINED,),
)
PREDICT = Stage(
    command="predict",
    step="4",
    title="prediction",
    help="label a split and zip it",
    module="uss.predict",
    kind=Kind.PER_IMAGE,
    section="predict",
    folder=RunFolder.predictions,
    of=SPLITS,
    script="train_4.sh",
    product="label maps",
    flags=(_PRETRAINED, _split("auto"), _MATCH_FILE, _IMAGE_TIMEOUT, _VERIFY),
    cost=Cost(
        network=FINETUNE.section,
        pixels=lambda config: _photo(config.predict.resize),
        splits=(VALIDATION, "test"),
    ),
)
REFINE = Stage(
    command="test.py",
    title="refinement",
    help="predict a split, refine it with masks, zip it",
    module="uss.predict_refined",
    kind=Kind.PER_IMAGE,
    section="refine",
    folder=lambda result, split: ResultFolder(result).labels(split),
    of=SPLITS,
    script="test.py",
    product="result.zip",
    is_script=True,
    cost=Cost(
        network=FINETUNE.section,
        pixels=lambda config: _photo(config.predict.resize),
        splits=(VALIDATION, "test"),
        masks=lambda config: True,
        masks_of=("test",),  # the threshold of the pseudo labels needed those of validation
    ),
)
DISTANCE_MATCHING = Stage(
    command="distance-matching",
    title="distance matching",
    help="score a trunk by its nearest labelled regions",
    module="uss.distance_matching",
    kind=Kind.PER_IMAGE,
    section="distance_matching",
    flags=(_PRETRAINED, _split(VALIDATION), _KEEP_FEATURES),
    cost=Cost(
        network=PRETRAIN.section,
        pixels=lambda config: _photo(config.distance_matching.resize),
        splits=("train-semi", VALIDATION),
        measured=True,
    ),
)


SEGMENTER = SegmenterAccess(
    checkpoint=segmenter_input,
    load="uss.networks:load_segmenter",
    facts="uss.networks:segmenter_facts",
)


def _recipe(name: str) -> list[tuple[Stage, Config]]:
    """The stages that the scripts of a preset run: with PASS's own presets one trunk and no SAM,
    else train_1.sh to train_4.sh and test.py, of which the third labels with the smaller trunk.
    """
    if name.startswith("pass"):
        config = presets.preset(name)
        stages = (PRETRAIN, PIXEL_ATTENTION, CLUSTER, PSEUDO_LABELS, FINETUNE, PREDICT)
        return [(stage, config) for stage in stages]
    large, small = (presets.preset(name, trunk) for trunk in _TRUNKS)
    features = (PRETRAIN, PIXEL_ATTENTION, CLUSTER)
    return [
        *((stage, large) for stage in features),
        *((stage, small) for stage in features),
        (PSEUDO_LABELS, small),
        *((stage, large) for stage in (FINETUNE, PREDICT, REFINE)),
    ]


def _beside(name: str) -> list[tuple[Stage, Config]]:
    """Distance matching scores the larger trunk, the one that the segmenter starts from."""
    return [(DISTANCE_MATCHING, presets.preset(name))]


def commands_after_split(
    preset_name: str, data: Path, run: Path, clusters: int, images: int, has_test: bool
) -> list[str]:
    """The lines of a shell that train on such a data set and label it.

    Args:
        images: number of training images; batches larger than that are made to fit.
        has_test: whether there is a test split; else the training images are labelled.
    """
    settings = [f"num_classes={clusters}"]
    configs = [presets.preset(preset_name, arch) for arch in ARCHS]
    if any(config.num_classes != clusters for config in configs):
        settings.append(f"heads.prototypes={presets.PROTOTYPES_PER_CLASS * clusters}")
    for section in (PRETRAIN.section, PIXEL_ATTENTION.section, FINETUNE.section):
        if any(getattr(config, section).batch_size > images for config in configs):
            settings.append(f"{section}.batch_size={images}")
    flags = " ".join(f"--set {setting}" for setting in settings)
    split = "test" if has_test else "train"
    folder, data_folder = shlex.quote(str(run.absolute())), shlex.quote(str(data.absolute()))
    return [
        f"export PRESET={preset_name} DATA={data_folder} RUN={folder}",
        f"bash train_1.sh {flags}",
        f"bash train_2.sh {flags}",
        "# Without masks of a validation split nothing chooses the threshold: give it.",
        f"bash train_3.sh {flags} --threshold {presets.USUAL_THRESHOLD}",
        f"SPLIT={split} bash train_4.sh {flags}",
        f'.venv/bin/python test.py --run "$RUN" --data_path "$DATA" --mode {split} '
        '--dump_path "$RUN/result"',
    ]


PIPELINE = Pipeline(
    name="uss",
    config=Config,
    presets=presets.PRESET_NAMES,
    preset=presets.preset,
    run_folder=RunFolder,
    default_data=DEFAULT_DATA,
    stages=(
        PRETRAIN,
        PIXEL_ATTENTION,
        CLUSTER,
        MASKS,
        PSEUDO_LABELS,
        FINETUNE,
        PREDICT,
        REFINE,
        DISTANCE_MATCHING,
    ),
    trunks=ARCHS,
    completed=_completed,
    segmenter=SEGMENTER,
    maps={"attention": "uss.attention_maps:AttentionMaps"},
    report_extras="uss.pseudo_labels:report_extras",
    recipe=_recipe,
    beside=_beside,
    published_counts=presets.published_counts,
    commands_after_split=commands_after_split,
    demo_data="uss.presets:demo_data",
    without_masks=presets.GIVE_THRESHOLD,
    without_test="SPLIT=train bash train_4.sh",
)
