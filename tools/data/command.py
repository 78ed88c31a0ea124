"""``python -m NAME data check|demo|split``: one's own images as a data set.

``check`` names what is wrong with a folder of images, ``split`` makes a data set of any folder of
images without labels, ``demo`` generates the data set of ``make demo``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from core import log
from core.config import Rule, number
from core.data.imagenet_s import SUFFIXES, stem_of
from core.data.images import load_rgb
from core.data.label_maps import IGNORE, require_class_count
from core.errors import UserError
from core.files import write_json
from core.pipeline.folders import RUNS
from core.pipeline.stage import Pipeline, hook
from core.text import named
from tools import flags
from tools.data import check

STAGE = "data split"
RECORD = "split.json"
_UNUSABLE = ("broken", "oversized", "duplicate", "layout")
_STEM_BYTES = 150
_MIN_CLUSTERS = 2
_SHARE = Rule("a share from 0 to below 1", lambda value: 0 <= value < 1)


@dataclass
class Split:
    """What became of a folder of images: paths below the data set -> paths below the source."""

    files: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    """Path -> reason."""

    def count(self, split: str) -> int:
        """Images of a split."""
        return sum(name.startswith(f"{split}/") for name in self.files)


def main(arguments: list[str], pipeline: Pipeline) -> int:
    """Run ``check``, ``demo`` or ``split``; returns the exit code."""
    parser = flags.Parser(prog=f"python -m {pipeline.name} data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_check(commands.add_parser("check", help="name what is wrong with a folder of images"))
    if pipeline.commands_after_split is not None:
        split = commands.add_parser("split", help="make a data set of a folder of images")
        _add_split(split, pipeline)
    demo = commands.add_parser("demo", help="generate the data set of `make demo`")
    flags.add_place(demo, flags.DATA, "folder to make", required=True)
    flags.add_seed(demo, "the same seed gives the same bytes")
    options = parser.parse_args(arguments)
    if options.command == "check":
        return _check(options)
    if options.command == "split":
        return _split(options, pipeline)
    root = hook(pipeline.demo_data)(options.data, seed=options.seed)
    log.info("data demo", f"data set at {root}")
    return 0


# check ------------------------------------------------------------------------------------------


def _add_check(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, help="a data set (it holds train/), or any folder of images")
    flags.add_num_classes(parser, "largest id of a mask (that of class folders)")
    flags.add_workers(parser, "processes (those that pay)")
    add("--json", action="store_true", help="print everything as JSON")


def _check(options: argparse.Namespace) -> int:
    if options.num_classes is not None:
        require_class_count(options.num_classes)
    report = check.check(options.folder, options.num_classes, options.workers)
    if options.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        print(check.format_report(report))
    return int(bool(report.problems))


# split ------------------------------------------------------------------------------------------


def _add_split(parser: argparse.ArgumentParser, pipeline: Pipeline) -> None:
    add = parser.add_argument
    add("images", type=Path, help="folder of images, flat or nested; it is only read")
    flags.add_place(parser, flags.DATA, "folder to make, which must not exist", required=True)
    flags.add_num_classes(parser, "number of clusters", required=True, metavar="C")
    test = "share of the images for a test split (0: none, the images of train are labelled)"
    add("--test", type=number(float, _SHARE), default=0.0, metavar="SHARE", help=test)
    flags.add_seed(parser, "of the choice of test images")
    add("--copy", action="store_true", help="copy the images instead of linking them")
    add(
        "--preset", default="small", choices=sorted(pipeline.presets), help="settings (%(default)s)"
    )
    flags.add_place(parser, flags.RUN, "run folder (runs/NAME, NAME of --data)")


def _split(options: argparse.Namespace, pipeline: Pipeline) -> int:
    clusters = options.num_classes
    if not _MIN_CLUSTERS <= clusters < IGNORE:
        raise UserError(f"-c must be {_MIN_CLUSTERS} to {IGNORE - 1} clusters, is {clusters}")
    split = make_split(
        options.images, options.data, options.test, options.seed, options.copy, clusters
    )
    train, test = split.count("train"), split.count("test")
    log.info(STAGE, f"{options.data}: {train} images to train, {test} to test; see {RECORD}")
    if split.left_out:
        log.warn(STAGE, f"{len(split.left_out)} left out: {named(split.left_out)}")
    run = options.run or RUNS / options.data.absolute().name
    print("\nThe commands for these images (from the project's folder):\n")
    assert pipeline.commands_after_split is not None, "the parser offers no split without it"
    commands = pipeline.commands_after_split
    print("\n".join(commands(options.preset, options.data, run, clusters, train, test > 0)))
    return 0


def make_split(
    source: Path, data: Path, test: float, seed: int, copy: bool, clusters: int = 1
) -> Split:
    """Make ``data/train``, ``data/test`` (where ``test`` > 0) and the record of where each image
    came from; ``data`` appears when it is whole.

    Images keep their names; those of nested folders are joined with "_", and what could not stand
    in a key (dots, blanks) becomes "_". Readable files of other formats are kept as PNG. What is
    broken, too large or there twice is left out.

    Args:
        source: any folder of images; nothing in it is changed.
        test: share of the images, drawn with ``seed``.
        copy: copies; else symbolic links to the files.
        clusters: so many training images there must be at least.

    Raises:
        UserError: ``data`` exists or lies inside ``source``, too few usable images, or files cannot
            be made there.
    """
    source, data = source.absolute(), data.absolute()
    _check_places(source, data)
    split = Split()
    for problem in check.check(source).problems:
        if problem.kind in _UNUSABLE:
            split.left_out[os.path.relpath(problem.path, source)] = problem.detail
    usable = [
        name
        for name in (str(path.relative_to(source)) for path in check.walk_images(source))
        if name not in split.left_out
    ]
    tests = round(test * len(usable))
    if len(usable) - tests < clusters:
        raise UserError(
            f"{source} has {len(usable)} usable images, and {len(usable) - tests} would train: "
            f"expected at least {clusters}, one for each cluster; add images or lower -c or --test"
        )
    # RandomState, because its stream is frozen for all versions of numpy.
    drawn = set(np.random.RandomState(seed).permutation(len(usable))[:tests].tolist())
    names = _names(usable)
    for index, name in enumerate(usable):
        split.files[f"{'test' if index in drawn else 'train'}/{names[name]}"] = name
    record = {"source": str(source), "seed": seed, "test": test, "files": split.files}
    try:
        data.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{data.name}.", dir=data.parent) as build:
            new = Path(build, "new")
            _fill(new, source, split, copy)
            write_json(new / RECORD, {**record, "left_out": split.left_out})
            new.rename(data)
    except OSError as error:
        hint = "" if copy else "; where the file system knows no links, use --copy"
        raise UserError(f"cannot make {data}: {error.strerror or error}{hint}") from error
    return split


def _check_places(source: Path, data: Path) -> None:
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; name a folder of images")
    if (source / "train").is_dir():
        raise UserError(f"{source} holds train/: it is a data set already, or name {source}/train")
    if check.is_listed(source):
        raise UserError(f"{source} is a data set already; name the folder of its images alone")
    if data.exists() or data.is_symlink():
        raise UserError(f"{data} exists and is left alone; name a new folder with --data")
    if source.resolve() in (data.resolve(), *data.resolve().parents):
        raise UserError(f"{data} would lie among the images of {source}; name another folder")


def _names(paths: list[str]) -> dict[str, str]:
    """A file name for each relative path, whose stem no other has."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path in paths:
        base, suffix = os.path.splitext(path)
        stem = re.sub(r"[^\w-]+", "_", base).strip("_") or "image"
        if len(stem.encode()) > _STEM_BYTES:
            digest = hashlib.sha256(stem.encode()).hexdigest()[:8]
            stem = f"{stem.encode()[:_STEM_BYTES].decode(errors='ignore')}_{digest}"
        unique, number = stem, 1
        while unique.lower() in taken:
            number += 1
            unique = f"{stem}_{number}"
        taken.add(unique.lower())
        names[path] = unique + (suffix if suffix.lower() in SUFFIXES else ".png")
        assert stem_of(names[path]) == unique
    return names


def _fill(root: Path, source: Path, split: Split, copy: bool) -> None:
    for target, name in split.files.items():
        place, origin = root / target, (source / name).resolve()
        place.parent.mkdir(parents=True, exist_ok=True)
        if name.lower().endswith(SUFFIXES) and not copy:
            place.symlink_to(origin)
        elif name.lower().endswith(SUFFIXES):
            shutil.copyfile(origin, place)
        else:
            Image.fromarray(load_rgb(origin)).save(place)
