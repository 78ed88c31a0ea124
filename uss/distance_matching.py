"""Score a trunk without training a head: labelled images name the pixels that resemble them (PASS).

Each region of the few images with masks in ``train-semi`` gives one feature. A pixel of another
image takes a weighted vote of the regions whose features are nearest to its own. The predictions
hold class ids, and no clusters need a match; masks of training images are used, so this tells how
good features are and is no unsupervised result.

The features of the regions go to disk in blocks (``core.work.blocks``), which any number of
processes make together and a stopped run keeps.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from core import config as core_config
from core import distributed, log
from core.checkpoints.files import load_state
from core.checkpoints.torch_reader import state_dict_of
from core.data.crops import network_input, resize_nearest_floor
from core.data.images import load_rgb
from core.data.items import ImageItem
from core.data.label_maps import IGNORE, png_of_label
from core.data.layout import open_layout
from core.errors import UserError
from core.files import sha256_of
from core.pipeline import label_origin, origin
from core.pipeline.rehearsal import Look
from core.scoring.matching import identity_match
from core.work.blocks import Blocks, Rows, remove, sha256_of_items
from core.work.worklist import Worklist
from tools.evaluate.folder import evaluate, labelled_images
from tools.submission import results
from uss import origins, paths
from uss.config import Config
from uss.networks import arch_of
from uss.paths import RunFolder
from uss.pipeline import DISTANCE_MATCHING

STAGE = DISTANCE_MATCHING.command
LABELLED = "train-semi"
#: Images of a block of regions.
BLOCK_IMAGES = 64
# ImageNet-S has masks of ten training images of each class; each shows background and an object or
# two.
_EXAMPLES, _REGIONS = 10, 3
# Similarities of regions to pixels that are held at a time: 128 MiB of float32.
_SIMILARITIES = 1 << 25
_TRUNK = ("conv1.", "bn1.", "layer")


def run(
    config: Config,
    data: Path,
    run: RunFolder,
    split: str = "validation",
    keep_features: bool = False,
) -> None:
    """Predict ``split`` into ``run.distance_matching(arch, split)``, score it where it has masks.

    Any checkpoint with a trunk will do; the default is that of step 1. Finished images are skipped.

    Args:
        keep_features: leave the features of the regions (``run.regions``) on disk, for another
            split; they are removed otherwise.

    Raises:
        UserError: settings that cannot work, no trunk, no labelled images, or images that cannot be
            read.
    """
    core_config.check(config.distance_matching, DISTANCE_MATCHING.section)
    items = open_layout(data).images(split)
    examples = labelled_images(data, LABELLED)
    checkpoint = paths.trunk_input(run, config.arch)
    features = TrunkFeatures(checkpoint, config.arch, config.distance_matching.resize)
    folder = run.distance_matching(config.arch, split)
    sha256 = sha256_of(checkpoint)
    work = Worklist(
        folder,
        {
            "distance_matching": core_config.recorded(config.distance_matching),
            "checkpoint_sha256": sha256,
            "data": str(data),
            "examples": len(examples),
        },
    )
    place = run.regions(config.arch)

    @functools.cache
    def regions() -> Rows:
        bank, labels = _regions(config, data, features, sha256, examples, place)
        log.info(STAGE, f"{len(labels)} labelled regions of {len(examples)} images")
        return bank, labels

    if work.pending(items):
        regions()  # now, for what is wrong with the examples concerns every image

    def predict(item: ImageItem) -> bytes:
        rgb = load_rgb(item.path)
        grid = features(rgb)
        votes = _nearest_labels(config, *regions(), grid.reshape(len(grid), -1))
        labels_of_grid = votes.reshape(grid.shape[1:])
        return png_of_label(resize_nearest_floor(labels_of_grid, (rgb.shape[0], rgb.shape[1])))

    work.run(items, predict, f"{STAGE} {split}")
    distributed.barrier()
    if distributed.is_main() and not keep_features:
        remove(place)
    if distributed.is_main():
        results.require_finished(work, items)
        made = {"ledger": work.fingerprint}
        chain = origins.of_label_maps(DISTANCE_MATCHING, checkpoint, run, made, origin.LABELS)
        label_origin.record(work, chain)
        if results.has_masks(data, split):
            match = identity_match(config.num_classes)
            result = evaluate(folder, data, split, config.num_classes, match)
            results.keep_evaluation(folder, split, sha256, {"distance_matching": result})
            results.print_scores(folder, split)


def look(config: Config, photo: ImageItem, counts: Mapping[str, int]) -> Look:
    """For the doctor: the trunk with random weights, and the votes of as many regions."""
    features = TrunkFeatures(None, config.arch, config.distance_matching.resize)
    examples = counts.get(LABELLED, 0) or _EXAMPLES * config.num_classes
    grid = features(load_rgb(photo.path))
    pixels, regions, width = grid.reshape(len(grid), -1), _REGIONS * examples, len(grid)
    validation = counts.get("validation", 0)

    def finish() -> float:
        bank = np.random.default_rng(0).standard_normal((regions, width), np.float32)
        started = time.monotonic()
        _nearest_labels(config, bank, np.arange(regions) % (config.num_classes + 1), pixels)
        return (time.monotonic() - started) * validation

    return Look(
        images=examples + validation,
        encode=lambda batch: features(batch[0][0]),
        dataset=_Photo(photo),
        batch_size=1,
        finish=finish,
        # Similarities, and their order as int64 beside a copy.
        memory_mib=4 * 4 * min(_SIMILARITIES, regions * pixels.shape[1]) / 2**20,
        disk_mib=2 * regions * width * 4 / 2**20,
    )


class _Photo:
    """A data set of one image as it is."""

    def __init__(self, photo: ImageItem) -> None:
        self._photo = photo

    def get(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """(uint8 (H, W, 3),)."""
        del index, rng  # there is one, as it is
        return (load_rgb(self._photo.path),)


class TrunkFeatures:
    """Features of pixels: the last map of the trunk of a checkpoint (None: of random weights),
    enlarged 4 times, unit length.

    Raises:
        UserError: the file has no trunk of ``arch``.
    """

    def __init__(self, checkpoint: Path | None, arch: str, resize: int) -> None:
        from models.resnet import ResNet

        self._model = ResNet(arch)
        if checkpoint is not None:
            state = state_dict_of(checkpoint)
            found = arch_of(state, checkpoint)
            if found != arch:
                raise UserError(f"{checkpoint}: its trunk is a {found}, but {arch} was asked for")
            trunk = {key: value for key, value in state.items() if key.startswith(_TRUNK)}
            load_state(self._model, trunk, str(checkpoint))
        self._model.eval()
        self._resize = resize

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """(C4, 4h, 4w) float32 of a uint8 RGB image (H, W, 3), unit length along the first axis."""
        enlarged = self.enlarged(rgb)
        return enlarged / (np.linalg.norm(enlarged, axis=0) + 1e-8)

    def enlarged(self, rgb: np.ndarray) -> np.ndarray:
        """The same at its own length."""
        from core.nn.layers import resize_bilinear
        from core.runtime import jt

        with jt.no_grad():
            deep = self._model.trunk(jt.array(network_input(rgb, self._resize)))[3]
            return resize_bilinear(deep, (deep.shape[2] * 4, deep.shape[3] * 4)).numpy()[0]


def _regions(
    config: Config,
    data: Path,
    features: TrunkFeatures,
    checkpoint_sha256: str,
    examples: list[ImageItem],
    folder: Path,
) -> Rows:
    """All regions and their labels, from the blocks in ``folder``, which are made where they are
    missing.
    """
    layout = open_layout(data)

    def mask_sha256(item: ImageItem) -> str:
        return sha256_of(layout.truth_path(LABELLED, item.key))

    decisive = {
        "checkpoint_sha256": checkpoint_sha256,
        "resize": config.distance_matching.resize,
        "num_classes": config.num_classes,
        "images_sha256": sha256_of_items(examples, mask_sha256),
    }

    def make(start: int, stop: int) -> Rows:
        return region_bank(features, data, examples[start:stop], config.num_classes)

    blocks = Blocks(folder, decisive, len(examples), BLOCK_IMAGES)
    blocks.fill(make, f"{STAGE} examples")
    return blocks.rows()


def _nearest_labels(
    config: Config, bank: np.ndarray, labels: np.ndarray, pixels: np.ndarray
) -> np.ndarray:
    """Label (N,) int64 of each of the pixels (C4, N), so many at a time as memory should hold."""
    settings, size = config.distance_matching, config.num_classes + 1
    step = max(1, _SIMILARITIES // len(bank))
    found = []
    for first in range(0, pixels.shape[1], step):
        similarity = bank @ pixels[:, first : first + step]
        votes = vote(similarity, labels, size, settings.neighbours, settings.temperature)
        found.append(votes.argmax(0))
    return np.concatenate(found)


def region_bank(
    features: TrunkFeatures, data: Path, examples: list[ImageItem], num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """One feature for each label of each example: unit rows (R, C4) float32, labels (R,) int64.

    Background is a label; ignored pixels and labels that vanish on the feature grid are left out.

    Raises:
        UserError: a broken file, a mask of another size or with an id above ``num_classes``.
    """
    rows: list[np.ndarray] = []
    labels: list[int] = []
    for item in examples:
        rgb, mask = load_rgb(item.path), open_layout(data).truth(LABELLED, item.key)
        if mask.shape != rgb.shape[:2]:
            raise UserError(f"{item.key}: mask of {mask.shape} but image of {rgb.shape[:2]}")
        grid: Any = features.enlarged(rgb)
        small = resize_nearest_floor(mask, grid.shape[1:])
        for label in np.unique(small[small != IGNORE]).tolist():
            if label > num_classes:
                raise UserError(
                    f"the mask of {item.key} holds id {label}, but num_classes is {num_classes}; "
                    f"use --set num_classes=..."
                )
            mean = grid[:, small == label].mean(1)
            rows.append(mean / (np.linalg.norm(mean) + 1e-8))
            labels.append(label)
    if not rows:
        return np.empty((0, 0), np.float32), np.empty(0, np.int64)
    return np.stack(rows).astype(np.float32), np.array(labels, np.int64)


def vote(
    similarity: np.ndarray, labels: np.ndarray, size: int, neighbours: int, temperature: float
) -> np.ndarray:
    """Votes (size, N) float32 of the ``neighbours`` most similar regions on each of N pixels.

    Args:
        similarity: (R, N) cosine of each region to each pixel.
        labels: (R,) label of each region, 0..size - 1.
        temperature: a region weighs exp(similarity / temperature).
    """
    count = min(neighbours, len(labels))
    nearest = np.argpartition(-similarity, count - 1, axis=0)[:count]
    values = np.take_along_axis(similarity, nearest, axis=0)
    weights = np.exp((values - values.max(0)) / temperature)  # the largest is 1: nothing overflows
    votes = np.zeros((size, similarity.shape[1]), np.float32)
    np.add.at(votes, (labels[nearest], np.arange(similarity.shape[1])), weights)
    return votes / weights.sum(0)
