"""Where everything lies in a run folder of this pipeline, and which file a stage starts from.

::

    RUN/<arch>/pretrain/          checkpoint.pth.tar, log.jsonl, config.json
    RUN/<arch>/pixel_attention/   the same
    RUN/<arch>/distance_matching/ <split>/<class>/<stem>.png, and the scores
    RUN/<arch>/cluster/           centroids.npy, train_labeled.txt, val_labeled.txt; features/
    RUN/pseudo_labels/<split>/    <class>/<stem>.png; threshold.json beside the splits

What the runs of all pipelines share is in ``core.pipeline.folders``. Files in ``weights/`` have the
names under which the reference published them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.pipeline import folders
from core.pipeline.folders import CHECKPOINT, WEIGHTS
from core.pipeline.inputs import choose

DEFAULT_DATA = Path("/data/ImageNetS50")  # as in scripts/common.sh

CENTROIDS = "centroids.npy"

# Spelt so where it was published.
PUBLISHED_PIXEL_ATTENTION = "infer_pixel_attnetion_checkpoint.pth.tar"
PUBLISHED_CENTROIDS = CENTROIDS
PUBLISHED_TRUNK = "train_pixelattention_checkpoint.pth.tar"
PUBLISHED_SEGMENTER = "checkpoint.pth.tar"

_SCRIPT = {"resnet50": "bash train_1.sh", "resnet18": "bash train_2.sh"}


@dataclass(frozen=True)
class RunFolder(folders.RunFolder):
    """Paths of one run; nothing is created by asking.

    ``given_checkpoint`` and ``given_centroids`` are files that the user named to be used instead of
    the run's own products of an earlier stage.
    """

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

    def features(self, arch: str) -> Path:
        """Folder of the features of images, in blocks, while the clustering is at work."""
        return self.cluster(arch) / "features"

    def regions(self, arch: str) -> Path:
        """Folder of the features of labelled regions, while distance matching is at work."""
        return self.root / arch / "distance_matching" / "regions"

    def pseudo_labels(self, split: str) -> Path:
        """Folder of a split's pseudo labels, one PNG per image."""
        return self.root / "pseudo_labels" / split

    @property
    def threshold(self) -> Path:
        """The sweep's result: chosen threshold, its mIoU and the curve."""
        return self.root / "pseudo_labels" / "threshold.json"

    def distance_matching(self, arch: str, split: str) -> Path:
        """Folder of the predictions of a split by the nearest labelled regions."""
        return self.root / arch / "distance_matching" / split


# Which file a stage starts from -----------------------------------------------------------------


def pretrained_input(run: RunFolder, arch: str) -> Path:
    """Checkpoint of step 1 from which the pixel attention of ``arch`` starts.

    Raises (as all of these):
        UserError: it is missing; names it and the command that makes it.
    """
    own = run.pretrain(arch) / CHECKPOINT
    return choose("pretrain", run.given_checkpoint, own, None, _SCRIPT[arch])


def trunk_input(run: RunFolder, arch: str) -> Path:
    """Checkpoint whose trunk the segmenter starts from."""
    published = WEIGHTS / PUBLISHED_TRUNK
    own = run.pretrain(arch) / CHECKPOINT
    return choose("finetune", run.given_checkpoint, own, published, _SCRIPT[arch])


def pixel_attention_input(run: RunFolder, arch: str) -> Path:
    """Checkpoint of the pixel-attention network, for clustering and pseudo labels."""
    published = WEIGHTS / PUBLISHED_PIXEL_ATTENTION
    own = run.pixel_attention(arch) / CHECKPOINT
    return choose("pixel attention", run.given_checkpoint, own, published, _SCRIPT[arch])


def centroids_input(run: RunFolder, arch: str) -> Path:
    """Cluster centres, a float32 array (clusters, channels of layer4)."""
    published = WEIGHTS / PUBLISHED_CENTROIDS
    own = run.cluster(arch) / CENTROIDS
    return choose("centroids", run.given_centroids, own, published, _SCRIPT[arch])


def segmenter_input(run: RunFolder) -> Path:
    """Checkpoint of the fine-tuned segmenter."""
    published = WEIGHTS / PUBLISHED_SEGMENTER
    own = run.segmenter / CHECKPOINT
    return choose("segmenter", run.given_checkpoint, own, published, "bash train_4.sh")
