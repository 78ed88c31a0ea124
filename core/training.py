"""The one training loop: per-iteration cosine rate, log, checkpoint after every epoch, resume.

A stage brings its network, optimiser, loader and a :class:`Task`, which says what a batch's loss
is. A run that was killed continues after its last finished epoch and ends with the weights that it
would have had.
"""

from __future__ import annotations

import contextlib
import math
import resource
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from core import checkpoint, distributed, log
from core.data.loader import Loader
from core.errors import UserError
from core.files import write_json
from core.optim import LarcSGD, cosine_lr
from core.runtime import jt

Var = Any

# A log line comes after each epoch, and within an epoch after so many steps.
_LOG_STEPS = 50
# Names shown in a message about one batch.
_SHOWN = 4


class Task(Protocol):
    """What a stage adds to the loop."""

    def start_epoch(self, epoch: int) -> None:
        """Prepare epoch ``epoch`` (0-based)."""

    def loss(self, batch: Any, step: int) -> tuple[Var, dict[str, Var]]:
        """(loss to minimise, its parts by name for the log), each of shape (1,).

        Args:
            batch: what the loader gives.
            step: iterations before this one, over all epochs.
        """

    def frozen(self, step: int) -> Collection[str]:
        """Names of parameters that this iteration leaves alone."""

    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides weights and optimiser: numpy arrays and plain Python.

        Called by all processes together.
        """

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` gave."""


@dataclass(frozen=True)
class Plan:
    """What a training run is, apart from the objects that it works on."""

    stage: str
    """Name of the stage in messages, in the configuration and in its checkpoints."""
    folder: Path
    """Where the checkpoints lie."""
    log_file: Path
    config_file: Path
    config: dict[str, Any]
    """The whole configuration, kept beside and in the checkpoint."""
    settings: dict[str, Any]
    """Everything that decides this stage's result; a run resumes only where these are equal."""
    epochs: int
    base_lr: float
    final_lr: float
    seed: int


def previous_run(plan: Plan) -> dict[str, Any] | None:
    """Checkpoint to continue from, None where the folder holds none.

    Raises:
        UserError: the folder holds a checkpoint of another stage or of other settings.
    """
    payload = checkpoint.load_latest(plan.folder)
    if payload is None:
        return None
    if payload.get("stage") != plan.stage or not isinstance(payload.get("settings"), dict):
        raise UserError(
            f"{plan.stage}: {plan.folder} holds a checkpoint that this command did not make; "
            f"move it away or choose another run folder"
        )
    wanted, found = _flat(plan.settings), _flat(payload["settings"])
    different = sorted(
        key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)
    )
    if different:
        listed = "; ".join(
            f"{key} was {found.get(key)}, is {wanted.get(key)}" for key in different[:_SHOWN]
        )
        more = f" and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
        raise UserError(
            f"{plan.stage}: {plan.folder} holds a run with other settings ({listed}{more}); "
            f"choose another run folder, restore the settings, or delete {plan.folder} to start "
            f"anew"
        )
    return payload


def finished(plan: Plan, previous: dict[str, Any] | None) -> bool:
    """True, with a line in the log, where the run of ``plan`` is complete."""
    if previous is None or previous["epoch"] < plan.epochs:
        return False
    if distributed.is_main():
        log.info(plan.stage, f"already finished ({plan.epochs} epochs in {plan.folder})")
    return True


def fit(
    plan: Plan,
    model: Any,
    optimizer: LarcSGD,
    loader: Loader,
    task: Task,
    previous: dict[str, Any] | None = None,
) -> None:
    """Train ``model`` in place for the epochs of ``plan`` that ``previous`` does not hold yet.

    After every epoch the checkpoint in ``plan.folder`` is replaced: ``epoch`` (the next one),
    ``step``, ``state_dict`` (reference key names), ``optimizer``, ``task``, ``config``,
    ``settings``, ``stage``, ``seed``.

    Raises:
        UserError: the loss or a weight stopped being finite; ``previous`` does not fit the network.
    """
    if distributed.is_main():
        write_json(plan.config_file, plan.config)
    first = 0
    if previous is not None:
        first = _restore(plan, model, optimizer, task, previous)
    for var in model.state_dict().values():
        _share(var)
    model.train()
    _announce(plan, loader, first)
    report = _Report(plan, loader)
    batches: Any = _batches(plan, loader, task, first)
    if distributed.is_main():
        remaining = (plan.epochs - first) * loader.steps
        batches = log.progress(batches, plan.stage, total=remaining, unit="step")
    # Closed on an error too: the bar and the threads of the loader end with the loop.
    with contextlib.closing(batches):
        for epoch, index, batch in batches:
            step = epoch * loader.steps + index
            rate = cosine_lr(step, plan.epochs * loader.steps, plan.base_lr, plan.final_lr)
            values = _train_step(optimizer, task, batch, step, rate)
            if not all(math.isfinite(value) for value in values.values()):
                raise UserError(_not_finite(plan, loader, epoch, index, values))
            last = index == loader.steps - 1
            report.add(values)
            if last or (index + 1) % _LOG_STEPS == 0:
                report.write(epoch, step, rate, last)
            if last:
                _save(plan, model, optimizer, task, epoch + 1, step + 1)
    _report_broken(plan, loader)


def _train_step(
    optimizer: LarcSGD, task: Task, batch: Any, step: int, rate: float
) -> dict[str, float]:
    """One iteration; returns the loss and its parts, averaged over all processes."""
    loss, parts = task.loss(batch, step)
    values = jt.concat([loss.reshape(1), *(part.reshape(1) for part in parts.values())], 0)
    values = values.stop_grad()
    optimizer.step(loss, rate, task.frozen(step))
    # Everything of this iteration is computed here, so that nothing of it stays in memory.
    jt.sync_all()
    if distributed.world_size() > 1:
        values = distributed.all_reduce_mean(values)
    return dict(zip(("loss", *parts), values.numpy().tolist()))


def _batches(plan: Plan, loader: Loader, task: Task, first: int) -> Iterator[tuple[int, int, Any]]:
    """(epoch, index within it, batch) of all epochs from ``first`` on."""
    for epoch in range(first, plan.epochs):
        # Seeded per epoch, so that what the network draws (dropout) is the same after a resume.
        jt.set_global_seed(plan.seed + epoch)
        task.start_epoch(epoch)
        for index, batch in enumerate(loader.epoch(epoch)):
            yield epoch, index, batch


def _restore(
    plan: Plan, model: Any, optimizer: LarcSGD, task: Task, previous: dict[str, Any]
) -> int:
    """Take over a checkpoint; returns the epoch to go on with."""
    where = str(plan.folder)
    checkpoint.load_state(model, previous["state_dict"], where)
    optimizer.load_state(previous["optimizer"], where)
    task.load_state(previous["task"])
    return int(previous["epoch"])


def _share(var: Var) -> None:
    """Every process starts from the values of the first."""
    if distributed.world_size() > 1:
        var.update(distributed.broadcast(var))


def _announce(plan: Plan, loader: Loader, first: int) -> None:
    if not distributed.is_main():
        return
    begin = f"resuming at epoch {first + 1}" if first else "starting at epoch 1"
    log.info(
        plan.stage,
        f"{begin} of {plan.epochs}: {len(loader.dataset)} images, {loader.steps} steps an epoch, "
        f"batch {loader.batch_size}; compiling kernels at the first step (minutes on a machine "
        f"that has none yet)",
    )


def _save(plan: Plan, model: Any, optimizer: LarcSGD, task: Task, epoch: int, step: int) -> None:
    extra = task.state()
    if not distributed.is_main():
        return
    state = checkpoint.model_state(model)
    bad = [key for key, value in state.items() if not np.isfinite(value).all()]
    if bad:
        raise UserError(
            f"{plan.stage}: {bad[0]} is no longer finite after epoch {epoch} ({len(bad)} tensors); "
            f"nothing was saved; lower {plan.stage}.base_lr in a new run folder"
        )
    payload = {
        "epoch": epoch,
        "step": step,
        "state_dict": state,
        "optimizer": optimizer.state(),
        "task": extra,
        "config": plan.config,
        "settings": plan.settings,
        "stage": plan.stage,
        "seed": plan.seed,
    }
    checkpoint.save_checkpoint(plan.folder, payload)


class _Report:
    """Means of the loss and its parts since the last line, for the log file and, once an epoch, the
    screen.
    """

    def __init__(self, plan: Plan, loader: Loader) -> None:
        self._plan, self._batch = plan, loader.batch_size
        self._log = log.StageLog(plan.log_file, enabled=distributed.is_main())
        self._restart()

    def add(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._steps += 1

    def write(self, epoch: int, step: int, rate: float, last: bool) -> None:
        means = {name: total / self._steps for name, total in self._sums.items()}
        speed = self._steps * self._batch / (time.monotonic() - self._since)
        self._log.write(
            epoch=epoch + 1,
            step=step + 1,
            lr=rate,
            images_per_second=round(speed, 2),
            peak_memory_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
            **{name: round(value, 6) for name, value in means.items()},
        )
        if last and distributed.is_main():
            listed = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
            log.info(
                self._plan.stage,
                f"epoch {epoch + 1}/{self._plan.epochs}: {listed}, lr {rate:.4g}, "
                f"{speed:.1f} images/s",
            )
        self._restart()

    def _restart(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps = 0
        self._since = time.monotonic()


def _not_finite(
    plan: Plan, loader: Loader, epoch: int, index: int, values: dict[str, float]
) -> str:
    batch = loader.order(epoch)[index * loader.batch_size : (index + 1) * loader.batch_size]
    names = ", ".join(str(loader.dataset.path(int(i))) for i in batch[:_SHOWN])
    parts = ", ".join(f"{name} {value:g}" for name, value in values.items())
    return (
        f"{plan.stage}: the loss is no longer finite at step {index + 1} of epoch {epoch + 1} "
        f"({parts}; images {names}, ... of {len(batch)}); lower {plan.stage}.base_lr in a new run "
        f"folder"
    )


def _report_broken(plan: Plan, loader: Loader) -> None:
    if loader.broken:
        shown = ", ".join(sorted(loader.broken)[:_SHOWN])
        more = f" and {len(loader.broken) - _SHOWN} more" if len(loader.broken) > _SHOWN else ""
        log.warn(
            plan.stage,
            f"{len(loader.broken)} images could not be used and others stood in: {shown}{more}",
        )


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"section.field": value}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
