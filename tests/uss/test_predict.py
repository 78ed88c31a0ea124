"""The end of train_4.sh: predictions of splits with and without masks, and their archive."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from core.data.images import load_rgb
from core.data.label_maps import load_label
from core.files import read_json, write_json
from core.scoring.matching import write_match
from refine.segmenter import Segmenter
from refine.settings import Predict
from tests.helpers.quarter_masks import write_photographs
from uss import predict
from uss.config import Config
from uss.paths import RunFolder

CONFIG = Config(arch="resnet18", num_classes=2, predict=Predict(resize=64, max_res=0))


@pytest.fixture
def run_folder(tmp_path: Path, plain_checkpoint: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.segmenter.mkdir(parents=True)
    (run.segmenter / "checkpoint.pth.tar").write_bytes(plain_checkpoint.read_bytes())
    return run


def test_a_split_without_masks_takes_the_match_of_validation(
    tmp_path: Path, run_folder: RunFolder
) -> None:
    data = tmp_path / "data"
    keys = write_photographs(data, "test", 3)
    write_photographs(data, "validation", 4, masks=True)
    predict.run(CONFIG, data, run_folder)
    with zipfile.ZipFile(run_folder.predictions("test").parent / "test.zip") as archive:
        names = archive.namelist()
        match = archive.read("match.json")
        method = archive.read("method.txt").decode()
    assert "validation masks matched clusters to classes" in method
    assert sorted(names) == sorted([*(f"{key}.png" for key in keys), "match.json", "method.txt"])
    kept = run_folder.predictions("validation") / "match.json"
    assert match == kept.read_bytes()
    for key in keys:
        rgb = load_rgb(data / "test" / f"{key}.png")
        segmenter = Segmenter(run_folder.segmenter / "checkpoint.pth.tar", CONFIG.predict)
        label = load_label(run_folder.predictions("test") / f"{key}.png")
        np.testing.assert_array_equal(label, segmenter.label(segmenter.logits(rgb), label.shape))


def test_what_masks_chose_is_disclosed_and_nothing_else(
    tmp_path: Path, run_folder: RunFolder
) -> None:
    data = tmp_path / "data"
    write_photographs(data, "test", 2)
    write_photographs(data, "validation", 4, masks=True)
    archive = run_folder.predictions("test").parent / "test.zip"
    match = tmp_path / "match.json"
    write_match(match, {0: 0, 1: 2, 2: 1})

    def method(match_file: Path | None) -> str:
        predict.run(CONFIG, data, run_folder, "test", match_file)
        with zipfile.ZipFile(archive) as file:
            assert match_file is None or file.read("match.json") == match.read_bytes()
            return file.read("method.txt").decode()

    assert "masks" not in method(match)
    assert not run_folder.predictions("validation").exists()
    write_json(run_folder.threshold, {"threshold": 0.5, "chosen_by": "setting"})
    assert "threshold" not in method(match)
    write_json(run_folder.threshold, {"threshold": 0.35, "chosen_by": "validation masks"})
    assert "validation masks chose the pseudo labels' threshold 0.35)" in method(match)
    write_json(run_folder.threshold, {"threshold": 0.35, "masks": "sam"})
    assert "(pseudo labels: averaged over the masks of SAM)" in method(match)
    write_json(run_folder.threshold, {"threshold": 0.35, "masks": None})
    assert "(pseudo labels: of each pixel by itself)" in method(match)
    chosen = {"threshold": 0.35, "chosen_by": "validation masks", "masks": "superpixels"}
    write_json(run_folder.threshold, chosen)
    assert "(pseudo labels: averaged over superpixels) (validation masks chose" in method(match)
    both = "threshold 0.35; validation masks matched clusters to classes)"
    assert both in method(None)
    origin = read_json(run_folder.predictions("validation") / "match_origin.json", "origin")
    assert origin["chosen_by"] == "validation masks"
