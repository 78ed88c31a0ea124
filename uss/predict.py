"""Step 4: label whole images with the segmenter, refine the labels with masks, and pack them.

:func:`run` is the end of ``train_4.sh``: the segmenter's own predictions of a split.
:func:`run_refined` is ``test.py``: the same, refined. What happens to finished label maps (score,
match, archive) is in ``uss.deliver``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from core import distributed, log
from core.data.folders import ImageItem, list_images, split_folder
from core.data.images import load_rgb
from core.errors import UserError
from core.files import sha256_of
from core.labels import save_label
from core.matching import read_match
from core.worklist import Worklist, is_whole_label
from uss import deliver, products
from uss.config import Config
from uss.config import Predict as Settings
from uss.deliver import Match
from uss.evaluate import evaluate, labelled_images
from uss.image_masks import ImageMasks, mask_source
from uss.networks import load_segmenter, network_input
from uss.paths import RunFolder
from uss.refine import refine
from uss.score_table import EvaluationResult
from uss.submission import Method

STAGE = "predict"
ARCHIVE = "result.zip"
VALIDATION = "validation"
_AUTO = ("testB", "testA", "test", VALIDATION)  # "auto" takes the first that there is
_HEAD_NAMES = {"UPerNet": "UPerNet", "PlainSegmenter": "1x1 convolution"}


class Segmenter:
    """A fine-tuned network and how images are brought to it.

    Trunk, head and class count come from the checkpoint.

    Args:
        path: checkpoint file.
        settings: size of the input and cap of the output.
        arch, num_classes: what the user asked for, an error where the checkpoint differs; None
            takes any. ``resnet_uppernet50`` (the reference's name) also asks for the UPerNet head.
    """

    def __init__(
        self,
        path: Path,
        settings: Settings,
        arch: str | None = None,
        num_classes: int | None = None,
    ) -> None:
        trunk, needs_upernet = _parsed_arch(arch)
        self._model = load_segmenter(path, trunk, num_classes, settings.fixed_pool)
        self._settings = settings
        self.num_classes: int = self._model.num_classes
        head = _HEAD_NAMES[type(self._model).__name__]
        if needs_upernet and head != "UPerNet":
            raise UserError(
                f"{path}: its head is a {head}, but {arch} was asked for; pass -a {trunk}"
            )
        #: For people, as in ``method.txt``.
        self.name = f"{self._model.arch.replace('resnet', 'ResNet')}-{head}"
        self.checkpoint_sha256 = sha256_of(path)
        #: Everything that decides a prediction; JSON serialisable.
        self.settings = {"checkpoint_sha256": self.checkpoint_sha256, "predict": asdict(settings)}

    def logits(self, rgb: np.ndarray) -> np.ndarray:
        """Logits (C + 1, h, w) float32 of a uint8 RGB image (H, W, 3), at the network's output
        size.
        """
        from core.runtime import jt

        image = network_input(rgb, self._settings.resize, self._settings.square)
        with jt.no_grad():
            return self._model(jt.array(image)).numpy()[0]

    def label(self, logits: np.ndarray, size_hw: tuple[int, ...]) -> np.ndarray:
        """Label map (H, W) int32 of an image of this size from its logits."""
        return label_of_logits(logits, size_hw, self._settings.max_res)


def label_of_logits(logits: np.ndarray, size_hw: tuple[int, ...], max_res: int = 0) -> np.ndarray:
    """Argmax (H, W) int32 of logits (C + 1, h, w) resized bilinearly to the image.

    Where the image has more than ``max_res`` squared pixels (0 = never), the argmax is taken at a
    size of the same aspect with that many pixels, and enlarged by nearest neighbour.
    """
    height, width = size_hw
    shrink = min(1.0, max_res / (height * width) ** 0.5) if max_res > 0 else 1.0
    small = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    # Class by class: the full-size logits of hundreds of classes would not fit into memory.
    best = cv2.resize(logits[0], small, interpolation=cv2.INTER_LINEAR)
    label = np.zeros(best.shape, dtype=np.int32)
    for index in range(1, len(logits)):
        values = cv2.resize(logits[index], small, interpolation=cv2.INTER_LINEAR)
        higher = values > best
        best[higher], label[higher] = values[higher], index
    if label.shape == size_hw:
        return label
    return cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)


# Plain predictions ------------------------------------------------------------------------------


def run(
    config: Config,
    data: Path,
    run: RunFolder,
    split: str = "auto",
    match_file: Path | None = None,
) -> None:
    """Predict a split into ``run.predictions(split)`` and zip it beside, with a match.

    The match is found on the masks of the validation split, which is predicted first; without
    those, on the split's own. Finished images are skipped.

    Args:
        split: "auto" takes the first of testB, testA, test and validation that there is.
        match_file: take this match and find none.

    Raises:
        UserError: no segmenter, one of another trunk or class count, images that cannot be read, or
            a match that does not fit.
    """
    split = _auto_split(data) if split == "auto" else split
    split_folder(data, split)
    path = products.segmenter(run)
    segmenter = Segmenter(path, config.predict, config.arch, config.num_classes)
    match = read_match(match_file, segmenter.num_classes) if match_file else None
    match_split = None
    if match is None and deliver.has_masks(data, VALIDATION):
        match_split = VALIDATION
    elif match is None and deliver.has_masks(data, split):
        match_split = split
    if match_split == VALIDATION != split:
        _, match = _predict_split(segmenter, data, run, VALIDATION, None)
    items, match = _predict_split(segmenter, data, run, split, match)
    if distributed.is_main():
        folder = run.predictions(split)
        archive = folder.with_name(f"{split}.zip")
        method = _disclosed(
            Method(network=segmenter.name, method="PASS, Jittor"), path, run, match_split
        )
        deliver.pack(folder, data, split, items, archive, match, segmenter.num_classes, method)


def _predict_split(
    segmenter: Segmenter, data: Path, run: RunFolder, split: str, match: Match | None
) -> tuple[list[ImageItem], Match | None]:
    """Predict a split and score it where there are masks; its images, and the match.

    Where no ``match`` is given it is found on the masks, on the main process.
    """
    items = _images(data, split)
    folder = run.predictions(split)
    work = Worklist(folder, {**segmenter.settings, "data": str(data)})

    def predict(item: ImageItem, target: Path) -> None:
        rgb = load_rgb(item.path)
        save_label(target, segmenter.label(segmenter.logits(rgb), rgb.shape[:2]))

    work.run(items, predict, f"{STAGE} {split}", is_whole_label)
    distributed.barrier()
    if not distributed.is_main():
        return items, None
    deliver.require_finished(work, items, allow_missing=False)
    if not deliver.has_masks(data, split):
        return items, match
    result = evaluate(folder, data, split, segmenter.num_classes, match)
    deliver.keep_evaluation(folder, split, segmenter.checkpoint_sha256, {"predictions": result})
    return items, result.match


# Refined predictions ----------------------------------------------------------------------------


@dataclass(frozen=True)
class RefinedRun:
    """What ``test.py`` was asked to do.

    Label maps go to ``dump_path/<mode>/<key>.png``, those before refinement to
    ``dump_path/<mode>_unrefined``, the archive to ``dump_path/result.zip``.
    """

    data_path: Path
    mode: str  # folder below data_path
    dump_path: Path
    run: RunFolder  # keeps the masks
    pretrained: Path  # checkpoint of the segmenter
    pretrained_sam: Path | None = None  # None: the one at hand
    arch: str | None = None
    num_classes: int | None = None
    match_file: Path | None = None
    unmatched: bool = False  # put no match into the archive
    allow_missing: bool = False  # broken images do not stand in the way of the archive
    method: Method = Method()


def run_refined(config: Config, job: RefinedRun) -> None:
    """Predict and refine a folder of images, score it where there are masks, and pack it.

    Run again, it continues: finished images are skipped, and everything that concerns all images is
    computed from the files on disk.

    Raises:
        UserError: anything that keeps the archive from being made; images that are finished stay.
    """
    labelled = deliver.has_masks(job.data_path, job.mode)
    list_split = labelled_images if labelled else _images
    items = list_split(job.data_path, job.mode)
    segmenter = Segmenter(job.pretrained, config.predict, job.arch, job.num_classes)
    given = read_match(job.match_file, segmenter.num_classes) if job.match_file else None
    source = mask_source(config.masks, job.pretrained_sam)
    folder = job.dump_path / job.mode
    work = Worklist(
        folder,
        {**segmenter.settings, "masks": source.fingerprint, "data": str(job.data_path)},
    )
    masks = ImageMasks(source, job.run.masks(job.mode))
    unrefined = folder.with_name(f"{folder.name}_unrefined")
    rules: Counter[str] = Counter()
    # Left over from another mode or settings, it could be taken for this run's.
    (job.dump_path / ARCHIVE).unlink(missing_ok=True)

    def predict(item: ImageItem, target: Path) -> None:
        rgb = load_rgb(item.path)
        logits = segmenter.logits(rgb)
        label = segmenter.label(logits, rgb.shape[:2])
        refined = refine(
            label,
            masks=lambda: masks.masks(item.key, rgb),
            logits=logits,
            prompter=lambda points_xy, signs: source.prompt(rgb, points_xy, signs),
        )
        save_label(unrefined / f"{item.key}.png", label)
        save_label(target, refined.label)
        rules[refined.rule] += 1

    def is_complete(item: ImageItem, target: Path) -> bool:
        return is_whole_label(item, target) and is_whole_label(item, unrefined / f"{item.key}.png")

    work.run(items, predict, f"{STAGE} {job.mode}", is_complete)
    if rules:
        log.info(STAGE, ", ".join(f"{count} by {rule}" for rule, count in rules.most_common()))
    distributed.barrier()
    if distributed.is_main():
        finished = deliver.require_finished(work, items, job.allow_missing)
        match, match_split = _match_of(job, segmenter, finished, given)
        method = _disclosed(job.method, job.pretrained, job.run, match_split)
        deliver.pack(
            folder,
            job.data_path,
            job.mode,
            finished,
            job.dump_path / ARCHIVE,
            match,
            segmenter.num_classes,
            _method_of(method, segmenter, config.masks.source),
        )


def _match_of(
    job: RefinedRun, segmenter: Segmenter, items: list[ImageItem], given: Match | None
) -> tuple[Match | None, str | None]:
    """Score where there are masks; the match for the archive, and the split whose masks chose it.

    Only the validation split finds its own match where there is another: a test split's own masks
    must not name the clusters that are judged on them.
    """
    match, split = given, None
    if match is None and job.mode != VALIDATION:
        folders = (job.dump_path, job.run.predictions(VALIDATION))
        kept = deliver.kept_match(folders, segmenter.checkpoint_sha256, segmenter.num_classes)
        match, split = kept if kept else (None, None)
    if deliver.has_masks(job.data_path, job.mode):
        split = job.mode if match is None else split
        results: dict[str, EvaluationResult] = {}
        folder = job.dump_path / job.mode
        for name, labels in {
            "before_refinement": folder.with_name(f"{folder.name}_unrefined"),
            "after_refinement": folder,
        }.items():
            results[name] = evaluate(
                labels, job.data_path, job.mode, segmenter.num_classes, match, items=items
            )
        deliver.keep_evaluation(job.dump_path, job.mode, segmenter.checkpoint_sha256, results)
        match = results["after_refinement"].match
    return (None, None) if job.unmatched else (match, split)


def _disclosed(method: Method, segmenter: Path, run: RunFolder, match_split: str | None) -> Method:
    """``method`` with a note of what ground-truth masks decided on the way to these labels."""
    own = segmenter.is_relative_to(run.root)  # a published one: this run's threshold is not its
    chosen = deliver.chosen_by_masks(run.threshold if own else None, match_split)
    return replace(method, description=f"{method.description} ({chosen})") if chosen else method


def _method_of(method: Method, segmenter: Segmenter, masks: str) -> Method:
    """``method`` with the network's name, and without a claim of SAM where superpixels refined."""
    method = replace(method, network=segmenter.name)
    if masks == "sam":
        return method
    if method.method == Method.method:
        method = replace(method, method=method.method.replace("SAM", "superpixel"))
    return replace(method, description=f"{method.description} (masks: {masks}, not SAM)")


def _images(data: Path, split: str) -> list[ImageItem]:
    return list_images(split_folder(data, split))


def _auto_split(data: Path) -> str:
    for split in _AUTO:
        if (data / split).is_dir():
            return split
    raise UserError(f"{data} has none of the folders {', '.join(_AUTO)}; name one with SPLIT=...")


def _parsed_arch(arch: str | None) -> tuple[str | None, bool]:
    """(trunk or None, whether a UPerNet head was asked for) of ``-a``."""
    if arch is None:
        return None, False
    for trunk in ("resnet50", "resnet18"):
        if arch in (trunk, f"resnet_uppernet{trunk[6:]}", f"resnet_upernet{trunk[6:]}"):
            return trunk, arch != trunk
    raise UserError(
        f"unknown architecture {arch!r}: expected resnet50, resnet18, resnet_uppernet50 or "
        "resnet_uppernet18"
    )
