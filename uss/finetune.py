"""Step 3: train the segmenter on pseudo labels, background included."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core import config as core_config
from core import log
from core.checkpoints import files as checkpoint
from core.checkpoints.torch_reader import state_dict_of
from core.data.crops import resize_nearest_floor
from core.data.datasets import JointDataset
from core.data.imagenet_s import anonymous_order
from core.data.images import load_rgb
from core.data.items import ImageItem
from core.data.label_maps import load_label, save_label
from core.data.layout import open_layout
from core.errors import UserError
from core.files import read_json
from core.nn.layers import cross_entropy, resize_bilinear
from core.pipeline import origin
from core.pipeline.folders import TRAIN
from core.runtime import jt
from core.training.loop import Task
from core.training.optim import LarcSGD
from core.training.options import USUAL_OPTIONS, TrainOptions
from core.training.schedules import cosine
from core.training.stage import Training, check, check_crops, source_fact, train, trainable
from models.pass_net import PlainSegmenter
from models.upernet import UPerNet
from uss import origins, paths
from uss.config import HEADS, Config
from uss.paths import RunFolder
from uss.pipeline import FINETUNE

TRUNK = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")
HEAD = ("last_layer.",)
_LABELS_LOOKED_AT = 100  # before training; while it runs every label is checked
_LOGIT_STD = 0.01  # of the weights that give the logits


def run(config: Config, data: Path, out: RunFolder, options: TrainOptions = USUAL_OPTIONS) -> None:
    """Train the segmenter on ``data/train`` and its pseudo labels into ``out.segmenter``; resumes.

    Raises:
        UserError: missing data, labels or trunk checkpoint, labels of another class count, settings
            that cannot work, a run of other settings in the folder.
    """
    settings = config.finetune
    _check(config)
    _check_class_count(config, out)
    labels = out.pseudo_labels(TRAIN)
    images = anonymous_order(open_layout(data).images(TRAIN))
    items, contents, sizes = labelled_images(images, labels)
    check(FINETUNE, config, len(items))
    core_config.require_positive({"num_classes": config.num_classes})
    check_crops(FINETUNE, (settings.crop_size,))
    source = paths.trunk_input(out, config.arch)
    facts = source_fact(FINETUNE, source, out.root, config.pretrain.epochs)

    def dataset() -> JointDataset:
        _check_classes(config, items, labels)
        return JointDataset(items, labels, settings.crop_size, settings.min_scale)

    training = Training(
        images=len(items),
        sections=("arch", "num_classes"),
        facts={"labels_sha256": contents, **facts},
        earlier_facts={"labels_sha256": sizes},
        rate=cosine(settings.base_lr, settings.final_lr),
        dataset=dataset,
        task=lambda: FinetuneTask(build(config, source), config, labels),
        sources=lambda: [origin.source_of(source, out.root), origins.of_labels(out, items)],
        supervision=origin.NONE,
        learnt_from=origin.images_of(data, TRAIN, len(items)),
    )
    train(FINETUNE, config, out.segmenter, options, training)


def rehearsal(config: Config, photo: ImageItem) -> tuple[FinetuneTask, JointDataset]:
    """The task with random weights, and a data set of one photograph: what a step costs.

    Its label map, noise of all classes, is written beside the photograph.
    """
    settings, labels = config.finetune, photo.path.parent / "labels"
    size = load_rgb(photo.path).shape[:2]
    noise = np.random.default_rng(0).integers(0, config.num_classes + 1, size)
    save_label(labels / f"{photo.key}.png", noise.astype(np.int32))
    dataset = JointDataset([photo], labels, settings.crop_size, settings.min_scale)
    jt.set_global_seed(config.seed)
    return FinetuneTask(network(config), config, labels), dataset


def network(config: Config) -> UPerNet | PlainSegmenter:
    """A new segmenter with the head of ``config``, drawn from Jittor's generator."""
    if config.finetune.head == "plain":
        return PlainSegmenter(config.arch, config.num_classes)
    return UPerNet(config.arch, config.num_classes, config.finetune.head_width)


def build(config: Config, source: Path) -> UPerNet | PlainSegmenter:
    """A segmenter with the trunk of checkpoint ``source`` and a new head.

    Raises:
        UserError: ``source`` lacks a weight of the trunk, or is of another architecture.
    """
    jt.set_global_seed(config.seed)
    model = network(config)
    trunk = {key: value for key, value in state_dict_of(source).items() if key.startswith(TRUNK)}
    checkpoint.load_state(model, trunk, str(source), missing_ok=HEAD)
    head = model.last_layer
    _start_small(head if config.finetune.head == "plain" else head.conv_seg)
    return model


def labelled_images(items: Sequence[ImageItem], labels: Path) -> tuple[list[ImageItem], str, str]:
    """(images that have a pseudo label, SHA-256 of names and contents of the label files, SHA-256
    of their names and sizes, which runs of earlier versions recorded instead).

    An image that cannot be read got no label: it is named and left out.

    Raises:
        UserError: a sound image has no label.
    """
    found, contents, sizes = [], hashlib.sha256(), hashlib.sha256()
    for item in log.progress(items, f"{FINETUNE.command}, reading labels", total=len(items)):
        try:
            content = (labels / f"{item.key}.png").read_bytes()
        except OSError:
            _require_broken(item, labels)
            continue
        found.append(item)
        contents.update(f"{item.key} {hashlib.sha256(content).hexdigest()}\n".encode())
        sizes.update(f"{item.key} {len(content)}\n".encode())
    return found, contents.hexdigest(), sizes.hexdigest()


class FinetuneTask(Task):
    """Mean cross entropy of a batch (images, label maps) at a fraction of the crop's size."""

    def __init__(self, model: Any, config: Config, labels: Path) -> None:
        section = config.finetune
        optimizer = LarcSGD(
            trainable(model), section.momentum, section.weight_decay, larc=section.larc
        )
        super().__init__(model, optimizer)
        self._config, self._labels = config, labels

    def loss(self, batch: Any, step: int) -> tuple[Any, dict[str, Any]]:
        """(cross entropy over num_classes + 1 labels, {}), (1,) float32."""
        images, labels = batch
        classes = self._config.num_classes
        _require_classes(labels, classes, self._labels)
        side = round(labels.shape[1] * self._config.finetune.label_scale)
        labels = resize_nearest_floor(labels, (side, side))
        logits = resize_bilinear(self.model(jt.array(images)), (side, side))
        return cross_entropy(logits, labels), {}


def _check_class_count(config: Config, out: RunFolder) -> None:
    """Stop where this run's labels were made for another class count, which labels of fewer classes
    do not show themselves.
    """
    if not out.threshold.is_file():
        return  # labels that came from elsewhere
    noted = read_json(out.threshold, "what the pseudo labels left").get("num_classes")
    if noted not in (None, config.num_classes):
        raise UserError(
            f"{FINETUNE.section}: {out.pseudo_labels(TRAIN)} has labels of {noted} classes, but "
            f"num_classes is {config.num_classes}; use --set num_classes={noted}, or make them "
            f"with this class count: bash train_3.sh"
        )


def _check_classes(config: Config, items: Sequence[ImageItem], labels: Path) -> None:
    """Stop before training where labels of another class count show in some of the files."""
    step = max(len(items) // _LABELS_LOOKED_AT, 1)
    for item in items[::step]:
        _require_classes(load_label(labels / f"{item.key}.png"), config.num_classes, labels)


def _require_classes(label: np.ndarray, classes: int, labels: Path) -> None:
    if label.min() < 0 or label.max() > classes:
        raise UserError(
            f"{FINETUNE.section}: labels in {labels} reach {label.max()}, but num_classes is "
            f"{classes}; make them with this class count: bash train_3.sh"
        )


def _start_small(layer: Any) -> None:
    """Weights of the layer that gives the logits, drawn small, so that all classes start alike.

    The reference scales them by the number of outputs: with hundreds of inputs and few classes the
    logits start at a deviation of 20, and short runs end before that is unlearnt.
    """
    layer.weight.update(jt.init.gauss(layer.weight.shape, "float32", 0.0, _LOGIT_STD))
    layer.weight.start_grad()


def _require_broken(item: ImageItem, labels: Path) -> None:
    """Complain about a missing label, unless its image cannot be read anyway."""
    try:
        load_rgb(item.path)
    except UserError as error:
        log.warn(FINETUNE.command, f"{error}; it has no pseudo label and is left out")
        return
    raise UserError(
        f"{FINETUNE.section}: {labels} has no label for {item.path} ({item.key}.png); make or "
        f"complete the pseudo labels with: bash train_3.sh"
    )


def _check(config: Config) -> None:
    """Stop before anything is loaded where a setting cannot work."""
    settings = config.finetune
    if settings.head not in HEADS:
        raise UserError(f"finetune.head must be one of {', '.join(HEADS)}, not {settings.head!r}")
    if not 0 < settings.label_scale <= 1:
        raise UserError(f"finetune.label_scale must be in 0..1, is {settings.label_scale}")
    if settings.head_width < 1:
        raise UserError(f"finetune.head_width must be positive, is {settings.head_width}")
    if settings.batch_size < 2:
        raise UserError("finetune.batch_size must be at least 2: batch norm compares images")
