"""What is wrong with the lists, annotations and masks of a data set in VOC or COCO form.

An image that several lists name is looked into once. Images that no list names are not looked at:
VOC has many. Of a list whose name begins with "train" masks may be missing, for nothing need be
scored on it; any other list should have all or none.
"""

from __future__ import annotations

from pathlib import Path

from core.data.coco import Coco
from core.data.image_labels import ImageLabels, read_annotation
from core.data.voc import ANNOTATIONS, Voc
from core.errors import UserError
from core.text import named
from tools.data.problems import DataReport, ImageFile, Problem, SplitCounts

Listed = Voc | Coco


def listed_files(layout: Listed, num_classes: int | None, report: DataReport) -> list[ImageFile]:
    """The images that the lists of a data set name, each with its mask and its image label.

    Counts of the splits and what is wrong with lists, annotations and folders go to the report.

    Args:
        num_classes: largest id of a mask; None: the number of class names.

    Raises:
        UserError: class names that cannot be read, or a folder that cannot be listed.
    """
    names = layout.class_names()
    listed: dict[str, tuple[Path, Path | None]] = {}  # key -> image, mask
    known: set[str] = set()  # keys of all images
    for split in layout.splits():
        files = layout.files(split)
        known.update(files)
        found = _files_of_list(layout, split, files, report)
        masks = sum(mask is not None for _, mask in found.values())
        report.splits[split] = SplitCounts(len(found), len(names), masks or None)
        listed.update(found)
    labels = _labels(layout, list(listed), names, report)
    _find_strays(layout, known, report)
    top = num_classes or len(names)
    return [
        ImageFile(image, mask, top, plain_ids=True, labels=labels.get(key))
        for key, (image, mask) in sorted(listed.items())
    ]


def _files_of_list(
    layout: Listed, split: str, files: dict[str, Path], report: DataReport
) -> dict[str, tuple[Path, Path | None]]:
    """Image and mask of each image of a list that is there."""
    place = str(layout.root / split)
    try:
        keys = layout.ids(split)
    except UserError as error:
        report.problems.append(Problem("list", place, str(error)))
        return {}
    missing = [key for key in keys if key not in files]
    if missing:
        text = f"its list names {len(missing)} images that are not there: {named(missing)}"
        report.problems.append(Problem("list", place, text))
    found: dict[str, tuple[Path, Path | None]] = {}
    for key in keys:
        if key in files:
            mask = layout.truth_path(split, key)
            found[key] = files[key], mask if mask.is_file() else None
    bare = [key for key, (_, mask) in found.items() if mask is None]
    if 0 < len(bare) < len(found) and not split.startswith("train"):
        text = f"{len(bare)} of {len(found)} images have no mask: {named(bare)}"
        report.problems.append(Problem("mask", place, text))
    return found


def _labels(layout: Listed, keys: list[str], names: list[str], report: DataReport) -> ImageLabels:
    """Image labels as far as they can be read; each broken annotation is a problem of its own."""
    folder = layout.root / ANNOTATIONS
    labels: ImageLabels = {}
    if isinstance(layout, Voc) and folder.is_dir():
        for key in sorted(keys):
            path = folder / f"{key}.xml"
            if path.is_file():
                try:
                    labels[key] = read_annotation(path, key, names)
                except UserError as error:
                    report.problems.append(Problem("annotation", str(path), str(error)))
    elif layout.has_image_labels():
        try:
            labels = layout.label_file_content()
        except UserError as error:
            report.problems.append(Problem("annotation", str(layout.root), str(error)))
    return labels


def _find_strays(layout: Listed, known: set[str], report: DataReport) -> None:
    """Masks that belong to no image at all."""
    for folder in layout.mask_folders():
        for path in sorted(folder.glob("*.png")):
            if path.stem not in known:
                report.problems.append(Problem("mask", str(path), "belongs to no image"))
