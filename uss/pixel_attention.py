"""Step 2.1: learn a pixel attention and the prototypes on the frozen step-1 network (PASS)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.checkpoints import files as checkpoint
from core.checkpoints.torch_reader import state_dict_of
from core.data.imagenet_s import anonymous_order
from core.data.items import ImageItem
from core.data.layout import open_layout
from core.pipeline import origin
from core.pipeline.folders import TRAIN
from core.runtime import jt
from core.training.options import USUAL_OPTIONS, TrainOptions
from core.training.schedules import cosine
from core.training.stage import Training, check, check_crops, source_fact, train
from models.pass_net import PixelAttentionNet
from uss import objectives, paths
from uss.config import Config, PixelAttention
from uss.networks import check_attention_threshold
from uss.paths import RunFolder
from uss.pipeline import PIXEL_ATTENTION
from uss.views import MultiCrop, MultiCropDataset

# What step 1 has and this stage has no use for, and what is new here.
_UNUSED_HEADS = ("projection_head_shallow.", "projection_head_pixel", "predictor_head_pixel.")
_NEW = ("fbg.",)


def run(config: Config, data: Path, out: RunFolder, options: TrainOptions = USUAL_OPTIONS) -> None:
    """Train the attention of ``config.arch`` on ``data/train`` into ``out.pixel_attention(arch)``.

    Only ``fbg`` and the prototypes learn; batch norms keep updating their running statistics, as in
    the reference. Resumes.

    Raises:
        UserError: missing data or step-1 checkpoint, one that does not cover the network, settings
            that cannot work, a run of other settings in the folder.
    """
    settings = config.pixel_attention
    items = anonymous_order(open_layout(data).images(TRAIN))
    check(PIXEL_ATTENTION, config, len(items))
    objectives.check(PIXEL_ATTENTION, config, len(items))
    check_attention_threshold(settings.threshold)
    check_crops(PIXEL_ATTENTION, (settings.crop_size,))
    source = paths.pretrained_input(out, config.arch)
    training = Training(
        images=len(items),
        sections=("arch", "heads", "assignment"),
        rate=cosine(settings.base_lr, settings.final_lr),
        facts=source_fact(PIXEL_ATTENTION, source, out.root, config.pretrain.epochs),
        dataset=lambda: MultiCropDataset(items, multi_crop(settings)),
        task=lambda: PixelAttentionTask(build(config, source), config),
        sources=lambda: [origin.source_of(source, out.root)],
        supervision=origin.NONE,
        learnt_from=origin.images_of(data, TRAIN, len(items)),
    )
    train(PIXEL_ATTENTION, config, out.pixel_attention(config.arch), options, training)


def rehearsal(config: Config, photo: ImageItem) -> tuple[PixelAttentionTask, MultiCropDataset]:
    """The task with random weights, and a data set of one photograph: what a step costs."""
    dataset = MultiCropDataset([photo], multi_crop(config.pixel_attention))
    return PixelAttentionTask(network(config), config), dataset


def network(config: Config) -> PixelAttentionNet:
    """A new network for ``config``, drawn from its seed."""
    jt.set_global_seed(config.seed)
    heads = config.heads
    return PixelAttentionNet(config.arch, heads.hidden_mlp, heads.feat_dim, heads.prototypes)


def build(config: Config, source: Path) -> PixelAttentionNet:
    """A network with all weights of step 1 and a new attention.

    Raises:
        UserError: ``source`` lacks a weight of trunk, projection head or prototypes.
    """
    model = network(config)
    checkpoint.load_state(
        model, state_dict_of(source), str(source), missing_ok=_NEW, unexpected_ok=_UNUSED_HEADS
    )
    return model


def multi_crop(settings: PixelAttention) -> MultiCrop:
    """The views of an image that this step compares."""
    return MultiCrop(
        (settings.crop_size,),
        (settings.crop_count,),
        (settings.min_scale,),
        (settings.max_scale,),
        settings.distortion,
    )


class PixelAttentionTask(objectives.PrototypeTask):
    """The image-to-image loss of attended features of a batch (crops..., gridq, gridk)."""

    def __init__(self, model: PixelAttentionNet, config: Config) -> None:
        section, feat_dim = config.pixel_attention, config.heads.feat_dim
        super().__init__(model, model.trainable_parameters(), section, feat_dim)
        self._config = config

    def loss(self, batch: Any, step: int) -> tuple[Any, dict[str, Any]]:
        """(image loss, {}), (1,) float32."""
        crops = batch[:-2]
        assignment = self._config.assignment
        self.model.normalise_prototypes()
        embedding, logits = self.model(crops, self._config.pixel_attention.threshold)
        targets = objectives.assignments(
            logits,
            embedding,
            self.model.prototypes.weight,
            crops[0].shape[0],
            assignment,
            self.queue,
        )
        return objectives.swapped_loss(logits, targets, assignment.temperature), {}
