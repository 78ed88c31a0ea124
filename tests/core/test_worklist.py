"""Resumable work: what counts as finished, what is made again, what a failure leaves behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.data.folders import list_images
from core.errors import UserError
from core.files import read_json
from core.labels import load_label, save_label
from core.worklist import Worklist, is_whole_label

SETTINGS = {"threshold": 0.3, "masks": {"points": [16, 8]}}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def items(tmp_path):
    for name in ("cat/a", "cat/b", "dog/a"):
        path = tmp_path / "images" / f"{name}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4)).save(path)
    return list_images(tmp_path / "images")


def write_ones(item, path):
    save_label(path, np.ones((4, 6), np.int32))


def keys(items):
    return [item.key for item in items]


def test_run_then_resume(tmp_path, items):
    first = Worklist(tmp_path / "out", SETTINGS).run(items, write_ones, "stage", is_whole_label)
    assert first.done == ["cat/a", "cat/b", "dog/a"] and first.ok and not first.skipped
    assert (tmp_path / "out" / "dog" / "a.png").is_file()
    again = Worklist(tmp_path / "out", SETTINGS).run(items, write_ones, "stage", is_whole_label)
    assert again.done == [] and again.skipped == first.done


def test_only_intact_results_of_the_right_size_are_finished(tmp_path, items):
    worklist = Worklist(tmp_path / "out", SETTINGS)
    worklist.run(items, write_ones, "stage")
    cut = worklist.path_of(items[0])
    cut.write_bytes(cut.read_bytes()[:-20])
    save_label(worklist.path_of(items[1]), np.ones((5, 6), np.int32))
    assert keys(worklist.pending(items)) == []
    assert keys(worklist.pending(items, is_whole_label)) == ["cat/a", "cat/b"]
    worklist.path_of(items[2]).unlink()
    assert keys(worklist.pending(items)) == ["dog/a"]


def test_files_without_record_are_made_again(tmp_path, items):
    worklist = Worklist(tmp_path / "out", SETTINGS)
    save_label(worklist.path_of(items[0]), np.zeros((4, 6), np.int32))
    assert keys(worklist.pending(items, is_whole_label)) == keys(items)


def test_other_settings_are_named_and_everything_is_made_again(tmp_path, items, capsys):
    Worklist(tmp_path / "out", SETTINGS).run(items, write_ones, "stage")
    assert "settings" not in capsys.readouterr().err
    changed = {"threshold": 0.3, "masks": {"points": [32, 8]}, "square": True}
    worklist = Worklist(tmp_path / "out", changed)
    assert "masks.points, square" in capsys.readouterr().err
    assert keys(worklist.pending(items)) == keys(items)
    worklist.run(items[:1], write_ones, "stage")
    assert keys(Worklist(tmp_path / "out", changed).pending(items)) == ["cat/b", "dog/a"]
    # Going back must not revive the records of the first run: a file was overwritten since.
    assert keys(Worklist(tmp_path / "out", SETTINGS).pending(items)) == keys(items)


def test_a_failing_image_does_not_stop_the_others(tmp_path, items, capsys):
    def work(item, path):
        if item.key == "cat/b":
            raise UserError("image cat/b.JPEG is broken")
        write_ones(item, path)

    result = Worklist(tmp_path / "out", SETTINGS).run(items, work, "stage")
    assert result.done == ["cat/a", "dog/a"] and not result.ok
    assert result.failed == {"cat/b": "image cat/b.JPEG is broken"}
    assert "1 of 3 failed: cat/b" in capsys.readouterr().err
    retry = Worklist(tmp_path / "out", SETTINGS).run(items, write_ones, "stage")
    assert retry.done == ["cat/b"]


def test_a_bug_ends_the_run_and_keeps_what_was_finished(tmp_path, items):
    def work(item, path):
        if item.key == "cat/b":
            raise ZeroDivisionError
        write_ones(item, path)

    worklist = Worklist(tmp_path / "out", SETTINGS)
    with pytest.raises(ZeroDivisionError):
        worklist.run(items, work, "stage")
    assert keys(worklist.pending(items)) == ["cat/b", "dog/a"]


def test_a_half_written_record_does_not_count(tmp_path, items):
    worklist = Worklist(tmp_path / "out", SETTINGS)
    worklist.run(items, write_ones, "stage")
    (record,) = (tmp_path / "out" / ".done").glob("*/*.txt")
    record.write_text(record.read_text()[:-3])
    assert keys(worklist.pending(items)) == ["dog/a"]


def test_broken_settings_file_is_replaced_and_the_record_still_counts(tmp_path, items):
    Worklist(tmp_path / "out", SETTINGS).run(items, write_ones, "stage")
    (tmp_path / "out" / "settings.json").write_text("{")
    assert Worklist(tmp_path / "out", SETTINGS).pending(items) == []
    assert read_json(tmp_path / "out" / "settings.json", "settings") == SETTINGS


def test_array_tasks_split_the_items(tmp_path, items):
    script = (
        "import sys; from pathlib import Path; from core.data.folders import list_images\n"
        "from core.labels import save_label; from core.worklist import Worklist; import numpy\n"
        "items = list_images(Path(sys.argv[1]))\n"
        "write = lambda item, path: save_label(path, numpy.ones((4, 6), int))\n"
        "print(*Worklist(Path(sys.argv[2]), {}).run(items, write, 'stage').done)\n"
    )
    done = []
    for task in range(2):
        answer = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "images"), str(tmp_path / "out")],
            env={"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "2"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        done.append(answer.stdout.split())
    assert sorted(done[0] + done[1]) == keys(items) and 1 <= len(done[0]) <= 2
    assert Worklist(tmp_path / "out", {}).pending(items, is_whole_label) == []
    assert load_label(tmp_path / "out" / "cat" / "a.png").min() == 1
