"""Step 1: image-to-image, deep-to-shallow and pixel-to-pixel self-supervised pretraining (PASS)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.data.imagenet_s import anonymous_order
from core.data.items import ImageItem
from core.data.layout import open_layout
from core.errors import UserError
from core.pipeline import origin
from core.pipeline.folders import TRAIN
from core.runtime import jt
from core.training.options import USUAL_OPTIONS, TrainOptions
from core.training.schedules import cosine
from core.training.stage import Training, check, check_crops, train, trainable
from models.pass_net import PretrainNet
from uss import objectives
from uss.config import Config, Pretrain
from uss.paths import RunFolder
from uss.pipeline import PRETRAIN
from uss.views import MultiCrop, MultiCropDataset


def run(config: Config, data: Path, out: RunFolder, options: TrainOptions = USUAL_OPTIONS) -> None:
    """Pretrain trunk ``config.arch`` on ``data/train`` into ``out.pretrain(arch)``; resumes.

    Raises:
        UserError: missing data, settings that cannot work, a run of other settings in the folder.
    """
    settings = config.pretrain
    items = anonymous_order(open_layout(data).images(TRAIN))
    check(PRETRAIN, config, len(items))
    _check(config, len(items))
    training = Training(
        images=len(items),
        sections=("arch", "heads", "assignment"),
        rate=cosine(settings.base_lr, settings.final_lr),
        dataset=lambda: MultiCropDataset(items, multi_crop(settings)),
        task=lambda: PretrainTask(build(config), config),
        supervision=origin.NONE,
        learnt_from=origin.images_of(data, TRAIN, len(items)),
    )
    train(PRETRAIN, config, out.pretrain(config.arch), options, training)


def rehearsal(config: Config, photo: ImageItem) -> tuple[PretrainTask, MultiCropDataset]:
    """The task with random weights, and a data set of one photograph: what a step costs."""
    dataset = MultiCropDataset([photo], multi_crop(config.pretrain))
    return PretrainTask(build(config), config), dataset


def build(config: Config) -> PretrainNet:
    """A new network for ``config``, drawn from its seed."""
    jt.set_global_seed(config.seed)
    heads = config.heads
    return PretrainNet(
        config.arch, heads.hidden_mlp, heads.feat_dim, heads.prototypes, config.pretrain.shallow
    )


def multi_crop(settings: Pretrain) -> MultiCrop:
    """The views of an image that this step compares."""
    return MultiCrop(
        settings.crop_sizes,
        settings.crop_counts,
        settings.min_scales,
        settings.max_scales,
        settings.distortion,
    )


class PretrainTask(objectives.PrototypeTask):
    """The pretraining loss of a batch (crops..., gridq, gridk)."""

    def __init__(self, model: PretrainNet, config: Config) -> None:
        super().__init__(model, trainable(model), config.pretrain, config.heads.feat_dim)
        self._config = config

    def loss(self, batch: Any, step: int) -> tuple[Any, dict[str, Any]]:
        """(total, {"image", "shallow<stage>"..., "pixel"}), each (1,) float32."""
        *crops, gridq, gridk = batch
        settings, assignment = self._config.pretrain, self._config.assignment
        self.model.normalise_prototypes()
        output = self.model(crops, gridq, gridk)
        targets = objectives.assignments(
            output.logits,
            output.embedding,
            self.model.prototypes.weight,
            crops[0].shape[0],
            assignment,
            self.queue,
        )
        image = objectives.swapped_loss(output.logits, targets, assignment.temperature)
        shallow = [
            objectives.deep_to_shallow_loss(logits, targets, assignment.temperature)
            for logits in output.shallow_logits
        ]
        pixel = objectives.pixel_loss(output.pixel_p, output.pixel_z)
        total = objectives.weighted_total(image, shallow, pixel, settings.loss_weights)
        parts = {f"shallow{stage}": term for stage, term in zip(settings.shallow, shallow)}
        return total, {"image": image, **parts, "pixel": pixel}


def _check(config: Config, images: int) -> None:
    """Stop before anything is loaded where the settings contradict each other."""
    objectives.check(PRETRAIN, config, images)
    settings = config.pretrain
    groups = {
        len(values)
        for values in (
            settings.crop_sizes,
            settings.crop_counts,
            settings.min_scales,
            settings.max_scales,
        )
    }
    if len(groups) != 1:
        raise UserError(
            "pretrain.crop_sizes, crop_counts, min_scales and max_scales must have one entry per "
            "crop size each"
        )
    check_crops(PRETRAIN, settings.crop_sizes)
    if not settings.crop_counts or settings.crop_counts[0] < objectives.ASSIGNED_VIEWS:
        raise UserError("pretrain.crop_counts must begin with at least 2: these are compared")
    if len(set(settings.shallow)) != len(settings.shallow) or not set(settings.shallow) <= {
        1,
        2,
        3,
    }:
        raise UserError(
            f"pretrain.shallow must be distinct stages out of 1, 2, 3, not {settings.shallow}"
        )
    if len(settings.loss_weights) != 1 + len(settings.shallow) or sum(settings.loss_weights) <= 0:
        raise UserError(
            f"pretrain.loss_weights needs {1 + len(settings.shallow)} numbers with a positive sum, "
            f"for the image loss and each stage of pretrain.shallow, not {settings.loss_weights}"
        )
