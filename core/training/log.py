"""What a training run reports: a line of means in its JSONL log, on the screen once an epoch, and
in any further sinks.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from core import log
from core.errors import UserError
from core.files import atomic_write
from core.training.sinks import SINKS, Sink

#: What a line of the log holds beside the loss and its parts.
FACTS = ("time", "epoch", "step", "lr", "images_per_second", "data_wait", "peak_memory_mib")

Item = TypeVar("Item")


class TrainLog:
    """Means of the loss and its parts since the last line.

    A resumed run continues the log as if it had never stopped: lines of steps that will be repeated
    are taken out of it, and the sums of a line that was not due yet come from the checkpoint.

    Args:
        path: the JSONL file.
        stage, epochs: for the screen.
        batch: images a step, over all processes.
        step: steps done so far; lines of later ones are dropped from the file.
        state: :meth:`state` of the run that is continued.
        enabled: False in processes that report nothing.
    """

    def __init__(
        self,
        path: Path,
        stage: str,
        epochs: int,
        batch: int,
        step: int = 0,
        state: Mapping[str, Any] | None = None,
        enabled: bool = True,
    ) -> None:
        self._stage, self._epochs, self._batch, self._enabled = stage, epochs, batch, enabled
        self._file = log.StageLog(path, enabled=enabled)
        self._sinks: list[Sink] = []
        if enabled and path.is_file():
            _rewind(path, step)
        self._sums: dict[str, float] = {} if state is None else dict(state["sums"])
        self._steps = 0 if state is None else int(state["steps"])
        self._timed, self._since = 0, time.monotonic()
        self._waited = 0.0

    def open_sinks(
        self, names: tuple[str, ...], folder: Path, step: int, config: Mapping[str, Any]
    ) -> None:
        """Send every later line to these sinks (of :data:`core.training.sinks.SINKS`) as well.

        Raises:
            UserError: a package is missing or refuses.
        """
        if not self._enabled:
            return
        for name in names:
            try:
                self._sinks.append(SINKS[name](folder, step, "/".join(folder.parts[-3:]), config))
            except UserError:
                raise
            except Exception as error:  # packages of others: no login, no network, no space
                raise UserError(f"--sink {name} does not start: {error}") from error

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The same batches; how long each was waited for goes into the log."""
        iterator = iter(batches)
        while True:
            begun = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.monotonic() - begun
            yield batch

    def add(self, values: Mapping[str, float]) -> None:
        """Take in the loss and its parts of one step."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._steps += 1
        self._timed += 1

    def write(self, epoch: int, step: int, rate: float, last: bool) -> None:
        """Report the steps since the last line.

        Args:
            epoch, step: of the latest step, counted from 1.
            rate: its learning rate.
            last: it is the last one of its epoch.
        """
        means = {name: total / self._steps for name, total in self._sums.items()}
        elapsed = max(time.monotonic() - self._since, 1e-9)
        speed = self._timed * self._batch / elapsed
        values = {
            "lr": rate,
            "images_per_second": round(speed, 2),
            # Share of the time in which the step had to wait for its batch.
            "data_wait": round(self._waited / elapsed, 4),
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
            # Nine digits tell any two float32 apart.
            **{name: float(f"{value:.9g}") for name, value in means.items()},
        }
        self._file.write(epoch=epoch, step=step, **values)
        for sink in self._sinks:
            sink.write(step, values)
        if last and self._enabled:
            listed = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
            log.info(
                self._stage,
                f"epoch {epoch}/{self._epochs}: {listed}, lr {rate:.4g}, {speed:.1f} images/s",
            )
        self._sums, self._steps = {}, 0
        self._timed, self._since, self._waited = 0, time.monotonic(), 0.0

    def state(self) -> dict[str, Any]:
        """The line in the making, for a checkpoint."""
        return {"sums": dict(self._sums), "steps": self._steps}

    def close(self) -> None:
        """Let the sinks finish."""
        for sink in self._sinks:
            sink.close()


def _rewind(path: Path, step: int) -> None:
    """Keep the lines of a log up to ``step``; half a line of a killed run goes as well."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if int(json.loads(line)["step"]) <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
    with atomic_write(path, "w") as file:
        file.writelines(kept)
