"""What ``test.py`` makes of the refined label maps: scores where there are masks, a match, and
``result.zip``.

Runs of several modes may share a result folder, even at the same time. Its one archive is that of
the run that ended last, and whoever makes, checks or removes it holds the folder's claim meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from core import log
from core.data.imagenet_s import ImageItem
from core.data.images import MAX_PIXELS
from core.errors import UserError
from core.files import json_or_empty, sha256_of, sha256_of_json, write_json
from core.pipeline import label_origin
from core.pipeline.folders import VALIDATION, ResultFolder
from core.pipeline.origin import KEY, Chain, merged, plain
from core.schema import stamped, unstamped
from core.scoring.matching import match_text
from core.work.claims import CLAIMS_FOLDER, IMAGE_TIMEOUT_S, Claims
from core.work.worklist import Worklist
from refine.label_split import AnyRefiner, Outcome
from refine.one_image import STAGE
from tools.evaluate.folder import evaluate
from tools.evaluate.table import AFTER, BEFORE, EvaluationResult
from tools.submission import results
from tools.submission.archive import Method, empty_prediction
from tools.submission.results import Match
from uss.config import Config
from uss.networks import SegmenterFacts
from uss.origins import disclosed
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
    verify: bool = False  # read earlier results instead of trusting their sizes and times
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
    def claims(self) -> Path:
        """Claims on what all modes share."""
        return self.dump_path / f".{CLAIMS_FOLDER}"

    @property
    def _result(self) -> ResultFolder:
        return ResultFolder(self.dump_path)


class Archive:
    """The archive of one run: made once, by one of the processes."""

    def __init__(
        self,
        config: Config,
        job: RefinedRun,
        facts: SegmenterFacts,
        checkpoint_sha256: str,
        chain: Chain,
        given: Match | None,
        work: Worklist,
        outcome: Outcome,
    ) -> None:
        self._config, self._job, self._facts = config, job, facts
        self._checkpoint_sha256, self._given = checkpoint_sha256, given
        self._work, self._outcome = work, outcome
        if outcome.stale:  # kept from other settings, and so perhaps from other networks
            every = label_origin.fingerprints(job.labels)
            chain = merged(label_origin.chain_of_labels(job.labels, every), chain)
        self._chain = chain

    def report_failures(self) -> None:
        """Write the report of failed images, or remove that of an earlier run.

        Raises:
            UserError: some failed, and the user did not allow that.
        """
        job, outcome = self._job, self._outcome
        outcome.report(job.failures, STAGE)
        if outcome.failed and not (job.allow_missing and outcome.finished):
            with self._holding(lambda: False):
                # Left over from another run, it could be taken for this one's.
                if not self._made_meanwhile():
                    job.archive.unlink(missing_ok=True)
            allow = ", or pass --allow-missing" if outcome.finished else ""
            raise UserError(outcome.complaint(job.failures) + allow)

    def finish(self, refiner: AnyRefiner) -> None:
        """Return when the archive is there, made here or by another process."""
        job, inputs = self._job, self._inputs()
        if not self._is_current(inputs):
            with self._holding(lambda: self._is_current(inputs)) as held:
                # The owner before may have finished just now.
                if held and not self._is_current(inputs):
                    self._make(refiner, inputs)
        if results.has_masks(job.data_path, job.mode):
            results.print_scores(job.dump_path, job.mode)

    @contextlib.contextmanager
    def _holding(self, enough: Callable[[], bool]) -> Iterator[bool]:
        """Hold the claim on the archive of this folder, which all modes share, as soon as it is
        free. False where ``enough`` said so before that.
        """
        job, waiting = self._job, False
        with Claims(job.claims) as claims:
            while not claims.claim(job.archive.name):
                if enough():
                    yield False
                    return
                if not waiting:
                    log.info(STAGE, f"another process makes {job.archive}; waiting for it")
                waiting = True
                time.sleep(_WAIT_S)
            yield True

    def _made_meanwhile(self) -> bool:
        """Whether a run of another mode has made the archive since this one began."""
        mode = json_or_empty(self._job.record).get("mode", self._job.mode)
        try:
            made = self._job.archive.stat().st_mtime
        except OSError:
            return False
        return mode != self._job.mode and made >= self._work.opened_at

    def _make(self, refiner: AnyRefiner, inputs: str) -> None:
        job, outcome = self._job, self._outcome
        # Left over from another mode or settings, it could be taken for this run's.
        job.archive.unlink(missing_ok=True)
        match, match_split = self._match()
        given = self._given is not None and match is not None
        method, used = self._method(), (job.pretrained, job.run)
        method = disclosed(method, self._chain, *used, match_split, given)
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
            "segmenter": {"file": str(job.pretrained), "sha256": self._checkpoint_sha256},
            KEY: plain(self._chain),
        }
        write_json(job.record, stamped(record))

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
            KEY: plain(self._chain),
        }
        return sha256_of_json(decisive)

    def _is_current(self, inputs: str) -> bool:
        """Whether the archive on disk is the one that this run would make."""
        record = unstamped(json_or_empty(self._job.record), self._job.record)
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
        by = "SAM" if masks.source == "sam" else "superpixel"
        method = method.filled(method=f"PASS with {by} refinement, Jittor")
        return method if by == "SAM" else method.with_notes(f"masks: {masks.source}, not SAM")


def _fill(item: ImageItem, refiner: AnyRefiner) -> tuple[bytes, str]:
    """What stands for a result that could not be made, and what it is."""
    try:
        return refiner.network_only(item).contents[0], "network"
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
