"""Steps 2.3 and 2.4: pseudo labels, averaged over SAM's masks or of each pixel by itself.

Each mask takes the cluster whose centre is nearest to its mean feature, and the mean attention
inside it decides whether it counts as foreground; without masks (PASS) each pixel does so. The
threshold for that is the one that gives the validation split its best mIoU: the only place where
the pipeline looks at ground truth, and it looks at masks of the validation split only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core import config as core_config
from core import distributed, log
from core.arrays import read_array
from core.data.crops import network_input
from core.data.images import load_rgb
from core.data.items import ImageItem
from core.data.label_maps import png_of_label
from core.data.layout import open_layout
from core.data.level_maps import ARCHIVE_SUFFIX, archive_of
from core.errors import UserError
from core.files import is_number, json_or_empty, number, read_json, sha256_of, write_json
from core.pipeline import origin
from core.pipeline.folders import VALIDATION
from core.scoring.threshold_curve import hundredths
from core.text import named
from core.work.claims import IMAGE_TIMEOUT_S
from core.work.worklist import Worklist
from refine.mask_sources import ImageMasks, MaskSource, mask_source
from tools.evaluate.folder import labelled_images, threshold_curve
from tools.evaluate.table import best_point, curve_dict
from tools.report.extras import Extras, ThresholdChoice
from uss import origins
from uss.config import Config
from uss.config import PseudoLabels as Settings
from uss.mask_labels import LevelledLabel, label_from_masks
from uss.networks import load_pixel_attention
from uss.paths import RunFolder
from uss.pipeline import PSEUDO_LABELS
from uss.presets import GIVE_THRESHOLD

STAGE = PSEUDO_LABELS.command
MODES = ("all", "validation", "train")


def run(
    config: Config,
    data: Path,
    run: RunFolder,
    mode: str = "all",
    image_timeout_s: float = IMAGE_TIMEOUT_S,
    verify: bool = False,
) -> None:
    """Choose the threshold on the validation split, then label the training split with it.

    Writes ``run.threshold`` and ``run.pseudo_labels("train")/<key>.png``, of each training
    image's own size; both parts continue where an earlier run with the same settings stopped. A
    broken image is named, left out and counted.

    Args:
        mode: "validation" only chooses the threshold, "train" only labels, with the threshold that
            is set or was chosen before.
        image_timeout_s: seconds of work on an image after which another process takes it over.
        verify: read earlier results instead of trusting their sizes and times.

    Raises:
        UserError: a missing product, or products that do not fit each other or the configuration;
            no validation masks while ``pseudo_labels.threshold`` is not set.
    """
    core_config.check(config)
    _check(config.pseudo_labels, mode)
    checkpoint, centroids = origins.label_inputs(run, config.arch)
    train = open_layout(data).images("train") if mode != "validation" else []
    care = _Care(image_timeout_s, verify)
    threshold = config.pseudo_labels.threshold
    sweep = mode == "validation" or (mode == "all" and threshold < 0)
    validation = _validation_items(data) if sweep else []
    if not sweep and threshold < 0:
        threshold = _chosen_threshold(config, run)
    labeller = Labeller(config, checkpoint, centroids)
    source = mask_source(config.masks) if config.pseudo_labels.per_mask else None
    made = origins.LabelsMade(run, config, data, (checkpoint, centroids), _fingerprint(source))
    if sweep:
        threshold = _sweep(config, data, run, labeller, source, validation, made, care)
    elif config.pseudo_labels.threshold >= 0 and distributed.is_main():
        write_json(run.threshold, {"threshold": threshold, "chosen_by": "setting", **_made(config)})
    if mode != "validation":
        _label_train(run, labeller, source, train, threshold, made, care)


class _Care(NamedTuple):
    """How the work on images is watched; see :func:`run`."""

    image_timeout_s: float
    verify: bool


def _check(settings: Settings, mode: str) -> None:
    """Stop before anything is loaded where a setting cannot work."""
    if mode not in MODES:
        raise UserError(f"--mode must be one of {', '.join(MODES)}, not {mode!r}")
    if not settings.per_mask and settings.uncovered != "pixels":
        raise UserError(
            "without masks (pseudo_labels.per_mask=false) every pixel is uncovered: "
            "pseudo_labels.uncovered must be pixels"
        )


def _chosen_threshold(config: Config, run: RunFolder) -> float:
    expected = "the threshold that the sweep chose (--mode validation), or --threshold,"
    chosen = read_json(run.threshold, expected)
    clusters = chosen.get("num_classes", config.num_classes)
    if clusters != config.num_classes:
        raise UserError(
            f"{run.threshold} was chosen for {clusters} clusters, but num_classes is "
            f"{config.num_classes}; choose anew (--mode validation)"
        )
    threshold = number(chosen.get("threshold"))
    if threshold is None:
        found = repr(chosen.get("threshold"))[:40]
        raise UserError(f"expected {expected} in {run.threshold}, found {found}")
    return threshold


class Labeller:
    """Labels of images by the features of the pixel-attention network and the cluster centres.

    Args:
        checkpoint: of the pixel-attention network, of trunk ``config.arch``.
        centroids: (C, C4) float array file, C = ``config.num_classes``.

    Raises:
        UserError: the files do not fit each other or ``config``.
    """

    def __init__(self, config: Config, checkpoint: Path, centroids: Path) -> None:
        self._settings = config.pseudo_labels
        self._model = load_pixel_attention(checkpoint, config.arch)
        self._centres = load_centroids(centroids, config.num_classes, self._model.channels[3])
        #: Everything that decides a label, except for the masks; JSON serialisable.
        self.settings = {
            "checkpoint_sha256": sha256_of(checkpoint),
            "centroids_sha256": sha256_of(centroids),
            "resize": self._settings.resize,
            "square": self._settings.square,
            "uncovered": self._settings.uncovered,
        }

    def label(self, item: ImageItem, masks: ImageMasks | None) -> LevelledLabel:
        """Label and attention level of each pixel of an image, at its own size.

        Without ``masks`` each pixel stands for itself: the label of the nearest place of the
        feature grid, and the attention there, interpolated.

        Raises:
            UserError: the image cannot be read.
        """
        rgb = load_rgb(item.path)
        scores, attention = self._scores_and_attention(rgb)
        size_hw = (rgb.shape[0], rgb.shape[1])
        regions = () if masks is None else masks.masks(item.key, rgb)
        return label_from_masks(scores, attention, regions, size_hw, self._settings.uncovered)

    def _scores_and_attention(self, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cosine to each centre (C, h, w) and mean attention (h, w), float32, on the feature
        grid.
        """
        from core.nn.layers import l2_normalise
        from core.runtime import jt

        image = network_input(rgb, self._settings.resize, self._settings.square)
        with jt.no_grad():
            features, attention = self._model.features(jt.array(image))
            unit = l2_normalise(features).numpy()[0]
            mean_attention = attention.mean(1).numpy()[0]
        scores = self._centres @ unit.reshape(len(unit), -1)
        return scores.reshape(-1, *unit.shape[1:]), mean_attention


def load_centroids(path: Path, num_classes: int, channels: int) -> np.ndarray:
    """Cluster centres (num_classes, channels) float32 with unit rows.

    Raises:
        UserError: not such an array; says which of class count and width does not fit.
    """
    try:
        centres = read_array(path)
    except ValueError as error:
        raise UserError(f"expected cluster centres (.npy) at {path}: {error}") from error
    if centres.ndim != 2 or centres.dtype.kind not in "fiu":
        raise UserError(f"expected cluster centres (clusters, channels) in {path}")
    if len(centres) != num_classes:
        raise UserError(
            f"{path} has {len(centres)} cluster centres, but num_classes is {num_classes}; "
            f"use --set num_classes={len(centres)} or cluster again"
        )
    if centres.shape[1] != channels:
        raise UserError(
            f"{path} has centres of {centres.shape[1]} channels, but the network's features have "
            f"{channels}; both must come from the same trunk"
        )
    lengths = np.linalg.norm(centres, axis=1, keepdims=True)
    return (centres / np.maximum(lengths, 1e-12)).astype(np.float32)


def _validation_items(data: Path) -> list[ImageItem]:
    """The validation images, each of which has a ground-truth mask."""
    try:
        return labelled_images(data, "validation")
    except UserError as error:
        raise UserError(
            f"the threshold is chosen on the validation masks, but {error}; or give one: "
            f"{GIVE_THRESHOLD}"
        ) from error


def _sweep(
    config: Config,
    data: Path,
    run: RunFolder,
    labeller: Labeller,
    source: MaskSource | None,
    items: list[ImageItem],
    made: origins.LabelsMade,
    care: _Care,
) -> float:
    """Label the validation split without threshold, then take the threshold of highest mIoU."""
    masks = None if source is None else ImageMasks(source, run.masks("validation"))
    settings = {**labeller.settings, "masks": _fingerprint(source)}
    work = Worklist(run.pseudo_labels("validation"), settings, ARCHIVE_SUFFIX, verify=care.verify)

    def label(item: ImageItem) -> bytes:
        levelled = labeller.label(item, masks)
        return archive_of(levelled.label, levelled.level)

    work.run(items, label, f"{STAGE} validation", image_timeout_s=care.image_timeout_s)
    distributed.barrier()
    if distributed.is_main():
        _choose_threshold(config, data, run, work, items, made)
    distributed.barrier()
    return _chosen_threshold(config, run)


def _choose_threshold(
    config: Config,
    data: Path,
    run: RunFolder,
    work: Worklist,
    items: list[ImageItem],
    made: origins.LabelsMade,
) -> None:
    done = _finished(work, items, "validation")
    settings = config.pseudo_labels
    first, last = round(settings.min_threshold * 100), round(settings.max_threshold * 100)
    points = threshold_curve(
        work.folder, data, "validation", config.num_classes, hundredths(first, last), done
    )
    best = best_point(points)
    facts = {
        "chosen_by": "validation masks",
        "images": len(done),
        "arch": config.arch,
        origin.KEY: origin.plain(made.chain(VALIDATION, len(done), work.fingerprint)),
    }
    write_json(run.threshold, {**curve_dict(points), **facts, **_made(config)})
    log.info(
        STAGE,
        f"threshold {best.threshold:.2f} gives the validation masks their best mIoU, "
        f"{100 * best.miou:.1f}",
    )


def _made(config: Config) -> dict[str, Any]:
    """What later stages must know about the labels, whoever chose their threshold."""
    masks = config.masks.source if config.pseudo_labels.per_mask else None
    return {"num_classes": config.num_classes, "masks": masks}


def _label_train(
    run: RunFolder,
    labeller: Labeller,
    source: MaskSource | None,
    items: list[ImageItem],
    threshold: float,
    made: origins.LabelsMade,
    care: _Care,
) -> None:
    masks = None if source is None else ImageMasks(source, run.masks("train"))
    settings = {**labeller.settings, "masks": _fingerprint(source), "threshold": threshold}
    work = Worklist(run.pseudo_labels("train"), settings, verify=care.verify)

    def label(item: ImageItem) -> bytes:
        return png_of_label(labeller.label(item, masks).at(threshold))

    record = origins.LabelRecord(run, made, work.fingerprint, items)
    if distributed.is_main():
        record.begin()
    distributed.barrier()
    work.run(items, label, f"{STAGE} train", image_timeout_s=care.image_timeout_s)
    distributed.barrier()
    if distributed.is_main():
        done = _finished(work, items, "train")
        record.finish(done)
        log.info(STAGE, f"{len(done)} labels of train at threshold {threshold:.2f}: {work.folder}")


def _fingerprint(source: MaskSource | None) -> Any:
    return None if source is None else source.fingerprint


def _finished(work: Worklist, items: list[ImageItem], split: str) -> list[ImageItem]:
    """The items that have a result; those without are named, and it is an error if none has."""
    pending = {item.key for item in work.pending(items)}
    done = [item for item in items if item.key not in pending]
    if pending:
        log.warn(STAGE, f"{len(pending)} images of {split} have no label: {named(sorted(pending))}")
    if not done:
        raise UserError(f"none of the {len(items)} images of {split} could be labelled; see above")
    return done


def report_extras(run: RunFolder, settings: Mapping[str, Any]) -> Extras:
    """What the report says about the pseudo labels of a run, beside their origin.

    Args:
        settings: of the segmenter, a nested dict; {} where the run has no segmenter of its own.
    """
    decided = origins.chosen_by_masks(run.threshold if settings else None, None)
    return Extras(threshold_choice(run), decided)


def threshold_choice(run: RunFolder) -> ThresholdChoice | None:
    """The threshold that the pseudo labels took; None where it is not known."""
    content = json_or_empty(run.threshold)
    threshold = number(content.get("threshold"))
    if threshold is None:
        return None
    points = content.get("curve")
    curve = [
        (float(point[0]), float(point[1]))
        for point in (points if isinstance(points, list) else [])
        if isinstance(point, list) and len(point) == 2 and all(map(is_number, point))
    ]
    return ThresholdChoice(
        threshold,
        number(content.get("miou")),
        str(content.get("chosen_by", "an unknown rule")),
        curve,
        of=PSEUDO_LABELS.name,
        meaning="Pixels whose attention is below the threshold become background.",
    )
