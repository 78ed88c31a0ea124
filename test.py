"""Predict a folder of images with the trained segmenter, refine with SAM, and make result.zip.

    python test.py --data_path /data/ImageNetS50 --mode validation    # scores, and finds the match
    python test.py --data_path /data/ImageNetS50 --mode test          # bundles that match

Writes ``<dump_path>/<mode>/<class>/<stem>.png`` and ``<dump_path>/result.zip``. Run again, it
continues; run several times at once (by hand, with mpirun, as a Slurm array), the images are shared
out.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import core.packages  # noqa: F401  (first: it ends where packages are missing)
from core import config as core_config
from core.data.images import MAX_PIXELS
from core.errors import UserError, main_guard
from core.pipeline.folders import CHECKPOINT, RUNS
from core.pipeline.presets import preset_or_trained
from core.pipeline.times import record_time
from tools import flags
from tools.submission.archive import add_method_arguments, method_from
from uss.config import Config
from uss.paths import DEFAULT_DATA, RunFolder, segmenter_input
from uss.pipeline import PIPELINE, REFINE
from uss.predict_refined import run_refined
from uss.presets import PRESETS
from uss.result_archive import RefinedRun


@main_guard
def main(arguments: list[str]) -> int:
    """Run on the command line's arguments; returns the exit code."""
    options = _parser().parse_args(arguments)
    run = RunFolder(_run_folder(options).absolute(), given_checkpoint=options.pretrained)
    run.require_known()
    pretrained = segmenter_input(run).absolute()
    job = RefinedRun(
        data_path=options.data.absolute(),
        mode=options.split,
        dump_path=options.result.absolute(),
        run=run,
        pretrained=pretrained,
        pretrained_sam=options.pretrained_sam,
        arch=options.arch,
        num_classes=options.num_classes,
        match_file=options.match_file,
        unmatched=options.unmatched,
        allow_missing=options.allow_missing,
        keep_stale=options.keep_stale,
        verify=options.verify,
        image_timeout_s=options.image_timeout,
        max_pixels=options.max_pixels,
        method=method_from(options),
    )
    started = time.monotonic()
    run_refined(_config(options, pretrained), job)
    record_time(run, f"{REFINE.command} {options.split}", time.monotonic() - started)
    print(f"{job.archive} is complete")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = flags.Parser(
        prog=REFINE.command,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    # The reference's names come first here; those of the other commands are taken too.
    mode, data = flags.SPLIT[::-1], flags.DATA[::-1]
    add(*mode, dest="split", default="testB", help="folder below --data_path (testB)")
    add(*data, dest="data", type=Path, default=DEFAULT_DATA, help="data set folder")
    result = "where results go (./result)"
    add(*flags.RESULT[::-1], dest="result", type=Path, default=Path("./result"), help=result)
    segmenter = "segmenter (the run's own, else weights/checkpoint.pth.tar)"
    add("--pretrained", type=Path, help=segmenter)
    add("--pretrained_sam", type=Path, help="SAM weights (those in weights/ or fetched)")
    match = "match.json to use (the one found on validation)"
    add(*flags.MATCH_FILE[::-1], dest="match_file", type=Path, help=match)
    add("-a", "--arch", help="trunk that the checkpoint must have (any)")
    flags.add_num_classes(parser, "class count that it must have (any)")
    flags.add_count(parser, "--max_res", 0, "cap logits to max_res^2 pixels; 0 = never (1000)")
    flags.add_place(parser, flags.RUN, "run folder of train_1..4.sh (runs/PRESET, or the only one)")
    add("--preset", choices=sorted(PRESETS), help="settings (those the segmenter was trained with)")
    add("--masks", choices=("sam", "superpixels"), help="source of masks (sam)")
    flags.add_set(parser)
    missing = "fill what cannot be made with the network's prediction or background"
    add("--allow-missing", action="store_true", help=missing)
    stale = "keep results that were made under other settings, instead of making them again"
    add("--keep-stale", action="store_true", help=stale)
    add(*flags.VERIFY, action="store_true", help=flags.VERIFY_HELP)
    hung: dict[str, Any] = flags.IMAGE_TIMEOUT_OPTIONS
    add(*flags.IMAGE_TIMEOUT, help=flags.IMAGE_TIMEOUT_HELP, **hung)
    pixels = f"refuse images of more pixels ({MAX_PIXELS})"
    flags.add_count(parser, "--max-pixels", 1, pixels, default=MAX_PIXELS)
    add("--unmatched", action="store_true", help="put no match.json into the archive")
    add_method_arguments(parser)
    return parser


def _run_folder(options: argparse.Namespace) -> Path:
    """--run, else that of --preset, else the only one that has a segmenter."""
    if options.run:
        return options.run
    if options.preset:
        return RUNS / options.preset
    found = sorted(path.parent.parent for path in RUNS.glob(f"*/segmenter/{CHECKPOINT}"))
    if len(found) > 1 and options.pretrained is None:
        names = ", ".join(path.name for path in found)
        raise UserError(
            f"several runs have a segmenter ({names}); choose one with --run or --preset, or name "
            "a file with --pretrained"
        )
    return found[0] if len(found) == 1 else RUNS / Config().preset


def _config(options: argparse.Namespace, pretrained: Path) -> Config:
    """Settings of --preset, else those that the segmenter was trained with, then the flags."""
    assignments = list(options.set)
    if options.max_res is not None:
        assignments.append(f"predict.max_res={options.max_res}")
    if options.masks:
        assignments.append(f"masks.source={options.masks}")
    config = preset_or_trained(PIPELINE, options.preset, pretrained)
    return core_config.override(config, assignments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
