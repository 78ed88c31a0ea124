"""Where everything lies in a run folder and in a result folder: the one home of every path rule.

::

    RUN/<arch>/pretrain/          checkpoint.pth.tar, log.jsonl, config.json
    RUN/<arch>/pixel_attention/   the same
    RUN/<arch>/distance_matching/ <split>/<class>/<stem>.png, and the scores
    RUN/<arch>/cluster/           centroids.npy, train_labeled.txt, val_labeled.txt
    RUN/masks/<split>/            mask store
    RUN/pseudo_labels/<split>/    <class>/<stem>.png; threshold.json beside the splits
    RUN/segmenter/                checkpoint.pth.tar, log.jsonl, config.json
    RUN/predictions/<split>/      <class>/<stem>.png, and <split>.zip beside it
    RUN/times.jsonl               wall-clock seconds of every stage
    RUN/result/                   what test.py leaves, where it was told to leave it there

    RESULT/<split>/               <class>/<stem>.png, refined
    RESULT/<split>_unrefined/     the same before refinement
    RESULT/failed_<split>.json    images without label map, with reasons
    RESULT/result.zip             the archive; result.json says what it was made of
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = PROJECT_ROOT / "weights"
RUNS = PROJECT_ROOT / "runs"
DEFAULT_DATA = Path("/data/ImageNetS50")  # as in scripts/common.sh

#: The split whose masks choose the threshold and name the clusters.
VALIDATION = "validation"

CHECKPOINT = "checkpoint.pth.tar"
CONFIG = "config.json"
LOG = "log.jsonl"
CENTROIDS = "centroids.npy"
UNREFINED = "_unrefined"


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run; nothing is created by asking.

    ``given_checkpoint`` and ``given_centroids`` are files that the user named to be used instead of
    the run's own products of an earlier stage.
    """

    root: Path
    given_checkpoint: Path | None = None
    given_centroids: Path | None = None

    def pretrain(self, arch: str) -> Path:
        """Folder of the self-supervised pretraining of trunk ``arch``."""
        return self.root / arch / "pretrain"

    def pixel_attention(self, arch: str) -> Path:
        """Folder of the pixel-attention training of trunk ``arch``."""
        return self.root / arch / "pixel_attention"

    def cluster(self, arch: str) -> Path:
        """Folder of centroids.npy, train_labeled.txt and val_labeled.txt of trunk ``arch``."""
        return self.root / arch / "cluster"

    def masks(self, split: str) -> Path:
        """Folder of the mask store of a split."""
        return self.root / "masks" / split

    def pseudo_labels(self, split: str) -> Path:
        """Folder of a split's pseudo labels, one PNG per image."""
        return self.root / "pseudo_labels" / split

    @property
    def threshold(self) -> Path:
        """The sweep's result: chosen threshold, its mIoU and the curve."""
        return self.root / "pseudo_labels" / "threshold.json"

    @property
    def result(self) -> Path:
        """Where results of test.py are looked for first."""
        return self.root / "result"

    @property
    def times(self) -> Path:
        """One JSON object a line: stage and seconds."""
        return self.root / "times.jsonl"

    @property
    def segmenter(self) -> Path:
        """Folder of the fine-tuned segmenter."""
        return self.root / "segmenter"

    def predictions(self, split: str) -> Path:
        """Folder of the segmenter's own predictions of a split."""
        return self.root / "predictions" / split

    def distance_matching(self, arch: str, split: str) -> Path:
        """Folder of the predictions of a split by the nearest labelled regions."""
        return self.root / arch / "distance_matching" / split


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
