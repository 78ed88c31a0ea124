"""``python -m NAME COMMAND``: the stages and tools of a pipeline, from its table of stages."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from core import config as core_config
from core import distributed, log
from core.errors import UserError, main_guard
from core.pipeline.folders import RUNS, RunFolder
from core.pipeline.stage import Flag, Kind, Pipeline, Stage
from core.pipeline.times import record_time
from core.training.options import add_train_arguments, train_options
from core.version import VERSION
from tools import flags

# Command -> (module whose `main(arguments, pipeline) -> exit code` parses its own arguments, help).
TOOLS = {
    "evaluate": ("tools.evaluate.command", "score predictions against ground truth"),
    "submission": ("tools.submission.command", "check a result.zip"),
    "weights": ("tools.weights", "fetch SAM weights and list what is at hand"),
    "data": (
        "tools.data.command",
        "check a folder of images, make a data set of it or the demo's",
    ),
    "doctor": ("tools.doctor.command", "check this machine and a data set; estimate time, memory"),
    "visualize": ("tools.visualize", "lay predictions, masks or attention over images"),
    "watch": ("tools.watch.command", "the live state of a run"),
    "report": ("tools.report.command", "one page about a run, to be opened in any browser"),
    "summary": ("tools.summary", "scores, times and a picture sheet of a finished run"),
}


def command_of(pipeline: Pipeline) -> Callable[[list[str]], int]:
    """The command line of a pipeline: a function of the arguments that returns the exit code, and
    prints what a user can mend as one line.
    """
    return main_guard(lambda arguments: main(arguments, pipeline))


def main(arguments: list[str], pipeline: Pipeline) -> int:
    """Run one command of ``pipeline``; returns the exit code.

    Raises:
        UserError: an unknown command, or what the command itself raises.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(pipeline))
        return 0
    if arguments[0] == "--version":
        print(f"{pipeline.name} {VERSION}")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command in TOOLS:
        return importlib.import_module(TOOLS[command][0]).main(rest, pipeline)
    return run_stage(pipeline, pipeline.stage(command), rest)


def usage(pipeline: Pipeline) -> str:
    """The help text: a line for each stage and tool."""
    lines = [f"usage: python -m {pipeline.name} COMMAND [--help] ... | --version", "", "stages:"]
    for stage in pipeline.stages:
        if not stage.is_script:
            lines.append(f"  {stage.command:19}{_described(stage)}")
    lines += ["", "tools:"]
    lines += [f"  {name:19}{text}" for name, (_, text) in TOOLS.items()]
    return "\n".join(lines)


def add_config_arguments(parser: argparse.ArgumentParser, pipeline: Pipeline) -> None:
    """The arguments that choose a configuration: --preset, --arch, --set."""
    add = parser.add_argument
    add("--preset", default=pipeline.presets[0], choices=sorted(pipeline.presets))
    if pipeline.trunks:
        add("--arch", choices=pipeline.trunks, help="trunk (default: the preset's)")
    flags.add_set(parser)


def config_from(options: argparse.Namespace, pipeline: Pipeline) -> Any:
    """The configuration that the arguments of :func:`add_config_arguments` and flags describe.

    A flag that stands for a setting is kept under the setting's dotted name.
    """
    flags = [
        f"{key}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in vars(options).items()
        if "." in key and value is not None
    ]
    config = pipeline.preset(options.preset, getattr(options, "arch", None))
    config = core_config.override(config, [*options.set, *flags])
    return pipeline.completed(config, frozenset(flag.partition("=")[0] for flag in flags))


def stage_parser(pipeline: Pipeline, stage: Stage) -> argparse.ArgumentParser:
    """The arguments of a stage's command."""
    parser = flags.Parser(
        prog=f"python -m {pipeline.name} {stage.command}",
        description=_described(stage),
        epilog=_settings_of(pipeline, stage),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser, pipeline)
    flags.add_place(parser, flags.DATA, "data set folder", default=pipeline.default_data)
    flags.add_place(parser, flags.RUN, "run folder (default runs/PRESET)")
    flags.add_workers(parser, "processes that read images; 0: none beside", least=0)
    add_train_arguments(parser)
    for flag in (*pipeline.flags, *stage.flags):
        add_flag(parser, flag)
    return parser


def add_flag(parser: argparse.ArgumentParser, flag: Flag) -> None:
    """Add a stage's flag under the name of the setting or argument that it stands for."""
    name = flag.setting or flag.argument
    parser.add_argument(*flag.names, dest=name, help=flag.help, **flag.options)


def run_stage(pipeline: Pipeline, stage: Stage, arguments: list[str]) -> int:
    """Run a stage as its command line says; returns the exit code."""
    options = stage_parser(pipeline, stage).parse_args(arguments)
    config = config_from(options, pipeline)
    given = _arguments(options, (*pipeline.flags, *stage.flags))
    # Files that the user names instead of the run's own belong to the run folder.
    files = {name: given.pop(name) for name in list(given) if name.startswith("given_")}
    run = pipeline.run_folder((options.run or RUNS / options.preset).absolute(), **files)
    run.require_known()
    if not options.data.is_dir():
        raise UserError(
            f"data folder {options.data} does not exist; name it with DATA=... or --data"
        )
    if options.workers is not None:
        config = replace(config, workers=options.workers)
    core_config.check(config)
    if stage.kind is Kind.TRAINING:
        given["options"] = train_options(options)
    started = time.monotonic()
    with _stated(run, pipeline):
        code = stage.call(config, options.data.absolute(), run, **given)
    if distributed.is_main():
        seconds = time.monotonic() - started
        log.info(stage.command, f"finished in {seconds:.0f} s")
        trunk = f" {config.arch}" if pipeline.trunks else ""
        record_time(run, f"{stage.command}{trunk}", seconds)
    return code


@contextlib.contextmanager
def _stated(run: RunFolder, pipeline: Pipeline) -> Iterator[None]:
    """Let the run folder state its pipeline once it exists; a refused command makes none."""
    if distributed.is_main() and run.root.is_dir():
        run.state_pipeline(pipeline.name)
    try:
        yield
    finally:
        if distributed.is_main() and run.root.is_dir():
            run.state_pipeline(pipeline.name)


def _arguments(options: argparse.Namespace, flags: tuple[Flag, ...]) -> dict[str, Any]:
    """What the flags give to the stage's ``run``, by name."""
    return {flag.argument: getattr(options, flag.argument) for flag in flags if flag.argument}


def _settings_of(pipeline: Pipeline, stage: Stage) -> str:
    """The settings of a stage with the values of the default preset and their rules."""
    preset = pipeline.presets[0]
    section = getattr(pipeline.preset(preset, None), stage.section)
    lines = core_config.describe(section, stage.section)
    title = f"settings of this stage (--set NAME=VALUE), with the values of preset {preset}:"
    return "\n".join([title, *(f"  {line}" for line in lines)])


def _described(stage: Stage) -> str:
    return f"step {stage.step}: {stage.help}" if stage.step else stage.help
