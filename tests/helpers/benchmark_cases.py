"""Cases of known time, memory and result, to test how benchmarks are measured."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.cases import (
    KEEP_MEMORY,
    Agreement,
    Arrays,
    Case,
    Inputs,
    Loaded,
    Side,
    Suite,
    in_torch,
    our_side,
)

MIB = 1 << 20


def prepare(folder: Path) -> Inputs:
    """The path of a diary, to which each side writes what it does."""
    return {"diary": os.environ["DIARY"]}


def side(name: str, seconds: float, mib: int) -> Any:
    """A side that sleeps and takes memory; its first run, the warm-up, is slower."""

    def load(inputs: Inputs) -> Loaded:
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

        return Loaded(warm_up, run, lambda outcome: {"sum": np.array(outcome.sum() // MIB)})

    return load


def agree(ours: Arrays, torch: Arrays) -> Agreement:
    """Holds where both summed up to the same."""
    return Agreement(bool(ours["sum"] == torch["sum"]), f"{ours['sum']} and {torch['sum']}")


def fails(inputs: Inputs) -> Loaded:
    """Loads nothing."""
    raise RuntimeError("no such weights")


def dies(inputs: Inputs) -> Loaded:
    """Is killed, as by a lack of memory, when it runs."""
    return Loaded(lambda: None, lambda: os.kill(os.getpid(), signal.SIGKILL), lambda _: {})


def reports(inputs: Inputs) -> Loaded:
    """Its result is what its process was given: the allocator's variables, threads and cores."""
    threads = [int(os.environ[f"{name}_NUM_THREADS"]) for name in ("OMP", "MKL", "OPENBLAS")]
    allocator = [int(os.environ.get(name, -1)) for name in KEEP_MEMORY]
    given = {"allocator": allocator, "threads": threads, "cores": sorted(os.sched_getaffinity(0))}
    return Loaded(lambda: None, lambda: given, lambda _: {k: np.array(v) for k, v in given.items()})


def tuned_alone(ours: Arrays, other: Arrays) -> Agreement:
    """Holds where the cores are the same; the text says what the allocators were given."""
    same = all(np.array_equal(ours[key], other[key]) for key in ("threads", "cores"))
    return Agreement(same, f"{ours['allocator'].tolist()} and {other['allocator'].tolist()}")


def tiny_encoder(inputs: Inputs) -> Any:
    """Something with an ``image_encoder`` in PyTorch."""
    import torch

    torch.manual_seed(0)
    return SimpleNamespace(image_encoder=torch.nn.Conv2d(3, 2, 64, 64))


def pair(ours: Any, other: Any) -> dict[str, Side]:
    """Two sides."""
    return {"ours": Side("this project", ours), "torch": Side("official code", other)}


SMALL, LARGE = side("ours", 0.02, 64), side("torch", 0.1, 256)
SUITE = Suite(
    module=__name__,
    prepare=prepare,
    cases={
        "differing": Case("another result", pair(SMALL, LARGE), agree),
        "agreeing": Case("the same", pair(SMALL, side("torch", 0.05, 64)), agree),
        "failing": Case("cannot load", pair(fails, LARGE), agree),
        "dying": Case("is killed", pair(SMALL, dies), agree),
        "reporting": Case(
            "what is given",
            {**our_side(reports), **in_torch("official code", reports)},
            tuned_alone,
        ),
    },
)
