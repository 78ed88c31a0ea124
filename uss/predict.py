"""The end of ``train_4.sh``: label whole images with the segmenter, and pack the labels.

What happens to finished label maps (score, match, archive) is in ``tools.submission.results``;
refinement, which ``test.py`` adds, in ``uss.predict_refined``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import config as core_config
from core import distributed
from core.data.layout import open_layout
from core.errors import UserError
from core.pipeline import label_origin
from core.pipeline.folders import VALIDATION
from core.pipeline.origin import Chain
from core.scoring.matching import read_match
from core.work.claims import IMAGE_TIMEOUT_S
from core.work.worklist import Worklist
from refine.label_split import AnyRefiner, label_split
from refine.one_image import Setup
from refine.segmenter import decisive_settings
from refine.settings import Sections
from refine.supervised import SupervisedRefiner
from tools.evaluate.folder import evaluate
from tools.submission import results
from tools.submission.archive import Method
from tools.submission.results import Match
from uss import origins, paths
from uss.config import Config
from uss.networks import segmenter_facts
from uss.paths import RunFolder
from uss.pipeline import PREDICT, SEGMENTER

STAGE = PREDICT.command
_AUTO = ("testB", "testA", "test", VALIDATION)  # "auto" takes the first that there is


def run(
    config: Config,
    data: Path,
    run: RunFolder,
    split: str = "auto",
    match_file: Path | None = None,
    image_timeout_s: float = IMAGE_TIMEOUT_S,
    verify: bool = False,
    make_refiner: Callable[[Setup], Any] | None = None,
) -> None:
    """Predict a split into ``run.predictions(split)`` and zip it beside, with a match.

    The match is found on the masks of the validation split, which is predicted first; without
    those, on the split's own. Finished images are skipped. There is no archive while an image of
    either split cannot be labelled; ``run.prediction_failures(split)`` then says which and why.

    Args:
        split: "auto" takes the first of testB, testA, test and validation that there is.
        match_file: take this match and find none.
        image_timeout_s: seconds after which an image counts as hung.
        verify: read earlier results instead of trusting their sizes and times.
        make_refiner: setup -> a context manager, see :class:`refine.label_split.AnyRefiner`; None:
            :class:`refine.supervised.SupervisedRefiner`.

    Raises:
        UserError: settings that cannot work, no segmenter, one of another trunk or class count,
            images that cannot be labelled, or a match that does not fit.
    """
    core_config.check(config)
    split = _auto_split(data) if split == "auto" else split
    open_layout(data).images(split)
    path = paths.segmenter_input(run)
    facts = segmenter_facts(path, config.arch, config.num_classes)
    match = read_match(match_file, facts.num_classes) if match_file else None
    match_split = None
    if match is None and results.has_masks(data, VALIDATION):
        match_split = VALIDATION
    elif match is None and results.has_masks(data, split):
        match_split = split
    archive = run.predictions(split).with_name(f"{split}.zip")
    decisive = {**decisive_settings(path, config.predict), "data": str(data)}
    chain = origins.of_label_maps(PREDICT, path, run, decisive)
    watched = functools.partial(SupervisedRefiner, image_timeout_s=image_timeout_s, stage=STAGE)
    make_refiner = make_refiner or watched
    with make_refiner(Setup(Sections.of(config), SEGMENTER.load, path)) as refiner:
        job = _Job(
            data, run, refiner, decisive, chain, facts.num_classes, archive, image_timeout_s, verify
        )
        if match_split == VALIDATION != split:
            match = job.predict(VALIDATION, None)
        match = job.predict(split, match)
    if distributed.is_main():
        folder = run.predictions(split)
        method = Method(network=facts.name, method="PASS, Jittor")
        method = origins.disclosed(method, chain, path, run, match_split, match_file is not None)
        results.pack(folder, data, split, archive, match, facts.num_classes, method)


@dataclass(frozen=True)
class _Job:
    data: Path
    run: RunFolder
    refiner: AnyRefiner
    decisive: dict[str, Any]  # settings that decide a label map
    chain: Chain
    num_classes: int
    archive: Path
    image_timeout_s: float
    verify: bool

    def predict(self, split: str, match: Match | None) -> Match | None:
        """Predict a split and score it where there are masks; the match.

        Where no ``match`` is given it is found on the masks, on the main process.
        """
        items = open_layout(self.data).images(split)
        folder = self.run.predictions(split)
        work = Worklist(folder, self.decisive, verify=self.verify)
        label_origin.record(work, self.chain)
        outcome = label_split(
            work,
            items,
            self.refiner,
            STAGE,
            split,
            network_only=True,
            image_timeout_s=self.image_timeout_s,
        )
        distributed.barrier()
        if not distributed.is_main():
            return None
        report = self.run.prediction_failures(split)
        outcome.report(report, STAGE)
        if outcome.failed:
            # Left over from an earlier run, it could be taken for this one's.
            self.archive.unlink(missing_ok=True)
            raise UserError(outcome.complaint(report))
        if not results.has_masks(self.data, split):
            return match
        result = evaluate(folder, self.data, split, self.num_classes, match)
        checkpoint = self.decisive["checkpoint_sha256"]
        results.keep_evaluation(folder, split, checkpoint, {"predictions": result})
        results.print_scores(folder, split)
        return result.match


def _auto_split(data: Path) -> str:
    there = open_layout(data).splits()
    for split in _AUTO:
        if split in there:
            return split
    raise UserError(f"{data} has none of the folders {', '.join(_AUTO)}; name one with SPLIT=...")
