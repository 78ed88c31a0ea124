"""Step 2.2: k-means of attended image features; the clusters stand for the classes from here on.

The centres come from the training images alone; validation images are assigned to them. Class
folders are read only to report how well the clusters agree with them, never to form them.

Features go to disk in blocks (``core.work.blocks``), which any number of processes make together
and a stopped run keeps. One process then finds the centres, from the file that all blocks make up.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core import config as core_config
from core import log
from core.data.datasets import EvalDataset
from core.data.imagenet_s import anonymous_order
from core.data.items import ImageItem
from core.data.layout import open_layout
from core.data.loader import Loader
from core.errors import UserError
from core.files import atomic_write, read_json, sha256_of, write_json
from core.kmeans import assign, kmeans, unit_rows
from core.pipeline.rehearsal import Look
from core.schema import stamped, unstamped
from core.scoring.matching import match_single_labels
from core.work.blocks import Blocks, Rows, remove, sha256_of_items
from core.work.claims import CLAIMS_FOLDER, Claims
from core.work.ledger import SETTINGS_FILE
from core.work.sharing import make_once
from uss import origins, paths
from uss.config import Config
from uss.networks import load_pixel_attention
from uss.paths import CENTROIDS, RunFolder
from uss.pipeline import CLUSTER

STAGE = CLUSTER.command
LISTS = {"train": "train_labeled.txt", "validation": "val_labeled.txt"}
_PRODUCT = "centres"
# What the doctor measures of k-means: features, and rounds of Lloyd's algorithm; and the bytes that
# the search holds of each feature.
_POINTS, _ROUNDS, _SEARCH_BYTES = 4096, 4, 20
# Settings of the section that decide a feature.
_OF_FEATURES = ("batch_size", "resize", "square", "crop")
#: At least so many images make a block of features; always whole batches.
BLOCK_IMAGES = 1024


def run(config: Config, data: Path, run: RunFolder, keep_features: bool = False) -> None:
    """Cluster the training images; writes centroids.npy (C, C4) float32 and the two lists.

    A list has a line ``<class folder>/<file> k`` for each image, k counted from 0. A finished run
    with the same settings is left alone. Several processes may run this at once.

    Args:
        keep_features: leave the features (``run.features``) on disk; they are removed otherwise.

    Raises:
        UserError: settings that cannot work (a crop larger than what it is cut from, an attention
            threshold that is no fraction), no pixel-attention checkpoint, or fewer images than
            clusters.
    """
    core_config.check(config)
    if config.cluster.crop > config.cluster.resize:
        # It would be filled up with black, and clusters would form by the shape of images.
        raise UserError(
            f"cluster.crop is {config.cluster.crop}, more than cluster.resize, "
            f"{config.cluster.resize}, to which the images' shorter side is brought"
        )
    folder = run.cluster(config.arch)
    checkpoint = paths.pixel_attention_input(run, config.arch)
    splits = {"train": anonymous_order(open_layout(data).images("train"))}
    if "validation" in open_layout(data).splits():
        splits["validation"] = anonymous_order(open_layout(data).images("validation"))
    if len(splits["train"]) < config.num_classes:
        raise UserError(
            f"{data / 'train'} has {len(splits['train'])} images, fewer than the "
            f"{config.num_classes} clusters; add images or lower num_classes"
        )
    settings = _settings(config, checkpoint, splits)
    if _finished(folder, settings, list(splits)):
        log.info(STAGE, f"already finished with these settings: {folder}")
    else:
        _cluster(config, data, checkpoint, splits, run, settings)
    if not keep_features:
        remove(run.features(config.arch))


def look(config: Config, photo: ImageItem, counts: Mapping[str, int]) -> Look:
    """For the doctor: the network with random weights, and k-means of a few features."""
    from core.runtime import jt
    from uss.pixel_attention import network

    section, images = config.cluster, sum(counts.get(split, 0) for split in LISTS)
    model = network(config)
    model.eval()
    width = model.channels[3]

    def encode(batch: Any) -> np.ndarray:
        with jt.no_grad():
            return model.cluster_feature(
                jt.array(batch[0]), config.pixel_attention.threshold
            ).numpy()

    def finish() -> float:
        points = np.random.default_rng(0).standard_normal((_POINTS, width), np.float32)
        clusters = min(config.num_classes, _POINTS)
        kmeans(points, clusters, 1, 1, config.seed)  # starts its threads
        started = time.monotonic()
        kmeans(points, clusters, _ROUNDS, 1, config.seed)
        pass_s = (time.monotonic() - started) / _ROUNDS / _POINTS * config.num_classes / clusters
        return pass_s * counts.get("train", 0) * section.iterations * section.redo

    return Look(
        images=images,
        encode=encode,
        dataset=EvalDataset([photo], section.resize, section.crop, section.square),
        batch_size=section.batch_size,
        finish=finish,
        memory_mib=images * _SEARCH_BYTES / 2**20,
        disk_mib=2 * images * width * 4 / 2**20,
    )


def agreement(clusters: np.ndarray, classes: np.ndarray) -> tuple[float, float]:
    """How well clusters (N,) fit classes (N,), both counted from 0.

    Returns:
        normalised mutual information (0..1, arithmetic mean of the entropies), and the accuracy
        under the best one-to-one naming of clusters.
    """
    size = int(max(clusters.max(), classes.max())) + 1
    joint = np.zeros((size, size))
    np.add.at(joint, (clusters, classes), 1)
    _, accuracy = match_single_labels(clusters, classes, size)
    share = joint / len(clusters)
    entropies = [_entropy(share.sum(axis=axis)) for axis in (0, 1)]
    mutual = sum(entropies) - _entropy(share.ravel())
    mean = sum(entropies) / 2
    return (mutual / mean if mean > 0 else 1.0), accuracy


def _entropy(shares: np.ndarray) -> float:
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


def _settings(
    config: Config, checkpoint: Path, splits: dict[str, list[ImageItem]]
) -> dict[str, Any]:
    """Everything that decides the result."""
    return {
        "cluster": core_config.recorded(config.cluster),
        "num_classes": config.num_classes,
        "seed": config.seed,
        "attention_threshold": config.pixel_attention.threshold,
        "checkpoint_sha256": sha256_of(checkpoint),
        "images": {split: len(items) for split, items in splits.items()},
    }


def _finished(folder: Path, settings: dict[str, Any], splits: list[str]) -> bool:
    names = [CENTROIDS, SETTINGS_FILE, *(LISTS[split] for split in splits)]
    if not all((folder / name).is_file() for name in names):
        return False
    path = folder / SETTINGS_FILE
    return unstamped(read_json(path, "the settings of a clustering"), path) == settings


def _cluster(
    config: Config,
    data: Path,
    checkpoint: Path,
    splits: dict[str, list[ImageItem]],
    run: RunFolder,
    settings: dict[str, Any],
) -> None:
    """Return when the product is there, made here or by another process."""
    folder, features = run.cluster(config.arch), run.features(config.arch)
    model = load_pixel_attention(checkpoint, config.arch)

    def is_finished() -> bool:
        return _finished(folder, settings, list(splits))

    if not is_finished():
        # An older result must not count as finished while the work on a newer one goes on.
        (folder / SETTINGS_FILE).unlink(missing_ok=True)
    size = config.cluster.batch_size * -(-BLOCK_IMAGES // config.cluster.batch_size)
    blocks = {}
    for split, items in splits.items():
        decisive = {
            **{name: settings[name] for name in ("attention_threshold", "checkpoint_sha256")},
            **{name: settings["cluster"][name] for name in _OF_FEATURES},
            "images_sha256": sha256_of_items(items),
        }
        blocks[split] = Blocks(features, decisive, len(items), size)
        with contextlib.closing(_Encoder(config, model, split, items)) as encode:
            blocks[split].fill(encode, f"{STAGE} {split}", is_finished)
    with Claims(folder / CLAIMS_FOLDER) as claims:

        def make() -> None:
            _write_product(config, splits, blocks, folder)
            origins.record_clustering(run, config, data, checkpoint, settings)
            write_json(folder / SETTINGS_FILE, stamped(settings))

        make_once(claims, _PRODUCT, is_finished, make, STAGE)


def _write_product(
    config: Config, splits: dict[str, list[ImageItem]], blocks: dict[str, Blocks], folder: Path
) -> None:
    """Centres and lists, from features that are on disk."""
    centres = None
    for split, items in splits.items():
        features, indices = blocks[split].rows()
        kept = [items[index] for index in indices]
        if len(kept) < len(items):
            log.warn(STAGE, f"{len(items) - len(kept)} broken images of {split} were left out")
        if centres is None:
            if len(features) < config.num_classes:
                raise UserError(
                    f"only {len(features)} images of {split} can be read, fewer than the "
                    f"{config.num_classes} clusters; mend the images named above"
                )
            log.info(STAGE, f"k-means of {len(features)} images into {config.num_classes}")
            centres, objective = kmeans(
                features,
                config.num_classes,
                config.cluster.iterations,
                config.cluster.redo,
                config.seed,
            )
            log.info(STAGE, f"sum of squared distances {objective:.4f}")
            with atomic_write(folder / CENTROIDS) as file:
                np.save(file, centres)
        clusters = assign(features, centres)
        _write_list(folder / LISTS[split], kept, clusters)
        _report(split, kept, clusters)


class _Encoder:
    """(start, stop) -> unit features (n, C4) of the readable images among these, and their indices.

    Batches are the same wherever blocks begin, which is at whole batches, so features are too.
    """

    def __init__(self, config: Config, model: Any, split: str, items: list[ImageItem]) -> None:
        self._model = model
        self._threshold = config.pixel_attention.threshold
        section = config.cluster
        self._loader = Loader(
            EvalDataset(items, section.resize, section.crop, section.square),
            section.batch_size,
            config.seed,
            config.workers,
            drop_last=False,
            shuffle=False,
        )

    def __call__(self, start: int, stop: int) -> Rows:
        from core.runtime import jt

        size = self._loader.batch_size
        features, kept = [], []
        position = start
        for images, indices in self._loader.epoch(0, start // size, -(-stop // size)):
            with jt.no_grad():
                feature = self._model.cluster_feature(jt.array(images), self._threshold).numpy()
            # The loader lets the next image stand in for a broken one; that one has a row of its
            # own.
            own = indices == np.arange(position, position + len(indices))
            features.append(feature[own])
            kept.append(indices[own])
            position += len(indices)
        return unit_rows(np.concatenate(features)), np.concatenate(kept)

    def close(self) -> None:
        """End the processes that read images."""
        self._loader.close()


def _write_list(path: Path, items: Sequence[ImageItem], clusters: np.ndarray) -> None:
    with atomic_write(path, "w") as file:
        for item, cluster in sorted(zip(items, clusters), key=lambda pair: pair[0].key):
            name = item.path.name
            prefix = item.path.parent.name + "/" if "/" in item.key else ""
            file.write(f"{prefix}{name} {cluster}\n")


def _report(split: str, items: Sequence[ImageItem], clusters: np.ndarray) -> None:
    """Log cluster sizes and, where there are class folders, the agreement with them."""
    sizes = np.bincount(clusters)
    log.info(STAGE, f"{split}: {len(items)} images, clusters of {sizes.min()} to {sizes.max()}")
    folders = sorted({item.key.rpartition("/")[0] for item in items})
    if folders == [""]:
        return
    classes = np.array([folders.index(item.key.rpartition("/")[0]) for item in items])
    information, accuracy = agreement(clusters, classes)
    log.info(
        STAGE,
        f"{split}: agreement with the class folders (for information only): "
        f"NMI {information:.3f}, accuracy {accuracy:.3f}",
    )
