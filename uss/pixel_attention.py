"""Step 2.1: learn a pixel attention and the prototypes on the frozen step-1 network (PASS)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.checkpoints import files as checkpoint
from core.checkpoints.torch_reader import state_dict_of
from core.data.imagenet_s import anonymous_order
from core.data.layout import open_layout
from core.runtime import jt
from core.training import loop
from core.training import stage as training_stage
from core.training.optim import LarcSGD
from core.training.options import USUAL_OPTIONS, TrainOptions
from models.pass_net import PixelAttentionNet
from uss import objectives, paths
from uss.config import Config, PixelAttention
from uss.networks import check_attention_threshold
from uss.paths import RunFolder
from uss.views import MultiCrop, MultiCropDataset

STAGE = "pixel_attention"

# What step 1 has and this stage has no use for, and what is new here.
_UNUSED_HEADS = ("projection_head_shallow.", "projection_head_pixel", "predictor_head_pixel.")
_NEW = ("fbg.",)


def run(config: Config, data: Path, run: RunFolder, options: TrainOptions = USUAL_OPTIONS) -> None:
    """Train the attention of ``config.arch`` on ``data/train`` into ``run.pixel_attention(arch)``.

    Only ``fbg`` and the prototypes learn; batch norms keep updating their running statistics, as in
    the reference. Resumes.

    Raises:
        UserError: missing data or step-1 checkpoint, one that does not cover the network, settings
            that cannot work, a run of other settings in the folder.
    """
    settings = config.pixel_attention
    items = anonymous_order(open_layout(data).images("train"))
    training_stage.check(config, STAGE, len(items))
    objectives.check_clusters(config, STAGE, len(items))
    check_attention_threshold(settings.threshold)
    training_stage.check_crops(STAGE, (settings.crop_size,))
    source = paths.pretrained_input(run, config.arch)
    facts = training_stage.source_fact(source, run.root, STAGE, config.pretrain.epochs)
    plan = training_stage.make_plan(
        config,
        STAGE,
        run.pixel_attention(config.arch),
        ("heads", "assignment"),
        {"images": len(items), **facts},
        options,
    )
    previous = loop.previous_run(plan)
    if loop.finished(plan, previous):
        return
    dataset = MultiCropDataset(items, multi_crop(settings))
    model = build(config, source)
    optimizer = LarcSGD(
        model.trainable_parameters(),
        settings.momentum,
        settings.weight_decay,
        larc=settings.larc,
    )
    loader = training_stage.make_loader(config, STAGE, dataset)
    loop.fit(plan, model, optimizer, loader, PixelAttentionTask(model, config), previous)


def build(config: Config, source: Path) -> PixelAttentionNet:
    """A network with all weights of step 1 and a new attention.

    Raises:
        UserError: ``source`` lacks a weight of trunk, projection head or prototypes.
    """
    jt.set_global_seed(config.seed)
    heads = config.heads
    model = PixelAttentionNet(config.arch, heads.hidden_mlp, heads.feat_dim, heads.prototypes)
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
        super().__init__(config.pixel_attention, config.heads.feat_dim)
        self.model, self._config = model, config

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
