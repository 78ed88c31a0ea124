"""``python -m NAME watch RUN``: how far a run is, while it runs, from any terminal or machine that
sees its folder.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from core.config import between, number, seconds
from core.errors import UserError
from core.pipeline.stage import Pipeline
from core.text import duration
from tools import flags
from tools.watch.serve import serve
from tools.watch.state import FINISHED, RUNNING, STOPPED, RunState, StageState, as_json

_CLEAR = "\x1b[H\x1b[J"
_BAR = 10
# Reading a large run over a network takes time: no more than this share of it is spent on that.
_READING_SHARE = 0.1


def main(arguments: list[str], pipeline: Pipeline) -> int:
    """Show the state of ``RUN`` until Ctrl-C, or once."""
    options = _parser(pipeline).parse_args(arguments)
    if not options.run.is_dir():
        raise UserError(f"{options.run} is not a folder; name the run folder (runs/PRESET)")
    state = RunState(options.run, pipeline, options.data, options.result)
    if options.json:
        print(as_json(state.stages(), indent=2))
        return 0
    try:
        if options.serve:
            serve(state, page, options.port, options.interval, _report_arguments(options))
        else:
            _watch(state, options.interval, options.once)
    except KeyboardInterrupt:
        print()
    return 0


def _parser(pipeline: Pipeline) -> argparse.ArgumentParser:
    parser = flags.Parser(prog=f"python -m {pipeline.name} watch", description=__doc__)
    add = parser.add_argument
    add("run", type=Path, help="run folder of train_1..4.sh and test.py")
    data = "data set, for totals (where the run's records name it)"
    flags.add_place(parser, flags.DATA, data)
    flags.add_place(parser, flags.RESULT, "where test.py writes (RUN/result)")
    interval = "seconds between two looks (2)"
    kind = number(float, seconds())
    add("--interval", type=kind, default=2.0, metavar="S", help=interval)
    add("--once", action="store_true", help="show the state and end")
    add("--json", action="store_true", help="print the state as JSON and end")
    add("--serve", action="store_true", help="show it, and the report, in a browser here")
    port = number(int, between(0, (1 << 16) - 1))
    add("--port", type=port, default=8000, help="of --serve; 0: any that is free (8000)")
    return parser


def _report_arguments(options: argparse.Namespace) -> list[str]:
    """What ``python -m NAME report`` is told beside the run."""
    named = ((flags.DATA[0], options.data), (flags.RESULT[0], options.result))
    return [part for flag, path in named if path for part in (flag, str(path.absolute()))]


def _watch(state: RunState, interval: float, once: bool) -> None:
    live = sys.stdout.isatty() and not once
    while True:
        started = time.monotonic()
        columns = shutil.get_terminal_size().columns if live else None
        text = page(state.run.root, state.stages(), columns)
        taken = time.monotonic() - started
        print(f"{_CLEAR}{text}" if live else text, flush=True)
        if once:
            return
        time.sleep(max(interval, taken / _READING_SHARE))


def page(run: Path, stages: list[StageState], columns: int | None = None) -> str:
    """What is shown: a line a stage, and what the running ones say; cut to ``columns``."""
    lines = [f"{run}   {time.strftime('%H:%M:%S')}   {_free(run)}", ""]
    if not stages:
        lines.append("nothing has begun here yet")
    for stage in stages:
        lines.append(_line(stage))
        lines += [f"    {text}" for text in _details(stage)]
    return "\n".join(line if columns is None else line[: max(columns - 1, 40)] for line in lines)


def _line(stage: StageState) -> str:
    parts = [f"{stage.name:25}{stage.state:8}"]
    if stage.total:
        share = min(stage.done / stage.total, 1.0)
        filled = round(_BAR * share)
        if stage.state != FINISHED:
            parts.append(f"[{'#' * filled}{'.' * (_BAR - filled)}] {100 * share:3.0f} %")
        parts.append(f"{stage.done}/{stage.total} {stage.unit}")
    elif stage.done:
        parts.append(f"{stage.done} {stage.unit}")
    if stage.failed:
        parts.append(f"{stage.failed} failed")
    if stage.state == FINISHED and stage.took_s:
        parts.append(f"took {duration(stage.took_s)}")
    return "  ".join(parts)


def _details(stage: StageState) -> list[str]:
    """What is worth a line of its own of a stage that is not finished."""
    if stage.state == FINISHED:
        return []
    values = ", ".join(f"{name} {value:.4g}" for name, value in stage.values.items())
    facts = []
    if stage.left_s is not None:
        facts.append(f"{duration(stage.left_s)} left")
    if stage.state == RUNNING and stage.rate:
        facts.append(f"{stage.rate:.3g} images/s")
    if stage.memory_mib:
        facts.append(f"memory {stage.memory_mib / 1024:.1f} GiB")
    if stage.workers:
        facts.append(f"{len(stage.workers)} at work: {', '.join(stage.workers[:4])}")
    if stage.silent_s is not None:
        facts.append(f"last sign of life {duration(stage.silent_s)} ago")
    if stage.state == STOPPED:
        facts.append("the same command goes on")
    return [text for text in (", ".join(facts), values) if text]


def _free(run: Path) -> str:
    return f"{shutil.disk_usage(run).free / (1 << 30):.0f} GiB free on disk"
