"""The training log: its lines, its continuation after a resume, and its other receivers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from core.errors import UserError
from core.training.log import TrainLog

# Stand-ins for packages that are not installed: they note each call in a file beside them.
TENSORBOARD = """
class SummaryWriter:
    def __init__(self, folder, purge_step):
        self.file = open(__file__ + ".calls", "a")
        print("open", folder, purge_step, file=self.file)
    def add_scalar(self, name, value, step):
        print(step, name, value, file=self.file)
    def close(self):
        print("close", file=self.file)
        self.file.close()
"""
WANDB = """
class Run:
    def __init__(self, arguments):
        self.file = open(__file__ + ".calls", "a")
        for key in ("project", "name", "id", "resume", "config"):
            print(key, arguments[key], file=self.file)
    def log(self, values, step):
        print(step, values["loss"], file=self.file)
    def finish(self):
        print("finish", file=self.file)
        self.file.close()
def init(**arguments):
    return Run(arguments)
"""


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Function that puts a module of this source where it is imported from; returns its calls."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def install(name: str, source: str) -> Path:
        monkeypatch.delitem(sys.modules, name, raising=False)
        (folder / f"{name}.py").write_text(source)
        return folder / f"{name}.py.calls"

    yield install
    for name in ("tensorboardX", "wandb"):
        sys.modules.pop(name, None)


def _log(folder: Path, step: int = 0, sinks: tuple[str, ...] = (), **arguments) -> TrainLog:
    log = TrainLog(folder / "log.jsonl", "pretrain", 3, 8, step=step, **arguments)
    log.open_sinks(sinks, folder, step, {"seed": 1})
    return log


def _losses(folder: Path) -> dict[int, float]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    assert len({json.loads(line)["step"] for line in lines}) == len(lines)
    return {json.loads(line)["step"]: json.loads(line)["loss"] for line in lines}


def _write(log: TrainLog, step: int, *losses: float) -> None:
    for loss in losses:
        log.add({"loss": loss})
    log.write(1, step, 0.5, False)


def test_a_continued_log_drops_what_will_be_repeated(tmp_path):
    log = _log(tmp_path)
    _write(log, 1, 1.0)
    _write(log, 3, 2.0, 4.0)
    log.add({"loss": 7.0})
    state = log.state()
    log.add({"loss": 100.0})
    _write(log, 5, 100.0)
    assert list(_losses(tmp_path)) == [1, 3, 5]
    with open(log._file.path, "a") as file:
        file.write('[1]\n{"loss": 1}\n{"step": 6, "lo')
    again = _log(tmp_path, step=4, state=state)
    assert _losses(tmp_path) == {1: 1.0, 3: 3.0}
    _write(again, 5, 9.0)
    assert _losses(tmp_path) == {1: 1.0, 3: 3.0, 5: 8.0}
    _log(tmp_path)
    assert _losses(tmp_path) == {}


def test_tensorboard_gets_every_line(tmp_path, packages):
    calls = packages("tensorboardX", TENSORBOARD)
    log = _log(tmp_path, step=4, sinks=("tensorboard",))
    _write(log, 5, 2.0)
    log.close()
    lines = calls.read_text().splitlines()
    assert lines[0] == f"open {tmp_path / 'tensorboard'} 5" and lines[-1] == "close"
    assert "5 loss 2.0" in lines and "5 lr 0.5" in lines


def test_wandb_goes_on_with_its_run(tmp_path, packages):
    calls = packages("wandb", WANDB)
    for step in (0, 1):
        log = _log(tmp_path / "luss50" / "resnet18" / "pretrain", step=step, sinks=("wandb",))
        _write(log, step + 1, float(step))
        log.close()
    lines = calls.read_text().splitlines()
    assert lines[:2] == ["project uss", "name luss50/resnet18/pretrain"]
    assert len({line for line in lines if line.startswith("id ")}) == 1
    assert lines.count("resume allow") == 2 and "config {'seed': 1}" in lines
    assert lines[5:7] == ["1 0.0", "finish"] and lines[-2:] == ["2 1.0", "finish"]


def test_a_missing_package_is_one_line(tmp_path, monkeypatch):
    for module in ("tensorboardX", "torch.utils.tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match="--sink tensorboard needs tensorboardX .*pip install"):
        _log(tmp_path, sinks=("tensorboard",))
    with pytest.raises(UserError, match="--sink wandb needs wandb .*; pip install wandb"):
        _log(tmp_path, sinks=("wandb",))


def test_a_package_that_refuses_is_one_line(tmp_path, packages):
    packages("wandb", "def init(**arguments):\n    raise RuntimeError('no login')\n")
    with pytest.raises(UserError, match="--sink wandb does not start: no login"):
        _log(tmp_path, sinks=("wandb",))


def test_other_ranks_report_nothing(tmp_path, packages):
    packages("wandb", WANDB)
    log = _log(tmp_path, sinks=("wandb",), enabled=False)
    _write(log, 1, 1.0)
    log.close()
    assert not (tmp_path / "log.jsonl").exists() and not list(tmp_path.rglob("*.calls"))
