"""The archive to hand in: build it, and check it before somebody else does.

Layout: ``<class folder>/<stem>.png`` (or ``<stem>.png`` for plain folders) for every image of the
split, ``match.json`` and ``method.txt``, all at the root.

Which ids are inside: *unmatched* archives hold cluster ids and the ``match.json`` that turns them
into class ids; *matched* ones hold class ids and a ``match.json`` that maps each id to itself.
Either way the ids mean the classes after ``match.json`` is applied.
"""

from __future__ import annotations

import argparse
import stat
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from core import log
from core.data.imagenet_s import ImageItem, class_count, list_images, split_folder
from core.data.images import image_size
from core.data.label_maps import load_label, png_of_label
from core.errors import UserError
from core.files import atomic_write
from core.scoring.matching import apply_match, identity_match, match_text, read_match
from core.text import named
from tools.submission.check import MATCH_NAME, METHOD_NAME, check_zip, inspect_zip

__all__ = ["Method", "add_method_arguments", "build_zip", "check_zip", "main", "method_from"]

STAGE = "submission"
EXIT_PROBLEMS = 1
# The earliest time a zip file can state: the same content gives the same bytes.
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)
_SHOWN_PROBLEMS = 50


@dataclass(frozen=True)
class Method:
    """What ``method.txt`` tells about a submission; each field is one line of text."""

    method: str = "PASS with SAM refinement, Jittor"
    train_data: str = "ImageNet-S, images only"
    train_scheme: str = "unsupervised"
    network: str = "ResNet50-UPerNet"
    link: str = "none"
    description: str = "none"

    def with_notes(self, *notes: str) -> Method:
        """The same with each note in brackets behind the description."""
        return replace(self, description=self.description + "".join(f" ({n})" for n in notes))

    def text(self) -> str:
        """Content of the file, with the labels of the reference's own ``method.txt``."""
        lines = {
            "Method name": self.method,
            "Training data": self.train_data,
            "Training scheme": self.train_scheme,
            "Networks": self.network,
            "Paper/Project link": self.link,
            "Method description": self.description,
        }
        return "".join(f"{label}: {' '.join(value.split())}\n" for label, value in lines.items())


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags ``--method --train_data --train_scheme --link --description``."""
    group = parser.add_argument_group("method.txt")
    group.add_argument("--method", default=Method.method, help="name of the method")
    group.add_argument("--train_data", default=Method.train_data, help="training data")
    group.add_argument("--train_scheme", default=Method.train_scheme, help="training scheme")
    group.add_argument("--link", default=Method.link, help="paper or project link")
    group.add_argument("--description", default=Method.description, help="description")


def method_from(args: argparse.Namespace, network: str = Method.network) -> Method:
    """The :class:`Method` of parsed :func:`add_method_arguments` and the network's name."""
    return Method(
        method=args.method,
        train_data=args.train_data,
        train_scheme=args.train_scheme,
        network=network,
        link=args.link,
        description=args.description,
    )


def build_zip(
    prediction_dir: Path,
    items: Sequence[ImageItem],
    zip_path: Path,
    match: dict[int, int] | None,
    method: Method,
    matched: bool = False,
    substitutes: Mapping[str, bytes] | None = None,
) -> None:
    """Write the archive, atomically; the same input gives the same bytes.

    Args:
        prediction_dir: ``<key>.png`` label maps of prediction ids.
        items: the images that the archive must cover.
        zip_path: the archive; an older one is replaced only when all went well.
        match: {prediction id: class id}; None leaves ``match.json`` out (then not ``matched``).
        method: content of ``method.txt``.
        matched: apply ``match`` to the pixels, instead of leaving that to ``match.json``.
        substitutes: key -> PNG, as it goes into the archive, for images without prediction.

    Raises:
        UserError: predictions are missing (the first ones are named) or hold ids unknown to
            ``match``.
    """
    folder = Path(prediction_dir)
    substitutes = substitutes or {}
    keys = sorted(item.key for item in items)
    missing = [key for key in keys if key not in substitutes and not _path(folder, key).is_file()]
    if missing:
        raise UserError(
            f"no archive was made: {len(missing)} of {len(items)} predictions are missing in "
            f"{folder}: {named(missing)}; finish them first"
        )
    listed = identity_match(len(match) - 1) if matched and match else match
    with atomic_write(zip_path, sync=True) as file, zipfile.ZipFile(file, "w") as archive:
        for key in log.progress(keys, STAGE):
            path = _path(folder, key)
            if key in substitutes:
                data = substitutes[key]
            else:
                data = _matched_png(path, match) if matched and match else path.read_bytes()
            # PNG data is deflated already.
            _write(archive, f"{key}.png", data, zipfile.ZIP_STORED)
        if listed is not None:
            _write(archive, MATCH_NAME, match_text(listed).encode(), zipfile.ZIP_DEFLATED)
        _write(archive, METHOD_NAME, method.text().encode(), zipfile.ZIP_DEFLATED)
    log.info(STAGE, f"{len(keys)} predictions in {zip_path}; {describe_ids(listed)}")


def describe_ids(match: dict[int, int] | None) -> str:
    """Which ids an archive with this ``match.json`` holds; None is an archive without one."""
    if match is None:
        return "ids inside are cluster ids, and there is no match.json"
    if all(label == class_id for label, class_id in match.items()):
        return "ids inside are class ids (match.json maps each to itself)"
    return "ids inside are cluster ids; match.json turns them into class ids"


def empty_prediction(image: Path) -> bytes:
    """PNG of background alone, of the image's size; of one pixel where that cannot be told."""
    try:
        size_hw = image_size(image)
    except UserError:
        size_hw = (1, 1)
    return png_of_label(np.zeros(size_hw, np.uint8))


def _path(folder: Path, key: str) -> Path:
    return folder / f"{key}.png"


def _matched_png(path: Path, match: dict[int, int]) -> bytes:
    label = load_label(path)
    try:
        return png_of_label(apply_match(label, match))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _write(archive: zipfile.ZipFile, name: str, data: bytes, method: int) -> None:
    entry = zipfile.ZipInfo(name, _TIMESTAMP)
    entry.create_system = 3  # Unix, wherever this runs
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    entry.compress_type = method
    archive.writestr(entry, data)


def build_parser() -> argparse.ArgumentParser:
    """Arguments of ``python -m uss submission``."""
    parser = argparse.ArgumentParser(
        prog="python -m uss submission", description="Build or check the archive to hand in."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="list what is wrong with an archive")
    check.add_argument("archive", type=Path)
    build = commands.add_parser("build", help="make an archive of finished predictions")
    build.add_argument("predictions", type=Path, help="folder of <key>.png")
    build.add_argument("archive", type=Path)
    build.add_argument("--match-file", type=Path, required=True, help="cluster to class")
    missing = "fill missing predictions with background, and say so in method.txt"
    build.add_argument("--allow-missing", action="store_true", help=missing)
    add_method_arguments(build)
    build.add_argument("--network", default=Method.network, help="networks")
    for command in (check, build):
        command.add_argument("--data_path", type=Path, required=True, help="data set folder")
        command.add_argument("--mode", required=True, help="split that the archive covers")
        command.add_argument(
            "-c", "--num-classes", type=int, help="classes (default: class folders)"
        )
        ids = command.add_mutually_exclusive_group()
        ids.add_argument(
            "--unmatched", action="store_true", help="ids inside are cluster ids (build: default)"
        )
        ids.add_argument("--matched", action="store_true", help="ids inside are class ids")
    return parser


def main(arguments: list[str]) -> int:
    """Run on the command line's arguments; returns the exit code, 1 where ``check`` found
    problems.
    """
    args = build_parser().parse_args(arguments)
    num_classes = class_count(args.data_path, args.mode, args.num_classes)
    if args.command == "build":
        return _build(args, num_classes)
    return _check(args, num_classes)


def _build(args: argparse.Namespace, num_classes: int) -> int:
    items = list_images(split_folder(args.data_path, args.mode))
    method = method_from(args, args.network)
    substitutes = {}
    if args.allow_missing:
        missing = [item for item in items if not _path(args.predictions, item.key).is_file()]
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
    report = inspect_zip(args.archive, args.data_path, args.mode, num_classes, expected)
    if report.match is not None and not report.problems:
        print(f"{args.archive}: {report.summary()}")
        print(f"no problems; {describe_ids(report.match)}")
        return 0
    print(f"{args.archive}: {report.summary()}; {len(report.problems)} problems")
    for problem in report.problems[:_SHOWN_PROBLEMS]:
        print(f"  {problem}")
    if len(report.problems) > _SHOWN_PROBLEMS:
        print(f"  ... and {len(report.problems) - _SHOWN_PROBLEMS} more")
    return EXIT_PROBLEMS
