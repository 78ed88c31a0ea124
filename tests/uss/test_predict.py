"""The end of train_4.sh: predictions of splits with and without masks, and their archive."""

from __future__ import annotations

import functools
import os
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.data.imagenet_s import ImageItem
from core.data.images import load_rgb
from core.data.label_maps import load_label
from core.errors import EXIT_USER_ERROR, main_guard
from core.files import read_json, sha256_of, write_json
from core.schema import unstamped
from core.scoring.matching import write_match
from core.version import VERSION
from refine.one_image import Setup
from refine.segmenter import Segmenter
from refine.settings import Predict
from refine.supervised import SupervisedRefiner, answerer
from tests.helpers.quarter_masks import write_photographs
from uss import predict
from uss.config import Config
from uss.networks import load_segmenter
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
    assert f"(made by version {VERSION})" in method
    assert sorted(names) == sorted([*(f"{key}.png" for key in keys), "match.json", "method.txt"])
    kept = run_folder.predictions("validation") / "match.json"
    assert match == kept.read_bytes()
    for key in keys:
        rgb = load_rgb(data / "test" / f"{key}.png")
        network = load_segmenter(run_folder.segmenter / "checkpoint.pth.tar")
        segmenter = Segmenter(*network, CONFIG.predict)
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
    assert "(clusters are named by a match that was given" in method(match)
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


def deadly(setup: Setup) -> Callable[[Any], Any]:
    """Runs in the child: while a file ``deadly`` lies beside an image, that image kills it."""
    answer = answerer(setup)

    def answer_or_die(request: tuple[str, ImageItem]) -> Any:
        if request[1].path.with_suffix(".deadly").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return answer(request)

    return answer_or_die


def test_an_image_that_kills_the_process_is_reported_and_the_rest_is_done(
    tmp_path: Path, run_folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    keys = write_photographs(data, "test", 3)
    trap = data / "test" / f"{keys[1]}.deadly"
    trap.touch()
    archive = run_folder.predictions("test").with_name("test.zip")
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"of an earlier run")

    @main_guard
    def main(arguments: list[str]) -> int:
        refiner = functools.partial(SupervisedRefiner, maker=f"{__name__}:deadly", stage="predict")
        predict.run(CONFIG, data, run_folder, "test", make_refiner=refiner)
        return 0

    assert main([]) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    report = run_folder.prediction_failures("test")
    assert report == run_folder.root / "predictions" / "failed_test.json"
    last = said.splitlines()[-1]
    assert f"no archive: 1 of 3 images have no label map ({keys[1]}; reasons in {report})" in last
    assert "once more in a new process\n" in said and "time per image: decode" in said
    failed = read_json(report, "failures")
    assert list(failed) == [keys[1]] and "SIGKILL" in failed[keys[1]]
    assert not archive.exists()
    made = {key: run_folder.predictions("test") / f"{key}.png" for key in keys}
    assert [key for key in keys if made[key].is_file()] == [keys[0], keys[2]]
    stamps = {key: made[key].stat().st_mtime_ns for key in (keys[0], keys[2])}

    trap.unlink()
    assert main([]) == 0
    assert "2 of 3 finished earlier, 1 to do" in capsys.readouterr().err
    assert {key: made[key].stat().st_mtime_ns for key in stamps} == stamps
    assert not report.exists()
    with zipfile.ZipFile(archive) as file:
        assert {f"{key}.png" for key in keys} < set(file.namelist())


def test_what_an_earlier_version_recorded_counts_as_finished(
    tmp_path: Path, run_folder: RunFolder
) -> None:
    """The settings in the ledger: checkpoint, section ``predict`` and data, and nothing else."""
    data = tmp_path / "data"
    write_photographs(data, "test", 1)
    predict.run(CONFIG, data, run_folder, "test")
    (settings,) = run_folder.predictions("test").glob(".ledger/*/settings.json")
    assert unstamped(read_json(settings, "settings"), settings) == {
        "checkpoint_sha256": sha256_of(run_folder.segmenter / "checkpoint.pth.tar"),
        "predict": {"resize": 64, "square": False, "fixed_pool": False, "max_res": 0},
        "data": str(data),
    }
