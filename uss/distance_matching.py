"""Score a trunk without training a head: labelled images name the pixels that resemble them (PASS).

Each region of the few images with masks in ``train-semi`` gives one feature. A pixel of another
image takes a weighted vote of the regions whose features are nearest to its own. The predictions
hold class ids, and no clusters need a match; masks of training images are used, so this tells how
good features are and is no unsupervised result.
"""

from __future__ import annotations

from dataclasses import asdict
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
from core.scoring.matching import identity_match
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
_TRUNK = ("conv1.", "bn1.", "layer")


def run(config: Config, data: Path, run: RunFolder, split: str = "validation") -> None:
    """Predict ``split`` into ``run.distance_matching(arch, split)``, score it where it has masks.

    Any checkpoint with a trunk will do; the default is that of step 1. Finished images are skipped.

    Raises:
        UserError: settings that cannot work, no trunk, no labelled images, or images that cannot be
            read.
    """
    settings = asdict(config.distance_matching)
    core_config.check(config.distance_matching, DISTANCE_MATCHING.section)
    items = open_layout(data).images(split)
    examples = labelled_images(data, LABELLED)
    checkpoint = paths.trunk_input(run, config.arch)
    features = TrunkFeatures(checkpoint, config.arch, config.distance_matching.resize)
    bank, labels = region_bank(features, data, examples, config.num_classes)
    log.info(STAGE, f"{len(labels)} labelled regions of {len(examples)} images")
    folder = run.distance_matching(config.arch, split)
    sha256 = sha256_of(checkpoint)
    work = Worklist(
        folder,
        {
            "distance_matching": settings,
            "checkpoint_sha256": sha256,
            "data": str(data),
            "examples": len(examples),
        },
    )
    size = config.num_classes + 1

    def predict(item: ImageItem) -> bytes:
        rgb = load_rgb(item.path)
        grid = features(rgb)
        similarity = bank @ grid.reshape(len(grid), -1)
        votes = vote(similarity, labels, size, settings["neighbours"], settings["temperature"])
        labels_of_grid = votes.argmax(0).reshape(grid.shape[1:])
        return png_of_label(resize_nearest_floor(labels_of_grid, (rgb.shape[0], rgb.shape[1])))

    work.run(items, predict, f"{STAGE} {split}")
    distributed.barrier()
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


class TrunkFeatures:
    """Features of pixels: the last map of the trunk of a checkpoint, enlarged 4 times, unit length.

    Raises:
        UserError: the file has no trunk of ``arch``.
    """

    def __init__(self, checkpoint: Path, arch: str, resize: int) -> None:
        from models.resnet import ResNet

        state = state_dict_of(checkpoint)
        found = arch_of(state, checkpoint)
        if found != arch:
            raise UserError(f"{checkpoint}: its trunk is a {found}, but {arch} was asked for")
        self._model = ResNet(arch)
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
    for item in log.progress(examples, f"{STAGE} examples"):
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
