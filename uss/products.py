"""Which file a stage starts from: a given one, else the run's own product, else the published one
in ``weights/``.

Each function says in a line which file was taken, and ends with a :class:`UserError` that names the
missing file and the command that makes it. The published names are those of the reference.
"""

from __future__ import annotations

from pathlib import Path

from core import log
from core.errors import UserError
from uss.paths import CENTROIDS, CHECKPOINT, WEIGHTS, RunFolder

# Spelt so where it was published.
PUBLISHED_PIXEL_ATTENTION = "infer_pixel_attnetion_checkpoint.pth.tar"
PUBLISHED_CENTROIDS = CENTROIDS
PUBLISHED_TRUNK = "train_pixelattention_checkpoint.pth.tar"
PUBLISHED_SEGMENTER = "checkpoint.pth.tar"

_SCRIPT = {"resnet50": "bash train_1.sh", "resnet18": "bash train_2.sh"}


def pretrained(run: RunFolder, arch: str) -> Path:
    """Checkpoint of step 1 from which the pixel attention of ``arch`` starts."""
    own = run.pretrain(arch) / CHECKPOINT
    return _choose("pretrain", run.given_checkpoint, own, None, _SCRIPT[arch])


def trunk(run: RunFolder, arch: str) -> Path:
    """Checkpoint whose trunk the segmenter starts from."""
    published = WEIGHTS / PUBLISHED_TRUNK
    own = run.pretrain(arch) / CHECKPOINT
    return _choose("finetune", run.given_checkpoint, own, published, _SCRIPT[arch])


def pixel_attention(run: RunFolder, arch: str) -> Path:
    """Checkpoint of the pixel-attention network, for clustering and pseudo labels."""
    published = WEIGHTS / PUBLISHED_PIXEL_ATTENTION
    own = run.pixel_attention(arch) / CHECKPOINT
    return _choose("pixel attention", run.given_checkpoint, own, published, _SCRIPT[arch])


def centroids(run: RunFolder, arch: str) -> Path:
    """Cluster centres, a float32 array (clusters, channels of layer4)."""
    published = WEIGHTS / PUBLISHED_CENTROIDS
    own = run.cluster(arch) / CENTROIDS
    return _choose("centroids", run.given_centroids, own, published, _SCRIPT[arch])


def segmenter(run: RunFolder) -> Path:
    """Checkpoint of the fine-tuned segmenter."""
    published = WEIGHTS / PUBLISHED_SEGMENTER
    own = run.segmenter / CHECKPOINT
    return _choose("segmenter", run.given_checkpoint, own, published, "bash train_4.sh")


def _choose(what: str, given: Path | None, own: Path, published: Path | None, command: str) -> Path:
    """``given`` where the user named a file, else ``own`` where it exists, else ``published``."""
    if given is not None:
        if not given.is_file():
            raise UserError(f"{what}: {given} does not exist; name an existing file")
        log.info(what, f"using {given}, as asked")
        return given
    if own.is_file():
        log.info(what, f"using {own}")
        return own
    if published is not None and published.is_file():
        log.info(what, f"using the published {published}, because {own} does not exist")
        return published
    raise UserError(f"{what}: {own} is missing; make it with: {command}")
