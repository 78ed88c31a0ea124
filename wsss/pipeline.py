"""Weakly supervised semantic segmentation, stage by stage."""

from __future__ import annotations

from pathlib import Path

from core.pipeline.stage import Flag, Kind, Pipeline, Stage
from wsss import presets
from wsss.config import ARCHS, Config
from wsss.paths import DEFAULT_DATA, RunFolder

CLASSIFIER = Stage(
    command="classifier",
    step="1",
    help="train a classifier on image labels",
    module="wsss.classifier",
    kind=Kind.TRAINING,
    section="classifier",
    folder=lambda run: run.classifier,
    product="classifier",
    flags=(
        Flag(
            ("--pretrained",),
            "checkpoint whose trunk it starts from (default: random weights)",
            argument="given_checkpoint",
            options={"type": Path},
        ),
    ),
)

PIPELINE = Pipeline(
    name="wsss",
    config=Config,
    presets=presets.PRESET_NAMES,
    preset=presets.preset,
    run_folder=RunFolder,
    default_data=DEFAULT_DATA,
    stages=(CLASSIFIER,),
    trunks=ARCHS,
    predicts_clusters=False,
    recipe=lambda name: [(CLASSIFIER, presets.preset(name))],
    demo_data="core.synthetic.voc:make_dataset",
)
