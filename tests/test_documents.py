"""Every command of the documents: cheap ones run, all are read by the program's own parser, and
the files, settings, presets and targets they name exist. The long ones run in test_document_runs.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core import config as core_config
from core.data.imagenet_s import list_images
from core.data.label_maps import save_label
from core.errors import UserError
from core.scoring.matching import write_match
from tests.helpers.document_commands import (
    MODULES,
    ROOT,
    Command,
    Invocation,
    Parse,
    Places,
    Unclassified,
    commanding,
    commands,
    invocations,
    is_cheap,
    parsed,
    stages_of,
)
from tests.helpers.processes import PATIENCE_S
from tests.helpers.report_runs import make_run
from tools.command_line import TOOLS, config_from
from uss import pipeline as uss_pipeline
from uss.presets import PRESET_NAMES
from wsss import pipeline as wsss_pipeline

__all__ = ["parsed"]

ENGLISH = ROOT / "README.md"
PIPELINES = {each.name: each for each in (uss_pipeline.PIPELINE, wsss_pipeline.PIPELINE)}


def all_commands() -> list[Command]:
    """Those of all documents, each once."""
    found = {
        (each.line, tuple(sorted(each.exported.items()))): each
        for path in commanding()
        for each in commands(path.read_text(encoding="utf-8"))
    }
    return list(found.values())


# Every command is understood, and the project takes it -------------------------------------------


@pytest.mark.parametrize("command", all_commands(), ids=str)
def test_the_project_takes_the_command(command: Command, parsed: Parse) -> None:
    for invocation in invocations(command):
        check_variables(invocation.variables)
        check_invocation(invocation, parsed)


def check_invocation(invocation: Invocation, parsed: Parse) -> None:
    """Files, flags, settings and targets of one call are real."""
    program, arguments = invocation.program, list(invocation.arguments)
    if program in (*MODULES, "test.py"):
        check_arguments(program, arguments, parsed)
    elif program.endswith(".sh"):
        assert (ROOT / program).is_file(), f"{program} does not exist"
        stages = stages_of(program)
        assert stages, f"{program} runs no stage"
        name = invocation.variables.get("PRESET", "luss50")
        for stage in stages:
            check_arguments("uss", [stage, "--preset", name, *arguments], parsed)
    elif program == "make":
        phony = re.search(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert phony is not None
        assert arguments and set(arguments) <= set(phony[1].split()), arguments
    elif program == "conda":
        assert arguments[:3] == ["env", "create", "-f"] and (ROOT / arguments[3]).is_file()
    elif program == "apt-get":
        known = text_of("CONTRIBUTING.md", "core/runtime.py", "tools/doctor/checks.py")
        assert arguments[0] == "install"
        for package in arguments[1:]:
            assert package in known, f"nothing in the project asks for {package}"
    elif program == "docs/stages.py":
        assert (ROOT / program).is_file() and not arguments
    else:
        assert program in ("export", "mpirun"), program


def check_arguments(program: str, arguments: list[str], parsed: Parse) -> None:
    """The program's own parser reads the arguments, and its settings exist."""
    if arguments in (["--help"], ["-h"]):
        return
    if arguments[-1] == "--help":
        assert arguments[0] in (*PIPELINES[program].commands, *TOOLS), arguments
        return
    options = parsed(program, arguments).options
    assignments = getattr(options, "set", [])
    pipeline = PIPELINES.get(program)
    if pipeline is not None and arguments[0] in pipeline.commands:
        config_from(options, pipeline)
    elif assignments:
        pipeline = pipeline or PIPELINES["uss"]
        name = options.preset or pipeline.presets[0]
        core_config.override(pipeline.preset(name, None), assignments)


def check_variables(variables: dict[str, str]) -> None:
    """Each variable is one that the project reads, and names a preset or launcher that exists."""
    scripts = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("scripts/*.sh"))
    readers = text_of(*scripts, "train_4.sh", "train_3.sh", "core/runtime.py")
    readers += text_of("tools/doctor/checks.py")
    for name, value in variables.items():
        assert re.search(rf"\b{name}\b", readers), f"nothing reads {name}"
        if name == "PRESET":
            assert value in PRESET_NAMES
        if name == "LAUNCH":
            (launcher,) = invocations(Command(value))
            assert launcher.program == "mpirun"


def text_of(*names: str) -> str:
    """The content of files of the project, one after another."""
    return "\n".join((ROOT / name).read_text(encoding="utf-8") for name in names)


# Cheap commands are executed ---------------------------------------------------------------------


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """Data, run, results, archive and photographs, made without any network."""
    folder = tmp_path_factory.mktemp("documents")
    run = make_run(folder)
    for item in list_images(run.data / "test"):
        with Image.open(item.path) as image:
            label = np.ones((image.height, image.width), np.int32)
        path = run.result / "test" / f"{item.key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_label(path, label)
    write_match(folder / "match.json", {0: 0, 1: 1, 2: 2, 3: 3})
    archive = run.result / "result.zip"
    build = ["build", f"{run.result / 'test'}", f"{archive}", "--mode", "test"]
    build += ["--match-file", f"{folder / 'match.json'}", "--data_path", f"{run.data}"]
    assert execute(["submission", *build], folder).returncode == 0
    photos = folder / "photos"
    photos.mkdir()
    random = np.random.RandomState(0)
    for index in range(12):
        pixels = random.randint(0, 256, (80, 90, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(photos / f"{index}.jpg")
    return Places(run.data, photos, run.root, run.result)


def execute(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """``python -m uss`` in a folder that is not the project's."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "USS_DEVICE": "cpu"}
    return subprocess.run(
        [sys.executable, "-m", "uss", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


CHEAP = sorted(
    {
        invocation.arguments
        for command in all_commands()
        for invocation in invocations(command)
        if invocation.program == "uss" and is_cheap(invocation.arguments)
    }
)


@pytest.mark.parametrize("arguments", CHEAP, ids=shlex.join)
def test_cheap_commands_run(arguments: tuple[str, ...], world: Places, tmp_path: Path) -> None:
    words = world.of(arguments)
    if arguments[:2] in (("data", "split"), ("data", "demo")):
        words[words.index("--data") + 1] = str(tmp_path / "new")
    if arguments[0] == "watch":
        words.append("--once")
    done = execute(words, tmp_path)
    assert "Traceback" not in done.stderr
    # The doctor's judgement of the machine that runs the tests, and of a tiny data set, is open.
    allowed = (0, 1) if arguments[0] == "doctor" else (0,)
    assert done.returncode in allowed, done.stdout + done.stderr
    assert done.stdout.strip() or done.stderr.strip()


def test_enough_commands_are_found_and_executed() -> None:
    """Should the extraction go blind, the tests above would pass with nothing to do."""
    lines = {command.line for command in all_commands()}
    for wanted in ("make demo", "bash train_1.sh", "test.py", "data split", "sbatch", "doctor"):
        assert any(wanted in line for line in lines), wanted
    assert {words[0] for words in CHEAP} >= {"data", "evaluate", "submission", "report", "watch"}


# The tests themselves ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "```bash\nfrobnicate --all\n```\n",
        "```bash\ngit clone somewhere\n```\n",
        "```\nmake demo\n```\n",
        "```sh\nmake demo\n```\n",
        "say `python -m pip install x` now",
        "say `pip install x` now",
        "say `frobnicate --all` now",
        "```bash\nmpirun --surprise 3 python -m uss masks\n```\n",
        "```bash\nsbatch --array=0-3 job.sh\n```\n",
    ],
)
def test_what_is_not_understood_is_an_error(text: str) -> None:
    with pytest.raises(Unclassified):
        for command in commands(text):
            invocations(command)


@pytest.mark.parametrize(
    "line",
    [
        "python -m uss pretrain --epochs 3",
        "python -m uss pretrian --preset demo",
        "python -m uss pretrain --preset nothing",
        "python -m uss pretrain --set pretrain.epoch=3",
        "python -m wsss pretrain --preset demo",
        "python -m wsss classifier --set pretrain.epochs=3",
        "bash train_1.sh --set pretrain.epochs=many",
        "bash train_5.sh",
        "bash train_1.sh --threshold 0.3",
        "PRESET=luss51 bash train_1.sh",
        "DATASET=/data bash train_1.sh",
        "make everything",
        ".venv/bin/python test.py --modus test",
        'sbatch --array=0-3 --wrap="python -m uss masks --spilt train"',
        "for n in 1 9; do bash train_$n.sh; done",
        "conda env create -f missing.yaml",
    ],
)
def test_wrong_commands_are_noticed(line: str, parsed: Parse) -> None:
    with pytest.raises((AssertionError, SystemExit, UserError)):
        (command,) = commands(f"```bash\n{line}\n```\n")
        for invocation in invocations(command):
            check_variables(invocation.variables)
            check_invocation(invocation, parsed)
