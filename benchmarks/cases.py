"""What a case is: the work, its sides, the check of their results and the aims.

A side is one implementation of a case together with the environment of its process. The first is
always this project's, ``ours``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

STAGE = "benchmarks"
OURS = "ours"
# The side of the code that runs in PyTorch, tuned and as shipped.
TORCH, TORCH_AS_SHIPPED = "torch", "torch_as_shipped"
# The C library keeps what it was given back, instead of mapping and clearing each large block anew:
# no mappings for large blocks, no trimming at the heap's end, and growth in steps of 64 MiB.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}

Arrays = Mapping[str, np.ndarray]
Inputs = Mapping[str, str]


@dataclass(frozen=True)
class Loaded:
    """One implementation of a case, loaded.

    Args:
        warm_up: does everything once that is not to be counted (kernels, caches); may be smaller
            than ``run``.
        run: what is timed.
        result: the outcome of the last ``run`` as arrays, for the comparison; not timed.
    """

    warm_up: Callable[[], Any]
    run: Callable[[], Any]
    result: Callable[[Any], Arrays]


@dataclass(frozen=True)
class Side:
    """One column of the table.

    Args:
        label: the column's head.
        load: loads the implementation in a fresh process.
        environment: variables of that process beside those that all sides have; never a number of
            threads, for all sides have the same cores.
    """

    label: str
    load: Callable[[Inputs], Loaded]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Agreement:
    """Whether two sides came to the same result, and the figures that say so."""

    holds: bool
    text: str


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Args:
        what: the work and its settings, in a few words.
        sides: by name, ``ours`` first.
        agree: compares the results (ours, another side's).
        against: the side to which the ratio is quoted and compared with the aim.
        aim, peak_aim: the largest ratios of time and of peak memory that are aimed at; None: none.
        one_process: whether every side works in its own process alone, so that the peak of that
            process is the peak of the side.
    """

    what: str
    sides: Mapping[str, Side]
    agree: Callable[[Arrays, Arrays], Agreement]
    against: str = TORCH
    aim: float | None = None
    peak_aim: float | None = None
    one_process: bool = True


@dataclass(frozen=True)
class Suite:
    """The cases of a command and the inputs that they share.

    Args:
        module: where ``SUITE`` stands; the processes of the sides import it again.
        cases: by name, in the order of the table.
        prepare: writes the inputs into a folder and returns their paths by name; says on stderr
            what they are.
        needs: packages of the code that is compared with, which `make judge` installs.
    """

    module: str
    cases: Mapping[str, Case]
    prepare: Callable[[Path], Inputs]
    needs: tuple[str, ...] = ()


def our_side(load: Callable[[Inputs], Loaded]) -> dict[str, Side]:
    """This project's side."""
    return {OURS: Side("this project", load)}


def in_torch(whose: str, load: Callable[[Inputs], Loaded]) -> dict[str, Side]:
    """The same PyTorch code twice, with a C library that keeps its memory and as shipped.

    Args:
        whose: name of the code in the heads of both columns.
        load: loads it.
    """
    return {
        TORCH: Side(f"{whose}, tuned", load, KEEP_MEMORY),
        TORCH_AS_SHIPPED: Side(f"{whose}, as shipped", load),
    }


def no_inputs(folder: Path) -> Inputs:
    """``prepare`` of a suite whose sides make their inputs themselves."""
    return {}


def load_suite(module: str) -> Suite:
    """The ``SUITE`` of a module of cases."""
    return import_module(module).SUITE
