"""How long a preset would take on this machine, and how much memory: measured, not guessed.

A few training steps of each network and SAM's masks of one image are timed in processes of their
own, with small batches of the preset's crops. Steps of two batch sizes tell what a step costs by
itself from what an image costs; memory grows with the batch alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from core import log
from core.errors import UserError
from core.text import duration
from core.work.child import Child, ChildFailed
from core.work.pool import usable_cores
from tools.doctor.measure import Step
from uss.config import Config
from uss.presets import preset

STAGE = "doctor"
SECONDS = 30.0
_START_S = 1800.0  # until a cold machine has compiled Jittor, and then its kernels
# A forward pass is so much of a training step, as measured for ResNet50.
_FORWARD = 0.3


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
        pretrain = _measure(("uss.pretrain", config, share), rows, f"pretrain {config.arch}")
        rows += _training(config, "pretrain", pretrain, counts.train)
        attention = _measure(
            ("uss.pixel_attention", config, share), rows, f"pixel-attention {config.arch}"
        )
        rows += _training(config, "pixel_attention", attention, counts.train)
        rows += _clustering(config, attention, counts)
    labeller, segmenter = configs[-1], configs[0]
    masks = None
    if labeller.pseudo_labels.per_mask or not published:
        masks = _measure(("masks", labeller, share), rows, "masks")
    rows += _labelling(labeller, attention, masks, counts)
    step = _measure(("uss.finetune", segmenter, share), rows, f"finetune {segmenter.arch}")
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
    return [Row(title, images, images * each, None, f"{masks or 0:.2f} s of an image for masks")]


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
        # The masks of the validation images are there: the pseudo labels' threshold needed them.
        seconds = None if masks is None else images * forward + counts.test * masks
        note = "not measured" if masks is None else f"{masks:.2f} s for the masks of a test image"
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
    child = Child("tools.doctor.measure:answerer", None)
    try:
        child.start(_START_S)
        return child.ask(request, _START_S)
    except (ChildFailed, UserError) as error:
        rows.append(Row(title, 0, None, None, str(error)))
        return None
    finally:
        child.close()


# Text -------------------------------------------------------------------------------------------


def to_json(rows: list[Row]) -> list[dict[str, Any]]:
    """For ``--json``."""
    return [asdict(row) for row in rows]


def format_rows(rows: list[Row]) -> str:
    """A table, with the sum of the times."""
    lines = [f"{'stage':26}{'images':>9}{'time':>12}{'memory':>10}  note"]
    for row in rows:
        memory = "" if row.memory_mib is None else f"{row.memory_mib / 1024:.1f} GiB"
        lines.append(
            f"{row.stage:26}{row.images:>9}{duration(row.seconds):>12}{memory:>10}  {row.note}"
        )
    whole = sum(row.seconds or 0.0 for row in rows)
    missing = any(row.seconds is None for row in rows)
    lines.append(f"{'all':26}{'':>9}{duration(whole):>12}{'' if not missing else '  at least'}")
    return "\n".join(lines)
