"""How a training run is watched and saved: what a user may choose anew at every start, because no
result depends on it.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from core.config import at_least, number
from core.errors import UserError
from core.training.sinks import SINKS


@dataclass(frozen=True)
class TrainOptions:
    """Raises a UserError where a value makes no sense."""

    checkpoint_minutes: float = 15.0
    """Longest time between two checkpoints; 0 writes one after every step."""
    log_steps: int = 50
    """Steps of an epoch after which a line with their means goes to the log."""
    sinks: tuple[str, ...] = ()
    """Further receivers of the log, of :data:`core.training.sinks.SINKS`."""

    def __post_init__(self) -> None:
        minutes = self.checkpoint_minutes
        if not math.isfinite(minutes) or minutes < 0:
            raise UserError(f"--checkpoint-minutes must be 0 or more, is {minutes}")
        if self.log_steps < 1:
            raise UserError(f"--log-steps must be at least 1, is {self.log_steps}")


USUAL_OPTIONS = TrainOptions()


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """One argument for each field of :class:`TrainOptions`."""
    default = USUAL_OPTIONS
    group = parser.add_argument_group("training (other stages ignore these)")
    group.add_argument(
        "--checkpoint-minutes",
        type=number(float, at_least(0)),
        default=default.checkpoint_minutes,
        help="longest time between checkpoints within an epoch; 0: after every step "
        "(default %(default)s)",
    )
    group.add_argument(
        "--log-steps",
        type=number(int, at_least(1)),
        default=default.log_steps,
        help="steps between two lines of log.jsonl within an epoch (default %(default)s)",
    )
    group.add_argument(
        "--sink",
        action="append",
        default=[],
        choices=sorted(SINKS),
        help="send the log there as well; may be repeated",
    )


def train_options(arguments: argparse.Namespace) -> TrainOptions:
    """What the arguments of :func:`add_train_arguments` say."""
    sinks = tuple(dict.fromkeys(arguments.sink))
    return TrainOptions(arguments.checkpoint_minutes, arguments.log_steps, sinks)
