"""Receivers of the training log beside its JSONL file: TensorBoard and Weights & Biases.

Their packages are not among the requirements; each is imported when its sink is asked for.
"""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from core.errors import UserError
from core.files import atomic_write

# Either offers the same SummaryWriter.
_TENSORBOARD = ("tensorboardX", "torch.utils.tensorboard")
_WANDB_ID = "wandb_id.txt"


class Sink(Protocol):
    """Where numbers of a run go, step by step."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record ``values`` by name for ``step`` (counted from 1)."""

    def close(self) -> None:
        """Hand over what is still held back."""


class TensorBoard:
    """Event files in ``folder/tensorboard``; steps after ``step`` of an earlier run are hidden."""

    def __init__(self, folder: Path, step: int, title: str, config: Mapping[str, Any]) -> None:
        module = _first_of("tensorboard", _TENSORBOARD, "pip install tensorboardX")
        self._writer = module.SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """One Weights & Biases run per ``folder``, which a resumed training continues.

    Where the training repeats steps that it has already reported, the service keeps the first
    report; both are the same.
    """

    def __init__(self, folder: Path, step: int, title: str, config: Mapping[str, Any]) -> None:
        wandb = _first_of("wandb", ("wandb",), "pip install wandb")
        name = folder / _WANDB_ID
        if not name.is_file():
            with atomic_write(name, "w") as file:
                file.write(uuid.uuid4().hex)
        self._run = wandb.init(
            project="uss",
            name=title,
            id=name.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(folder),
            config=dict(config),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


#: name -> class; each is made from (folder of the stage, steps done, title, configuration).
SINKS: dict[str, Callable[[Path, int, str, Mapping[str, Any]], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
}


def _first_of(sink: str, modules: tuple[str, ...], command: str) -> Any:
    """The first module that can be imported.

    Raises:
        UserError: none can.
    """
    reasons = []
    for module in modules:
        try:
            return importlib.import_module(module)
        except ImportError as error:
            reasons.append(str(error))
    raise UserError(f"--sink {sink} needs {' or '.join(modules)} ({reasons[0]}); {command}")
