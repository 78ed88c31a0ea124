"""How long a preset would take on this machine, and how much memory: measured, not guessed.

A few training steps of each network and SAM's masks of one image are timed in processes of their
own, with small batches of the preset's crops. Steps of two batch sizes tell what a step costs by
itself from what an image costs; memory grows with the batch alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from core import log
from core.child import Child, ChildFailed
from core.errors import UserError
from core.parallel import usable_cores
from core.resident import resident_mib
from sam.masks import layer_point_grids
from uss.config import Config, preset

STAGE = "doctor"
SECONDS = 30.0
_BATCHES = (2, 4)
_PHOTO_HW = (375, 500)  # of an image of ImageNet
_START_S = 1800.0  # until a cold machine has compiled Jittor, and then its kernels
_GRID = 8  # points a side of the measured masks
# A forward pass is so much of a training step, as measured for ResNet50.
_FORWARD = 0.3


@dataclass(frozen=True)
class Step:
    """What a training step takes: ``fixed_s`` and ``fixed_mib`` of itself, the rest an image."""

    fixed_s: float
    image_s: float
    fixed_mib: float
    image_mib: float
    sample_s: float
    """Making the crops of an image on one core."""
    compile_s: float
    on_gpu: bool


@dataclass(frozen=True)
class Row:
    """The estimate of one stage; ``seconds`` is None where it could not be measured."""

    stage: str
    images: int
    seconds: float | None
    memory_mib: float | None
    note: str = ""


@dataclass(frozen=True)
class Counts:
    """Images of the splits."""

    train: int
    validation: int
    test: int


def estimate(
    name: str, config_of: Callable[[Config], Config], counts: Counts, seconds: float
) -> list[Row]:
    """The stages of a preset with the time and memory that they would take in one process.

    Args:
        name: of the preset.
        config_of: applies the user's settings to each configuration of it.
        counts: of the data set.
        seconds: to spend on measuring, compilation not counted.
    """
    published = name.startswith("pass")
    archs: tuple[str | None, ...] = (None,) if published else ("resnet50", "resnet18")
    configs = [config_of(preset(name, arch)) for arch in archs]
    share = seconds / (2 * len(configs) + 2)
    rows: list[Row] = []
    attention: Step | None = None
    for config in configs:
        pretrain = _measure(("pretrain", config, share), rows, f"pretrain {config.arch}")
        rows += _training(config, "pretrain", pretrain, counts.train)
        attention = _measure(
            ("pixel_attention", config, share), rows, f"pixel-attention {config.arch}"
        )
        rows += _training(config, "pixel_attention", attention, counts.train)
        rows += _clustering(config, attention, counts)
    labeller, segmenter = configs[-1], configs[0]
    masks = None
    if labeller.pseudo_labels.per_mask or not published:
        masks = _measure(("masks", labeller, share), rows, "masks")
    rows += _labelling(labeller, attention, masks, counts)
    step = _measure(("finetune", segmenter, share), rows, f"finetune {segmenter.arch}")
    rows += _training(segmenter, "finetune", step, counts.train)
    rows += _predicting(segmenter, step, None if published else masks, counts, published)
    return rows


# Rows -------------------------------------------------------------------------------------------


def _training(config: Config, stage: str, step: Step | None, images: int) -> list[Row]:
    if step is None:
        return []
    section = getattr(config, stage)
    steps = section.epochs * (images // section.batch_size)
    compute = step.fixed_s + section.batch_size * step.image_s
    samples = section.batch_size * step.sample_s / max(1, min(config.workers, usable_cores()))
    # On a CPU the workers' time is taken from the network's.
    seconds = max(compute, samples) if step.on_gpu else compute + samples
    memory = step.fixed_mib + section.batch_size * step.image_mib
    title = f"{stage.replace('_', '-')} {config.arch}"
    note = f"{section.epochs} epochs, batch {section.batch_size}"
    return [Row(title, images, steps * seconds, memory, note)]


def _clustering(config: Config, step: Step | None, counts: Counts) -> list[Row]:
    if step is None:
        return []
    each = _forward_s(step, config, config.cluster.crop**2) + step.sample_s / usable_cores()
    images = counts.train + counts.validation
    return [Row(f"cluster {config.arch}", images, images * each, None, "one forward pass")]


def _labelling(config: Config, step: Step | None, masks: float | None, counts: Counts) -> list[Row]:
    images = counts.train + counts.validation
    title = f"pseudo-labels {config.arch}"
    if step is None or (masks is None and config.pseudo_labels.per_mask):
        return [Row(title, images, None, None, "not measured")]
    each = _forward_s(step, config, _pixels(config.pseudo_labels.resize)) + (masks or 0.0)
    return [Row(title, images, images * each, None, f"{masks or 0:.2f} s of it for masks")]


def _predicting(
    config: Config, step: Step | None, masks: float | None, counts: Counts, published: bool
) -> list[Row]:
    if step is None:
        return []
    images = counts.validation + counts.test
    forward = (
        step.image_s * _FORWARD * _pixels(config.predict.resize) / config.finetune.crop_size**2
    )
    rows = [Row(f"predict {config.arch}", images, images * forward, None, "one forward pass")]
    if not published:
        seconds = None if masks is None else images * (forward + masks)
        note = "not measured" if masks is None else f"{masks:.2f} s of it for masks"
        rows.append(Row("test.py, both splits", images, seconds, None, note))
    return rows


def _forward_s(step: Step, config: Config, pixels: float) -> float:
    """Seconds of the attention network on one image of so many pixels."""
    seen = config.pixel_attention.crop_count * config.pixel_attention.crop_size**2
    return step.image_s * _FORWARD * pixels / seen


def _pixels(resize: int) -> float:
    """Of a 4:3 image whose shorter side is ``resize``."""
    return resize * resize * 4 / 3


# Measuring --------------------------------------------------------------------------------------


def _measure(request: tuple[str, Config, float], rows: list[Row], title: str) -> Any:
    """The answer of a new process; None, with a row that says why, where there is none."""
    log.info(STAGE, f"measuring {title} (compiles kernels at the first use)")
    child = Child("uss.doctor_estimate:answerer", None)
    try:
        child.start(_START_S)
        return child.ask(request, _START_S)
    except (ChildFailed, UserError) as error:
        rows.append(Row(title, 0, None, None, str(error)))
        return None
    finally:
        child.close()


def answerer(setup: None) -> Any:
    """For ``core.child``: answers (what, configuration, seconds)."""

    def answer(request: tuple[str, Config, float]) -> Any:
        what, config, seconds = request
        return measure_masks(config, seconds) if what == "masks" else measure_step(*request)

    return answer


def measure_masks(config: Config, seconds: float) -> float:
    """Seconds for the masks of a photograph, from a coarser grid of points than the preset's."""
    from uss.image_masks import mask_source

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
    from core.optim import LarcSGD
    from core.runtime import jt
    from core.training import train_step

    started = time.monotonic()
    section = getattr(config, stage)
    model, task, parameters = _network(stage, config)
    model.train()
    optimizer = LarcSGD(parameters, section.momentum, section.weight_decay, larc=section.larc)
    jt.sync_all()
    base = resident_mib()
    medians, peaks = [], []
    compiled = 0.0
    for size in _BATCHES:
        batch = _batch(stage, config, size)

        def step(batch: Any = batch) -> None:
            train_step(optimizer, task, batch, section.epochs, section.base_lr)

        step()
        if not compiled:
            compiled = time.monotonic() - started
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
        compile_s=compiled,
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
    from uss import finetune, pretrain, train_stage

    if stage == "pretrain":
        model = pretrain.build(config)
        return model, pretrain.PretrainTask(model, config), train_stage.trainable(model)
    if stage == "finetune":
        model = finetune.network(config)
        task = finetune.FinetuneTask(model, config, Path("labels"))
        return model, task, train_stage.trainable(model)
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
    views = _views(stage, config)
    crops = [rng.standard_normal((size, 3, side, side), np.float32) for side in views]
    grids = rng.uniform(-1, 1, (2, size, 7, 7, 2)).astype(np.float32)
    return (*crops, *grids)


def _views(stage: str, config: Config) -> list[int]:
    """Sides of the crops of an image, in pixels."""
    if stage == "pretrain":
        settings = config.pretrain
        return [s for s, n in zip(settings.crop_sizes, settings.crop_counts) for _ in range(n)]
    return [config.pixel_attention.crop_size] * config.pixel_attention.crop_count


def _sample_s(stage: str, config: Config) -> float:
    """Seconds of one core for the crops of a photograph, its file's decoding included."""
    import io

    from PIL import Image

    from core.data import crops as core_crops

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
        settings = getattr(config, stage)
        multi = core_crops.MultiCrop(*_crop_settings(stage, settings))

        def crop(rgb: np.ndarray) -> Any:
            return multi(rgb, rng)

    def sample() -> None:
        with Image.open(io.BytesIO(file.getvalue())) as image:
            crop(np.asarray(image.convert("RGB")))

    return _median_s(sample, 0.3)


def _crop_settings(stage: str, settings: Any) -> tuple[Any, ...]:
    if stage == "pretrain":
        return (settings.crop_sizes, settings.crop_counts, settings.min_scales, settings.max_scales)
    return (
        (settings.crop_size,),
        (settings.crop_count,),
        (settings.min_scale,),
        (settings.max_scale,),
    )


def _photo() -> np.ndarray:
    """A uint8 RGB picture (375, 500, 3) with objects."""
    from core.data.scenes import KINDS, render

    rgb, _ = render(KINDS[0], *_PHOTO_HW, np.random.RandomState(0))
    return rgb


# Text -------------------------------------------------------------------------------------------


def to_json(rows: list[Row]) -> list[dict[str, Any]]:
    """For ``--json``."""
    return [asdict(row) for row in rows]


def format_rows(rows: list[Row]) -> str:
    """A table, with the sum of the times."""
    lines = [f"{'stage':26}{'images':>9}{'time':>10}{'memory':>10}  note"]
    for row in rows:
        memory = "" if row.memory_mib is None else f"{row.memory_mib / 1024:.1f} GiB"
        lines.append(
            f"{row.stage:26}{row.images:>9}{duration(row.seconds):>10}{memory:>10}  {row.note}"
        )
    whole = sum(row.seconds or 0.0 for row in rows)
    missing = any(row.seconds is None for row in rows)
    lines.append(f"{'all':26}{'':>9}{duration(whole):>10}{'' if not missing else '  at least'}")
    return "\n".join(lines)


def duration(seconds: float | None) -> str:
    """For people: 45 s, 12 min, 3.4 h, 5.1 days."""
    if seconds is None:
        return "?"
    for unit, size, below in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < below * size:
            return f"{seconds / size:.{0 if seconds / size >= 10 else 1}f} {unit}"
    return f"{seconds / 86400:.1f} days"
