"""Which files a report is made of: found by the run's own rules, or named by the user."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core import log
from core.data.layout import Layout, open_layout
from core.errors import UserError
from core.files import json_or_empty, sha256_of
from core.pipeline.folders import CHECKPOINT, CONFIG, UNREFINED, VALIDATION, ResultFolder, RunFolder
from core.pipeline.inputs import noted_data
from core.pipeline.stage import Pipeline, pipeline_of
from core.work.ledger import LEDGER_FOLDER, SETTINGS_FILE
from tools import flags
from tools.submission.results import ORIGIN

STAGE = "report"
_PREFERRED = (VALIDATION, "val", "val2014", "test", "testB")


@dataclass(frozen=True)
class Request:
    """What the user named on the command line; None: look for it."""

    run: Path
    data: Path | None = None
    result: Path | None = None
    split: str | None = None
    num_classes: int | None = None


@dataclass
class RunFiles:
    """Where everything lies; None for what is not there, and ``notes`` that say so."""

    run: Any  # run folder of the pipeline
    pipeline: Pipeline
    settings: dict[str, Any]  # of the segmenter, {} where not known
    checkpoint_sha256: str | None  # of the run's own segmenter
    data: Path | None = None
    split: str | None = None
    result: Path | None = None  # dump_path of test.py
    after: Path | None = None  # label maps
    before: Path | None = None  # those before refinement
    notes: list[str] = field(default_factory=list)

    @property
    def layout(self) -> Layout | None:
        """The data set; None where it has no such split or is none."""
        with contextlib.suppress(UserError):
            layout = open_layout(self.data) if self.data else None
            return layout if layout and self.split in layout.splits() else None
        return None

    @property
    def has_truth(self) -> bool:
        """Whether masks of the split are at hand."""
        return bool(self.layout and self.split and self.layout.has_truth(self.split))


def find(request: Request, pipeline: Pipeline) -> RunFiles:
    """Look for everything that a report of ``request.run`` can show.

    Raises:
        UserError: a folder or a split that the user named is not there.
    """
    for name, path in (
        ("run", request.run),
        (flags.DATA[0], request.data),
        (flags.RESULT[0], request.result),
    ):
        if path is not None and not path.is_dir():
            raise UserError(f"{name} {path} is not a folder; name one that exists")
    pipeline = pipeline_of(RunFolder(request.run.absolute()), pipeline)
    run = pipeline.run_folder(request.run.absolute())
    checkpoint = run.segmenter / CHECKPOINT
    found = RunFiles(
        run,
        pipeline,
        json_or_empty(run.segmenter / CONFIG),
        sha256_of(checkpoint) if checkpoint.is_file() else None,
    )
    given = request.data.absolute() if request.data else None
    found.data = given or _first_folder(run.root / "data", noted_data(run), pipeline.default_data)
    _find_labels(found, request)
    if found.after is not None and found.layout is None:
        where = f"{found.data}/{found.split}" if found.data else "no data folder was found"
        _note(found, f"The images are not at hand ({where}): name their data set with --data.")
    return found


def names_of_classes(data: Path | None, num_classes: int) -> list[str]:
    """Names of the ids 0..C: of the first split that has C classes, else numbers."""
    for split in ("train", *_PREFERRED):
        if data is not None:
            try:
                names = open_layout(data).class_names(split)
            except UserError:
                continue
            if len(names) == num_classes:
                return ["background", *names]
    return ["background", *(f"class {index}" for index in range(1, num_classes + 1))]


def setting(settings: Any, name: str, default: Any = None) -> Any:
    """The value of a dotted name in nested dicts."""
    for key in name.split("."):
        if not isinstance(settings, dict) or key not in settings:
            return default
        settings = settings[key]
    return settings


def short(digest: Any) -> str:
    """The first digits of a SHA-256, enough to compare by eye."""
    return str(digest)[:12]


def _find_labels(found: RunFiles, request: Request) -> None:
    found.result = request.result.absolute() if request.result else _own_result(found)
    splits = _splits(found.result) if found.result else []
    if request.split is not None and request.split in splits:
        splits = [request.split]
    elif request.split is not None:
        splits = []
    if splits and found.result is not None:
        found.split = splits[0]
        folder = ResultFolder(found.result)
        found.after, found.before = folder.labels(splits[0]), folder.unrefined(splits[0])
        if not _is_own(found.result, found.checkpoint_sha256):
            _note(
                found, f"{found.result} was made by another checkpoint than this run's segmenter."
            )
        return
    found.result = None
    asked = (request.split,) if request.split else _PREFERRED
    for split in asked:
        if found.run.predictions(split).is_dir():
            found.split, found.after = split, found.run.predictions(split)
            _note(found, "These are the segmenter's own predictions; test.py has not refined them.")
            return
    makers = found.pipeline.scripts
    made = f"run {makers[0].command}, or name its" if makers else "name their"
    advice = f"{made} folder by --result."
    if request.split is not None:
        raise UserError(f"there are no label maps of --split {request.split}: {advice}")
    _note(found, f"There are no label maps of any split: {advice}")


def _own_result(found: RunFiles) -> Path | None:
    """The result folder in the run, else the default one, where its label maps are this run's."""
    inside, default = found.run.result, Path("result").absolute()
    if _splits(inside) and _is_own(inside, found.checkpoint_sha256):
        return inside
    # Every run's results may lie there, so that a run without segmenter cannot claim them.
    own = found.checkpoint_sha256 is not None and _is_own(default, found.checkpoint_sha256)
    return default if own and _splits(default) else None


def _splits(result: Path) -> list[str]:
    """Splits that test.py has labelled in a folder, the most telling first."""
    if not result.is_dir():
        return []
    named = (path.name[: -len(UNREFINED)] for path in sorted(result.glob(f"*{UNREFINED}")))
    names = [name for name in named if ResultFolder(result).labels(name).is_dir()]
    return sorted(names, key=lambda name: (name not in _PREFERRED, _place(name), name))


def _place(name: str) -> int:
    return _PREFERRED.index(name) if name in _PREFERRED else 0


def _is_own(result: Path, checkpoint_sha256: str | None) -> bool:
    """Whether label maps in a result folder come from this checkpoint, as far as can be told."""
    records = [result / ORIGIN, *result.glob(f"*/{LEDGER_FOLDER}/*/{SETTINGS_FILE}")]
    found = (json_or_empty(path).get("checkpoint_sha256") for path in records)
    stated = {digest for digest in found if isinstance(digest, str)}
    return checkpoint_sha256 is None or not stated or checkpoint_sha256 in stated


def _first_folder(*folders: Path | None) -> Path | None:
    return next((folder for folder in folders if folder is not None and folder.is_dir()), None)


def _note(found: RunFiles, text: str) -> None:
    log.warn(STAGE, text)
    found.notes.append(text)
