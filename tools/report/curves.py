"""What the training stages of a run left: their logs, the threshold curve, and their times."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import json_lines, json_or_empty
from core.pipeline.folders import CONFIG, LOG
from core.pipeline.times import stage_seconds
from core.training.log import FACTS
from tools.report.run_files import setting
from uss.config import ARCHS
from uss.paths import RunFolder

_NEEDED = ("step", "epoch", "lr")


@dataclass(frozen=True)
class TrainingCurve:
    """The log of one training stage, a value a line."""

    title: str
    steps: list[int]
    epochs: list[int]
    rates: list[float]  # learning rate
    losses: dict[str, list[float | None]]  # "loss" and its parts; None where a line has none
    epochs_planned: int | None
    images_per_second: float | None  # median
    peak_memory_mib: float | None

    @property
    def progress(self) -> str:
        """How far it came, for people."""
        last = self.epochs[-1]
        if self.epochs_planned is None:
            return f"{last} epochs"
        return f"epoch {last} of {self.epochs_planned}"


@dataclass(frozen=True)
class ThresholdChoice:
    """The background threshold of the pseudo labels; the curve is empty where it was set by
    hand.
    """

    threshold: float
    miou: float | None
    chosen_by: str
    curve: list[tuple[float, float]]


def training_curves(run: RunFolder) -> list[TrainingCurve]:
    """The logs that are there, in the order of the pipeline; broken lines are left out."""
    found = []
    for title, folder, section in _stages(run):
        lines = list(filter(_is_whole, json_lines(folder / LOG)))
        if lines:
            planned = setting(json_or_empty(folder / CONFIG), f"{section}.epochs")
            found.append(_curve(title, lines, planned if isinstance(planned, int) else None))
    return found


def threshold_choice(run: RunFolder) -> ThresholdChoice | None:
    """The threshold that the pseudo labels took; None where it is not known."""
    content = json_or_empty(run.threshold)
    threshold = _number(content.get("threshold"))
    if threshold is None:
        return None
    curve = [
        (float(point[0]), float(point[1]))
        for point in content.get("curve", [])
        if isinstance(point, list) and len(point) == 2 and all(map(_is_number, point))
    ]
    return ThresholdChoice(
        threshold,
        _number(content.get("miou")),
        str(content.get("chosen_by", "an unknown rule")),
        curve,
    )


def times(run: RunFolder) -> dict[str, float]:
    """Seconds by stage; {} where the run has none."""
    try:
        return stage_seconds(run.times)
    except UserError:
        return {}


def _stages(run: RunFolder) -> Iterator[tuple[str, Path, str]]:
    """(title, folder, section of the settings) of every training stage that a run may have."""
    for arch in reversed(ARCHS):
        name = arch.replace("resnet", "ResNet")
        yield f"Step 1: pretraining, {name}", run.pretrain(arch), "pretrain"
        yield f"Step 2.1: pixel attention, {name}", run.pixel_attention(arch), "pixel_attention"
    yield "Step 3: segmenter", run.segmenter, "finetune"


def _is_whole(line: dict[str, Any]) -> bool:
    return all(_is_number(line.get(name)) for name in _NEEDED)


def _curve(title: str, lines: list[dict[str, Any]], planned: int | None) -> TrainingCurve:
    names = sorted(
        {name for line in lines for name in line if name not in FACTS},
        key=lambda name: (name != "loss", name),
    )
    speeds = sorted(_numbers(lines, "images_per_second"))
    return TrainingCurve(
        title=title,
        steps=[int(line["step"]) for line in lines],
        epochs=[int(line["epoch"]) for line in lines],
        rates=[float(line["lr"]) for line in lines],
        losses={name: [_number(line.get(name)) for line in lines] for name in names},
        epochs_planned=planned,
        images_per_second=speeds[len(speeds) // 2] if speeds else None,
        peak_memory_mib=max(_numbers(lines, "peak_memory_mib"), default=None),
    )


def _numbers(lines: list[dict[str, Any]], name: str) -> list[float]:
    return [float(line[name]) for line in lines if _is_number(line.get(name))]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: Any) -> float | None:
    return float(value) if _is_number(value) else None
