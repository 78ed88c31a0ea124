"""Resumable work: what counts as finished, what is made again, what a failure leaves behind."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from core.data.imagenet_s import ImageItem, list_images
from core.errors import StopWork, UserError
from core.work.claims import Claims
from core.work.ledger import LEDGER_FOLDER
from core.work.worklist import Made, Worklist
from tests.conftest import ROOT
from tests.helpers.processes import PATIENCE_S

SETTINGS = {"threshold": 0.3, "masks": {"points": [16, 8]}}
CHANGED = {"threshold": 0.3, "masks": {"points": [32, 8]}, "square": True}


@pytest.fixture
def items(tmp_path: Path) -> list[ImageItem]:
    for name in ("cat/a", "cat/b", "dog/a"):
        path = tmp_path / "images" / f"{name}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4)).save(path)
    return list_images(tmp_path / "images")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def key_as_bytes(item: ImageItem) -> bytes:
    return item.key.encode()


def keys(items: list[ImageItem]) -> list[str]:
    return [item.key for item in items]


def test_run_then_resume(out, items, capsys):
    first = Worklist(out, SETTINGS).run(items, key_as_bytes, "stage")
    assert first.done == ["cat/a", "cat/b", "dog/a"] and first.ok and not first.skipped
    assert (out / "dog" / "a.png").read_bytes() == b"dog/a"
    again = Worklist(out, SETTINGS).run(items, key_as_bytes, "stage")
    assert again.done == [] and again.skipped == first.done
    assert "3 of 3 finished earlier, 0 to do" in capsys.readouterr().err


def test_damaged_changed_and_missing_results_are_made_again(out, items, capsys):
    worklist = Worklist(out, SETTINGS)
    worklist.run(items, key_as_bytes, "stage")
    worklist.path_of(items[0]).write_bytes(b"cat/b")  # the same size
    worklist.path_of(items[1]).unlink()
    assert keys(worklist.pending(items)) == ["cat/a", "cat/b"]
    assert worklist.run(items, key_as_bytes, "stage").done == ["cat/a", "cat/b"]
    assert "1 results in" in capsys.readouterr().err
    assert worklist.pending(items) == []


def test_what_is_finished_is_read_once(out, items, monkeypatch):
    Worklist(out, SETTINGS).run(items[:2], key_as_bytes, "stage")
    worklist, read, read_bytes = Worklist(out, SETTINGS), [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read.append(self) or read_bytes(self))
    found = worklist.finished(items)
    assert list(found) == ["cat/a", "cat/b"] and len(read) == 2
    assert found["cat/b"].files == ((5, zlib.crc32(b"cat/b")),)
    assert found["cat/b"].source_bytes == items[1].path.stat().st_size


def test_a_replaced_image_is_made_again(out, items):
    Worklist(out, SETTINGS).run(items, key_as_bytes, "stage")
    Image.new("RGB", (60, 40), "red").save(items[2].path)
    assert Worklist(out, SETTINGS).run(items, key_as_bytes, "stage").done == ["dog/a"]


def test_files_without_record_are_made_again(out, items):
    worklist = Worklist(out, SETTINGS)
    worklist.path_of(items[0]).parent.mkdir()
    worklist.path_of(items[0]).write_bytes(b"cat/a")
    assert keys(worklist.pending(items)) == keys(items)


def test_all_results_of_an_item_belong_together(tmp_path, out, items):
    def work(item):
        return Made([b"first", item.key.encode()], {"rule": "vote"})

    second = tmp_path / "second"
    Worklist(out, SETTINGS, also=[second]).run(items, work, "stage")
    assert (second / "cat" / "b.png").read_bytes() == b"cat/b"
    (second / "cat" / "b.png").write_bytes(b"other")
    assert Worklist(out, SETTINGS, also=[second]).run(items, work, "stage").done == ["cat/b"]
    lines = [
        json.loads(line)
        for path in (out / LEDGER_FOLDER).glob("*/*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert len(lines) == 4 and {line["rule"] for line in lines} == {"vote"}


def test_other_settings_are_named_and_their_results_made_again(out, items, capsys):
    Worklist(out, SETTINGS).run(items, key_as_bytes, "stage")
    capsys.readouterr()
    changed = Worklist(out, CHANGED)
    assert keys(changed.pending(items)) == keys(items)
    assert changed.run(items[:1], lambda item: b"new", "stage").done == ["cat/a"]
    said = capsys.readouterr().err
    assert "1 of 1 results are stale and are made again" in said
    assert "masks.points was [16, 8], is [32, 8], square was unset, is True" in said
    assert keys(Worklist(out, CHANGED).pending(items)) == ["cat/b", "dog/a"]
    # Going back revives what is still there, and nothing that was overwritten since.
    assert keys(Worklist(out, SETTINGS).pending(items)) == ["cat/a"]


def test_stale_results_are_kept_where_the_user_asks(out, items, capsys):
    Worklist(out, SETTINGS).run(items[:2], key_as_bytes, "stage")
    kept = Worklist(out, CHANGED, keep_stale=True)
    result = kept.run(items, lambda item: b"new", "stage")
    assert result.done == ["dog/a"] and result.stale == ["cat/a", "cat/b"]
    assert "2 of 3 results are stale and are kept, as asked" in capsys.readouterr().err
    assert kept.pending(items) == []
    assert (out / "cat" / "a.png").read_bytes() == b"cat/a"


def test_a_failing_image_does_not_stop_the_others(out, items, capsys):
    def work(item):
        if item.key == "cat/b":
            raise UserError("image cat/b.JPEG is broken")
        return b"made"

    result = Worklist(out, SETTINGS).run(items, work, "stage")
    assert result.done == ["cat/a", "dog/a"] and not result.ok
    assert result.failed == {"cat/b": "image cat/b.JPEG is broken"}
    assert "1 of 3 failed: cat/b" in capsys.readouterr().err
    retry = Worklist(out, SETTINGS).run(items, key_as_bytes, "stage")
    assert retry.done == ["cat/b"]


@pytest.mark.parametrize("error", [ZeroDivisionError, StopWork])
def test_a_bug_or_a_stop_ends_the_run_and_keeps_what_was_finished(out, items, error):
    def work(item):
        if item.key == "cat/b":
            raise error("no more")
        return b"made"

    worklist = Worklist(out, SETTINGS)
    with pytest.raises(error):
        worklist.run(items, work, "stage")
    assert keys(worklist.pending(items)) == ["cat/b", "dog/a"]
    assert not (out / LEDGER_FOLDER / "claims").exists()


def test_torn_and_foreign_lines_do_not_count(out, items):
    worklist = Worklist(out, SETTINGS)
    worklist.run(items, key_as_bytes, "stage")
    (record,) = (out / LEDGER_FOLDER).glob("*/*.jsonl")
    record.write_text("[]\nnot json\n{}\n" + record.read_text()[:-3])
    assert keys(Worklist(out, SETTINGS).pending(items)) == ["dog/a"]


def test_broken_settings_of_earlier_results(out, items):
    Worklist(out, SETTINGS).run(items, key_as_bytes, "stage")
    (settings,) = (out / LEDGER_FOLDER).glob("*/settings.json")
    settings.write_text("{")
    assert Worklist(out, SETTINGS).pending(items) == []
    settings.write_text("{")
    assert keys(Worklist(out, CHANGED).pending(items)) == keys(items)


def test_what_another_process_finishes_meanwhile_is_not_made_again(out, items):
    def work(item):
        if item.key == "cat/a":  # another process makes the last one now
            Worklist(out, SETTINGS).run(items[2:], key_as_bytes, "other")
        return b"mine"

    result = Worklist(out, SETTINGS).run(items, work, "stage")
    assert result.done == ["cat/a", "cat/b"]
    assert (out / "dog" / "a.png").read_bytes() == b"dog/a"


def test_what_another_process_failed_at_meanwhile_is_not_tried_again(out, items):
    def refuse(item):
        raise UserError("hung twice")

    def work(item):
        if item.key == "cat/a":
            Worklist(out, SETTINGS).run(items[2:], refuse, "other")
        return b"mine"

    result = Worklist(out, SETTINGS).run(items, work, "stage")
    assert result.done == ["cat/a", "cat/b"] and result.failed == {"dog/a": "hung twice"}


def test_a_lost_claim_writes_nothing(out, items, monkeypatch):
    worklist = Worklist(out, SETTINGS)
    answers = iter([False, True])
    monkeypatch.setattr(Claims, "still_mine", lambda self, key: next(answers))
    contents = iter([b"late", b"second"])
    assert worklist.run(items[:1], lambda item: next(contents), "stage").done == ["cat/a"]
    assert worklist.path_of(items[0]).read_bytes() == b"second"


def test_a_full_disk_is_one_line_and_keeps_what_was_finished(out, items):
    worklist = Worklist(out, SETTINGS)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def work(item):
        if item.key == "cat/b":
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        return bytes(5000 if item.key == "cat/b" else 10)

    try:
        with pytest.raises(StopWork, match=r"cannot write results to .*out: .*finished is kept"):
            worklist.run(items, work, "stage")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert keys(worklist.pending(items)) == ["cat/b", "dog/a"]
    assert not [name for _, _, names in os.walk(out) for name in names if name.endswith(".tmp")]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write results to"):
        Worklist(tmp_path / "file" / "out", SETTINGS)


WORKER = """
import sys, time
from pathlib import Path
from core.data.imagenet_s import list_images
from core.work.worklist import Worklist

def work(item):
    time.sleep(0.05)
    return item.key.encode()

items = list_images(Path(sys.argv[1]))
print(*Worklist(Path(sys.argv[2]), {}).run(items, work, "stage").done)
"""


HUNG = """
import sys, time
from pathlib import Path
from core.data.imagenet_s import list_images
from core.work.worklist import Worklist

def work(item):
    print("ready", flush=True)
    while not (Path(sys.argv[2]) / "go").exists():
        time.sleep(0.05)
    return b"late"

items = list_images(Path(sys.argv[1]))[:1]
result = Worklist(Path(sys.argv[2]), {}).run(items, work, "stage", 1.0, image_timeout_s=0.5)
print(*result.done, "end")
"""


def test_a_hung_owner_is_taken_over_and_its_late_result_does_no_harm(tmp_path, out, items):
    with subprocess.Popen(
        [sys.executable, "-c", HUNG, str(tmp_path / "images"), str(out)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as hung:
        assert hung.stdout is not None and hung.stdout.readline() == "ready\n"
        worklist = Worklist(out, {})
        assert worklist.run(items[:1], key_as_bytes, "stage", 1.0).done == ["cat/a"]
        (out / "go").touch()
        assert hung.stdout.readline() == "end\n" and hung.wait(timeout=60) == 0
    assert worklist.path_of(items[0]).read_bytes() == b"cat/a"
    assert list(Worklist(out, {}).finished(items)) == ["cat/a"]


SLOW = """
import sys, time
from pathlib import Path
from core.data.imagenet_s import list_images
from core.work.worklist import Worklist

def work(item):
    time.sleep(2)
    return b"slow"

items = list_images(Path(sys.argv[1]))[:1]
print(*Worklist(Path(sys.argv[2]), {}).run(items, work, "stage", 0.5, image_timeout_s=0.5).done)
"""


def test_slow_processes_do_not_take_an_item_from_each_other_for_ever(tmp_path, out, items):
    command = [sys.executable, "-c", SLOW, str(tmp_path / "images"), str(out)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    done = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert sorted(done) == ["", "cat/a"]


@pytest.mark.parametrize("array", [False, True])
def test_processes_share_the_items(tmp_path, out, array):
    for index in range(20):
        path = tmp_path / "many" / f"image{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (6, 4)).save(path)
    processes = []
    for task in range(3):
        environment = dict(os.environ)
        if array:
            environment.update(SLURM_ARRAY_TASK_ID=str(task), SLURM_ARRAY_TASK_COUNT="3")
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", WORKER, str(tmp_path / "many"), str(out)],
                env=environment,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    done = [process.communicate(timeout=PATIENCE_S)[0].split() for process in processes]
    items = list_images(tmp_path / "many")
    assert sorted(sum(done, [])) == keys(items), "each item once"
    assert Worklist(out, {}).pending(items) == []


def test_array_tasks_that_start_late_or_never_are_not_waited_for(tmp_path, out, items):
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2"}
    answer = subprocess.run(
        [sys.executable, "-c", WORKER, str(tmp_path / "images"), str(out)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(answer.stdout.split()) == keys(items)
