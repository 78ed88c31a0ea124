"""Blocks of features: made once by several processes, whatever is killed, in bounded memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from core.data.items import ImageItem
from core.errors import UserError
from core.files import read_json, write_json
from core.schema import SCHEMA
from core.work.blocks import Blocks, Rows, remove, sha256_of_items
from tests.conftest import ROOT

COUNT, SIZE, WIDTH = 20, 3, 5
SETTINGS = {"weights": "1234"}
# Fills the blocks of a folder; each block that is begun leaves a line in a log. At the start of the
# block KILL the process kills itself.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from tests.core.work.test_blocks import COUNT, SETTINGS, SIZE, made
from core.work.blocks import Blocks

folder, log, kill = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def make(start, stop):
    with open(log, "a") as file:
        file.write(f"{os.getpid()} {start}\\n")
    if start == kill:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.1)
    return made(start, stop)

Blocks(folder, SETTINGS, COUNT, SIZE).fill(make, "test")
"""
# 200,000 features of 512 channels (391 MiB) with room for less than half of them.
BOUNDED = """
import resource, sys
from pathlib import Path
import numpy as np
from core.kmeans import assign, kmeans
from core.work.blocks import Blocks

COUNT, WIDTH, SIZE = 200_000, 512, 4096

def make(start, stop):
    drawn = np.random.default_rng(start).standard_normal((stop - start, WIDTH), np.float32)
    return drawn, np.arange(start, stop)

def held():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData"))

warm, _ = make(0, 1000)
assign(warm, kmeans(warm, 4, 1, 1, 0)[0])
resource.setrlimit(resource.RLIMIT_DATA, (held() + (160 << 20),) * 2)
blocks = Blocks(Path(sys.argv[1]), {}, COUNT, SIZE)
blocks.fill(make, "test")
features, tags = blocks.rows()
assert features.shape == (COUNT, WIDTH) and (tags == np.arange(COUNT)).all()
centres, _ = kmeans(features, 8, 1, 1, 0)
print(np.bincount(assign(features, centres)).sum())
try:
    np.array(features)
except MemoryError:
    print("all of them do not fit")
"""


def made(start: int, stop: int) -> Rows:
    """Item i has i modulo 3 rows, so that some blocks begin with an item without any."""
    tags = np.repeat(np.arange(start, stop), np.arange(start, stop) % 3)
    return np.random.default_rng(start).standard_normal((len(tags), WIDTH)).astype("f"), tags


def expected() -> Rows:
    parts = [made(start, min(start + SIZE, COUNT)) for start in range(0, COUNT, SIZE)]
    features, tags = zip(*parts)
    return np.concatenate(features), np.concatenate(tags)


def assert_complete(blocks: Blocks) -> None:
    for found, wanted in zip(blocks.rows(), expected()):
        np.testing.assert_array_equal(found, wanted)
        assert found.dtype == wanted.dtype


def program(folder: Path, log: Path, kill: int = -1) -> subprocess.Popen:
    command = [sys.executable, "-c", PROGRAM, str(folder), str(log), str(kill)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def begun(log: Path) -> list[int]:
    return [int(line.split()[1]) for line in log.read_text().splitlines()]


def test_rows_come_in_the_order_of_the_items(tmp_path: Path) -> None:
    blocks = Blocks(tmp_path, SETTINGS, COUNT, SIZE)
    blocks.fill(made, "test")
    assert_complete(blocks)
    stated = read_json(blocks.folder / "settings.json", "settings")
    assert stated == {**SETTINGS, "items": COUNT, "block": SIZE, "schema": SCHEMA}
    names = {path.name for path in blocks.folder.iterdir()}
    assert names == {"settings.json", "features.npy", "tags.npy"}

    def never(start: int, stop: int) -> Rows:
        raise AssertionError("made again")

    Blocks(tmp_path, SETTINGS, COUNT, SIZE).fill(never, "test")
    remove(tmp_path)
    assert not tmp_path.exists()
    remove(tmp_path)


def test_a_block_may_have_no_rows(tmp_path: Path) -> None:
    """Of any width: nothing is known of the features of images that cannot be read."""

    def make(start: int, stop: int) -> Rows:
        return made(start, stop) if start == SIZE else (np.empty((0, 0)), np.empty(0, np.int64))

    blocks = Blocks(tmp_path, SETTINGS, COUNT, SIZE)
    blocks.fill(make, "test")
    np.testing.assert_array_equal(blocks.rows()[0], made(SIZE, 2 * SIZE)[0])
    empty = Blocks(tmp_path, {}, SIZE, SIZE)
    empty.fill(lambda start, stop: (np.empty((0, 4)), np.empty(0, np.int64)), "test")
    with pytest.raises(UserError, match="expected features in .*, but there are none"):
        empty.rows()


def test_the_killed_leave_whole_blocks_that_are_not_made_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    killed = program(tmp_path / "blocks", log, kill=9)
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL and begun(log) == [0, 3, 6, 9]
    log.unlink()
    again = program(tmp_path / "blocks", log)
    said = again.communicate(timeout=120)[1]
    assert again.returncode == 0, said
    assert begun(log) == [9, 12, 15, 18]
    assert "3 of 7 blocks of features finished earlier" in said
    assert_complete(Blocks(tmp_path / "blocks", SETTINGS, COUNT, SIZE))


def test_two_processes_make_each_block_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    both = [program(tmp_path / "blocks", log) for _ in range(2)]
    for process in both:
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 0, said
    assert Counter(begun(log)) == Counter(range(0, COUNT, SIZE))
    assert_complete(Blocks(tmp_path / "blocks", SETTINGS, COUNT, SIZE))


def test_a_damaged_block_is_made_again(tmp_path: Path) -> None:
    blocks = Blocks(tmp_path, SETTINGS, COUNT, SIZE)

    def stop_late(start: int, stop: int) -> Rows:
        if start == 12:
            raise UserError("stopped")
        return made(start, stop)

    with pytest.raises(UserError, match="stopped"):
        blocks.fill(stop_late, "test")
    path = blocks.folder / "000001.npy"
    path.write_bytes(path.read_bytes()[:-4])
    asked = []

    def make(start: int, stop: int) -> Rows:
        asked.append(start)
        return made(start, stop)

    Blocks(tmp_path, SETTINGS, COUNT, SIZE).fill(make, "test")
    assert asked == [3, 12, 15, 18]
    assert_complete(blocks)


def test_nothing_is_made_for_a_product_that_is_there(tmp_path: Path) -> None:
    """Another process may finish it, and remove the blocks, at any moment."""
    asked: list[int] = []

    def make(start: int, stop: int) -> Rows:
        asked.append(start)
        return made(start, stop)

    blocks = Blocks(tmp_path, SETTINGS, COUNT, SIZE)
    blocks.fill(make, "test", lambda: len(asked) == 2)
    assert asked == [0, 3]
    assert not (blocks.folder / "features.npy").exists()


def test_a_list_is_told_from_another(tmp_path: Path) -> None:
    items = [ImageItem(tmp_path / name, name) for name in ("a", "b", "gone")]
    for item in items[:2]:
        item.path.write_bytes(b"1")
    found = sha256_of_items(items)
    assert found == sha256_of_items(items) != sha256_of_items(items[::-1])
    assert found != sha256_of_items(items, lambda item: "a mask")
    items[1].path.write_bytes(b"12")
    assert found != sha256_of_items(items)
    folders = {Blocks(tmp_path, {"images": digest}, 2, 1).folder for digest in (found, "other")}
    folders |= {Blocks(tmp_path, {"images": found}, 2, 2).folder}
    assert len(folders) == 3


def test_blocks_of_a_newer_version_are_refused(tmp_path: Path) -> None:
    blocks = Blocks(tmp_path, SETTINGS, COUNT, SIZE)
    write_json(blocks.folder / "settings.json", {**SETTINGS, "schema": SCHEMA + 1})
    with pytest.raises(UserError, match="newer version"):
        Blocks(tmp_path, SETTINGS, COUNT, SIZE)


def test_memory_does_not_grow_with_the_features(tmp_path: Path) -> None:
    """Made, put together, clustered and assigned where they would not fit into memory."""
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["200000", "all of them do not fit"]
