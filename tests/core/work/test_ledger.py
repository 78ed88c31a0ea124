"""The ledger at scale: when others' records are read, what is brought together, how much memory a
million items take; and which results are read again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image

from core.data.items import ImageItem
from core.work import ledger as module
from core.work.ledger import LEDGER_FOLDER, Ledger, Record
from core.work.worklist import Worklist
from tests.conftest import ROOT

SETTINGS = {"threshold": 0.3}
LONG_AGO_S = 3600.0


def items_of(folder: Path, count: int) -> list[ImageItem]:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.new("RGB", (4, 4)).save(folder / f"{index}.png")
    return [ImageItem(folder / f"{index}.png", str(index)) for index in range(count)]


def key_as_bytes(item: ImageItem) -> bytes:
    return item.key.encode()


def made_long_ago(out: Path, items: list[ImageItem]) -> Worklist:
    """A finished folder whose files and records say that they are an hour old."""
    worklist = Worklist(out, SETTINGS)
    worklist.run(items, key_as_bytes, "stage")
    then = int((time.time() - LONG_AGO_S) * 1e9)
    for item in items:
        os.utime(worklist.path_of(item), ns=(then, then))
    for path in (out / LEDGER_FOLDER).glob("*/*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        text = "".join(json.dumps({**line, "times_ns": [then]}) + "\n" for line in lines)
        path.write_text(text)
    return worklist


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the ledgers' files that are opened for reading from now on."""
    names: list[str] = []
    read_on = Ledger._read_on
    monkeypatch.setattr(
        Ledger, "_read_on", lambda self, name: (names.append(name), read_on(self, name))[1]
    )
    return names


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the results whose contents are read from now on."""
    names: list[str] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda self: names.append(self.name) or read_bytes(self)
    )
    return names


def test_the_files_of_others_are_not_opened_for_every_image(tmp_path, opened):
    """Forty other processes, thirty images: by time, so once at the start and not for each."""
    items, out = items_of(tmp_path / "images", 30), tmp_path / "out"
    folder = Worklist(out, SETTINGS)._ledger.folder
    for index in range(40):
        (folder / f"host~0123456789ab~{index}~1~deadbeef.jsonl").write_text("")
    worklist = Worklist(out, SETTINGS)
    opened.clear()
    assert len(worklist.run(items, key_as_bytes, "stage").done) == 30
    assert len(opened) <= 3 * 41


def test_others_are_read_again_after_some_time(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_REFRESH_S", 0.0)
    mine, other = Ledger(tmp_path, SETTINGS), Ledger(tmp_path, SETTINGS)
    mine.open()
    other.open()
    record = Record(7, ((3, 5),))
    other.record("a", record, (11,), {})
    assert not mine.has("a", record)
    mine.refresh_if_due()
    assert mine.has("a", record) and mine.trusts("a", 7, (3,), (11,))
    assert not mine.has("a", Record(8, ((3, 5),))) and not mine.trusts("a", 7, (3,), (12,))
    assert not mine.has("b", record) and mine.knows("a") and not mine.knows("b")


def test_a_failure_elsewhere_is_seen_at_once(tmp_path):
    mine, other = Ledger(tmp_path, SETTINGS), Ledger(tmp_path, SETTINGS)
    mine.open()
    since = other.open()
    other.fail("a", "hung")
    mine.refresh_if_due()
    assert mine.failure("a", since) == "hung"


def test_files_of_finished_processes_become_one(tmp_path, capsys):
    items, out = items_of(tmp_path / "images", 12), tmp_path / "out"
    for index in range(len(items)):
        Worklist(out, SETTINGS).run(items[: index + 1], key_as_bytes, "stage")
    files = list((out / LEDGER_FOLDER).glob("*/*.jsonl"))
    assert len(files) < 8
    lines = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    noted = [line["key"] for line in lines if "key" in line]
    assert sorted(noted) == sorted(item.key for item in items)
    assert Worklist(out, SETTINGS).pending(items) == []
    assert not (out / LEDGER_FOLDER / "claims").exists()


def test_what_another_is_writing_is_left_alone(tmp_path):
    """A line of a process that is alive, of one that was killed here, and torn ones."""
    alive = Ledger(tmp_path, SETTINGS)
    alive.open()
    record = Record(1, ((1, 1),))
    alive.record("alive", record, (1,), {})
    dead = "import sys; from core.work.ledger import *; l = Ledger(sys.argv[1], {'threshold': 0.3})"
    dead += "; l.open(); l.record('dead', Record(1, ((1, 1),)), (1,), {}); os._exit(9)"
    subprocess.run([sys.executable, "-c", dead, str(tmp_path)], cwd=ROOT)
    for index in range(9):
        (alive.folder / f"old-{index}.ended.jsonl").write_text(f'{{"key": "torn{index}", "fi')
    reader = Ledger(tmp_path, SETTINGS)
    reader.refresh()
    assert len(reader.finished_files()) == 10
    reader.compact()
    assert len(list(alive.folder.glob("*.jsonl"))) == 2
    alive.record("later", record, (1,), {})
    for ledger in (reader, Ledger(tmp_path, SETTINGS)):
        ledger.refresh()
        assert all(ledger.has(key, record) for key in ("alive", "dead", "later"))


def test_who_dies_while_files_become_one_leaves_no_line_twice(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path, SETTINGS)
    ledger.open()
    for index in range(9):
        ledger.record(f"{index}", Record(1, ((1, 1),)), (1,), {})
        ledger.end()
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_remove_replaced", lambda self, together: None)
        ledger.compact()
    assert len(list(ledger.folder.glob("*.jsonl"))) == 10
    (ledger.folder / "other.jsonl").touch()
    after = Ledger(tmp_path, SETTINGS)
    after.open()
    assert len(list(ledger.folder.glob("*.jsonl"))) == 2
    assert all(after.knows(f"{index}") for index in range(9))


def test_a_file_that_vanishes_while_it_is_read(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path, SETTINGS)
    ledger.open()
    ledger.record("a", Record(1, ((1, 1),)), (1,), {})
    monkeypatch.setattr(Ledger, "_names", lambda self: ["gone.jsonl", "gone.ended.jsonl"])
    Ledger(tmp_path, SETTINGS).refresh()


def test_results_are_trusted_by_size_and_time(tmp_path, read):
    items, out = items_of(tmp_path / "images", 3), tmp_path / "out"
    made_long_ago(out, items)
    read.clear()
    result = Worklist(out, SETTINGS).run(items, key_as_bytes, "stage")
    assert (result.skipped, read) == (["0", "1", "2"], [])
    assert Worklist(out, SETTINGS).pending(items) == [] and read == []
    assert len(Worklist(out, SETTINGS).finished(items)) == 3 and len(read) == 3


def test_damage_that_keeps_size_and_time_is_found_by_verify_and_by_the_final_look(tmp_path):
    items, out = items_of(tmp_path / "images", 2), tmp_path / "out"
    worklist = made_long_ago(out, items)
    path = worklist.path_of(items[0])
    before = path.stat().st_mtime_ns
    path.write_bytes(b"x")
    os.utime(path, ns=(before, before))
    assert Worklist(out, SETTINGS).pending(items) == []
    assert list(Worklist(out, SETTINGS).finished(items)) == ["1"]
    assert Worklist(out, SETTINGS, verify=True).run(items, key_as_bytes, "stage").done == ["0"]


def test_results_with_other_times_are_read_once(tmp_path, read):
    """A copied folder, or one of a version that did not note the times."""
    items, out = items_of(tmp_path / "images", 3), tmp_path / "out"
    made_long_ago(out, items)
    for path in (out / LEDGER_FOLDER).glob("*/*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            del line["times_ns"]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for reads in (3, 0):
        read.clear()
        worklist = Worklist(out, SETTINGS)
        assert worklist.pending(items) == [] and len(read) == reads
        worklist._ledger.end()


# Memory -----------------------------------------------------------------------------------------

MEASURED = """
import sys
from pathlib import Path
from core.data.imagenet_s import list_images
from core.memory import resident_mib
from core.work.worklist import Worklist
items = list_images(Path(sys.argv[1]))
worklist = Worklist(Path(sys.argv[2]), {"threshold": 0.3})
result = worklist.run(items, None, "stage")
assert len(result.skipped) == len(items) == int(sys.argv[3]), (len(result.skipped), len(items))
assert not worklist.pending(items)
print(resident_mib("VmHWM"))
"""


def peak_mib(root: Path, count: int) -> float:
    """The most MiB of a process that finds so many items in a ledger of several
    processes, all of them finished long ago.
    """
    images, out = root / "images", root / "out"
    ledger = Ledger(out, SETTINGS)
    ledger.open()
    then = int((time.time() - LONG_AGO_S) * 1e9)
    per_class, crc32 = 1200, zlib.crc32(b"")
    files = [open(ledger.folder / f"host-{n}-0123abcd.ended.jsonl", "w") for n in range(7)]
    for start in range(0, count, per_class):
        name = f"n{start:08d}"
        for folder, suffix in ((images, "JPEG"), (out, "png")):
            (folder / name).mkdir(parents=True)
            first = folder / name / f"{name}_00000.{suffix}"
            first.touch()
            os.utime(first, ns=(then, then))
            for index in range(1, min(per_class, count - start)):  # names of one empty file
                os.link(first, folder / name / f"{name}_{index:05d}.{suffix}")
        for index in range(min(per_class, count - start)):
            line = {"files": [[0, crc32]], "key": f"{name}/{name}_{index:05d}", "source_bytes": 0}
            line.update(times_ns=[then], rule="vote", resident_mib=900.5)
            files[index % 7].write(json.dumps(line) + "\n")
    for file in files:
        file.close()
    command = [sys.executable, "-c", MEASURED, str(images), str(out), str(count)]
    told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return float(told)


def test_memory_of_many_items_is_bounded(tmp_path: Path) -> None:
    """As many bytes an item as leave a process with 1.2 million below 300 MiB."""
    few, many = 30_000, 160_000  # two sizes: the modules and buffers of any run do not count
    growth = peak_mib(tmp_path / "many", many) - peak_mib(tmp_path / "few", few)
    assert growth <= 200 * (many - few) / 2**20


@pytest.mark.slow
def test_a_million_items_take_at_most_300_mib(tmp_path: Path) -> None:
    assert peak_mib(tmp_path, 1_200_000) <= 300
