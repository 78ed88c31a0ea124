"""The documents' commands that train, predict or refine: run as written, on few images, without
SAM and with little training. Paths, presets and numbers of processes are those of this test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from core import runtime
from core.synthetic import imagenet_s
from tests.helpers.document_commands import (
    ROOT,
    Invocation,
    Places,
    commanding,
    commands,
    fences,
    invocations,
    is_cheap,
    spans,
)
from uss.pipeline import PIPELINE

_ONE_EPOCH = ("pretrain.epochs=1", "pixel_attention.epochs=1", "finetune.epochs=1")
_SMALL = ("pretrain.batch_size=8", "masks.source=superpixels", "cluster.redo=1", "workers=0")
_SHORT = [word for setting in _ONE_EPOCH + _SMALL for word in ("--set", setting)]
_SCRIPTS = ("train_1.sh", "train_2.sh", "train_3.sh", "train_4.sh")
# Run by other tests, or nothing but a machine's set-up.
_ELSEWHERE = ("export", "make", "apt-get", "conda", "mpirun", "benchmarks", "docs/stages.py")


def units() -> dict[str, list[Invocation]]:
    """Name -> calls that belong together: a bash block, or one command of a sentence."""
    found: dict[str, list[Invocation]] = {}
    for path in commanding():
        text = path.read_text(encoding="utf-8")
        blocks = (f"```bash\n{content}```\n" for kind, content in fences(text) if kind == "bash")
        for part in (*blocks, *(f"`{span}`" for span in spans(text))):
            calls = [call for command in commands(part) for call in invocations(command)]
            calls = [call for call in calls if call.program not in _ELSEWHERE]
            if any(is_long(call) for call in calls):
                found.setdefault("; ".join(map(name_of, calls)), calls)
    return found


def is_long(call: Invocation) -> bool:
    """Whether test_documents leaves the call to this file."""
    if call.program == "uss":  # weights has a test of its own below: it needs a network
        return not is_cheap(call.arguments) and call.arguments[0] != "weights"
    return call.program == "test.py" or call.program.endswith(".sh")


def name_of(call: Invocation) -> str:
    return " ".join((call.program, *call.arguments))


UNITS = units()
# The five commands as the README has them first.
MAIN = next(name for name in UNITS if "train_4.sh" in name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """The main block of the README, run to its end."""
    folder = tmp_path_factory.mktemp("finished")
    data = imagenet_s.make_dataset(folder / "data", train=4, validation=1, test=1)
    for name in ("train-semi", "train-semi-segmentation"):  # for distance matching
        shutil.copytree(data / name.replace("train-semi", "validation"), data / name)
    place = Places(data, data / "test", folder / "run", folder / "result")
    calls = UNITS[MAIN]
    assert sum(call.program in (*_SCRIPTS, "test.py") for call in calls) == 6
    for call in calls:
        execute(call, place)
    assert (place.result / "result.zip").is_file()
    return place


def execute(call: Invocation, place: Places) -> None:
    """Run one call to its end, or fail with what it printed."""
    arguments = place.of(call.arguments)
    if "--preset" in arguments and arguments[0] != "distance-matching":
        arguments[arguments.index("--preset") + 1] = "demo"
    settings = {"PRESET": "demo", "DATA": str(place.data), "RUN": str(place.run)}
    if "LAUNCH" in call.variables:  # one process where there is no launcher
        settings["LAUNCH"] = "mpirun -np 2 --oversubscribe" if shutil.which("mpirun") else ""
    if call.program == "uss":
        words = [sys.executable, "-m", "uss", *arguments]
        if arguments[0] in PIPELINE.commands:
            words += ["--run", str(place.run), *_SHORT]
    elif call.program == "test.py":
        words = [sys.executable, f"{ROOT}/test.py", *arguments, "--run", str(place.run), *_SHORT]
        words += ["--data_path", str(place.data), "--dump_path", str(place.result)]
    else:
        words = ["bash", f"{ROOT}/{call.program}", *arguments, *_SHORT]
    environment = {**os.environ, **call.variables, **settings, "PYTHON": sys.executable}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    place.run.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        words, cwd=place.run.parent, env=environment, capture_output=True, text=True, timeout=1200
    )
    # --check answers with its status whether anything is missing.
    allowed = (0, 1) if "--check" in arguments else (0,)
    assert done.returncode in allowed, f"{words}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in UNITS if name != MAIN])
def test_the_commands_run_as_written(name: str, finished: Places, tmp_path: Path) -> None:
    calls = UNITS[name]
    fresh = replace(finished, run=tmp_path / "run", result=tmp_path / "result")
    complete = any(call.program == "train_4.sh" for call in calls)
    for call in calls:
        execute(call, fresh if complete or trains_anew(call) else finished)


def trains_anew(call: Invocation) -> bool:
    """Whether the call trains with settings of its own: the finished run has others."""
    first = call.arguments[0] if call.program == "uss" else call.program
    own = {"--set", "--shallow"} & set(call.arguments)
    return bool(own) and first in ("train_1.sh", "train_2.sh", "pretrain")


@pytest.mark.slow
def test_weights_are_found() -> None:
    if not (runtime.cache_dir() / "weights").is_dir():
        pytest.skip("no weights on this machine; python -m uss weights fetches them")
    done = subprocess.run(
        [sys.executable, "-m", "uss", "weights"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_long_commands_are_found() -> None:
    """Should the extraction go blind, the tests above would pass with nothing to do."""
    programs = {call.program for calls in UNITS.values() for call in calls}
    assert programs >= {"train_1.sh", "train_4.sh", "test.py", "uss"}
    names = " ".join(UNITS)
    for wanted in ("masks", "visualize", "distance-matching", "predict", "pseudo-labels"):
        assert f"uss {wanted}" in names, wanted
