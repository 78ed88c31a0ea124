"""What is wrong with a folder of images before anything is trained on it.

A data set is checked split by split: ``train/`` and further splits, each with class folders or
plain images, or the lists of a set in VOC or COCO form (``tools.data.check_lists``). Any other
folder counts as one collection of images, however deeply nested.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from core import log
from core.data.coco import Coco, is_coco
from core.data.crops import MIN_SIDE
from core.data.imagenet_s import (
    MASKS_SUFFIX,
    SUFFIXES,
    mask_path,
    masks_folder,
    scan_folder,
    stem_of,
)
from core.data.images import MAX_PIXELS, image_size, load_rgb
from core.data.label_maps import IGNORE, load_label
from core.data.layout import open_layout
from core.data.voc import VOID, Voc, find_lists, is_voc, load_id_mask
from core.errors import UserError
from core.files import sha256_of
from core.work.pool import ordered_map, usable_cores
from tools.data.check_lists import listed_files
from tools.data.problems import DataReport, ImageFile, Problem, SplitCounts

STAGE = "data check"
#: Readable, but the stages list only files of :data:`core.data.imagenet_s.SUFFIXES`.
OTHER_SUFFIXES = (".bmp", ".gif", ".webp")
_IN_PROCESSES = 200  # images; for fewer, starting processes costs more than it saves


@dataclass(frozen=True)
class _Finding:
    problems: tuple[Problem, ...]
    digest: str | None


def check(folder: Path, num_classes: int | None = None, workers: int | None = None) -> DataReport:
    """Look into every image and mask below ``folder``.

    Args:
        num_classes: largest id of a mask; None: the number of class folders of its split.
        workers: processes; None: what pays on this machine. Never changes the result.

    Raises:
        UserError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name a folder of images or a data set")
    report = DataReport()
    if (folder / "train").is_dir():
        names = [name for name in scan_folder(folder)[1] if not name.endswith(MASKS_SUFFIX)]
        files = [file for name in names for file in _split_files(folder, name, num_classes, report)]
    elif is_listed(folder):
        listed = open_layout(folder)
        assert isinstance(listed, (Voc, Coco))
        files = listed_files(listed, num_classes, report)
    else:
        closed: list[OSError] = []
        files = [ImageFile(path) for path in walk_images(folder, closed.append)]
        for error in closed:
            text = f"cannot be listed: {error.strerror}"
            report.problems.append(Problem("layout", str(error.filename), text))
        report.splits["images"] = SplitCounts(len(files))
    if not files and not report.problems:
        raise UserError(f"no images in {folder}: expected .JPEG, .jpg or .png files")
    report.problems += inspect_all(files, workers)
    return report


def is_listed(folder: Path) -> bool:
    """Whether a folder is a data set whose images are named by lists, as in VOC and COCO."""
    return is_coco(folder) or (is_voc(folder) and bool(find_lists(folder)))


def walk_images(folder: Path, closed: Callable[[OSError], object] | None = None) -> Iterator[Path]:
    """Image files at any depth, sorted; hidden files and folders are left out, links to folders
    are not followed, and ``closed`` is told of each folder that cannot be listed.
    """
    for base, folders, names in os.walk(folder, onerror=closed):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES + OTHER_SUFFIXES) and not name.startswith("."):
                yield Path(base, name)


def inspect_all(files: Sequence[ImageFile], workers: int | None = None) -> list[Problem]:
    """The problems of the files themselves, in order: broken, oversized, tiny, duplicate, mask."""
    sizes = [_bytes(file.path) for file in files]
    often = Counter(sizes)
    work = [replace(file, digest=size >= 0 and often[size] > 1) for file, size in zip(files, sizes)]
    if workers is None:
        workers = usable_cores() if len(files) >= _IN_PROCESSES else 1
    problems: list[Problem] = []
    first: dict[tuple[str, str], Path] = {}
    findings = ordered_map(_inspect, work, workers)
    with contextlib.closing(log.progress(findings, STAGE, len(work))) as bar:
        # The bar comes first: it is asked for its end, and shows it.
        for finding, file in zip(bar, work):
            problems += finding.problems
            if finding.digest is None:
                continue
            same = first.setdefault((file.group, finding.digest), file.path)
            if same != file.path:
                detail = f"has the same content as {same}"
                problems.append(Problem("duplicate", str(file.path), detail))
    return problems


def layout(folder: Path) -> tuple[list[tuple[str, str]], int, list[Problem]]:
    """Files of a split as the stages list them, without opening any.

    Returns:
        (class folder or "", file name) of each image; the number of class folders; what is wrong:
        images beside class folders, empty or too deep folders, and files that would write the same
        label map.

    Raises:
        UserError: the folder cannot be listed.
    """
    problems: list[Problem] = []
    plain, classes = scan_folder(folder)
    files = [("", name) for name in plain]
    for name in classes:
        inside, deeper = scan_folder(folder / name)
        files += [(name, file) for file in inside]
        if not inside:
            problems.append(Problem("layout", str(folder / name), "has no images"))
        for entry in deeper:
            if scan_folder(folder / name / entry)[0]:
                text = "its images are not seen: keep one level of class folders"
                problems.append(Problem("layout", str(folder / name / entry), text))
    if plain and len(files) > len(plain):
        text = f"holds images ({plain[0]}) beside class folders: keep one of them"
        problems.append(Problem("layout", str(folder), text))
    if not files:
        problems.append(Problem("layout", str(folder), "has no images"))
    first: dict[tuple[str, str], str] = {}
    for base, name in files:
        other = first.setdefault((base, stem_of(name)), name)
        if other != name:
            text = f"would write the same label map as {other}: names count up to the first dot"
            problems.append(Problem("collision", str(folder / base / name), text))
    return files, len(classes), problems


def _split_files(
    data: Path, split: str, num_classes: int | None, report: DataReport
) -> list[ImageFile]:
    """The images of a split, each with its mask; counts and layout problems go to the report."""
    files, classes, problems = layout(data / split)
    report.problems += problems
    counts = report.splits[split] = SplitCounts(len(files), classes)
    # ImageNet-S repeats images of train in train-semi and train-full.
    group = split if split.startswith("train-") else ""
    masks = masks_folder(data, split)
    if not masks.is_dir():
        return [ImageFile(data / split / base / name, group=group) for base, name in files]
    top = num_classes or classes or IGNORE
    listed = []
    for base, name in files:
        key = f"{base}/{stem_of(name)}" if base else stem_of(name)
        mask = mask_path(data, split, key)
        listed.append(ImageFile(data / split / base / name, mask, top, group))
    found = set(walk_images(masks))
    counts.masks = len(found)
    for path in sorted(found - {file.mask for file in listed}):
        report.problems.append(Problem("mask", str(path), f"belongs to no image of {split}"))
    return listed


def _inspect(file: ImageFile) -> _Finding:
    problems = []
    size_hw = None
    try:
        size_hw = image_size(file.path)
        if size_hw[0] * size_hw[1] > MAX_PIXELS:
            text = f"{size_hw[1]} x {size_hw[0]} pixels, more than {MAX_PIXELS}"
            problems.append(Problem("oversized", str(file.path), text))
        else:
            if min(size_hw) < MIN_SIDE:
                text = f"{size_hw[1]} x {size_hw[0]} pixels, a side below {MIN_SIDE}"
                problems.append(Problem("tiny", str(file.path), text))
            load_rgb(file.path)
    except UserError as error:
        problems.append(Problem("broken", str(file.path), str(error)))
    if file.mask is not None:
        problems += _mask_problems(file, file.mask, size_hw)
    return _Finding(tuple(problems), _digest(file.path) if file.digest else None)


def _mask_problems(file: ImageFile, mask: Path, size_hw: tuple[int, int] | None) -> list[Problem]:
    if not mask.is_file():
        return [Problem("mask", str(mask), "is missing")]
    try:
        label = load_id_mask(mask) if file.plain_ids else load_label(mask)
    except UserError as error:
        return [Problem("mask", str(mask), str(error))]
    if size_hw is not None and label.shape != size_hw:
        text = f"{label.shape[1]} x {label.shape[0]} pixels, its image {size_hw[1]} x {size_hw[0]}"
        return [Problem("mask", str(mask), text)]
    shown = [int(i) for i in np.unique(label)]
    wrong = [i for i in shown if i > file.max_id and i != IGNORE]
    if wrong:
        ids = ", ".join(map(str, wrong[:5]))
        ignored = VOID if file.plain_ids else IGNORE
        text = f"ids {ids}; expected 0 (background) to {file.max_id}, or {ignored} (ignored)"
        return [Problem("mask", str(mask), text)]
    contradiction = _contradiction(shown, file.labels)
    return [Problem("annotation", str(mask), contradiction)] if contradiction else []


def _contradiction(shown: list[int], labels: tuple[int, ...] | None) -> str | None:
    """How the ids of a mask contradict the image label; None where they do not or there is none.

    A label may name what the mask leaves out as ignored, as in VOC.
    """
    if labels is None:
        return None
    classes = [i for i in shown if i not in (0, IGNORE)]
    unnamed = [str(i) for i in classes if i not in labels]
    said = ", ".join(map(str, labels)) or "none"
    if unnamed:
        return f"shows class {', '.join(unnamed)}, but the image label names {said}"
    if labels and not classes and IGNORE not in shown:
        return f"shows no class, but the image label names {said}"
    return None


def _bytes(path: Path) -> int:
    """Size of a regular file; -1 of anything else."""
    try:
        found = os.stat(path)
    except OSError:
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def _digest(path: Path) -> str | None:
    """SHA-256 of a file; None where it cannot be read."""
    try:
        return sha256_of(path)
    except OSError:
        return None


# Text -------------------------------------------------------------------------------------------

_SHOWN = 20  # problems of one kind


def format_report(report: DataReport) -> str:
    """A table of the splits, then the problems by kind."""
    lines = [f"{'split':16}{'images':>10}{'classes':>10}{'masks':>10}"]
    for name, counts in report.splits.items():
        masks = "-" if counts.masks is None else counts.masks
        lines.append(f"{name:16}{counts.images:>10}{counts.classes or '-':>10}{masks:>10}")
    by_kind: dict[str, list[Problem]] = defaultdict(list)
    for problem in report.problems:
        by_kind[problem.kind].append(problem)
    for kind, problems in by_kind.items():
        lines.append(f"\n{kind}: {len(problems)}")
        lines += [f"  {each.path}: {each.detail}" for each in problems[:_SHOWN]]
        if len(problems) > _SHOWN:
            lines.append(f"  and {len(problems) - _SHOWN} more; --json lists all")
    lines.append("" if report.problems else "\nno problems")
    return "\n".join(lines).rstrip()
