"""``python -m uss COMMAND``: every stage and tool of the pipeline, one by one."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from core import config as core_config
from core import distributed, log
from core.errors import UserError, main_guard
from core.train_options import add_train_arguments, train_options
from uss.config import ARCHS, PRESETS, Config, preset
from uss.paths import PROJECT_ROOT, RunFolder

# Command -> (module whose `run(config, data, run)` is the stage, help); it returns None or the exit
# code.
STAGES = {
    "pretrain": ("uss.pretrain", "step 1: self-supervised pretraining"),
    "pixel-attention": ("uss.pixel_attention", "step 2.1: pixel attention on the frozen trunk"),
    "cluster": ("uss.cluster", "step 2.2: k-means of attended image features"),
    "masks": ("uss.masks", "masks of a split, for step 2.3 and test.py; any number of processes"),
    "pseudo-labels": ("uss.pseudo_labels", "steps 2.3 and 2.4: labels from masks"),
    "finetune": ("uss.finetune", "step 3: train the segmenter on the pseudo labels"),
    "predict": ("uss.predict", "step 4: label a split and zip it"),
}
# Those that take training options.
TRAINING = ("pretrain", "pixel-attention", "finetune")
# Command -> (module whose `main(arguments) -> exit code` parses its own arguments, help).
TOOLS = {
    "evaluate": ("uss.evaluate", "score predictions against ground truth"),
    "submission": ("uss.submission", "check a result.zip"),
    "weights": ("uss.weights", "fetch SAM weights and list what is at hand"),
    "demo-data": ("uss.demo", "make the data set of the demo"),
    "summary": ("uss.summary", "scores, times and a picture sheet of a finished run"),
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
    parser.add_argument("--preset", default="luss50", choices=sorted(PRESETS))
    parser.add_argument("--arch", default="resnet50", choices=ARCHS)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="STAGE.FIELD=VALUE",
        help="override one hyper-parameter of uss/config.py; may be repeated",
    )


def config_from(options: argparse.Namespace) -> Config:
    """The configuration that :func:`add_config_arguments` describes."""
    return core_config.override(preset(options.preset, options.arch), options.set)


def _run_stage(command: str, arguments: list[str]) -> int:
    module, description = STAGES[command]
    parser = argparse.ArgumentParser(prog=f"python -m uss {command}", description=description)
    add_config_arguments(parser)
    parser.add_argument("--data", type=Path, default=Path("/data/ImageNetS50"))
    parser.add_argument("--run", type=Path, help="run folder (default runs/PRESET)")
    parser.add_argument("--workers", type=int, help="processes that read images; 0: none beside")
    add_train_arguments(parser)
    if command == "predict":
        parser.add_argument("--split", default="auto", help="auto: testB, testA, test, validation")
    if command == "masks":
        parser.add_argument("--split", default="train", help="folder below --data (default train)")
        parser.add_argument(
            "--check",
            action="store_true",
            help="make nothing: read every stored file, name and remove the broken ones",
        )
    options = parser.parse_args(arguments)
    config = config_from(options)
    run = RunFolder((options.run or PROJECT_ROOT / "runs" / options.preset).absolute())
    if not options.data.is_dir():
        raise UserError(
            f"data folder {options.data} does not exist; name it with DATA=... or --data"
        )
    if options.workers is not None:
        config = replace(config, workers=options.workers)
    extra: dict[str, Any] = {}
    if command in TRAINING:
        extra["options"] = train_options(options)
    if command in ("masks", "predict"):
        extra["split"] = options.split
    if command == "masks":
        extra["check"] = options.check
    started = time.monotonic()
    code = importlib.import_module(module).run(config, options.data.absolute(), run, **extra)
    if distributed.is_main():
        seconds = time.monotonic() - started
        log.info(command, f"finished in {seconds:.0f} s")
        record_time(run, f"{command} {config.arch}", seconds)
    return code or 0


def record_time(run: RunFolder, stage: str, seconds: float) -> None:
    """Append a stage's wall-clock time to the run's table of times."""
    run.root.mkdir(parents=True, exist_ok=True)
    with run.times.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"stage": stage, "seconds": round(seconds, 1)}) + "\n")


def _usage() -> str:
    lines = ["usage: python -m uss COMMAND [--help] ...", "", "stages:"]
    lines += [f"  {name:16}{text}" for name, (_, text) in STAGES.items()]
    lines += ["", "tools:"]
    lines += [f"  {name:16}{text}" for name, (_, text) in TOOLS.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
