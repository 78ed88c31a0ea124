"""Trains a tiny network by one kind of optimiser and schedule, or by each of several in turn;
started by tests, which kill it.

Arguments: a folder, seconds to pause in each step, and names of :data:`KINDS`. The run of a kind
lies in a folder of its name and is continued where there is one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.data.loader import Loader
from core.errors import main_guard
from core.runtime import jt, nn
from core.training import loop, schedules
from core.training.descent import Group, Parameters
from core.training.optim import AdamW, LarcSGD
from core.training.options import TrainOptions

EPOCHS, STEPS = 3, 5  # steps of an epoch
BATCH = 2


def momentum_sgd(parameters: Parameters, **further: Any) -> LarcSGD:
    return LarcSGD(parameters, 0.9, 0.01, larc=False, **further)


def grouped(parameters: dict[str, Any]) -> AdamW:
    """Four groups as in P-NOC: rates of 1, 2, 10 and 20, decay on every second one."""
    rates = zip(parameters.items(), (1, 2, 10, 20), (None, 0.0, None, 0.0))
    groups = [Group({name: var}, rate, decay) for (name, var), rate, decay in rates]
    return AdamW(groups, weight_decay=0.05)


@dataclass(frozen=True)
class Kind:
    """An optimiser of parameters, and a schedule."""

    optimizer: Callable[[dict[str, Any]], Any]
    rate: schedules.Schedule = lambda step, total: 0.002
    turns: bool = False


KINDS = {
    "sgd": Kind(lambda each: LarcSGD(each, 0.0, 0.01, larc=False)),
    "momentum": Kind(momentum_sgd),
    "larc": Kind(lambda each: LarcSGD(each, 0.9, 0.01), schedules.cosine(2.0, 0.1)),
    "adamw": Kind(lambda each: AdamW(each, weight_decay=0.05)),
    "groups": Kind(grouped),
    "turns": Kind(momentum_sgd, turns=True),
    "cosine": Kind(momentum_sgd, schedules.cosine(0.002, 0.0001)),
    "poly": Kind(momentum_sgd, schedules.poly(0.002, 0.9)),
    "step": Kind(
        momentum_sgd, schedules.warm_up(schedules.step_decay(0.002, (0.4, 12), 0.5), steps=3)
    ),
    # The kill comes between the batches of an update.
    "accumulation": Kind(lambda each: momentum_sgd(each, accumulate=3)),
    "adamw accumulation": Kind(lambda each: AdamW(each, accumulate=3)),
    "clipping": Kind(lambda each: momentum_sgd(each, clip=0.5)),
}


class Points:
    """Points and their sums, disturbed."""

    def __len__(self) -> int:
        return BATCH * STEPS

    def get(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        x = rng.normal(size=3).astype(np.float32) + index / 5
        return x, np.asarray([x.sum() + rng.normal()], np.float32)

    def path(self, index: int) -> Path:
        return Path(f"points/{index}")


class Fit(loop.Task):
    """Squared distance behind a layer that draws (dropout)."""

    def __init__(self, model: Any, optimizer: Any, pause: float) -> None:
        super().__init__(model, optimizer)
        self._pause = pause

    def loss(self, batch: Any, step: int) -> tuple[Any, dict[str, Any]]:
        time.sleep(self._pause)
        error = self.model.first(jt.array(batch[0])) - jt.array(batch[1])
        return (error * error).mean(), {}


class Turns(Fit):
    """A second network learns what the first one has just learnt, by an optimiser of its own."""

    def step(self, batch: Any, step: int, rate: float) -> dict[str, Any]:
        loss, _ = self.loss(batch, step)
        self.optimizers["first"].step(loss, rate)
        x = jt.array(batch[0])
        error = self.model.second(x) - self.model.first(x).detach()
        second = error.abs().mean()
        self.optimizers["second"].step(second, 10 * rate)
        return {"loss": loss, "second": second}


class Pair(nn.Module):
    """Two networks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.second = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))


def train(name: str, folder: Path, pause: float) -> None:
    """Train by a kind, from where an earlier run stopped."""
    kind = KINDS[name]
    plan = loop.Plan(
        stage="points",
        command=name,
        folder=folder,
        log_file=folder / "log.jsonl",
        config_file=folder / "config.json",
        config={},
        settings={"kind": name},
        epochs=EPOCHS,
        rate=kind.rate,
        seed=7,
        options=TrainOptions(checkpoint_minutes=0, log_steps=1),
    )
    previous = loop.previous_run(plan)
    if loop.finished(plan, previous):
        return
    jt.set_global_seed(plan.seed)
    model = Pair()
    first, second = (dict(part.named_parameters()) for part in (model.first, model.second))
    task = Fit(model, kind.optimizer(first), pause)
    if kind.turns:
        task = Turns(model, {"first": kind.optimizer(first), "second": AdamW(second)}, pause)
    loop.fit(plan, task, Loader(Points(), BATCH, plan.seed, workers=0), previous)


@main_guard
def main() -> int:
    """Train by each kind in turn."""
    for name in sys.argv[3:]:
        train(name, Path(sys.argv[1]) / name, float(sys.argv[2]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
