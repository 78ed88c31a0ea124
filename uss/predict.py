"""The end of ``train_4.sh``: label whole images with the segmenter, and pack the labels.

What happens to finished label maps (score, match, archive) is in ``tools.submission.results``;
refinement, which ``test.py`` adds, in ``uss.predict_refined``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core import distributed
from core.data.images import load_rgb
from core.data.items import ImageItem
from core.data.label_maps import png_of_label
from core.data.layout import open_layout
from core.errors import UserError
from core.pipeline.folders import VALIDATION
from core.scoring.matching import read_match
from core.work.worklist import Worklist
from refine.segmenter import Segmenter, decisive_settings
from tools.evaluate.folder import evaluate
from tools.submission import results
from tools.submission.archive import Method
from tools.submission.results import Match
from uss import paths
from uss.config import Config
from uss.paths import RunFolder

STAGE = "predict"
_AUTO = ("testB", "testA", "test", VALIDATION)  # "auto" takes the first that there is


def run(
    config: Config,
    data: Path,
    run: RunFolder,
    split: str = "auto",
    match_file: Path | None = None,
) -> None:
    """Predict a split into ``run.predictions(split)`` and zip it beside, with a match.

    The match is found on the masks of the validation split, which is predicted first; without
    those, on the split's own. Finished images are skipped.

    Args:
        split: "auto" takes the first of testB, testA, test and validation that there is.
        match_file: take this match and find none.

    Raises:
        UserError: no segmenter, one of another trunk or class count, images that cannot be read, or
            a match that does not fit.
    """
    split = _auto_split(data) if split == "auto" else split
    open_layout(data).images(split)
    path = paths.segmenter_input(run)
    segmenter = Segmenter(path, config.predict, config.arch, config.num_classes)
    decisive = decisive_settings(path, config.predict)
    num_classes = segmenter.facts.num_classes
    match = read_match(match_file, num_classes) if match_file else None
    match_split = None
    if match is None and results.has_masks(data, VALIDATION):
        match_split = VALIDATION
    elif match is None and results.has_masks(data, split):
        match_split = split
    if match_split == VALIDATION != split:
        match = _predict_split(segmenter, decisive, data, run, VALIDATION, None)
    match = _predict_split(segmenter, decisive, data, run, split, match)
    if distributed.is_main():
        folder = run.predictions(split)
        archive = folder.with_name(f"{split}.zip")
        method = Method(network=segmenter.facts.name, method="PASS, Jittor")
        method = results.disclosed(method, path, run, match_split)
        results.pack(folder, data, split, archive, match, num_classes, method)


def _predict_split(
    segmenter: Segmenter,
    decisive: dict[str, Any],
    data: Path,
    run: RunFolder,
    split: str,
    match: Match | None,
) -> Match | None:
    """Predict a split and score it where there are masks; the match.

    Where no ``match`` is given it is found on the masks, on the main process.
    """
    items = open_layout(data).images(split)
    folder = run.predictions(split)
    work = Worklist(folder, {**decisive, "data": str(data)})

    def predict(item: ImageItem) -> bytes:
        return png_of_label(segmenter(load_rgb(item.path)))

    work.run(items, predict, f"{STAGE} {split}")
    distributed.barrier()
    if not distributed.is_main():
        return None
    results.require_finished(work, items)
    if not results.has_masks(data, split):
        return match
    result = evaluate(folder, data, split, segmenter.facts.num_classes, match)
    checkpoint = decisive["checkpoint_sha256"]
    results.keep_evaluation(folder, split, checkpoint, {"predictions": result})
    results.print_scores(folder, split)
    return result.match


def _auto_split(data: Path) -> str:
    there = open_layout(data).splits()
    for split in _AUTO:
        if split in there:
            return split
    raise UserError(f"{data} has none of the folders {', '.join(_AUTO)}; name one with SPLIT=...")
