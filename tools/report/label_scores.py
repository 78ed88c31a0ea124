"""What label maps show and how right they are, image by image and over all (numpy only)."""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from core.data.items import ImageItem
from core.data.label_maps import IGNORE, load_label
from core.data.layout import open_layout
from core.errors import UserError
from core.files import json_or_empty, number
from core.scoring.matching import identity_match, match_clusters, parse_match, read_match
from core.scoring.metrics import (
    ImageCounts,
    Scores,
    SegmentationMetrics,
    count_image,
    image_miou,
    lookup_table,
)
from tools.evaluate.folder import of_each
from tools.evaluate.table import AFTER, BEFORE
from tools.report.run_files import RunFiles
from tools.submission.results import MATCH, ORIGIN, Match, evaluation_path

_AGREE = 1e-6  # scores that differ by less are the same ones
_STEPS = {"before": BEFORE, "after": AFTER}


@dataclass(frozen=True)
class ImageSummary:
    """One image's label maps in small: shares of its pixels by id, and counts against its truth.

    Ids of ``before`` and ``after`` are the prediction's own; ``truth`` leaves out ignored pixels.
    """

    key: str
    problem: str = ""  # why the rest is empty
    crc: tuple[int, int] | None = None  # (bytes, CRC-32) of the label map's file
    shares: dict[str, dict[int, float]] = field(default_factory=dict)  # "before", "after", "truth"
    counts: dict[str, ImageCounts] = field(default_factory=dict)  # "before", "after"


@dataclass(frozen=True)
class SplitScores:
    """Scores before and after refinement, each under its own match, and what confused what.

    ``confusion`` (C+1, C+1) holds pixels by [prediction's class under the match, true class];
    ``gains`` the mIoU of each image before and after, both under the match of ``after``.
    """

    scores: dict[str, Scores]  # "before", "after"
    confusion: np.ndarray
    gains: dict[str, dict[str, float]]
    one_match: bool  # before and after were matched alike


@dataclass(frozen=True)
class Matches:
    """Class of each prediction id, by "before" and "after"; None where the ids mean clusters."""

    of: dict[str, Match | None]
    origin: str  # in words
    split: str | None = None  # whose masks found them; None: they were given, or it is not known


def folders_of(sources: RunFiles) -> dict[str, Path]:
    """Folder of label maps by "before" (where there is one) and "after"."""
    found = {"before": sources.before, "after": sources.after}
    return {name: folder for name, folder in found.items() if folder is not None}


def summarise_all(
    sources: RunFiles, items: Sequence[ImageItem], num_classes: int, workers: int | None
) -> list[ImageSummary]:
    """A look at every image, in order; what is missing or broken is a ``problem``."""
    work = functools.partial(
        summarise,
        folders=folders_of(sources),
        data=sources.data if sources.has_truth else None,
        split=sources.split or "",
        num_classes=num_classes,
    )
    return list(of_each(items, work, workers))


def summarise(
    item: ImageItem, folders: dict[str, Path], data: Path | None, split: str, num_classes: int
) -> ImageSummary:
    """A look at one image's label maps; ``data`` is None where there is no truth."""
    try:
        paths = {name: folder / f"{item.key}.png" for name, folder in folders.items()}
        labels = {name: load_label(path) for name, path in paths.items()}
        for name, label in labels.items():
            if label.max() > num_classes:
                raise UserError(f"{paths[name]} holds id {label.max()} of {num_classes}")
        content = paths["after"].read_bytes()
        shares = {name: _shares(label) for name, label in labels.items()}
        counts = {}
        if data is not None:
            truth = open_layout(data).truth(split, item.key)
            counts = {n: count_image(label, truth, num_classes) for n, label in labels.items()}
            shares["truth"] = _shares(truth[truth != IGNORE])
    except (UserError, OSError) as error:
        return ImageSummary(item.key, str(error))
    return ImageSummary(item.key, "", (len(content), zlib.crc32(content)), shares, counts)


def matches(sources: RunFiles, looks: Sequence[ImageSummary], num_classes: int) -> Matches:
    """The matches that the scores were made with, else the kept one, else one found here.

    Raises:
        UserError: a match file is broken.
    """
    folder = sources.result or sources.after
    assert folder is not None, "matches are of label maps"
    recorded = _recorded(sources)
    of: dict[str, Match | None] = {}
    for name, step in _STEPS.items():
        match = _parsed(recorded.get(step), num_classes)
        of[name] = match or _parsed(recorded.get("predictions"), num_classes)
    if of["after"] is not None:
        here = recorded.get(AFTER, {}).get("matched_here") is True
        origin = json_or_empty(folder / ORIGIN).get("split", "another split")
        given = f"matched on {origin} masks, or by a match that was given"
        words = f"matched on {sources.split} masks" if here else given
        found_on = sources.split if here else None
        return Matches({**of, "before": of["before"] or of["after"]}, words, found_on)
    if (folder / MATCH).is_file():
        kept = read_match(folder / MATCH, num_classes)
        split = json_or_empty(folder / ORIGIN).get("split")
        words = f"matched on {split} masks" if split else "match.json beside the label maps"
        return Matches({"before": kept, "after": kept}, words, split)
    if not sources.pipeline.predicts_clusters:
        named = identity_match(num_classes)
        return Matches({"before": named, "after": named}, "none needed: ids are those of classes")
    if any(each.counts for each in looks):
        found = match_clusters(_metrics(looks, "after", num_classes).cooccurrence)
        words = f"matched here, on {sources.split} masks: no match was kept"
        return Matches({"before": found, "after": found}, words, sources.split)
    return Matches({"before": None, "after": None}, "not matched: ids are those of clusters")


def judge(looks: Sequence[ImageSummary], matched: Matches, num_classes: int) -> SplitScores | None:
    """Scores of the images that have a truth; None where none has."""
    counted = [each for each in looks if each.counts]
    if not counted:
        return None
    scores, table = {}, lookup_table(matched.of["after"], num_classes)
    for name in counted[0].counts:
        metrics = _metrics(counted, name, num_classes)
        scores[name] = metrics.compute(matched.of[name])
        if name == "after":
            confusion = np.zeros_like(metrics.confusion)
            confusion[table] = metrics.confusion
    gains = {
        each.key: {name: image_miou(counts, table) for name, counts in each.counts.items()}
        for each in counted
    }
    return SplitScores(scores, confusion, gains, matched.of["before"] == matched.of["after"])


def disagreements(sources: RunFiles, judgement: SplitScores) -> list[str]:
    """Where the scores on disk are not those of the label maps on disk, in words."""
    found = []
    recorded = _recorded(sources)
    for name, scores in judgement.scores.items():
        step = recorded.get(_STEPS[name])
        stated = number(step.get("miou")) if step is not None else None
        if step is not None and stated is None and not np.isnan(scores.miou):
            found.append(
                f"The scores file states no mIoU {name} refinement that is a number: run test.py "
                "again."
            )
        elif stated is not None and abs(stated - scores.miou) > _AGREE:
            found.append(
                f"The scores file states an mIoU {name} refinement of {100 * stated:.2f} %, but "
                f"the label maps give {100 * scores.miou:.2f} %: run test.py again."
            )
    return found


def renamed(shares: dict[int, float], match: Match | None) -> dict[int, float]:
    """Shares by class id of shares by prediction id, largest first; the same ids without a
    match.
    """
    named = {label if match is None else match.get(label, label): s for label, s in shares.items()}
    return dict(sorted(named.items(), key=lambda entry: (-entry[1], entry[0])))


def _recorded(sources: RunFiles) -> dict[str, Any]:
    """The scores file of the split: name of the step -> its content."""
    folder = sources.result or sources.after
    if folder is None or sources.split is None:
        return {}
    content = json_or_empty(evaluation_path(folder, sources.split))
    return {name: entry for name, entry in content.items() if isinstance(entry, dict)}


def _parsed(entry: Any, num_classes: int) -> Match | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("match"), dict):
        return None
    try:
        return parse_match(json.dumps(entry["match"]), num_classes)
    except ValueError:
        return None


def _metrics(looks: Sequence[ImageSummary], name: str, num_classes: int) -> SegmentationMetrics:
    metrics = SegmentationMetrics(num_classes)
    for each in looks:
        if name in each.counts:
            metrics.add(each.counts[name])
    return metrics


def _shares(label: np.ndarray) -> dict[int, float]:
    ids, counts = np.unique(label, return_counts=True)
    return {int(i): int(count) / label.size for i, count in zip(ids, counts)}
