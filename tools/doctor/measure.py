"""How long training steps of a preset and SAM's masks of an image take on this machine.

Runs in a process of its own (:func:`answerer`), which starts Jittor and compiles kernels.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core.data import crops as core_crops
from core.memory import resident_mib
from core.synthetic.scenes import KINDS, render
from sam.masks import layer_point_grids
from uss import views
from uss.config import Config

_BATCHES = (2, 4)
_PHOTO_HW = (375, 500)  # of an image of ImageNet
_GRID = 8  # points a side of the measured masks


@dataclass(frozen=True)
class Step:
    """What a training step takes: ``fixed_s`` and ``fixed_mib`` of itself, the rest an image."""

    fixed_s: float
    image_s: float
    fixed_mib: float
    image_mib: float
    sample_s: float
    """Making the crops of an image on one core."""
    on_gpu: bool
    image_pixels: float = 1.0
    """Of the crops that the network sees of one image."""


def answerer(setup: None) -> Any:
    """For ``core.work.child``: answers (what, configuration, seconds)."""

    def answer(request: tuple[str, Config, float]) -> Any:
        what, config, seconds = request
        return measure_masks(config, seconds) if what == "masks" else measure_step(*request)

    return answer


def measure_masks(config: Config, seconds: float) -> float:
    """Seconds for the masks of a photograph, from a coarser grid of points than the preset's."""
    from refine.mask_sources import mask_source

    settings = config.masks
    grids = layer_point_grids(
        settings.points_per_side, settings.crop_n_layers, settings.crop_n_points_downscale_factor
    )
    crops = sum(4**layer for layer in range(len(grids)))
    points = sum(4**layer * len(grid) for layer, grid in enumerate(grids))
    source = mask_source(replace(settings, points_per_side=_GRID, crop_n_layers=0))
    photo = _photo()
    source.generate(photo)
    times: list[float] = []
    encodings: list[float] = []
    begin = time.monotonic()
    while not times or time.monotonic() - begin < seconds / 2:
        encoded, started = source.encoding_s, time.monotonic()
        source.generate(photo)
        encodings.append(source.encoding_s - encoded)
        times.append(time.monotonic() - started)
    encoding, whole = statistics.median(encodings), statistics.median(times)
    if settings.source != "sam":
        return whole
    return encoding * crops + (whole - encoding) * points / _GRID**2


def measure_step(stage: str, config: Config, seconds: float) -> Step:
    """Time and memory of steps of a training stage with random weights and noise."""
    from core.runtime import jt
    from core.training.loop import train_step
    from core.training.optim import LarcSGD

    section = getattr(config, stage)
    model, task, parameters = _network(stage, config)
    model.train()
    optimizer = LarcSGD(parameters, section.momentum, section.weight_decay, larc=section.larc)
    jt.sync_all()
    base = resident_mib()
    medians, peaks = [], []
    for size in _BATCHES:
        batch = _batch(stage, config, size)

        def step(batch: Any = batch) -> None:
            train_step(optimizer, task, batch, section.epochs, section.base_lr)

        step()
        medians.append(_median_s(step, seconds / 2 / len(_BATCHES)))
        peaks.append(resident_mib("VmHWM"))
    (small, large), (first, second) = _BATCHES, medians
    # What does not grow with the batch; bounded, for short measurements scatter.
    fixed = min(max(first - small * (second - first) / (large - small), 0.0), first / 2)
    memory = max(peaks[1] - peaks[0], 0.0) / (large - small)
    return Step(
        fixed_s=fixed,
        image_s=(second - fixed) / large,
        fixed_mib=max(peaks[1] - large * memory, base),
        image_mib=memory,
        sample_s=_sample_s(stage, config),
        on_gpu=bool(jt.flags.use_cuda),
    )


def _median_s(work: Callable[[], None], seconds: float) -> float:
    times: list[float] = []
    begin = time.monotonic()
    while not times or time.monotonic() - begin < seconds:
        started = time.monotonic()
        work()
        times.append(time.monotonic() - started)
    return statistics.median(times)


def _network(stage: str, config: Config) -> tuple[Any, Any, dict[str, Any]]:
    """(network, task, what learns) of a training stage, with random weights."""
    from core.training import stage as training_stage
    from uss import finetune, pretrain

    if stage == "pretrain":
        model = pretrain.build(config)
        return model, pretrain.PretrainTask(model, config), training_stage.trainable(model)
    if stage == "finetune":
        model = finetune.network(config)
        task = finetune.FinetuneTask(model, config, Path("labels"))
        return model, task, training_stage.trainable(model)
    from models.pass_net import PixelAttentionNet
    from uss.pixel_attention import PixelAttentionTask

    heads = config.heads
    attention = PixelAttentionNet(config.arch, heads.hidden_mlp, heads.feat_dim, heads.prototypes)
    return attention, PixelAttentionTask(attention, config), attention.trainable_parameters()


def _batch(stage: str, config: Config, size: int) -> Any:
    """Noise in the form of a batch of the stage's loader."""
    rng = np.random.default_rng(0)
    if stage == "finetune":
        side = config.finetune.crop_size
        labels = rng.integers(0, config.num_classes + 1, (size, side, side)).astype(np.int32)
        return rng.standard_normal((size, 3, side, side), np.float32), labels
    views = _multi_crop(stage, config).views
    crops = [rng.standard_normal((size, 3, side, side), np.float32) for side, _, _ in views]
    grids = rng.uniform(-1, 1, (2, size, 7, 7, 2)).astype(np.float32)
    return (*crops, *grids)


def _multi_crop(stage: str, config: Config) -> views.MultiCrop:
    """The views that a self-supervised stage makes of an image."""
    from uss import pixel_attention, pretrain

    if stage == "pretrain":
        return pretrain.multi_crop(config.pretrain)
    return pixel_attention.multi_crop(config.pixel_attention)


def _sample_s(stage: str, config: Config) -> float:
    """Seconds of one core for the crops of a photograph, its file's decoding included."""
    photo = _photo()
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=90)
    rng = np.random.default_rng(0)
    if stage == "finetune":
        joint = core_crops.JointCrop(config.finetune.crop_size, config.finetune.min_scale)
        label = np.zeros(photo.shape[:2], np.int32)

        def crop(rgb: np.ndarray) -> Any:
            return joint(rgb, label, rng)
    else:
        multi = _multi_crop(stage, config)

        def crop(rgb: np.ndarray) -> Any:
            return multi(rgb, rng)

    def sample() -> None:
        with Image.open(io.BytesIO(file.getvalue())) as image:
            crop(np.asarray(image.convert("RGB")))

    return _median_s(sample, 0.3)


def _photo() -> np.ndarray:
    """A uint8 RGB picture (375, 500, 3) with objects."""
    rgb, _ = render(KINDS[0], *_PHOTO_HW, np.random.RandomState(0))
    return rgb
