"""Runs of earlier versions go on: every archive beside this file is unpacked and continued.

``python -m tests.kept_runs.make NAME`` adds one.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

import test as test_py
from core.files import read_json, write_json
from core.schema import SCHEMA
from core.work.ledger import LEDGER_FOLDER
from tests.kept_runs.make import HERE
from uss.__main__ import main

ARCHIVES = sorted(HERE.glob("*.tar.xz"))
# What a stage may say when nothing is left to do.
FINISHED = {
    "pretrain": "already finished (2 epochs in ",
    "pixel-attention": "already finished (1 epochs in ",
    "cluster": "already finished with these settings: ",
    "pseudo-labels": "8 of 8 finished earlier, 0 to do",
    "finetune": "already finished (1 epochs in ",
    "test.py": "3 of 3 finished earlier, 0 to do",
}


@pytest.fixture(scope="module", params=ARCHIVES, ids=lambda path: path.name.partition(".")[0])
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked archive, with which no test does anything but what it should bear."""
    root = tmp_path_factory.mktemp("kept")
    with tarfile.open(request.param) as archive:
        archive.extractall(root)
    return root


def call(root: Path, command: str) -> int:
    """A command of the archive, in this process."""
    arguments = read_json(root / "commands.json", "commands")[command]
    filled = [argument.replace("{root}", str(root)) for argument in arguments]
    return test_py.main(filled[1:]) if filled[0] == "test.py" else main(filled[2:])


def contents(root: Path) -> dict[str, str]:
    """Path -> digest of all that a stage has made; the tables of times and notes grow."""
    paths = (path for name in ("run", "result") for path in (root / name).rglob("*"))
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.is_file() and path.name not in ("times.jsonl", "run.json", "settings.json")
    }


# What only says where a product comes from: a version that knows more writes it anew.
_SAID = ("origin.json", "result.json", "result.zip", "threshold.json")


def products(root: Path) -> dict[str, Any]:
    """:func:`contents` without what is said about them, with the label maps inside the archive."""
    made: dict[str, Any] = {
        name: digest
        for name, digest in contents(root).items()
        if Path(name).name not in _SAID and LEDGER_FOLDER not in Path(name).parts
    }
    with zipfile.ZipFile(root / "result" / "result.zip") as archive:
        entries = [each for each in archive.infolist() if each.filename.endswith(".png")]
        made["result.zip"] = {each.filename: each.CRC for each in entries}
    choice = read_json(root / "run" / "pseudo_labels" / "threshold.json", "")
    made["threshold"] = {name: choice[name] for name in ("threshold", "chosen_by", "curve")}
    return made


def test_archives_are_there() -> None:
    assert ARCHIVES


@pytest.mark.parametrize("command", FINISHED)
def test_finished_stages_stay(kept: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No stage is made again, or calls what is there stale."""
    before = products(kept)
    assert call(kept, command) == 0
    said = capsys.readouterr().err
    assert FINISHED[command] in said
    assert "stale" not in said and "made again" not in said
    assert products(kept) == before


def test_a_training_goes_on(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = kept / "stopped" / "resnet18" / "pretrain" / "log.jsonl"
    assert call(kept, "stopped") == 0
    assert "resuming at epoch 2 of 2, step 2" in capsys.readouterr().err
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3, 4]
    assert call(kept, "stopped") == 0
    assert "already finished (2 epochs in " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "record"),
    [
        ("cluster", "run/run.json"),
        ("test.py", "run/run.json"),
        ("cluster", "run/resnet18/cluster/settings.json"),
        ("pseudo-labels", "run/pseudo_labels/train/.ledger/*/settings.json"),
        ("pseudo-labels", "run/masks/train/*/settings.json"),
        ("test.py", "result/test/.ledger/*/settings.json"),
        ("test.py", "result/result.json"),
    ],
)
def test_a_folder_of_a_newer_version_is_refused(
    kept: Path, command: str, record: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = kept.glob(record)
    before, all_before = path.read_text(), contents(kept)
    write_json(path, {**json.loads(before), "schema": SCHEMA + 1})
    try:
        assert call(kept, command) == 2
    finally:
        path.write_text(before)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {path} was made by a newer version of this project (schema ")
    assert contents(kept) == all_before
