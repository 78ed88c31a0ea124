"""Cases of known time, memory and result, to test how benchmarks are measured."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare import Agreement, Arrays, Case, Inputs, Side, Suite

MIB = 1 << 20


def prepare(folder: Path) -> Inputs:
    """The path of a diary, to which each side writes what it does."""
    return {"diary": os.environ["DIARY"]}


def side(name: str, seconds: float, mib: int) -> Any:
    """A side that sleeps and takes memory; its first run, the warm-up, is slower."""

    def load(inputs: Inputs) -> Side:
        diary = Path(inputs["diary"])
        print("a library that prints to stdout")

        def write(what: str) -> None:
            with diary.open("a") as file:
                file.write(f"{name} {what} {os.getpid()}\n")

        def warm_up() -> None:
            write("warm-up")
            time.sleep(0.5)

        def run() -> np.ndarray:
            write("run")
            time.sleep(seconds)
            return np.ones(mib * MIB, np.uint8)

        return Side(warm_up, run, lambda outcome: {"sum": np.array(outcome.sum() // MIB)})

    return load


def agree(ours: Arrays, torch: Arrays) -> Agreement:
    """Holds where both summed up to the same."""
    return Agreement(bool(ours["sum"] == torch["sum"]), f"{ours['sum']} and {torch['sum']}")


def fails(inputs: Inputs) -> Side:
    """Loads nothing."""
    raise RuntimeError("no such weights")


def dies(inputs: Inputs) -> Side:
    """Is killed, as by a lack of memory, when it runs."""
    return Side(lambda: None, lambda: os.kill(os.getpid(), signal.SIGKILL), lambda _: {})


SMALL, LARGE = side("ours", 0.02, 64), side("torch", 0.1, 256)
SUITE = Suite(
    module=__name__,
    prepare=prepare,
    cases={
        "differing": Case("another result", {"ours": SMALL, "torch": LARGE}, agree),
        "agreeing": Case("the same", {"ours": SMALL, "torch": side("torch", 0.05, 64)}, agree),
        "failing": Case("cannot load", {"ours": fails, "torch": LARGE}, agree),
        "dying": Case("is killed", {"ours": SMALL, "torch": dies}, agree),
    },
)
