"""What the training stages of a run left: their logs, and the times of all stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from core.errors import UserError
from core.files import is_number, json_lines, json_or_empty, number
from core.pipeline.folders import CONFIG, LOG, RunFolder
from core.pipeline.stage import Kind, Pipeline, Trace
from core.pipeline.times import stage_seconds
from core.text import trunk_name
from core.training.log import FACTS
from tools.report.run_files import setting

_NEEDED = ("step", "epoch", "lr")
_MOST = 2**53  # of whole numbers in a browser


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


def training_curves(run: RunFolder, pipeline: Pipeline) -> list[TrainingCurve]:
    """The logs that are there, in the order of the pipeline; broken lines are left out."""
    found = []
    for trace in pipeline.traces(run):
        if trace.stage.kind is not Kind.TRAINING:
            continue
        lines = list(filter(_is_whole, json_lines(trace.folder / LOG)))
        if lines:
            planned = setting(json_or_empty(trace.folder / CONFIG), f"{trace.stage.section}.epochs")
            epochs = planned if isinstance(planned, int) else None
            found.append(_curve(title_of(trace), lines, epochs))
    return found


def title_of(trace: Trace) -> str:
    """Name of a stage for people: "Step 2.1: pixel attention, ResNet50"."""
    stage = trace.stage
    step = f"Step {stage.step}: {stage.name}" if stage.step else stage.name.capitalize()
    return step if trace.of is None else f"{step}, {trunk_name(trace.of)}"


def times(run: RunFolder) -> dict[str, float]:
    """Seconds by stage; {} where the run has none."""
    try:
        return stage_seconds(run.times)
    except UserError:
        return {}


def _is_whole(line: dict[str, Any]) -> bool:
    return all(is_number(line.get(name)) and abs(line[name]) <= _MOST for name in _NEEDED)


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
        losses={name: [number(line.get(name)) for line in lines] for name in names},
        epochs_planned=planned,
        images_per_second=speeds[len(speeds) // 2] if speeds else None,
        peak_memory_mib=max(_numbers(lines, "peak_memory_mib"), default=None),
    )


def _numbers(lines: list[dict[str, Any]], name: str) -> list[float]:
    return [float(line[name]) for line in lines if is_number(line.get(name))]
