"""Runs each side of a case in a process of its own, in turns, and puts the figures together.

Two processes, so that the peak of resident memory is that of one side; in turns within one run, so
that a busy or slow moment of the machine meets both.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from core.log import info, warn
from core.work.pool import usable_cores

STAGE = "benchmarks"
SIDES = ("ours", "torch")
ROOT = Path(__file__).resolve().parent.parent

Arrays = Mapping[str, np.ndarray]
Inputs = Mapping[str, str]


@dataclass(frozen=True)
class Side:
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
class Agreement:
    """Whether both sides came to the same result, and the figures that say so."""

    holds: bool
    text: str


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Args:
        what: the work and its settings, in a few words.
        sides: "ours" and "torch", each loads its implementation in a fresh process.
        agree: compares the results (ours, torch).
    """

    what: str
    sides: Mapping[str, Callable[[Inputs], Side]]
    agree: Callable[[Arrays, Arrays], Agreement]


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


@dataclass(frozen=True)
class Outcome:
    """Figures of one case: milliseconds of each run and MiB of resident memory, by side."""

    name: str
    runs_ms: Mapping[str, list[float]]
    peak_mib: Mapping[str, float]
    loaded_mib: Mapping[str, float]
    agreement: Agreement

    @property
    def median_ms(self) -> dict[str, float]:
        return {side: statistics.median(times) for side, times in self.runs_ms.items()}

    @property
    def ratio(self) -> float:
        """Our median time over torch's: below 1 is faster."""
        return self.median_ms["ours"] / self.median_ms["torch"]

    def as_json(self) -> dict[str, Any]:
        """One object of ``--json``; the ``loaded`` memory is what the process had after loading."""
        return {
            "name": self.name,
            "ours_ms": round(self.median_ms["ours"], 2),
            "torch_ms": round(self.median_ms["torch"], 2),
            "ratio": round(self.ratio, 3),
            "ours_peak_mib": round(self.peak_mib["ours"], 1),
            "torch_peak_mib": round(self.peak_mib["torch"], 1),
            "peak_ratio": round(self.peak_mib["ours"] / self.peak_mib["torch"], 3),
            "ours_loaded_mib": round(self.loaded_mib["ours"], 1),
            "torch_loaded_mib": round(self.loaded_mib["torch"], 1),
            "ours_runs_ms": [round(ms, 2) for ms in self.runs_ms["ours"]],
            "torch_runs_ms": [round(ms, 2) for ms in self.runs_ms["torch"]],
            "same_result": self.agreement.holds,
            "comparison": self.agreement.text,
        }


def no_inputs(folder: Path) -> Inputs:
    """``prepare`` of a suite whose sides make their inputs themselves."""
    return {}


def load_suite(module: str) -> Suite:
    """The ``SUITE`` of a module of cases."""
    return import_module(module).SUITE


def measure(suite: Suite, names: list[str], runs: int) -> list[Outcome]:
    """Measure the named cases one after the other, with progress on stderr.

    Raises:
        UserError: a side's process failed; what it printed is on stderr.
    """
    cores = usable_cores()
    load = os.getloadavg()[0]
    info(STAGE, f"{_processor()}, {cores} cores for each side, median of {runs} runs")
    if load > cores / 4:
        warn(STAGE, f"the machine is busy (load {load:.1f}): the times are not to be relied on")
    with tempfile.TemporaryDirectory(prefix="benchmarks.") as folder:
        inputs = suite.prepare(Path(folder))
        return [_measure(suite, name, inputs, Path(folder), runs) for name in names]


def table(outcomes: list[Outcome]) -> str:
    """The outcomes as a Markdown table."""
    lines = [
        "| case | ours | torch | ratio | peak ours | peak torch | ratio | same result |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        ms, peak = outcome.median_ms, outcome.peak_mib
        times = " | ".join(f"{ms[side]:.0f} ms" for side in SIDES)
        peaks = " | ".join(f"{peak[side]:.0f} MiB" for side in SIDES)
        verdict = ("yes: " if outcome.agreement.holds else "NO: ") + outcome.agreement.text
        lines.append(
            f"| {outcome.name} | {times} | {outcome.ratio:.2f} | {peaks} "
            f"| {peak['ours'] / peak['torch']:.2f} | {verdict} |"
        )
    return "\n".join(lines)


def _measure(suite: Suite, name: str, inputs: Inputs, folder: Path, runs: int) -> Outcome:
    case = suite.cases[name]
    info(STAGE, f"{name}: {case.what}")
    with contextlib.ExitStack() as stack:
        processes, loaded = {}, {}
        for side in SIDES:
            kernels = " (compiles kernels at the first use)" if side == "ours" else ""
            info(STAGE, f"{name}: {side}: loading and warming up{kernels}")
            process = stack.enter_context(_side_process(suite.module, name, side, inputs, folder))
            processes[side] = process
            loaded[side] = process.answer()["loaded_mib"]
        times: dict[str, list[float]] = {side: [] for side in SIDES}
        peaks = {}
        for number in range(1, runs + 1):
            for side in SIDES:
                figures = processes[side].ask("run")
                times[side].append(figures["ms"])
                peaks[side] = figures["peak_mib"]
            figures_text = ", ".join(f"{side} {times[side][-1]:.0f} ms" for side in SIDES)
            info(STAGE, f"{name}: run {number} of {runs}: {figures_text}")
        for side in SIDES:
            processes[side].ask("result")
    results = {side: _read_arrays(_result_path(folder, name, side)) for side in SIDES}
    agreement = case.agree(results["ours"], results["torch"])
    (info if agreement.holds else warn)(
        STAGE, f"{name}: {'same' if agreement.holds else 'another'} result: {agreement.text}"
    )
    return Outcome(name, times, peaks, loaded, agreement)


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
    module: str, name: str, side: str, inputs: Inputs, folder: Path
) -> Iterator[_SideProcess]:
    arguments = [module, name, side, json.dumps(dict(inputs)), _result_path(folder, name, side)]
    threads = str(usable_cores())
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "USS_DEVICE": "cpu",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.side", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
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


def _processor() -> str:
    """The processor's name as Linux states it, else the machine's kind."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
