"""Runs each side of a case in a process of its own, in turns, and puts the figures together.

A process each, so that the peak of resident memory is that of one side; in turns within one run, so
that a busy or slow moment of the machine meets all.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import OURS, STAGE, Inputs, Suite
from benchmarks.report import Outcome
from core.errors import UserError
from core.log import info, warn
from core.work.pool import usable_cores

ROOT = Path(__file__).resolve().parent.parent
# Variables of the C library's allocator: a side has its own or none, whatever this process has.
_ALLOCATOR = ("MALLOC_", "GLIBC_TUNABLES")
# Variables on which a side's speed depends, and which are written down.
_RECORDED = (*_ALLOCATOR, "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "LD_PRELOAD", "USS_DEVICE")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def measure(suite: Suite, names: list[str], runs: int) -> list[Outcome]:
    """Measure the named cases one after the other, with progress on stderr.

    Raises:
        UserError: a side's process failed; what it printed is on stderr.
    """
    with tempfile.TemporaryDirectory(prefix="benchmarks.") as folder:
        inputs = suite.prepare(Path(folder))
        return [_measure(suite, name, inputs, Path(folder), runs) for name in names]


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """The variables of a side's process: this process's, without those of the allocator, one thread
    for each core, the CPU, and its ``own``.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(_ALLOCATOR)}
    threads = dict.fromkeys(_THREADS, str(usable_cores()))
    return {**inherited, **threads, "USS_DEVICE": "cpu", **own}


def recorded(variables: Mapping[str, str]) -> dict[str, str]:
    """Those of a process's variables on which its speed depends."""
    return {key: variables[key] for key in sorted(variables) if key.startswith(_RECORDED)}


def _measure(suite: Suite, name: str, inputs: Inputs, folder: Path, runs: int) -> Outcome:
    case = suite.cases[name]
    info(STAGE, f"{name}: {case.what}")
    with contextlib.ExitStack() as stack:
        processes, loaded = {}, {}
        for side in case.sides:
            kernels = " (compiles kernels at the first use)" if side == OURS else ""
            info(STAGE, f"{name}: {side}: loading and warming up{kernels}")
            process = stack.enter_context(_side_process(suite, name, side, inputs, folder))
            processes[side] = process
            loaded[side] = process.answer()["loaded_mib"]
        times: dict[str, list[float]] = {side: [] for side in case.sides}
        peaks = {}
        for number in range(1, runs + 1):
            for side in case.sides:
                figures = processes[side].ask("run")
                times[side].append(figures["ms"])
                peaks[side] = figures["peak_mib"]
            figures_text = ", ".join(f"{side} {times[side][-1]:.0f} ms" for side in case.sides)
            info(STAGE, f"{name}: run {number} of {runs}: {figures_text}")
        for side in case.sides:
            processes[side].ask("result")
    results = {side: _read_arrays(_result_path(folder, name, side)) for side in case.sides}
    agreement = {
        side: case.agree(results[OURS], result) for side, result in results.items() if side != OURS
    }
    variables = {name: recorded(environment(side.environment)) for name, side in case.sides.items()}
    outcome = Outcome(name, case, times, peaks, loaded, variables, agreement)
    (info if outcome.same_result else warn)(STAGE, f"{name}: {outcome.comparison}")
    return outcome


class _SideProcess:
    """A side's process that answers each line with a JSON object on a line."""

    def __init__(self, process: subprocess.Popen[str], what: str) -> None:
        self.process, self.what = process, what

    def ask(self, request: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # answer() says that the process has ended
            self.process.stdin.write(f"{request}\n")
            self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            ended = f"was killed by signal {-code}" if code < 0 else f"failed (exit code {code})"
            raise UserError(f"{self.what} {ended}; its messages stand above")
        return json.loads(line)


@contextlib.contextmanager
def _side_process(
    suite: Suite, name: str, side: str, inputs: Inputs, folder: Path
) -> Iterator[_SideProcess]:
    arguments = [suite.module, name, side, json.dumps(dict(inputs))]
    arguments.append(str(_result_path(folder, name, side)))
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.side", *arguments],
        cwd=ROOT,
        env=environment(suite.cases[name].sides[side].environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield _SideProcess(process, f"{name}: {side}")
    finally:
        # It ends by itself when its input does; a run that is under way is not waited for.
        process.terminate()
        process.communicate()


def _result_path(folder: Path, name: str, side: str) -> Path:
    return folder / f"{name}.{side}.npz"


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}
