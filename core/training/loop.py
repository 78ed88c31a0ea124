"""The one training loop: a rate for each iteration, log, checkpoints by time and epoch, resume.

A stage brings a loader and a :class:`Task`, which has the network and its optimisers and says what
is done with a batch. A run that was killed continues after its last checkpoint and computes, step
by step, what it would have computed: a checkpoint holds everything that a later step depends on,
and all that is drawn at random in a step depends on (seed, step) or (seed, epoch, image) alone.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from core import distributed, log
from core.checkpoints import files as checkpoint
from core.data.loader import Loader
from core.errors import UserError
from core.files import write_json
from core.nn import arena
from core.pipeline import origin
from core.runtime import jt
from core.text import named
from core.training.descent import Optimizer
from core.training.log import TrainLog
from core.training.options import TrainOptions
from core.training.schedules import Schedule
from core.work.settings import comparable, differences

Var = Any

# Name of an optimiser that is alone; its state stands in a checkpoint without a name.
_ONLY = ""
# What a checkpoint of this loop has at least.
_KEYS = {"epoch", "step", "state_dict", "optimizer", "task", "log", "processes", "settings"}


class Task:
    """What a stage adds to the loop: a network, its optimisers, and what is done with a batch.

    With one optimiser, a stage only says what the :meth:`loss` of a batch is. A method whose
    optimisers take turns overrides :meth:`step` instead.

    Args:
        model: the network, or a module that holds all networks; its state is what checkpoints have.
        optimizer: one, or several by name; the loop saves and restores them.
    """

    def __init__(self, model: Any, optimizer: Optimizer | Mapping[str, Optimizer]) -> None:
        self.model = model
        self.optimizers: dict[str, Optimizer] = (
            dict(optimizer) if isinstance(optimizer, Mapping) else {_ONLY: optimizer}
        )

    def start_epoch(self, epoch: int) -> None:
        """Prepare epoch ``epoch`` (0-based); not called when a run resumes within it."""

    def loss(self, batch: Any, step: int) -> tuple[Var, dict[str, Var]]:
        """(loss to minimise, its parts by name for the log), each of shape (1,).

        Args:
            batch: what the loader gives.
            step: iterations before this one, over all epochs.
        """
        raise NotImplementedError(f"{type(self).__name__} says neither its loss nor its step")

    def frozen(self, step: int) -> Collection[str]:
        """Names of parameters that this iteration leaves alone."""
        return ()

    def step(self, batch: Any, step: int, rate: float) -> dict[str, Var]:
        """Learn from a batch; returns what the log shows, by name, each of shape (1,).

        The same names come from every step, and all processes step the same optimisers.

        Args:
            batch, step: as in :meth:`loss`.
            rate: learning rate of this iteration.
        """
        (optimizer,) = self.optimizers.values()
        loss, parts = self.loss(batch, step)
        optimizer.step(loss, rate, self.frozen(step))
        return {"loss": loss, **parts}

    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides weights and optimisers: numpy arrays and plain Python.

        Called by all processes together.
        """
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` gave."""


@dataclass(frozen=True)
class Plan:
    """What a training run is, apart from the objects that it works on."""

    stage: str
    """Name of the stage in its checkpoints, and of its settings in messages."""
    command: str
    """Name of the stage in the log."""
    folder: Path
    """Where the checkpoints lie."""
    log_file: Path
    config_file: Path
    config: dict[str, Any]
    """The whole configuration, kept beside and in the checkpoint."""
    settings: dict[str, Any]
    """Everything that decides this stage's result; a run resumes only where these are equal."""
    epochs: int
    rate: Schedule
    """Learning rate of each iteration, of :mod:`core.training.schedules`."""
    seed: int
    options: TrainOptions = field(default_factory=TrainOptions)
    earlier_settings: Mapping[str, Any] = field(default_factory=dict)
    """Values of settings that earlier versions recorded in their place."""
    origin: origin.Chain = field(default_factory=list)
    """Where the trained network comes from, kept in the checkpoint."""


def previous_run(plan: Plan) -> dict[str, Any] | None:
    """Checkpoint to continue from, None where the folder holds none.

    Raises:
        UserError: the folder holds a checkpoint of another stage or of other settings.
    """
    payload = checkpoint.load_latest(plan.folder)
    if payload is None:
        return None
    ours = payload.get("stage") == plan.stage and payload.keys() >= _KEYS
    if not (ours and _is_record(payload)):
        raise UserError(
            f"{plan.stage}: {plan.folder} holds a checkpoint that this command did not make; "
            f"move it away or choose another run folder"
        )
    before = dict(payload["settings"])
    for name, value in plan.earlier_settings.items():
        if before.get(name) == value:
            before[name] = plan.settings[name]
    different = differences(before, plan.settings)
    if different:
        raise UserError(
            f"{plan.stage}: {plan.folder} holds a run with other settings "
            f"({named(different)}); choose another run folder, restore the settings, or delete "
            f"{plan.folder} to start anew"
        )
    return payload


def _is_record(payload: dict[str, Any]) -> bool:
    """Whether a checkpoint's counts are numbers, and its settings few enough to be compared."""
    counts = [payload[name] for name in ("epoch", "step", "processes")]
    return all(type(count) is int for count in counts) and comparable(payload["settings"])


def finished(plan: Plan, previous: dict[str, Any] | None) -> bool:
    """True, with a line in the log, where the run of ``plan`` is complete."""
    if previous is None or previous["epoch"] < plan.epochs:
        return False
    if distributed.is_main():
        log.info(plan.command, f"already finished ({plan.epochs} epochs in {plan.folder})")
    return True


def fit(plan: Plan, task: Task, loader: Loader, previous: dict[str, Any] | None = None) -> None:
    """Train the network of ``task`` in place for what ``previous`` does not hold yet of the epochs
    of ``plan``.

    After every epoch, and within it as often as the options say, the checkpoint in ``plan.folder``
    is replaced: ``epoch`` (finished ones), ``step`` (finished ones, over all epochs),
    ``state_dict`` (reference key names), ``optimizer`` (the state of the only one, or all states by
    name), ``task``, ``log``, ``processes``, ``config``, ``settings``, ``stage``, ``seed``,
    ``origin`` (:mod:`core.pipeline.origin`).

    Raises:
        UserError: the loss or a weight stopped being finite; ``previous`` does not fit the network
            or was made by another number of processes.
        KeyboardInterrupt: says from where the next run will go on.
    """
    begin = 0 if previous is None else _restore(plan, task, loader, previous)
    report = TrainLog(
        plan.log_file,
        plan.command,
        plan.epochs,
        loader.batch_size,
        step=begin,
        state=previous and previous["log"],
        enabled=distributed.is_main(),
    )
    report.open_sinks(plan.options.sinks, plan.folder, begin, plan.config)
    if distributed.is_main():
        write_json(plan.config_file, plan.config)
    # What was drawn for the new network is drawn here: each step sets the generators anew.
    jt.sync_all()
    for var in task.model.state_dict().values():
        _share(var)
    task.model.train()
    _announce(plan, loader, begin)
    saver = _Saver(plan, task, report, begin)
    batches: Any = _batches(plan, loader, task, begin)
    if distributed.is_main():
        total = plan.epochs * loader.steps
        batches = log.progress(batches, plan.command, total=total - begin, unit="step")
    # Closed on an error too: bar, workers and sinks end with the loop.
    with contextlib.closing(report), contextlib.closing(loader), contextlib.closing(batches):
        try:
            for step, batch in report.timed(batches):
                _iteration(plan, loader, task, report, saver, batch, step)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(saver.resume_text(loader.steps)) from None
    _report_broken(plan, loader)


def _iteration(
    plan: Plan,
    loader: Loader,
    task: Task,
    report: TrainLog,
    saver: _Saver,
    batch: Any,
    step: int,
) -> None:
    """Train on a batch, then log and save what is due."""
    epoch, index = divmod(step, loader.steps)
    rate = plan.rate(step, plan.epochs * loader.steps)
    # Drawn anew for each step, so that a resumed one draws (dropout) what it would have drawn.
    jt.set_global_seed(_step_seed(plan.seed, step))
    values, save = train_step(task, batch, step, rate, saver.due())
    if not all(math.isfinite(value) for value in values.values()):
        raise UserError(_not_finite(plan, loader, epoch, index, values))
    last = index == loader.steps - 1
    report.add(values)
    if last or (index + 1) % plan.options.log_steps == 0:
        report.write(epoch + 1, step + 1, rate, last)
    if last or save:
        saver.save(epoch + last, step + 1)


def train_step(
    task: Task, batch: Any, step: int, rate: float, save: bool = False
) -> tuple[dict[str, float], bool]:
    """One iteration; returns the loss and its parts, averaged over all processes, and whether any
    process wants to save.
    """
    arena.reserve()
    shown = task.step(batch, step, rate)
    numbers = [*shown.values(), jt.array([float(save)])]
    values = jt.concat([number.reshape(1) for number in numbers], 0).stop_grad()
    # Everything of this iteration is computed here, so that nothing of it stays in memory.
    jt.sync_all()
    *means, saves = distributed.all_reduce_mean(values).numpy().tolist()
    return dict(zip(shown, means)), saves > 0


def _step_seed(seed: int, step: int) -> int:
    """30 bits for Jittor's generators, which add the rank."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0]) >> 2


def _batches(plan: Plan, loader: Loader, task: Task, begin: int) -> Iterator[tuple[int, Any]]:
    """(step over all epochs, batch) from step ``begin`` on."""
    for epoch in range(begin // loader.steps, plan.epochs):
        start = max(begin - epoch * loader.steps, 0)
        if start == 0:
            task.start_epoch(epoch)
        for index, batch in enumerate(loader.epoch(epoch, start), start):
            yield epoch * loader.steps + index, batch


def _restore(plan: Plan, task: Task, loader: Loader, previous: dict[str, Any]) -> int:
    """Take over a checkpoint; returns the steps that it has behind it."""
    where, world = str(plan.folder), distributed.world_size()
    if previous["processes"] != world:
        raise UserError(
            f"{plan.stage}: {where} was trained by {previous['processes']} processes and would not "
            f"go on as it began with {world}; start {previous['processes']} (mpirun -np), or use "
            f"another run folder"
        )
    step = int(previous["step"])
    if step // loader.steps != previous["epoch"]:
        raise UserError(
            f"{plan.stage}: {where} holds step {step} in epoch {previous['epoch'] + 1}, but an "
            f"epoch has {loader.steps} steps; choose another run folder"
        )
    checkpoint.load_state(task.model, previous["state_dict"], where)
    for name, optimizer in task.optimizers.items():
        if name == _ONLY:
            optimizer.load_state(previous["optimizer"], where)
        else:
            optimizer.load_state(previous["optimizer"].get(name, {}), f"{where}, {name}")
    task.load_state(previous["task"])
    return step


def _share(var: Var) -> None:
    """Every process starts from the values of the first."""
    if distributed.world_size() > 1:
        var.update(distributed.broadcast(var))


def _announce(plan: Plan, loader: Loader, begin: int) -> None:
    if not distributed.is_main():
        return
    epoch, index = divmod(begin, loader.steps)
    place = f"epoch {epoch + 1} of {plan.epochs}" + (f", step {index + 1}" if index else "")
    log.info(
        plan.command,
        f"{'resuming' if begin else 'starting'} at {place}: {len(loader.dataset)} images, "
        f"{loader.steps} steps an epoch, batch {loader.batch_size}; compiling kernels at the first "
        f"step (minutes on a machine that has none yet)",
    )


class _Saver:
    """Writes the checkpoints of a run and knows when one is due."""

    def __init__(self, plan: Plan, task: Task, report: TrainLog, begin: int) -> None:
        self._plan, self._task, self._report = plan, task, report
        self._saved, self._since = begin, time.monotonic()

    def due(self) -> bool:
        """True where the last checkpoint is older than the options allow."""
        minutes = (time.monotonic() - self._since) / 60
        return minutes >= self._plan.options.checkpoint_minutes

    def save(self, epoch: int, step: int) -> None:
        """Write a checkpoint of ``epoch`` and ``step`` finished ones; all processes call this."""
        plan, task_state = self._plan, self._task.state()
        if distributed.is_main():
            weights = checkpoint.model_state(self._task.model)
            states = {name: each.state() for name, each in self._task.optimizers.items()}
            self._require_finite([*states.values(), weights], step)
            payload = {
                "epoch": epoch,
                "step": step,
                "state_dict": weights,
                "optimizer": states.get(_ONLY, states),
                "task": task_state,
                "log": self._report.state(),
                "processes": distributed.world_size(),
                "config": plan.config,
                "settings": plan.settings,
                "stage": plan.stage,
                "seed": plan.seed,
                origin.KEY: origin.plain(plan.origin),
            }
            checkpoint.save_checkpoint(plan.folder, payload)
        self._saved, self._since = step, time.monotonic()

    def resume_text(self, steps: int) -> str:
        """Where the next run goes on; ``steps`` are those of an epoch."""
        epoch, index = divmod(self._saved, steps)
        kept = f"as saved in {self._plan.folder}" if self._saved else "nothing is saved yet"
        return (
            f"{self._plan.stage}: the same command goes on at step {index + 1} of epoch "
            f"{epoch + 1} ({kept})"
        )

    def _require_finite(self, states: list[dict[str, np.ndarray]], step: int) -> None:
        arrays = (pair for state in states for pair in state.items())
        bad = list(dict.fromkeys(key for key, value in arrays if not np.isfinite(value).all()))
        if bad:
            raise UserError(
                f"{self._plan.stage}: {bad[0]} is no longer finite after step {step} ({len(bad)} "
                f"tensors); nothing was saved; lower {self._plan.stage}.base_lr in a new run folder"
            )


def _not_finite(
    plan: Plan, loader: Loader, epoch: int, index: int, values: dict[str, float]
) -> str:
    batch = loader.order(epoch)[index * loader.batch_size : (index + 1) * loader.batch_size]
    # All of them: any one may be the cause.
    names = ", ".join(str(loader.dataset.path(int(i))) for i in batch)
    parts = ", ".join(f"{name} {value:g}" for name, value in values.items())
    return (
        f"{plan.stage}: the loss is no longer finite at step {index + 1} of epoch {epoch + 1} "
        f"({parts}; images {names}); lower {plan.stage}.base_lr in a new run folder"
    )


def _report_broken(plan: Plan, loader: Loader) -> None:
    if loader.broken:
        log.warn(
            plan.command,
            f"{len(loader.broken)} images could not be used and others stood in: "
            f"{named(sorted(loader.broken))}",
        )
