"""Which file a stage starts from: the run's own product, else the published one in ``weights/``.

Each function says in a line which file was taken, and ends with a :class:`UserError` that names the
missing file and the command that makes it. The published names are those of the reference.
"""

from __future__ import annotations

from pathlib import Path

from core import log
from core.errors import UserError
from uss.paths import CHECKPOINT, WEIGHTS, RunFolder

PUBLISHED_PIXEL_ATTENTION = (
    "infer_pixel_attnetion_checkpoint.pth.tar"  # spelt so where it was published
)
PUBLISHED_CENTROIDS = "centroids.npy"
PUBLISHED_TRUNK = "train_pixelattention_checkpoint.pth.tar"
PUBLISHED_SEGMENTER = "checkpoint.pth.tar"

_SCRIPT = {"resnet50": "bash train_1.sh", "resnet18": "bash train_2.sh"}


def pretrained(run: RunFolder, arch: str) -> Path:
    """Checkpoint of step 1 from which the pixel attention of ``arch`` starts."""
    return _choose("pretrain", run.pretrain(arch) / CHECKPOINT, None, _SCRIPT[arch])


def trunk(run: RunFolder, arch: str) -> Path:
    """Checkpoint whose trunk the segmenter starts from."""
    published = WEIGHTS / PUBLISHED_TRUNK
    return _choose("finetune", run.pretrain(arch) / CHECKPOINT, published, _SCRIPT[arch])


def pixel_attention(run: RunFolder, arch: str) -> Path:
    """Checkpoint of the pixel-attention network, for clustering and pseudo labels."""
    published = WEIGHTS / PUBLISHED_PIXEL_ATTENTION
    return _choose(
        "pixel attention", run.pixel_attention(arch) / CHECKPOINT, published, _SCRIPT[arch]
    )


def centroids(run: RunFolder, arch: str) -> Path:
    """Cluster centres, a float32 array (clusters, channels of layer4)."""
    published = WEIGHTS / PUBLISHED_CENTROIDS
    return _choose("centroids", run.cluster(arch) / "centroids.npy", published, _SCRIPT[arch])


def segmenter(run: RunFolder) -> Path:
    """Checkpoint of the fine-tuned segmenter."""
    published = WEIGHTS / PUBLISHED_SEGMENTER
    return _choose("segmenter", run.segmenter / CHECKPOINT, published, "bash train_4.sh")


def _choose(what: str, own: Path, published: Path | None, command: str) -> Path:
    """``own`` where it exists, else ``published``."""
    if own.is_file():
        log.info(what, f"using {own}")
        return own
    if published is not None and published.is_file():
        log.info(what, f"using the published {published}, because {own} does not exist")
        return published
    raise UserError(f"{what}: {own} is missing; make it with: {command}")
