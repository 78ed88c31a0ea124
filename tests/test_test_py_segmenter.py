"""Which segmenter ``test.py`` takes, and that its log, its record and ``method.txt`` name it."""

from __future__ import annotations

import importlib.util
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from core.checkpoints.files import save_checkpoint
from core.checkpoints.torch_reader import read_checkpoint
from core.files import sha256_of
from core.pipeline import origin
from core.pipeline.origin import NONE, Link
from tests.conftest import ROOT
from tests.helpers.quarter_masks import write_photographs

CHAIN = [Link("pretrain", NONE, seed=1), Link("finetune", NONE, notes=("labels by colours",))]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain_checkpoint: Path) -> Path:
    """Runs and weights of a project: a published segmenter and two images."""
    (tmp_path / "weights").mkdir()
    shutil.copy(plain_checkpoint, tmp_path / "weights" / "checkpoint.pth.tar")
    write_photographs(tmp_path / "data", "test", 2)
    monkeypatch.setattr("uss.paths.WEIGHTS", tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``test.py`` in this process, with the project's runs."""
    spec = importlib.util.spec_from_file_location("test_py_of_the_project", ROOT / "test.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RUNS", project / "runs")
    small = ["--masks", "superpixels", "--set", "predict.resize=64", "--unmatched"]
    where = ["--data_path", "data", "--mode", "test"]
    return lambda *arguments: module.main([*where, *small, *map(str, arguments)])


def train(project: Path, plain_checkpoint: Path, name: str = "mine") -> Path:
    """A run whose segmenter was just trained."""
    content = {**read_checkpoint(plain_checkpoint), origin.KEY: origin.plain(CHAIN)}
    return save_checkpoint(project / "runs" / name / "segmenter", {**content, "epoch": 1})


def named_in(result: Path) -> tuple[str, str]:
    """(file in the record, ``method.txt``) of an archive."""
    with zipfile.ZipFile(result / "result.zip") as archive:
        method = archive.read("method.txt").decode()
    return json.loads((result / "result.json").read_text())["segmenter"]["file"], method


def test_the_segmenter_of_the_run_comes_before_the_published_one(
    project: Path,
    call: Callable[..., int],
    plain_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = train(project, plain_checkpoint)
    assert call() == 0
    assert f"using {own}" in capsys.readouterr().err
    file, method = named_in(project / "result")
    assert file == str(own)
    assert f"label maps by segmenter/checkpoint.pth.tar (sha256 {sha256_of(own)[:12]})" in method
    assert "(labels by colours)" in method and "Training scheme: unsupervised\n" in method


def test_the_published_one_is_named_and_nothing_is_claimed_of_it(
    project: Path, call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    published = project / "weights" / "checkpoint.pth.tar"
    assert call() == 0
    assert f"using the published {published}" in capsys.readouterr().err
    file, method = named_in(project / "result")
    assert file == str(published)
    assert "Training data: not known\n" in method
    assert "Training scheme: not known of checkpoint.pth.tar (sha256" in method
    assert "ImageNet" not in method and "unsupervised" not in method


def test_a_file_that_was_named_comes_first(
    project: Path, call: Callable[..., int], plain_checkpoint: Path
) -> None:
    train(project, plain_checkpoint)
    assert call("--pretrained", plain_checkpoint, "--train_data", "my photographs") == 0
    file, method = named_in(project / "result")
    assert file == str(plain_checkpoint) and "Training data: my photographs\n" in method


def test_of_several_runs_none_is_guessed(
    project: Path,
    call: Callable[..., int],
    plain_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("mine", "yours"):
        train(project, plain_checkpoint, name)
    assert call() == 2
    assert "several runs have a segmenter (mine, yours)" in capsys.readouterr().err
