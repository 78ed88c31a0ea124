"""The training loop: log, checkpoint, resume, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.checkpoints import files as checkpoint
from core.data.loader import Loader
from core.errors import UserError
from core.runtime import jt, nn
from core.training import loop
from core.training.optim import LarcSGD
from core.training.options import TrainOptions
from core.training.schedules import cosine, cosine_lr
from tests.conftest import ROOT

MOMENTUM, DECAY = 0.9, 0.01


class _Points:
    """Data set of 12 points on a line."""

    def __len__(self) -> int:
        return 12

    def get(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        if index == 5:
            raise UserError("point 5 is broken")
        x = rng.normal(size=3).astype(np.float32) + index
        return x, np.asarray([x.sum()], np.float32)

    def path(self, index: int) -> Path:
        return Path(f"points/{index}")


class _Fit(loop.Task):
    """Squared distance, with a memory of its own and a layer that draws (dropout)."""

    def __init__(self, model, optimizer, stop_at: int = -1, poison_at: int = -1) -> None:
        super().__init__(model, optimizer)
        self.stop_at, self.poison_at = stop_at, poison_at
        self.seen = np.zeros(1, np.float32)

    def loss(self, batch, step):
        if step == self.stop_at:
            raise KeyboardInterrupt
        x, y = batch
        self.seen = self.seen + x.sum()
        error = self.model(jt.array(x)) - jt.array(y)
        loss = (error * error).mean() * (float("nan") if step == self.poison_at else 1.0)
        return loss, {"half": loss * 0.5}

    def state(self):
        return {"seen": self.seen}

    def load_state(self, state):
        self.seen = state["seen"]


EVERY_STEP = TrainOptions(checkpoint_minutes=0, log_steps=1)
NEVER = TrainOptions(checkpoint_minutes=1e6, log_steps=1)


def _plan(folder: Path, **changes) -> loop.Plan:
    plan = loop.Plan(
        stage="points",
        command="points",
        folder=folder,
        log_file=folder / "log.jsonl",
        config_file=folder / "config.json",
        config={"everything": 1},
        settings={"points": {"epochs": 4, "width": 3}, "arch": "line"},
        epochs=4,
        rate=cosine(0.001, 0.0001),
        seed=7,
    )
    return replace(plan, **changes)


def _train(plan: loop.Plan, batch_size: int = 4, workers: int = 0, **task_arguments):
    """(weights, task) after training, resuming what the folder holds."""
    jt.set_global_seed(plan.seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    previous = loop.previous_run(plan)
    optimizer = LarcSGD(dict(model.named_parameters()), MOMENTUM, DECAY, larc=False)
    task = _Fit(model, optimizer, **task_arguments)
    loader = Loader(_Points(), batch_size=batch_size, seed=plan.seed, workers=workers)
    loop.fit(plan, task, loader, previous)
    return checkpoint.model_state(model), task


def test_run_leaves_log_configuration_and_checkpoint(tmp_path, capsys):
    weights, _ = _train(_plan(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    assert lines[-1]["lr"] == pytest.approx(cosine_lr(11, 12, 0.001, 0.0001))
    assert all(line["half"] == pytest.approx(line["loss"] / 2, rel=1e-4) for line in lines)
    assert all(line["images_per_second"] > 0 and line["peak_memory_mib"] > 0 for line in lines)
    assert json.loads((tmp_path / "config.json").read_text()) == {"everything": 1}
    payload = checkpoint.load_latest(tmp_path)
    assert (payload["epoch"], payload["step"], payload["stage"]) == (4, 12, "points")
    assert payload["config"] == {"everything": 1} and payload["seed"] == 7
    for key, value in weights.items():
        np.testing.assert_array_equal(payload["state_dict"][key], value)
    assert (tmp_path / "previous.pth.tar").is_file()
    shown = capsys.readouterr().err
    assert "compiling kernels at the first step" in shown
    assert "1 images could not be used" in shown and "points/5" in shown


def _lines(folder: Path) -> list[dict]:
    """The log without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    measured = ("time", "images_per_second", "data_wait", "peak_memory_mib")
    return [{key: line[key] for key in line if key not in measured} for line in lines]


def _assert_same(first, second) -> None:
    for key, value in first[0].items():
        np.testing.assert_array_equal(second[0][key], value)
    np.testing.assert_array_equal(second[1].seen, first[1].seen)


def test_run_resumed_at_an_epoch_ends_as_an_uninterrupted_one(tmp_path, capsys):
    whole = _train(_plan(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt, match="goes on at step 1 of epoch 3 .as saved in"):
        _train(_plan(tmp_path / "cut"), stop_at=7)
    resumed = _train(_plan(tmp_path / "cut"))
    assert "resuming at epoch 3 of 4" in capsys.readouterr().err
    _assert_same(whole, resumed)
    assert _lines(tmp_path / "cut") == _lines(tmp_path / "whole")
    assert loop.finished(_plan(tmp_path / "cut"), checkpoint.load_latest(tmp_path / "cut"))
    assert "already finished (4 epochs" in capsys.readouterr().err


def test_every_single_step_can_be_the_last(tmp_path, capsys):
    """Stopped in each step in turn; log lines of two steps have their sums in the checkpoint."""
    options = TrainOptions(checkpoint_minutes=0, log_steps=2)
    whole = _train(_plan(tmp_path / "whole", options=options))
    for step in range(12):
        place = f"step {step % 3 + 1} of epoch {step // 3 + 1} "
        with pytest.raises(KeyboardInterrupt, match=place):
            _train(_plan(tmp_path / "cut", options=options), stop_at=step)
        assert checkpoint.load_latest(tmp_path / "cut") is None or step
    assert "resuming at epoch 2 of 4, step 3:" in capsys.readouterr().err
    resumed = _train(_plan(tmp_path / "cut", options=options))
    _assert_same(whole, resumed)
    assert _lines(tmp_path / "cut") == _lines(tmp_path / "whole")
    assert [line["step"] for line in _lines(tmp_path / "cut")] == [2, 3, 5, 6, 8, 9, 11, 12]


def test_log_holds_no_step_twice_after_a_fallback(tmp_path, capsys):
    """The newest checkpoint is broken: the steps behind the one before are repeated."""
    whole = _train(_plan(tmp_path / "whole", options=EVERY_STEP))
    with pytest.raises(KeyboardInterrupt):
        _train(_plan(tmp_path / "cut", options=EVERY_STEP), stop_at=5)
    log_file = tmp_path / "cut" / "log.jsonl"
    with open(log_file, "a") as file:
        file.write('{"step": 6, "lo')  # killed in the middle of a line
    newest = tmp_path / "cut" / "checkpoint.pth.tar"
    newest.write_bytes(newest.read_bytes()[:-1])
    resumed = _train(_plan(tmp_path / "cut", options=EVERY_STEP))
    shown = capsys.readouterr().err
    assert f"{newest}" in shown and "resuming at epoch 2 of 4, step 2:" in shown
    _assert_same(whole, resumed)
    assert _lines(tmp_path / "cut") == _lines(tmp_path / "whole")
    for path in (newest, newest.with_name("previous.pth.tar")):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="no readable checkpoint"):
        loop.previous_run(_plan(tmp_path / "cut"))


def test_workers_change_no_step(tmp_path):
    for workers in (0, 1, 3):
        _train(_plan(tmp_path / str(workers), options=NEVER), workers=workers)
    assert _lines(tmp_path / "0") == _lines(tmp_path / "1") == _lines(tmp_path / "3")
    losses = [line["loss"] for line in _lines(tmp_path / "0")]
    assert len(losses) == 12 == len(set(losses))


def test_run_of_other_processes_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        _train(_plan(tmp_path), stop_at=4)
    payload = checkpoint.load_latest(tmp_path)
    checkpoint.save_checkpoint(tmp_path, {**payload, "processes": 3})
    with pytest.raises(UserError, match=r"trained by 3 processes .* with 1; start 3 \(mpirun"):
        _train(_plan(tmp_path))
    checkpoint.save_checkpoint(tmp_path, {**payload, "step": 5})
    with pytest.raises(UserError, match="holds step 5 in epoch 2, but an epoch has 2 steps"):
        _train(_plan(tmp_path), batch_size=6)


def test_stop_before_the_first_checkpoint_says_so(tmp_path):
    with pytest.raises(KeyboardInterrupt, match=r"step 1 of epoch 1 \(nothing is saved yet"):
        _train(_plan(tmp_path), stop_at=2)
    assert not (tmp_path / "checkpoint.pth.tar").exists()


def test_a_sink_that_does_not_start_ends_the_run_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        _train(_plan(tmp_path, options=TrainOptions(sinks=("wandb",))))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"checkpoint_minutes": -1.0}, "--checkpoint-minutes must be 0 or more, is -1"),
        ({"checkpoint_minutes": float("nan")}, "--checkpoint-minutes must be 0 or more, is nan"),
        ({"log_steps": 0}, "--log-steps must be at least 1, is 0"),
    ],
)
def test_options_that_make_no_sense(arguments, message):
    with pytest.raises(UserError, match=message):
        TrainOptions(**arguments)


def test_run_of_other_settings_is_refused(tmp_path):
    _train(_plan(tmp_path))
    other = _plan(tmp_path, settings={"points": {"epochs": 4, "width": 5}, "arch": "line"})
    with pytest.raises(UserError, match=r"points.width was 3, is 5.*choose another run folder"):
        loop.previous_run(other)
    with pytest.raises(UserError, match="did not make"):
        loop.previous_run(_plan(tmp_path, stage="lines"))
    checkpoint.save_checkpoint(tmp_path, {"state_dict": {"a": np.zeros(1)}})
    with pytest.raises(UserError, match="did not make"):
        loop.previous_run(_plan(tmp_path))


@pytest.mark.parametrize("name", ["epoch", "step", "processes", "settings"])
def test_a_checkpoint_that_was_made_up_is_refused(tmp_path, name):
    """Counts that are no numbers, and settings that unfold to more than anybody could compare."""
    _train(_plan(tmp_path))
    payload = checkpoint.load_latest(tmp_path)
    value = {}
    for _ in range(60):
        value = {"a": value, "b": value}
    checkpoint.write_pickle(tmp_path / checkpoint.LATEST, {**payload, name: value})
    with pytest.raises(UserError, match="did not make"):
        loop.previous_run(_plan(tmp_path))


def test_a_run_that_recorded_a_setting_in_an_earlier_form_goes_on(tmp_path):
    _train(_plan(tmp_path))
    now = {**_plan(tmp_path).settings, "arch": "by contents"}
    known = _plan(tmp_path, settings=now, earlier_settings={"arch": "line"})
    assert loop.previous_run(known) is not None
    for earlier in ({}, {"arch": "curve"}):
        with pytest.raises(UserError, match="arch was line, is by contents"):
            loop.previous_run(_plan(tmp_path, settings=now, earlier_settings=earlier))


def test_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(UserError) as caught:
        _train(_plan(tmp_path, options=EVERY_STEP), poison_at=4)
    text = str(caught.value)
    assert "step 2 of epoch 2 (loss nan, half nan; images points/" in text
    payload = checkpoint.load_latest(tmp_path)
    assert (payload["epoch"], payload["step"]) == (1, 4)
    assert all(np.isfinite(value).all() for value in payload["state_dict"].values())
    names = [f"points/{i}" for i in Loader(_Points(), 4, 7, 0).order(1)[4:8]]
    assert ", ".join(names) in text


def test_every_image_of_a_batch_that_is_not_finite_is_named(tmp_path):
    with pytest.raises(UserError) as caught:
        _train(_plan(tmp_path), batch_size=12, poison_at=0)
    assert all(f"points/{index}" in str(caught.value) for index in range(12))


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    with pytest.raises(UserError, match="no longer finite after step 1"):
        _train(_plan(tmp_path, rate=cosine(1e39)), batch_size=12)
    assert checkpoint.load_latest(tmp_path) is None


def test_steps_leave_nothing_in_memory():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = LarcSGD(dict(model.named_parameters()), MOMENTUM, DECAY)
    task, batch = _Fit(model, optimizer), (np.ones((4, 3), np.float32), np.ones((4, 1), np.float32))
    alive = []
    for step in range(8):
        loop.train_step(task, batch, step, 0.01)
        alive.append(jt.liveness_info()["lived_vars"])
    assert alive[-1] == alive[2]


# Jittor's own count: what the process holds also depends on how glibc's heap happens to lie.
_DEEP = """
from core.nn.layers import BatchNorm, Conv2d
from core.training.optim import LarcSGD
from core.runtime import jt

blocks = [(Conv2d(4, 4, 3, padding=1, bias=False), BatchNorm(4)) for _ in range(20)]
optimizer = LarcSGD({str(i): conv.weight for i, (conv, _) in enumerate(blocks)}, 0.9, 0.0)
jt.sync_all()
jt.flags.profile_memory_enable = 1
x = jt.zeros((4, 4, 256, 256))  # 4 MiB, as is each of the 40 maps that follow
for conv, bn in blocks:
    x = bn(conv(x), relu=True)
loss = x.sum()
del x
optimizer.step(loss, 0.1)
jt.sync_all()
print(jt.get_max_memory_info().partition("[")[0])  # bytes alive at once
"""


def test_activations_are_freed_while_the_gradient_is_computed() -> None:
    command = [sys.executable, "-c", _DEEP]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(ended.stdout) >> 20 < 180  # the maps alone are 160 MiB, with all gradients 320
