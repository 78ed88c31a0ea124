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
from core.data.imagenet_s import ImageItem
from core.data.images import image_size
from core.data.label_maps import load_label, png_of_label
from core.errors import UserError
from core.files import atomic_write
from core.scoring.matching import apply_match, identity_match, match_text
from core.text import named
from tools.submission.check import MATCH_NAME, METHOD_NAME

STAGE = "submission"
EXIT_PROBLEMS = 1
# The earliest time a zip file can state: the same content gives the same bytes.
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)
SHOWN_PROBLEMS = 50
#: In ``method.txt`` for what nobody has said or recorded, and for what there is none of.
NOT_KNOWN, NONE = "not known", "none"


@dataclass(frozen=True)
class Method:
    """What ``method.txt`` tells about a submission; each field is one line of text, None where the
    user has said nothing.
    """

    method: str | None = None
    train_data: str | None = None
    train_scheme: str | None = None
    network: str | None = None
    link: str | None = None
    description: str | None = None

    def filled(self, **known: str) -> Method:
        """The same with the fields of ``known`` where the user has said nothing."""
        return replace(self, **{k: v for k, v in known.items() if getattr(self, k) is None})

    def with_notes(self, *notes: str) -> Method:
        """The same with each note in brackets behind the description."""
        description = self.description or NONE
        return replace(self, description=description + "".join(f" ({n})" for n in notes))

    def text(self) -> str:
        """Content of the file, with the labels of the reference's own ``method.txt``."""
        lines = {
            "Method name": self.method or NOT_KNOWN,
            "Training data": self.train_data or NOT_KNOWN,
            "Training scheme": self.train_scheme or NOT_KNOWN,
            "Networks": self.network or NOT_KNOWN,
            "Paper/Project link": self.link or NONE,
            "Method description": self.description or NONE,
        }
        return "".join(f"{label}: {' '.join(value.split())}\n" for label, value in lines.items())


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags ``--method --train_data --train_scheme --link --description``."""
    told = "What is left out is what the label maps' record says, or not known."
    group = parser.add_argument_group("method.txt", told)
    group.add_argument("--method", help="name of the method")
    group.add_argument("--train_data", help="training data")
    group.add_argument("--train_scheme", help="training scheme")
    group.add_argument("--link", help="paper or project link")
    group.add_argument("--description", help="description")


def method_from(args: argparse.Namespace, network: str | None = None) -> Method:
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
    paths = {key: folder / f"{key}.png" for key in keys}
    missing = [key for key in keys if key not in substitutes and not paths[key].is_file()]
    if missing:
        raise UserError(
            f"no archive was made: {len(missing)} of {len(items)} predictions are missing in "
            f"{folder}: {named(missing)}; finish them first"
        )
    listed = identity_match(len(match) - 1) if matched and match else match
    with atomic_write(zip_path, sync=True) as file, zipfile.ZipFile(file, "w") as archive:
        for key in log.progress(keys, STAGE):
            path = paths[key]
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
