"""``test.py``: label a folder of images, refine the labels with masks, and pack them.

Any number of processes may run this on one ``dump_path``, on one machine or several over a shared
folder: each image is made once, and the archive by whoever is there when the last one is finished.
"""

from __future__ import annotations

import functools
import hashlib
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from core import log
from core.data.images import MAX_PIXELS
from core.data.items import ImageItem
from core.data.layout import open_layout
from core.errors import UserError
from core.files import json_or_empty, sha256_of, write_json
from core.pipeline.folders import VALIDATION, ResultFolder
from core.scoring.matching import match_text, read_match
from core.text import named
from core.work.ledger import Record
from core.work.worklist import Made, Worklist
from refine import vote
from refine.mask_sources import mask_source
from refine.one_image import IMAGE_TIMEOUT_S, PARTS, STAGE, Setup
from refine.segmenter import decisive_settings
from refine.supervised import SupervisedRefiner
from tools.evaluate.folder import evaluate, labelled_images
from tools.evaluate.table import AFTER, BEFORE, EvaluationResult
from tools.submission import results
from tools.submission.archive import Method, empty_prediction
from tools.submission.results import Match
from uss.config import Config
from uss.networks import SegmenterFacts, segmenter_facts
from uss.paths import RunFolder

_WAIT_S = 1.0


@dataclass(frozen=True)
class RefinedRun:
    """What ``test.py`` was asked to do.

    Everything goes to ``dump_path``, as :class:`core.pipeline.folders.ResultFolder` says.
    """

    data_path: Path
    mode: str  # folder below data_path
    dump_path: Path
    run: RunFolder  # keeps the masks
    pretrained: Path  # checkpoint of the segmenter
    pretrained_sam: Path | None = None  # None: the one at hand
    arch: str | None = None
    num_classes: int | None = None
    match_file: Path | None = None
    unmatched: bool = False  # put no match into the archive
    allow_missing: bool = False  # fill what cannot be made, instead of making no archive
    keep_stale: bool = False  # results of other settings count as finished
    image_timeout_s: float = IMAGE_TIMEOUT_S
    max_pixels: int = MAX_PIXELS
    method: Method = Method()

    @property
    def labels(self) -> Path:
        """Folder of the refined label maps."""
        return self._result.labels(self.mode)

    @property
    def unrefined(self) -> Path:
        """Folder of the label maps before refinement."""
        return self._result.unrefined(self.mode)

    @property
    def archive(self) -> Path:
        """The archive to hand in."""
        return self._result.archive

    @property
    def failures(self) -> Path:
        """Report of the images that could not be made: JSON, key -> reason."""
        return self._result.failures(self.mode)

    @property
    def record(self) -> Path:
        """What the archive was made of."""
        return self._result.record

    @property
    def _result(self) -> ResultFolder:
        return ResultFolder(self.dump_path)


@dataclass(frozen=True)
class _Outcome:
    """What there is once every image is finished or has failed."""

    items: Sequence[ImageItem]
    finished: Mapping[str, Record]  # key -> what lies on disk
    failed: dict[str, str]  # key -> reason
    stale: int  # finished under other settings


def run_refined(
    config: Config,
    job: RefinedRun,
    make_refiner: Callable[[Setup, float], Any] = SupervisedRefiner,
) -> None:
    """Predict and refine a folder of images, score it where there are masks, and pack it.

    Run again, it continues: finished images are skipped, and everything that concerns all images is
    computed from the files on disk.

    Args:
        make_refiner: (setup, seconds allowed for an image) -> a context manager with the methods of
            :class:`refine.one_image.Refiner`.

    Raises:
        UserError: anything that keeps the archive from being made; images that are finished stay.
    """
    vote.check(config.refine)
    labelled = results.has_masks(job.data_path, job.mode)
    items = (
        labelled_images(job.data_path, job.mode)
        if labelled
        else open_layout(job.data_path).images(job.mode)
    )
    facts = segmenter_facts(job.pretrained, job.arch, job.num_classes)
    given = read_match(job.match_file, facts.num_classes) if job.match_file else None
    decisive = decisive_settings(job.pretrained, config.predict)
    masks = mask_source(config.masks, job.pretrained_sam).fingerprint
    work = Worklist(
        job.labels,
        {**decisive, "masks": masks, "refine": asdict(config.refine)},
        also=[job.unrefined],
        keep_stale=job.keep_stale,
    )
    setup = Setup(
        config, job.pretrained, job.pretrained_sam, job.run.masks(job.mode), job.max_pixels
    )
    summary = _Summary()
    with make_refiner(setup, job.image_timeout_s) as refiner:

        def make(item: ImageItem) -> Made:
            made = refiner(item)
            summary.add(made.facts)
            return made

        result = work.run(items, make, f"{STAGE} {job.mode}")
        summary.show(refiner.processes)
        finished = work.finished(items)
        missing = [item.key for item in items if item.key not in finished]
        failed = {key: result.failed.get(key, "its result has vanished") for key in missing}
        outcome = _Outcome(items, finished, failed, len(result.stale))
        checkpoint = decisive["checkpoint_sha256"]
        archive = _Archive(config, job, facts, checkpoint, given, work, outcome)
        try:
            archive.report_failures()
            archive.finish(refiner)
        except OSError as error:
            raise UserError(
                f"cannot write {job.archive}: {error}; the label maps are kept: mend this and run "
                "the same command again"
            ) from error


class _Archive:
    """The archive of one run: made once, by one of the processes."""

    def __init__(
        self,
        config: Config,
        job: RefinedRun,
        facts: SegmenterFacts,
        checkpoint_sha256: str,
        given: Match | None,
        work: Worklist,
        outcome: _Outcome,
    ) -> None:
        self._config, self._job, self._facts = config, job, facts
        self._checkpoint_sha256, self._given = checkpoint_sha256, given
        self._work, self._outcome = work, outcome

    def report_failures(self) -> None:
        """Write the report of failed images, or remove that of an earlier run.

        Raises:
            UserError: some failed, and the user did not allow that.
        """
        job, outcome = self._job, self._outcome
        if not outcome.failed:
            job.failures.unlink(missing_ok=True)
            return
        write_json(job.failures, outcome.failed)
        for key, reason in outcome.failed.items():
            log.warn(STAGE, f"no result of {key}: {reason}")
        if not job.allow_missing or not outcome.finished:
            # Left over from another run, it could be taken for this one's.
            job.archive.unlink(missing_ok=True)
            raise UserError(
                f"no archive: {len(outcome.failed)} of {len(outcome.items)} images have no label "
                f"map ({named(outcome.failed)}; reasons in {job.failures}); mend or remove "
                "them and run the same command again"
                + (", or pass --allow-missing" if outcome.finished else "")
            )

    def finish(self, refiner: Any) -> None:
        """Return when the archive is there, made here or by another process."""
        job, inputs = self._job, self._inputs()
        waiting = False
        with self._work.claims() as claims:
            while not self._is_current(inputs):
                if claims.claim(job.archive.name):
                    # The owner before may have finished just now.
                    if not self._is_current(inputs):
                        self._make(refiner, inputs)
                    break
                if not waiting:
                    log.info(STAGE, f"another process makes {job.archive}; waiting for it")
                waiting = True
                time.sleep(_WAIT_S)
        if results.has_masks(job.data_path, job.mode):
            results.print_scores(job.dump_path, job.mode)

    def _make(self, refiner: Any, inputs: str) -> None:
        job, outcome = self._job, self._outcome
        # Left over from another mode or settings, it could be taken for this run's.
        job.archive.unlink(missing_ok=True)
        match, match_split = self._match()
        method = results.disclosed(self._method(), job.pretrained, job.run, match_split)
        filled = {item.key: _fill(item, refiner) for item in self._missing()}
        results.pack(
            job.labels,
            job.data_path,
            job.mode,
            job.archive,
            match,
            self._facts.num_classes,
            method.with_notes(*_notes(filled, len(outcome.items), outcome.stale)),
            {key: content for key, (content, _) in filled.items()},
        )
        record = {
            "inputs": inputs,
            "mode": job.mode,
            "images": len(outcome.items),
            "sha256": sha256_of(job.archive),
        }
        write_json(job.record, record)

    def _missing(self) -> list[ImageItem]:
        return [item for item in self._outcome.items if item.key in self._outcome.failed]

    def _inputs(self) -> str:
        """SHA-256 of everything that decides the archive."""
        job, outcome = self._job, self._outcome
        kept = self._kept_match
        decisive = {
            "settings": self._work.fingerprint,
            "mode": job.mode,
            "labels": outcome.finished,
            "failed": outcome.failed,
            "stale": outcome.stale,
            "match": match_text(kept[0]) if kept else None,
            "unmatched": job.unmatched,
            "method": asdict(job.method),
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def _is_current(self, inputs: str) -> bool:
        """Whether the archive on disk is the one that this run would make."""
        record = json_or_empty(self._job.record)
        if record.get("inputs") != inputs:
            return False
        try:
            return record.get("sha256") == sha256_of(self._job.archive)
        except FileNotFoundError:
            return False

    @functools.cached_property
    def _kept_match(self) -> tuple[Match, str | None] | None:
        """The match that was given or found on another split; None: there is none yet.

        Only the validation split finds its own match where there is another: a test split's own
        masks must not name the clusters that are judged on them.
        """
        job = self._job
        if self._given is not None:
            return self._given, None
        if job.mode == VALIDATION:
            return None
        folders = (job.dump_path, job.run.predictions(VALIDATION))
        return results.kept_match(folders, self._checkpoint_sha256, self._facts.num_classes)

    def _match(self) -> tuple[Match | None, str | None]:
        """Score where there are masks; the match for the archive, and the split whose masks chose
        it.
        """
        job, outcome, kept = self._job, self._outcome, self._kept_match
        match, split = kept if kept else (None, None)
        if results.has_masks(job.data_path, job.mode):
            split = job.mode if match is None else split
            scored: dict[str, EvaluationResult] = {}
            for name, labels in {BEFORE: job.unrefined, AFTER: job.labels}.items():
                scored[name] = evaluate(
                    labels,
                    job.data_path,
                    job.mode,
                    self._facts.num_classes,
                    match,
                    items=[each for each in outcome.items if each.key in outcome.finished],
                )
            results.keep_evaluation(job.dump_path, job.mode, self._checkpoint_sha256, scored)
            match = scored[AFTER].match
        return (None, None) if job.unmatched else (match, split)

    def _method(self) -> Method:
        """The user's, with the network's name, and without a claim of SAM where superpixels
        refined.
        """
        method, masks = replace(self._job.method, network=self._facts.name), self._config.masks
        if masks.source == "sam":
            return method
        if method.method == Method.method:
            method = replace(method, method=method.method.replace("SAM", "superpixel"))
        return method.with_notes(f"masks: {masks.source}, not SAM")


class _Summary:
    """Time by part and memory of the images that this process made."""

    def __init__(self) -> None:
        self._seconds: list[dict[str, float]] = []
        self._resident: list[float] = []
        self._rules: Counter[str] = Counter()

    def add(self, facts: Any) -> None:
        """Take the facts of one image."""
        self._seconds.append(facts["seconds"])
        self._resident.append(facts["resident_mib"])
        self._rules[facts["rule"]] += 1

    def show(self, processes: int) -> None:
        """Print what was taken."""
        if not self._seconds:
            return
        count = len(self._seconds)
        rules = ", ".join(f"{number} by {rule}" for rule, number in self._rules.most_common())
        log.info(STAGE, f"{count} images: {rules}")
        parts = [(name, statistics.fmean(each[name] for each in self._seconds)) for name in PARTS]
        text = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in parts)
        total = sum(seconds for _, seconds in parts)
        log.info(STAGE, f"time per image: {text}; together {total:.3f} s")
        early = self._resident[min(9, count - 1)]
        log.info(
            STAGE,
            f"memory: {early:.0f} MiB after {min(10, count)} images, {self._resident[-1]:.0f} MiB "
            f"after {count}, at most {max(self._resident):.0f} MiB; processes used: {processes}",
        )


def _fill(item: ImageItem, refiner: Any) -> tuple[bytes, str]:
    """What stands for a result that could not be made, and what it is."""
    try:
        return refiner.network_only(item), "network"
    except UserError:
        return empty_prediction(item.path), "empty"


def _notes(filled: dict[str, tuple[bytes, str]], images: int, stale: int) -> list[str]:
    """What must be known about the archive; said on the screen and in ``method.txt``."""
    notes = []
    kinds = Counter(kind for _, kind in filled.values())
    words = {"network": "the network's unrefined", "empty": "empty"}
    for kind, count in sorted(kinds.items()):
        notes.append(f"{count} of {images} predictions are {words[kind]} ones")
    if stale:
        notes.append(f"{stale} of {images} predictions were made under other settings")
    for note in notes:
        log.warn(STAGE, note)
    return notes
