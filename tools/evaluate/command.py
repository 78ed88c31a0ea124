"""``python -m NAME evaluate --data D --predictions P --split validation -c 50`` prints a table;
``--curve`` prints mIoU for a range of thresholds over the level maps beside the predictions.

The data set may have any layout of ``core.data.layout``. Where a pipeline predicts clusters, the
match of clusters to classes that fits these masks best is found and used; where it predicts
classes, as in weak supervision, ids are taken as they are. ``--ids`` decides otherwise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from core.config import between, number
from core.data.layout import class_count, open_layout, validation_split
from core.errors import UserError
from core.files import write_json
from core.pipeline import label_origin, origin
from core.pipeline.stage import Pipeline
from core.scoring.matching import read_match, write_match
from core.scoring.threshold_curve import hundredths
from tools import flags
from tools.evaluate.folder import evaluate, threshold_curve
from tools.evaluate.table import (
    best_point,
    curve_dict,
    format_curve,
    format_result,
)

_MOST_HUNDREDTHS = 199  # a threshold above 1 leaves no foreground, which may be wanted


def build_parser(pipeline: Pipeline) -> argparse.ArgumentParser:
    """Arguments of evaluate."""
    parser = flags.Parser(
        prog=f"python -m {pipeline.name} evaluate",
        description="Score predictions against a split's masks.",
    )
    flags.add_place(parser, flags.DATA, "data set folder", required=True)
    parser.add_argument("--predictions", type=Path, required=True, help="folder of <key>.png")
    split = "split with masks (validation, or val, or val2014)"
    flags.add_place(parser, flags.SPLIT, split)
    flags.add_num_classes(parser, "classes (default: the data set's)")
    flags.add_place(parser, flags.MATCH_FILE, "match to use (default: find the best)")
    ids = "what the label maps hold: class ids as they are, or clusters to be matched (%(default)s)"
    usual = "clusters" if pipeline.predicts_clusters else "classes"
    parser.add_argument("--ids", choices=("classes", "clusters"), default=usual, help=ids)
    parser.add_argument("--write-match", type=Path, help="write the match that was used there")
    parser.add_argument("--output", type=Path, help="write the result there, as JSON")
    parser.add_argument("--no-boundary", action="store_true", help="skip boundary IoU")
    parser.add_argument("--classes", action="store_true", help="also list every class")
    parser.add_argument(
        "--curve",
        action="store_true",
        help="mIoU by background threshold, from unthresholded labels",
    )
    kind = number(int, between(0, _MOST_HUNDREDTHS))
    parser.add_argument("--min", type=kind, default=0, help="lowest threshold, hundredths (0)")
    parser.add_argument("--max", type=kind, default=80, help="highest threshold, hundredths (80)")
    threshold = "level, a fraction, below which pixels are background"
    parser.add_argument("--threshold", type=number(float), help=threshold)
    compare = "folder of earlier predictions: also print what became better and worse"
    parser.add_argument("--compare", type=Path, metavar="BEFORE", help=compare)
    flags.add_workers(parser, "processes (default: what pays)")
    return parser


def main(arguments: list[str], pipeline: Pipeline) -> int:
    """Run on the command line's arguments; returns the exit code."""
    args = build_parser(pipeline).parse_args(arguments)
    if args.split is None:
        args.split = validation_split(open_layout(args.data))
    num_classes = class_count(args.data, args.split, args.num_classes)
    if args.curve:
        return _main_curve(args, num_classes)
    if args.match_file:
        match: dict[int, int] | None = read_match(args.match_file, num_classes)
    else:
        match = _identity(args, num_classes)
    if args.compare:
        return _main_compare(args, num_classes, match)
    result = evaluate(
        args.predictions,
        args.data,
        args.split,
        num_classes,
        match,
        boundary=not args.no_boundary,
        workers=args.workers,
        threshold=args.threshold,
    )
    if args.write_match:
        write_match(args.write_match, result.match)
    chain = label_origin.chain_of_labels(
        args.predictions, label_origin.fingerprints(args.predictions)
    )
    context = [f"seeds      {origin.seed_words(chain)}"]
    names = _class_labels(args, num_classes) if args.classes else None
    if args.output:
        write_json(
            args.output, {**result.to_dict(), "split": args.split, "seeds": origin.seeds(chain)}
        )
    print(format_result(result, names, context))
    return 0


def _main_compare(args: argparse.Namespace, num_classes: int, match: dict[int, int] | None) -> int:
    from tools.evaluate.compare import compare, format_comparison

    if args.threshold is not None:
        raise UserError("--compare takes finished label maps; leave --threshold out")
    found = compare(
        args.compare,
        args.predictions,
        args.data,
        args.split,
        num_classes,
        match,
        boundary=not args.no_boundary,
        workers=args.workers,
    )
    if args.write_match:
        write_match(args.write_match, found.match)
    if args.output:
        write_json(args.output, found.to_dict())
    print(format_comparison(found, _class_labels(args, num_classes)))
    return 0


def _main_curve(args: argparse.Namespace, num_classes: int) -> int:
    if args.match_file or args.threshold is not None:
        raise UserError(
            "--curve tries every threshold and finds a match for each; leave --match-file and "
            "--threshold out"
        )
    if args.min > args.max:
        raise UserError(f"--min {args.min} is above --max {args.max}; both are hundredths")
    thresholds = hundredths(args.min, args.max)
    points = threshold_curve(
        args.predictions,
        args.data,
        args.split,
        num_classes,
        thresholds,
        workers=args.workers,
        match=_identity(args, num_classes),
    )
    best = best_point(points)
    if args.write_match:
        write_match(args.write_match, best.match)
    if args.output:
        write_json(args.output, {**curve_dict(points), "split": args.split, "chosen_here": True})
    print(format_curve(points, args.split, matched_here=args.ids == "clusters"))
    return 0


def _identity(args: argparse.Namespace, num_classes: int) -> dict[int, int] | None:
    """The match that leaves class ids as they are; None where ids are those of clusters."""
    return {index: index for index in range(num_classes + 1)} if args.ids == "classes" else None


def _class_labels(args: argparse.Namespace, num_classes: int) -> list[str]:
    names = open_layout(args.data).class_names(args.split)
    if len(names) != num_classes:
        return [f"class {index}" for index in range(1, num_classes + 1)]
    return names
