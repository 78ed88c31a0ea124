"""``python -m NAME doctor``: is this machine, and this data set, fit for a preset?

Prints what was looked at and, for what is wrong, the command that mends it; exit code 1 where
something must be mended first. ``--estimate`` measures for half a minute and says how long each
stage of the preset would take here, and how much memory. PRESET, DATA and RUN of the environment
count as they do for train_1..4.sh.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core import config as core_config
from core import log, runtime
from core.memory import machine_bytes
from core.pipeline.folders import RUNS, TRAIN, VALIDATION
from core.pipeline.stage import Pipeline
from tools import flags
from tools.doctor import checks, estimate, gpu
from tools.doctor import data as doctor_data
from tools.doctor.checks import FAIL, WARN, Check
from tools.doctor.estimate import Counts, Row

STAGE = "doctor"
_MARKS = {"ok": "ok  ", WARN: "note", FAIL: "FAIL"}
_UNKNOWN_COUNTS = {TRAIN: 1000, VALIDATION: 100, "test": 100}


def main(arguments: list[str], pipeline: Pipeline) -> int:
    """Check, perhaps estimate, print; 1 where a check failed."""
    options = _parser(pipeline).parse_args(arguments)
    config = core_config.override(pipeline.preset(options.preset, None), options.set)
    found = []
    for check in _checks(options, config, pipeline):
        found.append(check)
        if not options.json:
            print(_line(check), flush=True)
    failed = [check for check in found if check.state == FAIL]
    rows: list[Row] = []
    counts, exact = _counts(options.data, config, pipeline)
    if options.estimate:
        rows = estimate.estimate(
            pipeline,
            options.preset,
            lambda base: core_config.override(base, options.set),
            counts,
            options.seconds,
        )
    if options.json:
        content = {
            "ok": not failed,
            "checks": [asdict(check) for check in found],
            "estimate": estimate.to_json(rows),
        }
        print(json.dumps(content, indent=2))
        return int(bool(failed))
    if rows:
        _print_estimate(rows, options.preset, exact)
        if any(check.name == "CPU" and check.state == WARN for check in found):
            log.warn(STAGE, "measured while other programs ran; alone on the machine it is faster")
    print(f"\n{_summary(found)}")
    return int(bool(failed))


def _parser(pipeline: Pipeline) -> argparse.ArgumentParser:
    parser = flags.Parser(prog=f"python -m {pipeline.name} doctor", description=__doc__)
    add = parser.add_argument
    given = os.environ.get("PRESET", pipeline.presets[0])
    add(
        "--preset",
        default=given,
        choices=sorted(pipeline.presets),
        help="what is to run (%(default)s)",
    )
    flags.add_set(parser)
    flags.add_place(parser, flags.DATA, "data set to check", default=_place("DATA"))
    flags.add_place(parser, flags.RUN, "run folder (runs/PRESET)", default=_place("RUN"))
    result = "where test.py writes (result)"
    flags.add_place(parser, flags.RESULT, result, default=Path("result"))
    add("--json", action="store_true", help="print everything as JSON")
    add("--estimate", action="store_true", help="measure, and estimate time and memory")
    text = "to spend on measuring, compilation not counted (%(default)s)"
    kind = core_config.number(float, core_config.seconds())
    add("--seconds", type=kind, default=estimate.SECONDS, metavar="S", help=text)
    return parser


def _place(name: str) -> Path | None:
    """A folder that the environment names for the scripts."""
    return Path(os.environ[name]) if os.environ.get(name) else None


def _checks(options: argparse.Namespace, config: Any, pipeline: Pipeline) -> Iterator[Check]:
    """Every check, cheap ones first."""
    run = options.run or RUNS / options.preset
    images = _counts(options.data, config, pipeline)[0].get(TRAIN, 0)
    first = (checks.program, checks.python, checks.packages)
    for check in (*first, checks.compiler, checks.headers, checks.onednn):
        yield check()
    yield gpu.gpu()
    yield checks.jittor()
    yield checks.mpi()
    yield checks.cpu()
    yield checks.memory()
    yield checks.disk(run, images)
    folders = {"run": run, "result": options.result, "cache": runtime.cache_dir()}
    yield checks.writing(folders)
    yield checks.sam_weights()
    if options.data is None:
        yield Check(
            "data",
            WARN,
            "not checked",
            f"python -m {pipeline.name} doctor --data /path/to/your/data",
        )
    else:
        yield from doctor_data.data(options.data.absolute(), config, pipeline)


def _counts(data: Path | None, config: Any, pipeline: Pipeline) -> tuple[Counts, bool]:
    """Images of the data set, or as published; False where neither is known."""
    if data is not None and data.is_dir():
        tests = doctor_data.test_splits(data)[0]
        wanted = {name for stage in pipeline.stages if stage.cost for name in stage.cost.splits}
        places = {**{name: name for name in (TRAIN, VALIDATION, *wanted)}, "test": tests}
        return {name: doctor_data.images(data, place) for name, place in places.items()}, True
    published = pipeline.published_counts(config)
    return (published, True) if published else (_UNKNOWN_COUNTS, False)


def _line(check: Check) -> str:
    text = f"{_MARKS[check.state]}  {check.name:18}{check.found}"
    return f"{text}\n{'':24}mend: {check.mend}" if check.mend else text


def _summary(found: list[Check]) -> str:
    failed = [check.name for check in found if check.state == FAIL]
    notes = [check.name for check in found if check.state == WARN]
    text = f"to mend first: {', '.join(failed)}" if failed else "ready"
    return f"{text}; worth a look: {', '.join(notes)}" if notes else text


def _print_estimate(rows: list[Row], name: str, exact: bool) -> None:
    which = "" if exact else " for 1000 images (name yours with --data)"
    print(
        f"\npreset {name} on this machine, one process{which}, start and compilation not counted:\n"
    )
    print(estimate.format_rows(rows))
    wanted = max((row.memory_mib or 0.0 for row in rows), default=0.0) * 2**20
    found = machine_bytes()
    if found is not None and wanted > found[1]:
        log.warn(
            STAGE,
            f"up to {wanted / checks.GIB:.1f} GiB wanted, {found[1] / checks.GIB:.1f} GiB "
            "available: use smaller batches (--set STAGE.batch_size=...) or more processes "
            "(LAUNCH)",
        )
