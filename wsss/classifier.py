"""Step 1: a classifier of images, from image labels alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core import config as core_config
from core.checkpoints import files as checkpoint
from core.checkpoints.torch_reader import state_dict_of
from core.data.datasets import ClassesDataset
from core.data.image_labels import ImageLabels
from core.data.items import ImageItem
from core.data.layout import image_labels, open_layout
from core.errors import UserError
from core.files import sha256_of, sha256_of_json
from core.nn.layers import binary_cross_entropy
from core.pipeline import origin
from core.runtime import jt
from core.training.descent import Group
from core.training.loop import Task
from core.training.optim import LarcSGD
from core.training.options import USUAL_OPTIONS, TrainOptions
from core.training.schedules import poly
from core.training.stage import Training, check, train, trainable
from models.classifier import Classifier
from wsss.config import Config
from wsss.paths import RunFolder
from wsss.pipeline import CLASSIFIER

_HEAD = ("classifier.",)


def run(config: Config, data: Path, out: RunFolder, options: TrainOptions = USUAL_OPTIONS) -> None:
    """Train the classifier on the images of ``classifier.split`` into ``out.classifier``; resumes.

    Raises:
        UserError: missing images or labels, another class count, settings that cannot work, a run
            of other settings in the folder.
    """
    core_config.check(config)
    settings = config.classifier
    items, labels = labelled(config, data)
    check(CLASSIFIER, config, len(items))
    source = out.given_checkpoint
    training = Training(
        images=len(items),
        rate=poly(settings.base_lr, settings.power),
        dataset=lambda: _dataset(items, labels, config),
        task=lambda: ClassifierTask(build(config, source), config),
        sections=("arch", "num_classes"),
        facts={
            "labels_sha256": sha256_of_json(labels),
            "starts_from_sha256": source and sha256_of(source),
        },
        sources=lambda: [origin.source_of(source, out.root)] if source else [],
        supervision=origin.LABELS,
        learnt_from=origin.images_of(data, settings.split, len(items)),
    )
    train(CLASSIFIER, config, out.classifier, options, training)


def rehearsal(config: Config, photo: ImageItem) -> tuple[ClassifierTask, ClassesDataset]:
    """The task with random weights, and a data set of one photograph: what a step costs."""
    dataset = _dataset([photo], {photo.key: (1,)}, config)
    return ClassifierTask(build(config, None), config), dataset


def labelled(config: Config, data: Path) -> tuple[list[ImageItem], ImageLabels]:
    """The images to train on that show a class, and the classes 1..C of each by key.

    Raises:
        UserError: no image labels, none with a class, or those of another class count.
    """
    layout, split = open_layout(data), config.classifier.split
    found, names = image_labels(layout, split), layout.class_names(split)
    if len(names) != config.num_classes:
        raise UserError(
            f"{data} has {len(names)} classes, but num_classes is {config.num_classes}; use --set "
            f"num_classes={len(names)}"
        )
    labels = {key: ids for key, ids in found.items() if ids}
    items = [item for item in layout.images(split) if item.key in labels]
    if not items:
        raise UserError(f"{data}: no image of {split} shows a class; nothing can be learnt")
    return items, {item.key: labels[item.key] for item in items}


def _dataset(items: list[ImageItem], labels: ImageLabels, config: Config) -> ClassesDataset:
    settings = config.classifier
    return ClassesDataset(items, labels, config.num_classes, settings.crop_size, settings.min_scale)


def build(config: Config, source: Path | None) -> Classifier:
    """A new classifier, drawn from the seed; with the trunk of checkpoint ``source`` where given.

    Raises:
        UserError: ``source`` lacks a weight of the trunk, or is of another architecture.
    """
    jt.set_global_seed(config.seed)
    model = Classifier(config.arch, config.num_classes)
    if source is not None:
        own = model.state_dict().keys()
        state = {name: value for name, value in state_dict_of(source).items() if name in own}
        checkpoint.load_state(model, state, str(source), missing_ok=_HEAD)
    return model


class ClassifierTask(Task):
    """Mean binary cross entropy of a batch (images, classes); the trunk learns at its own rate."""

    def __init__(self, model: Classifier, config: Config) -> None:
        settings, parameters = config.classifier, trainable(model)
        head = {name: var for name, var in parameters.items() if name.startswith(_HEAD)}
        trunk = {name: var for name, var in parameters.items() if name not in head}
        groups = [Group(trunk, rate=settings.trunk_rate), Group(head)]
        sgd = LarcSGD(groups, settings.momentum, settings.weight_decay, larc=False)
        super().__init__(model, sgd)

    def loss(self, batch: Any, step: int) -> tuple[Any, dict[str, Any]]:
        """(cross entropy, {"accuracy": share of right answers}), (1,) float32."""
        images, wanted = jt.array(batch[0]), jt.array(batch[1])
        logits = self.model(images)
        right = ((logits > 0.0).float32() - wanted).abs() < 0.5
        parts = {"accuracy": right.float32().mean().stop_grad()}
        return binary_cross_entropy(logits, wanted), parts
