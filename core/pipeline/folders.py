"""Where everything lies in a run folder of any pipeline and in a result folder.

A pipeline's ``paths.py`` adds the folders of its stages::

    RUN/run.json                  the pipeline that the folder belongs to, the schema
    RUN/times.jsonl               wall-clock seconds of every stage
    RUN/masks/<split>/            mask store
    RUN/predictions/<split>/      label maps of the segmenter, <key>.png
    RUN/predictions/failed_<split>.json  images without label map, with reasons
    RUN/segmenter/                checkpoint.pth.tar, log.jsonl, config.json
    RUN/result/                   what test.py leaves, where it was told to leave it there

    RESULT/<split>/               <key>.png, refined
    RESULT/<split>_unrefined/     the same before refinement
    RESULT/failed_<split>.json    images without label map, with reasons
    RESULT/result.zip             the archive; result.json says what it was made of
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from core.files import json_or_empty, write_json
from core.schema import stamped, unstamped

PROJECT_ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = PROJECT_ROOT / "weights"
RUNS = PROJECT_ROOT / "runs"

TRAIN = "train"
#: The split whose masks choose what is chosen on ground truth, and name the clusters.
VALIDATION = "validation"
#: The splits that a stage may go through, in the order in which they are shown.
SPLITS = (TRAIN, VALIDATION, "test", "testA", "testB")

CHECKPOINT = "checkpoint.pth.tar"
CONFIG = "config.json"
LOG = "log.jsonl"
UNREFINED = "_unrefined"


@dataclass(frozen=True)
class RunFolder:
    """Paths that the runs of all pipelines share; nothing is created by asking.

    ``given_checkpoint`` is a file that the user named to be used instead of the run's own product
    of an earlier stage.
    """

    root: Path
    given_checkpoint: Path | None = None

    @property
    def record(self) -> Path:
        """States the pipeline that the folder belongs to; missing in folders of early versions."""
        return self.root / "run.json"

    @property
    def times(self) -> Path:
        """One JSON object a line: stage and seconds."""
        return self.root / "times.jsonl"

    @property
    def result(self) -> Path:
        """Where results of test.py are looked for first."""
        return self.root / "result"

    @property
    def segmenter(self) -> Path:
        """Folder of the segmenter, the network that predicts label maps."""
        return self.root / "segmenter"

    def masks(self, split: str) -> Path:
        """Folder of the mask store of a split."""
        return self.root / "masks" / split

    def predictions(self, split: str) -> Path:
        """Folder of the segmenter's own predictions of a split."""
        return self.root / "predictions" / split

    def prediction_failures(self, split: str) -> Path:
        """Report of the images that the segmenter could not label: JSON, key -> reason."""
        return self.root / "predictions" / f"failed_{split}.json"

    def stated_pipeline(self) -> str | None:
        """Name of the pipeline that made the folder; None where it states none.

        Raises:
            UserError: a newer version of the project made it.
        """
        name = unstamped(json_or_empty(self.record), self.record).get("pipeline")
        return name if isinstance(name, str) else None

    def require_known(self) -> None:
        """Refuse a folder that this version could misread.

        Raises:
            UserError: a newer version of the project made it.
        """
        unstamped(json_or_empty(self.record), self.record)

    def state_pipeline(self, name: str) -> None:
        """Note the pipeline, unless the folder has one already or cannot be written.

        Raises:
            UserError: a newer version of the project made the folder.
        """
        if self.stated_pipeline() is None:
            with contextlib.suppress(OSError):
                write_json(self.record, stamped({"pipeline": name}))


@dataclass(frozen=True)
class ResultFolder:
    """Paths of what ``test.py`` leaves in its ``--dump_path``; nothing is created by asking."""

    root: Path

    def labels(self, split: str) -> Path:
        """Folder of the refined label maps of a split."""
        return self.root / split

    def unrefined(self, split: str) -> Path:
        """Folder of its label maps before refinement."""
        return self.root / f"{split}{UNREFINED}"

    def failures(self, split: str) -> Path:
        """Report of the images that could not be made: JSON, key -> reason."""
        return self.root / f"failed_{split}.json"

    @property
    def archive(self) -> Path:
        """The archive to hand in."""
        return self.root / "result.zip"

    @property
    def record(self) -> Path:
        """Beside the archive: what it was made of."""
        return self.root / "result.json"
