"""Whether a data set has the shape and the size that a preset expects; opens no image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.data.coco import is_coco
from core.data.imagenet_s import ImageNetS, masks_folder, stem_of
from core.data.layout import Layout, open_layout, validation_split
from core.data.voc import is_voc
from core.errors import UserError
from core.pipeline.folders import VALIDATION
from core.pipeline.stage import Pipeline
from tools.data.check import layout
from tools.doctor.checks import FAIL, OK, WARN, Check, reason

# The competition's images to label stand in for the test split.
_TESTS = ("test", "testA", "testB")


def data(root: Path, config: Any, pipeline: Pipeline) -> list[Check]:
    """A check of each split of a data set."""
    if not root.is_dir():
        mend = (
            f"export DATA=/path/to/your/data ({_split_command(pipeline)} makes one of any images)"
        )
        return [Check("data", FAIL, f"{root} does not exist", mend)]
    try:
        listed = _in_lists(root)
    except UserError as error:
        check = f"python -m {pipeline.name} data check {root}"
        return [Check("data", FAIL, reason(error), check)]
    if listed is not None:
        return [_listed_split(root, listed, name, pipeline) for name in listed.splits()]
    expected = pipeline.published_counts(config) or {}
    names = ("train", "validation", *test_splits(root))
    return [_split(root, name, config, pipeline, expected.get(name)) for name in names]


def test_splits(root: Path) -> list[str]:
    """The splits without given labels that there are; ["test"] where there is none."""
    return [name for name in _TESTS if (root / name).is_dir()] or ["test"]


def images(root: Path, split: str) -> int:
    """Images of a split; 0 without any."""
    try:
        listed = _in_lists(root)
        if listed is None:
            return len(layout(root / split)[0])
        return len(listed.images(validation_split(listed) if split == VALIDATION else split))
    except UserError:
        return 0


def _in_lists(root: Path) -> Layout | None:
    """The data set where lists name its images, as in VOC and COCO; None where it is in folders.

    Raises:
        UserError: its lists are in disorder.
    """
    try:
        found = open_layout(root)
    except UserError:
        if is_voc(root) or is_coco(root):
            raise
        return None
    return None if isinstance(found, ImageNetS) else found


def _listed_split(root: Path, listed: Layout, name: str, pipeline: Pipeline) -> Check:
    """A check of a list: its images are there, and so are the masks of a split to be scored."""
    title, check = f"data {name}", f"python -m {pipeline.name} data check {root}"
    try:
        items = listed.images(name)
        classes = len(listed.class_names(name))
        bare = [item for item in items if not listed.truth_path(name, item.key).is_file()]
    except UserError as error:
        return Check(title, FAIL, reason(error), check)
    text = f"{len(items)} images, {classes} classes"
    if not bare:
        return Check(title, OK, f"{text}, each with a mask")
    if len(bare) == len(items):
        return Check(title, OK, f"{text}, no masks")
    text = f"{text}, {len(bare)} of the images without mask ({bare[0].key})"
    # Nothing need be scored on a training list.
    return Check(title, OK if name.startswith("train") else FAIL, text, check)


def _split(root: Path, name: str, config: Any, pipeline: Pipeline, wanted: int | None) -> Check:
    title, folder = f"data {name}", root / name
    if not folder.is_dir():
        return _missing(title, folder, pipeline, wanted)
    try:
        files, classes, problems = layout(folder)
    except UserError as error:
        return Check(title, FAIL, reason(error), f"chmod -R u+rX {folder}")
    text = f"{len(files)} images" + (f" in {classes} class folders" if classes else "")
    check = f"python -m {pipeline.name} data check {root}"
    if problems:
        first = problems[0]
        return Check(
            title, FAIL, f"{text}; {len(problems)} problems: {first.path} {first.detail}", check
        )
    if wanted is not None and (len(files), classes) != (wanted, config.num_classes):
        text = f"{text}; published with {wanted} in {config.num_classes}"
        state = FAIL if len(files) < wanted else WARN
        return Check(title, state, text, f"unpack ImageNet-S{config.num_classes} again to {root}")
    if name == "train" and len(files) < config.num_classes:
        mend = f"--set num_classes={len(files)}, or more images"
        return Check(title, FAIL, f"{text}, fewer than the {config.num_classes} clusters", mend)
    masks = masks_folder(root, name)
    if masks.is_dir():
        absent = [
            path
            for path in (masks / base / f"{stem_of(file)}.png" for base, file in files)
            if not path.is_file()
        ]
        if absent:
            text = f"{text}, {len(absent)} of them without mask ({absent[0]})"
            return Check(title, FAIL, text, check)
        text += ", each with a mask"
    elif name == "validation":
        mend = f"{pipeline.without_masks} (nothing else needs them)"
        return Check(title, WARN, f"{text} without masks", mend)
    return Check(title, OK, text)


def _missing(title: str, folder: Path, pipeline: Pipeline, wanted: int | None) -> Check:
    if folder.name == "train" or wanted is not None:
        mend = f"put the images into {folder}, or make a data set: {_split_command(pipeline)}"
        return Check(title, FAIL, f"{folder} is missing", mend)
    if folder.name == "validation":
        text = "none: nothing chooses the threshold of the pseudo labels"
        return Check(title, WARN, text, pipeline.without_masks)
    return Check(title, WARN, "none: nothing to label but train", pipeline.without_test)


def _split_command(pipeline: Pipeline) -> str:
    return f"python -m {pipeline.name} data split"
