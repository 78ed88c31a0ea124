"""Everything that the page shows, taken from a run and the results of test.py."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from core.data.items import ImageItem
from core.data.label_maps import IGNORE, require_class_count
from core.errors import UserError
from core.files import json_or_empty
from core.pipeline.folders import ResultFolder
from core.pipeline.origin import seed_words
from core.pipeline.stage import Pipeline, hook
from core.scoring.metrics import Scores
from core.text import named
from tools.report import gallery
from tools.report.curves import (
    TrainingCurve,
    times,
    training_curves,
)
from tools.report.extras import Extras, ThresholdChoice
from tools.report.label_scores import (
    ImageSummary,
    Matches,
    SplitScores,
    disagreements,
    judge,
    matches,
    renamed,
    summarise_all,
)
from tools.report.provenance import (
    Fact,
    Protocol,
    chain_of_results,
    method_text,
    protocol,
    provenance,
)
from tools.report.refinement import RefinementFacts, StoredMasks, refinement_facts
from tools.report.run_files import Request, RunFiles, find, names_of_classes, setting
from tools.submission.results import MATCH


@dataclass(frozen=True)
class ClassRow:
    """One class: IoU and number of images that show it, None where not known."""

    id: int
    name: str
    before: float | None
    after: float | None
    truth_images: int | None
    predicted_images: int


@dataclass
class PageData:
    """What the page shows; whatever is not known is None or empty."""

    title: str
    made: str
    protocol: Protocol
    provenance: list[Fact]
    notes: list[str]
    method: str
    curves: list[TrainingCurve]
    threshold: ThresholdChoice | None
    times: dict[str, float]
    split: str | None = None
    seeds: str = ""  # in words
    matched: str = ""
    matched_here: bool = False  # on the masks that judge
    scores: dict[str, Scores] = field(default_factory=dict)  # "before", "after"
    classes: list[ClassRow] = field(default_factory=list)  # background first
    confusion: np.ndarray | None = None  # see tools.report.label_scores.Judgement
    clusters: dict[int, int] = field(default_factory=dict)  # class id -> prediction id
    refinement: RefinementFacts | None = None
    images: int = 0  # of the split
    gallery: list[gallery.Picture] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # key -> reason
    refined: bool = False  # there are label maps before refinement
    further_maps: str | None = None  # name of an option that draws more maps

    def has(self, picture: str) -> bool:
        """Whether any image of the gallery has a picture of this name."""
        return any(picture in each.uris for each in self.gallery)


def collect(
    request: Request,
    pipeline: Pipeline,
    limit: int,
    maps: str | None = None,
    workers: int | None = None,
) -> PageData:
    """Read a run and its results.

    Args:
        limit: images of the gallery.
        pipeline: whose stages are looked for, where the run states none itself.
        maps: name of the maps (of ``pipeline.maps``) to draw with Jittor; None: none.
        workers: processes that read label maps; None: what pays.

    Raises:
        UserError: a folder or a checkpoint that was asked for is missing.
    """
    sources = find(request, pipeline)
    pipeline = sources.pipeline
    drawn = _open_maps(sources, maps) if maps else None
    extras = _extras(sources)
    results = _read_results(sources, request, workers)
    refinement = results.refinement if results else RefinementFacts({}, {}, 0)
    chain = chain_of_results(sources, refinement)
    content = PageData(
        title=sources.run.root.name,
        made=time.strftime("%Y-%m-%d %H:%M"),
        split=sources.split,
        seeds=seed_words(chain),
        protocol=protocol(sources, refinement, chain, extras.ground_truth),
        provenance=provenance(sources, refinement, chain),
        notes=sources.notes,
        method=method_text(sources),
        curves=training_curves(sources.run, pipeline),
        threshold=extras.threshold,
        times=times(sources.run),
        further_maps=next(iter(pipeline.maps), None),
    )
    if results is not None:
        _add_results(content, sources, results)
        _add_gallery(content, sources, results, limit, drawn)
    return content


def _extras(sources: RunFiles) -> Extras:
    """What the pipeline says about the labels that the segmenter learnt from."""
    reference = sources.pipeline.report_extras
    if not reference:
        return Extras()
    return hook(reference)(sources.run, sources.settings)


def _open_maps(sources: RunFiles, name: str) -> Any:
    """What draws the maps of this name; see ``core.pipeline.stage.Pipeline.maps``."""
    if name not in sources.pipeline.maps:
        raise UserError(f"--{name}: runs of {sources.pipeline.name} have no such maps")
    return hook(sources.pipeline.maps[name])(sources.run, lambda path: sources.settings)


@dataclass(frozen=True)
class _Results:
    """What was read of a split's label maps."""

    items: list[ImageItem]
    looks: list[ImageSummary]
    names: list[str]
    matched: Matches
    judgement: SplitScores | None
    refinement: RefinementFacts


def _read_results(sources: RunFiles, request: Request, workers: int | None) -> _Results | None:
    layout = sources.layout
    if sources.after is None or layout is None or sources.split is None:
        return None
    items = layout.images(sources.split)
    num_classes = _num_classes(sources, request)
    looks = summarise_all(sources, items, num_classes, workers)
    matched = matches(sources, looks, num_classes)
    names = names_of_classes(sources.data, num_classes)
    if matched.of["after"] is None:
        names[1:] = [f"cluster {index}" for index in range(1, num_classes + 1)]
    return _Results(
        items,
        looks,
        names,
        matched,
        judge(looks, matched, num_classes),
        refinement_facts(sources.after, looks),
    )


def _num_classes(sources: RunFiles, request: Request) -> int:
    """Classes C: asked for, of the match, of the settings, or of the class folders."""
    if request.num_classes is not None:
        return require_class_count(request.num_classes)
    for folder in (sources.result, sources.after):
        match = json_or_empty(folder / MATCH) if folder else {}
        if match:
            return require_class_count(len(match) - 1)
    count = setting(sources.settings, "num_classes")
    if isinstance(count, int) and 0 < count < IGNORE:
        return count
    assert sources.layout is not None
    return require_class_count(len(sources.layout.class_names(sources.split)))


def _add_results(content: PageData, sources: RunFiles, results: _Results) -> None:
    content.images = len(results.items)
    content.refined = sources.before is not None
    content.matched = results.matched.origin
    content.matched_here = results.matched.split == sources.split
    content.refinement = results.refinement
    judgement = results.judgement
    if judgement is not None:
        content.scores, content.confusion = judgement.scores, judgement.confusion
        content.notes += disagreements(sources, judgement)
        if not judgement.one_match:
            content.notes.append(
                "Clusters were matched to classes anew after refinement: the scores before it hold "
                "under a match of their own, everything else on this page under the one after it."
            )
    match = results.matched.of["after"]
    if match is not None:
        content.clusters = {class_id: label for label, class_id in match.items()}
    content.classes = _class_rows(results)
    content.failed = {each.key: each.problem for each in results.looks if each.problem}
    if sources.result is not None and sources.split is not None:
        stated = json_or_empty(ResultFolder(sources.result).failures(sources.split))
        content.failed.update({str(key): str(reason) for key, reason in stated.items()})
    if content.failed:
        content.notes.append(
            f"{len(content.failed)} of {content.images} images have no label map that can be "
            f"read: {named(content.failed)}."
        )
    others = results.refinement.other_settings
    if others:
        content.notes.append(
            f"{others} of {content.images} label maps were made under other settings than those "
            "listed."
        )


def _class_rows(results: _Results) -> list[ClassRow]:
    match = results.matched.of["after"]
    predicted: Counter[int] = Counter()
    shown: Counter[int] = Counter()
    for each in results.looks:
        predicted.update(renamed(each.shares.get("after", {}), match).keys())
        shown.update(each.shares.get("truth", {}).keys())
    scores = results.judgement.scores if results.judgement else {}

    def iou(name: str, index: int) -> float | None:
        return float(scores[name].iou[index]) if name in scores else None

    return [
        ClassRow(
            index,
            name,
            iou("before", index),
            iou("after", index),
            shown[index] if scores else None,
            predicted[index],
        )
        for index, name in enumerate(results.names)
    ]


def _add_gallery(
    content: PageData,
    sources: RunFiles,
    results: _Results,
    limit: int,
    maps: Any,
) -> None:
    assert sources.split is not None
    fingerprint = results.refinement.settings.get("masks")
    sight = gallery.GalleryInputs(
        sources,
        results.names,
        results.matched,
        results.judgement,
        results.refinement,
        StoredMasks(sources.run.masks(sources.split), fingerprint),
        maps,
    )
    chosen = gallery.choose(results.items, results.judgement, limit)
    content.gallery = gallery.make_gallery(
        sight, chosen, {each.key: each for each in results.looks}
    )
