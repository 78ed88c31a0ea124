"""``python -m uss COMMAND``: every stage and tool of the pipeline, one by one."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import core.packages  # noqa: F401  (first: it ends where packages are missing)
from core import config as core_config
from core import distributed, log
from core.errors import UserError, main_guard
from core.pipeline.folders import RUNS
from core.pipeline.times import record_time
from core.training.options import add_train_arguments, train_options
from uss.config import ARCHS, Config
from uss.paths import DEFAULT_DATA, RunFolder
from uss.presets import PRESET_NAMES, preset

# Command -> (module whose `run(config, data, run)` is the stage, help); it returns None or the exit
# code.
STAGES = {
    "pretrain": ("uss.pretrain", "step 1: self-supervised pretraining"),
    "pixel-attention": ("uss.pixel_attention", "step 2.1: pixel attention on the frozen trunk"),
    "cluster": ("uss.cluster", "step 2.2: k-means of attended image features"),
    "masks": (
        "refine.fill_masks",
        "masks of a split, for step 2.3 and test.py; any number of processes",
    ),
    "pseudo-labels": ("uss.pseudo_labels", "steps 2.3 and 2.4: labels from masks"),
    "finetune": ("uss.finetune", "step 3: train the segmenter on the pseudo labels"),
    "predict": ("uss.predict", "step 4: label a split and zip it"),
    "distance-matching": ("uss.distance_matching", "score a trunk by its nearest labelled regions"),
}
# Those that take training options.
TRAINING = ("pretrain", "pixel-attention", "finetune")
# Command -> (module whose `main(arguments) -> exit code` parses its own arguments, help).
TOOLS = {
    "evaluate": ("tools.evaluate.folder", "score predictions against ground truth"),
    "submission": ("tools.submission.archive", "check a result.zip"),
    "weights": ("sam.weights", "fetch SAM weights and list what is at hand"),
    "data": (
        "tools.data.command",
        "check a folder of images, make a data set of it, or the demo's",
    ),
    "doctor": (
        "tools.doctor.command",
        "check this machine and a data set; estimate time and memory",
    ),
    "visualize": ("tools.visualize", "lay predictions, masks or attention over images"),
    "watch": ("tools.watch.command", "the live state of a run"),
    "report": ("tools.report.command", "one page about a run, to be opened in any browser"),
    "summary": ("tools.summary", "scores, times and a picture sheet of a finished run"),
}


@main_guard
def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    command, rest = arguments[0], arguments[1:]
    if command in TOOLS:
        return importlib.import_module(TOOLS[command][0]).main(rest)
    if command not in STAGES:
        raise UserError(f"unknown command {command!r}; python -m uss --help lists them")
    return _run_stage(command, rest)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that choose a configuration: --preset, --arch, --set."""
    parser.add_argument("--preset", default=Config().preset, choices=sorted(PRESET_NAMES))
    parser.add_argument("--arch", choices=ARCHS, help="trunk (default: the preset's)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="STAGE.FIELD=VALUE",
        help="override one hyper-parameter of uss/config.py; may be repeated",
    )


def config_from(options: argparse.Namespace) -> Config:
    """The configuration that :func:`add_config_arguments` describes."""
    # Flags that stand for a setting are named after it.
    flags = [
        f"{key}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in vars(options).items()
        if "." in key and value is not None
    ]
    shallow = getattr(options, "pretrain.shallow", None)
    if shallow is not None and getattr(options, "pretrain.loss_weights") is None:
        flags.append(f"pretrain.loss_weights={','.join(['1'] * (1 + len(shallow)))}")
    return core_config.override(preset(options.preset, options.arch), [*options.set, *flags])


def _run_stage(command: str, arguments: list[str]) -> int:
    module, description = STAGES[command]
    parser = argparse.ArgumentParser(prog=f"python -m uss {command}", description=description)
    add_config_arguments(parser)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--run", type=Path, help="run folder (default runs/PRESET)")
    parser.add_argument("--workers", type=int, help="processes that read images; 0: none beside")
    add_train_arguments(parser)
    _add_stage_arguments(parser, command)
    options = parser.parse_args(arguments)
    config = config_from(options)
    run = RunFolder(
        (options.run or RUNS / options.preset).absolute(),
        given_checkpoint=getattr(options, "pretrained", None),
        given_centroids=getattr(options, "centroids", None),
    )
    if not options.data.is_dir():
        raise UserError(
            f"data folder {options.data} does not exist; name it with DATA=... or --data"
        )
    if options.workers is not None:
        config = replace(config, workers=options.workers)
    extra: dict[str, Any] = {}
    if command in TRAINING:
        extra["options"] = train_options(options)
    for name in ("split", "check", "mode", "match_file"):
        if hasattr(options, name):
            extra[name] = getattr(options, name)
    started = time.monotonic()
    code = importlib.import_module(module).run(config, options.data.absolute(), run, **extra)
    if distributed.is_main():
        seconds = time.monotonic() - started
        log.info(command, f"finished in {seconds:.0f} s")
        record_time(run, f"{command} {config.arch}", seconds)
    return code or 0


def _add_stage_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    """What one stage alone takes; a flag that stands for a setting is named after it."""
    add = parser.add_argument
    if command == "pretrain":
        stages = "shallow stages out of 1, 2, 3 that are supervised too; none: --shallow"
        add("--shallow", dest="pretrain.shallow", type=int, nargs="*", metavar="STAGE", help=stages)
        weights = "of the image loss and of each shallow stage (default: all 1)"
        add(
            "--weights",
            dest="pretrain.loss_weights",
            type=float,
            nargs="+",
            metavar="W",
            help=weights,
        )
    elif command == "masks":
        check = "make nothing: read every stored file, name and remove the broken ones"
        add("--check", action="store_true", help=check)
        add("--split", default="train", help="folder below --data (default train)")
    else:
        add("--pretrained", type=Path, help="checkpoint to start from (default: this run's)")
    if command in ("pixel-attention", "cluster"):
        threshold = "fraction below which attention counts as 0 (default: the preset's)"
        add(
            "-t",
            "--threshold",
            dest="pixel_attention.threshold",
            type=float,
            metavar="T",
            help=threshold,
        )
    if command == "pseudo-labels":
        threshold = "fraction below which attention is background (default: the sweep's best)"
        add(
            "-t",
            "--threshold",
            dest="pseudo_labels.threshold",
            type=float,
            metavar="T",
            help=threshold,
        )
        add("--centroids", type=Path, help="cluster centres, .npy (default: this run's)")
        modes = "validation: choose the threshold; train: label (default: both)"
        add("--mode", default="all", choices=("all", "validation", "train"), help=modes)
    if command in ("predict", "distance-matching"):
        split = {"predict": "auto", "distance-matching": "validation"}[command]
        names = f"folder below --data (default {split})"
        add("--mode", "--split", dest="split", default=split, help=names)
    if command == "predict":
        add(
            "--match-file",
            "--match_file",
            type=Path,
            help="match to use (default: found on validation masks)",
        )


def _usage() -> str:
    lines = ["usage: python -m uss COMMAND [--help] ...", "", "stages:"]
    lines += [f"  {name:19}{text}" for name, (_, text) in STAGES.items()]
    lines += ["", "tools:"]
    lines += [f"  {name:19}{text}" for name, (_, text) in TOOLS.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
