"""The live state of a run, read from the files of stages that really work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from core.data.imagenet_s import ImageItem
from core.errors import UserError
from core.files import write_json
from core.training.log import TrainLog
from core.work.claims import Claims
from core.work.worklist import Made, Worklist
from tests.conftest import ROOT
from tests.helpers.processes import PATIENCE_S
from tools.watch import serve
from tools.watch.command import page
from tools.watch.state import FINISHED, RUNNING, STOPPED, RunState, StageState
from uss.paths import RunFolder
from uss.pipeline import PIPELINE

EPOCHS, BATCH, STEPS = 4, 8, 5


def train(run: Path, steps: int, images_per_second: float = 16.0) -> Path:
    """What a pretraining of 4 epochs of 5 steps leaves after so many steps; its log."""
    folder = RunFolder(run).pretrain("resnet18")
    section = {"epochs": EPOCHS, "batch_size": BATCH}
    write_json(folder / "config.json", {"arch": "resnet18", "pretrain": section})
    log = TrainLog(folder / "log.jsonl", "pretrain", EPOCHS, BATCH)
    for step in range(1, steps + 1):
        log.add({"loss": 7.0 / step, "image": 3.0})
        epoch = (step - 1) // STEPS + 1
        if step % STEPS in (0, 2):
            log.write(epoch, step, 0.5, last=step % STEPS == 0)
    log.close()
    lines = (folder / "log.jsonl").read_text().splitlines()
    changed = [{**json.loads(line), "images_per_second": images_per_second} for line in lines]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
    return folder / "log.jsonl"


def only(state: RunState) -> StageState:
    (stage,) = state.stages()
    return stage


def test_training(tmp_path: Path) -> None:
    log = train(tmp_path, 12)
    stage = only(RunState(tmp_path, PIPELINE))
    assert (stage.name, stage.state) == ("pretrain resnet18", RUNNING)
    assert (stage.done, stage.total, stage.unit) == (12, 20, "steps")
    assert stage.left_s == pytest.approx((20 - 12) * BATCH / 16)
    assert stage.values["epoch"] == 3 and stage.values["image"] == 3.0
    assert list(stage.values) == ["epoch", "lr", "loss", "image"]
    assert stage.memory_mib is not None and stage.memory_mib > 10
    old = time.time() - 3600
    os.utime(log, (old, old))
    assert only(RunState(tmp_path, PIPELINE)).state == STOPPED
    train(tmp_path, 20)
    assert only(RunState(tmp_path, PIPELINE)).state == FINISHED


def test_a_log_that_grows_is_read_on_and_one_that_was_rewound_anew(tmp_path: Path) -> None:
    log = train(tmp_path, 12)
    state = RunState(tmp_path, PIPELINE)
    assert only(state).done == 12
    with log.open("a") as file:
        file.write('{"epoch": 3, "step": 15, "time": 1, "lr": 0.1, "loss": 2.0}\n{"epoch": 4, "st')
    assert only(state).done == 15
    whole = log.read_text().splitlines()
    fresh = log.with_name("fresh")
    fresh.write_text("\n".join(whole[:3]) + "\n")
    os.replace(fresh, log)
    assert only(state).done == json.loads(whole[2])["step"] < 12


def test_the_first_epoch_has_a_total_where_the_data_is_known(tmp_path: Path) -> None:
    train(tmp_path / "run", 2)
    assert only(RunState(tmp_path / "run", PIPELINE)).total is None
    folder = tmp_path / "data" / "train"
    folder.mkdir(parents=True)
    for index in range(STEPS * BATCH + 3):
        (folder / f"{index}.jpg").touch()
    assert only(RunState(tmp_path / "run", PIPELINE, tmp_path / "data")).total == EPOCHS * STEPS


def test_slow_steps_are_not_taken_for_a_stop(tmp_path: Path) -> None:
    """A first line that took 1000 s to come, 2000 s ago: the second may still be on its way."""
    log = train(tmp_path, 2)
    line, now = json.loads(log.read_text()), time.time()
    log.write_text(json.dumps({**line, "time": now - 2000}) + "\n")
    os.utime(log, (now - 2000, now - 2000))
    os.utime(log.with_name("config.json"), (now - 3000, now - 3000))
    assert only(RunState(tmp_path, PIPELINE)).state == RUNNING
    os.utime(log.with_name("config.json"), (now - 2001, now - 2001))
    assert only(RunState(tmp_path, PIPELINE)).state == STOPPED


@pytest.mark.parametrize("ahead_s", [-7200.0, 7200.0])
def test_the_clock_of_this_machine_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    """Files are stamped by the file server's clock, which may differ from this machine's."""
    log = train(tmp_path, 12)
    data, run = tmp_path / "data", tmp_path / "work"
    items = items_of(data, 3)
    work = Worklist(RunFolder(run).predictions("test"), {"data": str(data)})
    work.run(items[:1], lambda item: b"png", "test")
    claims = Claims(run / "predictions" / "test" / ".ledger" / "claims")
    assert claims.claim("1")
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + ahead_s)
    training, labelling = only(RunState(tmp_path, PIPELINE)), only(RunState(run, PIPELINE, data))
    assert (training.state, labelling.state) == (RUNNING, RUNNING)
    assert training.silent_s is not None and training.silent_s < 60 and labelling.workers
    old = clock() - 3600
    os.utime(log, (old, old))
    stopped = only(RunState(tmp_path, PIPELINE))
    assert stopped.state == STOPPED
    assert stopped.silent_s == pytest.approx(3600, abs=60)
    claims.close()


def items_of(data: Path, count: int) -> list[ImageItem]:
    folder = data / "test"
    folder.mkdir(parents=True)
    for index in range(count):
        (folder / f"{index}.jpg").write_bytes(b"x")
    return [ImageItem(folder / f"{index}.jpg", str(index)) for index in range(count)]


def test_work_on_images(tmp_path: Path) -> None:
    """While a worklist is at its images: done, failed, who is at work, rate and time left."""
    data, run = tmp_path / "data", tmp_path / "run"
    items = items_of(data, 6)
    work = Worklist(RunFolder(run).predictions("test"), {"data": str(data)})
    state = RunState(run, PIPELINE)
    seen: list[StageState] = []

    def make(item: ImageItem) -> Made:
        seen.append(only(state))
        if item.key == "2":
            raise UserError("broken")
        return Made([b"png"], {"resident_mib": 500.0})

    work.run(items, make, "test")
    middle = seen[4]
    assert (middle.name, middle.state) == ("predict test", RUNNING)
    assert (middle.done, middle.failed, middle.total) == (3, 1, 6)
    assert len(middle.workers) == 1 and middle.workers[0].endswith(f" {os.getpid()}")
    assert middle.rate is not None and middle.left_s == pytest.approx(2 / middle.rate)
    end = only(state)
    assert (end.state, end.done, end.memory_mib) == (FINISHED, 5, 500.0)
    assert end.workers == []


def test_whoever_is_gone_is_not_at_work(tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    items = items_of(data, 3)
    work = Worklist(RunFolder(run).predictions("test"), {"data": str(data)})
    work.run(items[:1], lambda item: b"png", "test")
    claims = Claims(run / "predictions" / "test" / ".ledger" / "claims")
    assert claims.claim("1")
    assert only(RunState(run, PIPELINE)).state == RUNNING
    old = time.time() - 3600
    for path in (run / "predictions" / "test" / ".ledger").rglob("*"):
        os.utime(path, (old, old))
    stage = only(RunState(run, PIPELINE))
    assert (stage.state, stage.workers, stage.done) == (STOPPED, [], 1)
    claims.close()


def test_masks_of_a_split_are_as_many_as_test_py_asked_for(tmp_path: Path) -> None:
    """It asks for none where the network saw only background."""
    data, run = tmp_path / "data", tmp_path / "run"
    items_of(data, 3)
    store = RunFolder(run).masks("test") / "0123456789abcdef"
    write_json(store / "settings.json", {})
    (store / "7f").mkdir()
    (store / "7f" / "1.json.gz").write_bytes(b"x")
    for path in (store / "settings.json", store / "7f"):
        os.utime(path, (time.time() - 3600,) * 2)
    stage = only(RunState(run, PIPELINE, data))
    assert (stage.name, stage.state, stage.done, stage.total) == ("masks test", STOPPED, 1, 3)
    RunFolder(run).times.write_text('{"stage": "test.py test", "seconds": 9.5}\n')
    stage = only(RunState(run, PIPELINE, data))
    assert (stage.state, stage.done, stage.total) == (FINISHED, 1, None)


def test_broken_files_do_not_stop_it(tmp_path: Path) -> None:
    log = train(tmp_path, 12)
    log.write_text("nonsense\n[1]\n{}\n" + '{"epoch": "x", "step": 1, "time": 1}\n')
    (log.parent / "config.json").write_text("{")
    (tmp_path / "times.jsonl").write_text("{")
    (tmp_path / "masks" / "train").mkdir(parents=True)
    stage = only(RunState(tmp_path, PIPELINE))
    assert stage.done == 0
    assert page(tmp_path, [stage], 80)


def watch(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "uss", "watch", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command(tmp_path: Path) -> None:
    """It follows a run until Ctrl-C, which is its usual end."""
    train(tmp_path, 12)
    shown, _ = watch(str(tmp_path), "--once").communicate(timeout=PATIENCE_S)
    assert "pretrain resnet18" in shown and "12/20 steps" in shown and "4.0 s left" in shown
    content, _ = watch(str(tmp_path), "--json").communicate(timeout=PATIENCE_S)
    assert json.loads(content)[0]["done"] == 12
    process = watch(str(tmp_path), "--interval", "0.1")
    assert process.stdout is not None
    first = [next(process.stdout) for _ in range(4)]
    assert any("12/20" in line for line in first)
    train(tmp_path, 20)
    for line in process.stdout:
        if "finished" in line:
            break
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, complaints) == (0, "")


def test_in_a_browser(tmp_path: Path) -> None:
    """The live state, as a page that loads itself anew and as JSON, and the report."""
    train(tmp_path, 12)
    process = watch(str(tmp_path), "--serve", "--port", "0", "--interval", "3")
    assert process.stdout is not None
    address = process.stdout.readline().split()[0]
    assert address.startswith("http://127.0.0.1:")
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    with browser.open(address, timeout=PATIENCE_S) as answer:
        assert answer.headers["Refresh"] == "3"
        assert "12/20 steps" in answer.read().decode()
    train(tmp_path, 20)
    address = address.partition("?")[0]  # the browser has the token now
    with browser.open(f"{address}state.json", timeout=PATIENCE_S) as answer:
        assert json.load(answer)[0]["state"] == FINISHED
    with browser.open(f"{address}report.html", timeout=300) as answer:
        page = answer.read().decode()
        assert "pretraining, ResNet18" in page and page.rstrip().endswith("</html>")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        browser.open(f"{address}../../etc/passwd", timeout=PATIENCE_S)
    other = watch(str(tmp_path), "--serve", "--port", address.split(":")[2].strip("/"))
    _, complaint = other.communicate(timeout=PATIENCE_S)
    assert other.returncode == 2 and "choose another --port" in complaint
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 0
    assert not (tmp_path / "report.html").exists()  # the run's own folder is only read


def test_a_report_that_takes_for_ever_is_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, 12)
    monkeypatch.setattr(serve, "_REPORT_S", 0.01)
    site = serve._Site(RunState(tmp_path, PIPELINE), page, 1.0, [], tmp_path / "report.html")
    status, text = site.report()
    assert status == 500 and "the report could not be made" in text and "0.01" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--interval", "nan"), "--interval must be positive"),
        (("--interval", "inf"), "--interval must be positive"),
        (("--serve", "--port", "65536"), "--port must be 0 to 65535, is 65536"),
        (("--serve", "--port", "-1"), "--port must be 0 to 65535, is -1"),
    ],
)
def test_numbers_out_of_range(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    process = watch(str(tmp_path), *arguments)
    _, complaint = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2 and said in complaint and complaint.count("\n") == 1


def test_what_is_no_run(tmp_path: Path) -> None:
    process = watch(str(tmp_path / "none"))
    _, complaint = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2 and "is not a folder" in complaint
    shown, _ = watch(str(tmp_path), "--once").communicate(timeout=PATIENCE_S)
    assert "nothing has begun here yet" in shown


def test_clustering_is_at_work_while_blocks_are_written(tmp_path: Path) -> None:
    """They lie in a folder below, whose own time says nothing."""
    block = RunFolder(tmp_path).features("resnet18") / "1234" / "000000.npy"
    block.parent.mkdir(parents=True)
    block.touch()
    old = time.time() - 3600
    for folder in (block.parent.parent, block.parent):
        os.utime(folder, (old, old))
    assert only(RunState(tmp_path, PIPELINE)).state == RUNNING
    os.utime(block, (old, old))
    assert only(RunState(tmp_path, PIPELINE)).state == STOPPED
    write_json(RunFolder(tmp_path).cluster("resnet18") / "settings.json", {"images": {}})
    assert only(RunState(tmp_path, PIPELINE)).state == FINISHED
