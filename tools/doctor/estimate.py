"""How long each stage would take on this machine, and how much memory: measured, not guessed.

A few training steps of each network and SAM's masks of one image are timed in processes of their
own, with small batches of the preset's crops. Steps of two batch sizes tell what a step costs by
itself from what an image costs; memory grows with the batch alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from core import log
from core.errors import UserError
from core.pipeline.folders import TRAIN
from core.pipeline.stage import Cost, Kind, Pipeline, Stage
from core.text import duration
from core.work.child import Child, ChildFailed
from core.work.pool import usable_cores
from tools.doctor.measure import MASKS, Looked, Step

STAGE = "doctor"
SECONDS = 30.0
_START_S = 1800.0  # until a cold machine has compiled Jittor, and then its kernels
# A forward pass is so much of a training step, as measured for ResNet50.
_FORWARD = 0.3

#: Images by split.
Counts = Mapping[str, int]


@dataclass(frozen=True)
class Row:
    """The estimate of one stage; ``seconds`` is None where it could not be measured."""

    stage: str
    images: int
    seconds: float | None
    memory_mib: float | None
    note: str = ""
    disk_mib: float | None = None
    """What the stage keeps on disk while it works, beside its product."""
    beside: bool = False
    """Whether no script runs the stage, so that it is no part of the sum."""


def estimate(
    pipeline: Pipeline,
    name: str,
    config_of: Callable[[Any], Any],
    counts: Counts,
    seconds: float,
) -> list[Row]:
    """The stages of a preset with the time and memory that they would take in one process.

    Args:
        name: of the preset.
        config_of: applies the user's settings to each configuration of it.
        counts: of the data set.
        seconds: to spend on measuring, compilation not counted.
    """
    recipe = [(stage, config_of(config)) for stage, config in pipeline.recipe(name)]
    beside = [(stage, config_of(config)) for stage, config in pipeline.beside(name)]
    share = seconds / max(len(recipe) + len(beside), 1)
    rows: list[Row] = []
    steps: dict[str, Step | None] = {}
    masks: list[float | None] = []  # measured at their first use
    for stage, config in recipe:
        title = f"{stage.command} {config.arch}" if pipeline.trunks else stage.command
        if stage.kind is Kind.TRAINING:
            steps[stage.section] = _measure((stage.module, config, share, None), rows, title)
            rows += _training(stage, config, title, steps[stage.section], counts)
        elif stage.cost is not None and stage.cost.measured:
            rows += _looked(stage, config, title, share, counts)
        elif stage.cost is not None:
            if stage.cost.masks(config) and not masks:
                masks.append(_measure((MASKS, config, share, None), rows, MASKS))
            step = steps.get(stage.cost.network)
            if step is not None:
                found = masks[0] if stage.cost.masks(config) else 0.0
                title = f"{stage.command}, both splits" if stage.is_script else title
                rows.append(_row(stage.cost, config, title, step, found, counts))
    for stage, config in beside:
        title = f"{stage.command} {config.arch}" if pipeline.trunks else stage.command
        found_rows = _looked(stage, config, title, share, counts)
        rows += [replace(row, beside=True) for row in found_rows]
    return rows


def _looked(stage: Stage, config: Any, title: str, seconds: float, counts: Counts) -> list[Row]:
    """The estimate of a stage that is measured by itself."""
    rows: list[Row] = []
    found: Looked | None = _measure((stage.module, config, seconds, dict(counts)), rows, title)
    if found is not None:
        note = "one forward pass, then the rest"
        rows.append(Row(title, found.images, found.seconds, found.memory_mib, note, found.disk_mib))
    return rows


def _training(
    stage: Stage, config: Any, title: str, step: Step | None, counts: Counts
) -> list[Row]:
    if step is None:
        return []
    section, images = getattr(config, stage.section), counts.get(TRAIN, 0)
    steps = section.epochs * (images // section.batch_size)
    compute = step.fixed_s + section.batch_size * step.image_s
    samples = section.batch_size * step.sample_s / max(1, min(config.workers, usable_cores()))
    # On a CPU the workers' time is taken from the network's.
    seconds = max(compute, samples) if step.on_gpu else compute + samples
    memory = step.fixed_mib + section.batch_size * step.image_mib
    note = f"{section.epochs} epochs, batch {section.batch_size}"
    return [Row(title, images, steps * seconds, memory, note)]


def _row(
    cost: Cost, config: Any, title: str, step: Step, masks: float | None, counts: Counts
) -> Row:
    """The estimate of a stage that looks at each image once.

    Args:
        masks: seconds for the masks of an image; None: they could not be measured.
    """
    images = sum(counts.get(split, 0) for split in cost.splits)
    if masks is None:
        return Row(title, images, None, None, "not measured")
    look = step.image_s * _FORWARD * cost.pixels(config) / step.image_pixels
    masked = sum(counts.get(split, 0) for split in cost.masks_of or cost.splits)
    note = f"{masks:.2f} s for the masks of an image" if masks else "one forward pass"
    decode = step.sample_s / usable_cores()
    return Row(title, images, images * (look + decode) + masked * masks, None, note)


# Measuring --------------------------------------------------------------------------------------


def _measure(request: tuple[str, Any, float, Counts | None], rows: list[Row], title: str) -> Any:
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
    lines = [f"{'stage':26}{'images':>9}{'time':>12}{'memory':>10}{'disk':>10}  note"]
    scripts = [row for row in rows if not row.beside]
    lines += map(_line, scripts)
    whole = sum(row.seconds or 0.0 for row in scripts)
    missing = any(row.seconds is None for row in scripts)
    lines.append(f"{'all':26}{'':>9}{duration(whole):>12}{'' if not missing else '  at least'}")
    lines += [f"{_line(row)}; no script runs it" for row in rows if row.beside]
    return "\n".join(lines)


def _line(row: Row) -> str:
    memory, disk = (_gib(mib) for mib in (row.memory_mib, row.disk_mib))
    figures = f"{row.images:>9}{duration(row.seconds):>12}{memory:>10}{disk:>10}"
    return f"{row.stage:26}{figures}  {row.note}"


def _gib(mib: float | None) -> str:
    return "" if mib is None else f"{mib / 1024:.1f} GiB"
