"""``python -m NAME submission check|build``: an archive of label maps, checked or made."""

from __future__ import annotations

import argparse
from pathlib import Path

from core import log
from core.data.layout import class_count, open_layout
from core.pipeline import label_origin
from core.pipeline.stage import Pipeline
from core.scoring.matching import read_match
from core.text import named
from tools import flags
from tools.submission.archive import (
    EXIT_PROBLEMS,
    SHOWN_PROBLEMS,
    STAGE,
    add_method_arguments,
    build_zip,
    describe_ids,
    empty_prediction,
    method_from,
)
from tools.submission.check import inspect_zip
from tools.submission.disclosure import completed, ground_truth, notes


def build_parser(pipeline: Pipeline) -> argparse.ArgumentParser:
    """Arguments of ``python -m NAME submission``."""
    parser = flags.Parser(
        prog=f"python -m {pipeline.name} submission",
        description="Build or check the archive to hand in.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="list what is wrong with an archive")
    check.add_argument("archive", type=Path)
    build = commands.add_parser("build", help="make an archive of finished predictions")
    build.add_argument("predictions", type=Path, help="folder of <key>.png")
    build.add_argument("archive", type=Path)
    flags.add_place(build, flags.MATCH_FILE, "cluster to class", required=True)
    missing = "fill missing predictions with background, and say so in method.txt"
    build.add_argument("--allow-missing", action="store_true", help=missing)
    add_method_arguments(build)
    build.add_argument("--network", help="networks")
    for command in (check, build):
        flags.add_place(command, flags.DATA, "data set folder", required=True)
        flags.add_place(command, flags.SPLIT, "split that the archive covers", required=True)
        flags.add_num_classes(command, "classes (default: class folders)")
        ids = command.add_mutually_exclusive_group()
        ids.add_argument(
            "--unmatched", action="store_true", help="ids inside are cluster ids (build: default)"
        )
        ids.add_argument("--matched", action="store_true", help="ids inside are class ids")
    return parser


def main(arguments: list[str], pipeline: Pipeline) -> int:
    """Run on the command line's arguments; returns the exit code, 1 where ``check`` found
    problems.
    """
    args = build_parser(pipeline).parse_args(arguments)
    num_classes = class_count(args.data, args.split, args.num_classes)
    if args.command == "build":
        return _build(args, num_classes)
    return _check(args, num_classes)


def _build(args: argparse.Namespace, num_classes: int) -> int:
    items = open_layout(args.data).images(args.split)
    used = label_origin.fingerprints(args.predictions)
    chain = label_origin.chain_of_labels(args.predictions, used)
    method = completed(method_from(args, args.network), chain)
    method = method.with_notes(*notes(chain), *ground_truth(chain))
    substitutes = {}
    if args.allow_missing:
        missing = [item for item in items if not (args.predictions / f"{item.key}.png").is_file()]
        substitutes = {item.key: empty_prediction(item.path) for item in missing}
    if substitutes:
        note = f"{len(substitutes)} of {len(items)} predictions are empty ones"
        log.warn(STAGE, f"{note}: {named(list(substitutes))}")
        method = method.with_notes(note)
    match = read_match(args.match_file, num_classes)
    build_zip(args.predictions, items, args.archive, match, method, args.matched, substitutes)
    return 0


def _check(args: argparse.Namespace, num_classes: int) -> int:
    expected = "matched" if args.matched else "unmatched" if args.unmatched else None
    report = inspect_zip(args.archive, args.data, args.split, num_classes, expected)
    if report.match is not None and not report.problems:
        print(f"{args.archive}: {report.summary()}")
        print(f"no problems; {describe_ids(report.match)}")
        return 0
    print(f"{args.archive}: {report.summary()}; {len(report.problems)} problems")
    for problem in report.problems[:SHOWN_PROBLEMS]:
        print(f"  {problem}")
    if len(report.problems) > SHOWN_PROBLEMS:
        print(f"  ... and {len(report.problems) - SHOWN_PROBLEMS} more")
    return EXIT_PROBLEMS
