"""Refined predictions of a folder: label maps, scores, match, archive; in this process."""

from __future__ import annotations

import contextlib
import json
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.data import rle
from core.data.label_maps import load_label, save_label
from core.errors import UserError
from core.files import read_json, write_json
from refine.one_image import Refiner
from refine.segmenter import Segmenter, label_of_logits
from refine.settings import Predict, Refine
from refine.vote import vote_refine
from tests.helpers.quarter_masks import QuarterMasks, write_photographs
from tools.submission import results
from tools.submission.check import check_zip
from uss import predict_refined
from uss.config import Config
from uss.paths import RunFolder
from uss.result_archive import RefinedRun

CONFIG = Config(arch="resnet18", num_classes=2, predict=Predict(resize=64, max_res=0))


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> QuarterMasks:
    quarters = QuarterMasks()
    monkeypatch.setattr(predict_refined, "mask_source", lambda config, path: quarters)
    return quarters


@pytest.fixture
def job(tmp_path: Path, plain_checkpoint: Path) -> RefinedRun:
    return RefinedRun(
        data_path=tmp_path / "data",
        mode="validation",
        dump_path=tmp_path / "result",
        run=RunFolder(tmp_path / "run"),
        pretrained=plain_checkpoint,
    )


def refine_all(source: QuarterMasks, job: RefinedRun, config: Config = CONFIG) -> None:
    predict_refined.run_refined(
        config, job, lambda setup, seconds: contextlib.nullcontext(Refiner(setup, source))
    )


def test_refined_label_maps_score_and_archive(
    job: RefinedRun, source: QuarterMasks, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = write_photographs(job.data_path, "validation", 4, masks=True)
    refine_all(source, job)
    for key in keys:
        before = load_label(job.dump_path / "validation_unrefined" / f"{key}.png")
        after = load_label(job.dump_path / "validation" / f"{key}.png")
        height, width = before.shape
        upper, centre = (np.zeros(before.shape, bool) for _ in range(2))
        upper[: height // 2, : width // 2] = True
        centre[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = True
        masks = sorted([upper, centre], key=lambda mask: -int(mask.sum()))
        if before.any():
            voted = vote_refine(before, masks)
            np.testing.assert_array_equal(after, voted if voted.any() else before)
        else:
            assert after[:5, :7].all() and after.sum() == after[0, 0] * 35
    printed = capsys.readouterr().out
    assert "mIoU before refinement (validation)" in printed
    assert "mIoU after refinement (validation)" in printed
    evaluation = read_json(job.dump_path / "evaluation_validation.json", "evaluation")
    match = read_json(job.dump_path / "match.json", "match")
    assert evaluation["after_refinement"]["match"] == match and match["0"] == 0
    with zipfile.ZipFile(job.dump_path / "result.zip") as archive:
        assert sorted(archive.namelist()) == sorted(
            [*(f"{key}.png" for key in keys), "match.json", "method.txt"]
        )
        assert "ResNet18" in archive.read("method.txt").decode()


def test_masks_vote_on_the_images_own_resolution(
    job: RefinedRun, source: QuarterMasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above max_res the unrefined map is an enlarged one; the vote does not start from that."""
    keys = write_photographs(job.data_path, "test", 4)
    values = np.random.default_rng(5).normal(size=(3, 9, 9)).astype(np.float32)
    monkeypatch.setattr(Segmenter, "logits", lambda self, rgb: values)
    config = replace(CONFIG, predict=Predict(resize=64, max_res=10))
    refine_all(source, replace(job, mode="test"), config)
    for key in keys:
        before = load_label(job.dump_path / "test_unrefined" / f"{key}.png")
        size = before.shape
        np.testing.assert_array_equal(before, label_of_logits(values, size, 10))
        fine = label_of_logits(values, size)
        assert (fine != before).any()
        records = sorted(source.generate(np.zeros((*size, 3))), key=lambda r: -r["area"])
        masks = [rle.decode(record["segmentation"]) for record in records]
        after = load_label(job.dump_path / "test" / f"{key}.png")
        np.testing.assert_array_equal(after, vote_refine(fine, masks))


def test_sam_is_asked_only_where_it_can_change_something(
    job: RefinedRun, source: QuarterMasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks where there is foreground to vote with, one prompt where there is none, never both."""
    write_photographs(job.data_path, "validation", 4, masks=True)

    def logits(self: Segmenter, rgb: np.ndarray) -> np.ndarray:
        values = np.zeros((3, 2, 2), np.float32)
        values[0] = 1.0
        values[2, 0, 0] = 5.0 if rgb.shape[0] == 40 else 0.5
        return values

    monkeypatch.setattr(Segmenter, "logits", logits)
    refine_all(source, job)
    assert source.generated == [(40, 56)] * 2
    assert len(source.prompted) == 2


def test_running_again_skips_and_still_scores_all(
    job: RefinedRun, source: QuarterMasks, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = write_photographs(job.data_path, "validation", 4, masks=True)
    refine_all(source, job)
    first = read_json(job.dump_path / "evaluation_validation.json", "evaluation")
    (job.dump_path / "validation_unrefined" / f"{keys[0]}.png").write_bytes(b"\x89PNG half")
    stamps = {key: (job.dump_path / "validation" / f"{key}.png").stat().st_mtime_ns for key in keys}
    capsys.readouterr()
    refine_all(source, job)
    assert "3 of 4 finished earlier, 1 to do" in capsys.readouterr().err
    changed = [
        key
        for key in keys
        if (job.dump_path / "validation" / f"{key}.png").stat().st_mtime_ns != stamps[key]
    ]
    assert changed == [keys[0]]
    assert read_json(job.dump_path / "evaluation_validation.json", "evaluation") == first


def test_the_match_follows_to_test_and_never_from_another_checkpoint(
    job: RefinedRun, source: QuarterMasks, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photographs(job.data_path, "validation", 4, masks=True)
    write_photographs(job.data_path, "test", 2)
    refine_all(source, job)
    test = replace(job, mode="test")
    refine_all(source, test)
    with zipfile.ZipFile(job.dump_path / "result.zip") as archive:
        assert archive.read("match.json") == (job.dump_path / "match.json").read_bytes()

    origin = read_json(job.dump_path / "match_origin.json", "origin")
    assert origin["split"] == "validation"
    write_json(job.dump_path / "match_origin.json", {**origin, "checkpoint_sha256": "other"})
    capsys.readouterr()
    refine_all(source, test)
    logged = capsys.readouterr().err
    assert "belongs to another checkpoint" in logged and "cluster ids" in logged
    with zipfile.ZipFile(job.dump_path / "result.zip") as archive:
        assert "match.json" not in archive.namelist()
        assert "cluster ids" in archive.read("method.txt").decode()


def test_the_masks_of_a_test_split_do_not_name_its_clusters(
    job: RefinedRun, source: QuarterMasks
) -> None:
    """The masks of test have the classes swapped; the match of validation must not change."""
    write_photographs(job.data_path, "validation", 4, masks=True)
    write_photographs(job.data_path, "test", 4, masks=True)
    for path in (job.data_path / "test-segmentation").glob("*/*.png"):
        truth = load_label(path)
        save_label(path, np.where(truth > 0, 3 - truth, 0))
    refine_all(source, job)
    kept = (job.dump_path / "match.json").read_bytes()
    refine_all(source, replace(job, mode="test"))
    assert (job.dump_path / "match.json").read_bytes() == kept
    scores = read_json(job.dump_path / "evaluation_test.json", "evaluation")
    assert not scores["after_refinement"]["matched_here"]
    with zipfile.ZipFile(job.dump_path / "result.zip") as archive:
        assert archive.read("match.json") == kept


def test_a_match_file_that_does_not_fit_stops_before_any_image(
    job: RefinedRun, source: QuarterMasks, tmp_path: Path
) -> None:
    write_photographs(job.data_path, "test", 2)
    write_json(tmp_path / "match.json", {"0": 0, "1": 1})
    with pytest.raises(UserError, match="1 ids but there are 2 classes"):
        refine_all(source, replace(job, mode="test", match_file=tmp_path / "match.json"))
    assert not source.generated and not job.dump_path.exists()


@pytest.mark.parametrize("allow", [False, True])
def test_a_broken_image(job: RefinedRun, source: QuarterMasks, allow: bool) -> None:
    keys = write_photographs(job.data_path, "test", 3)
    (job.data_path / "test" / "red" / "broken.JPEG").write_bytes(b"\xff\xd8 nothing more")
    test = replace(job, mode="test", allow_missing=allow)
    if allow:
        refine_all(source, test)
        with zipfile.ZipFile(job.dump_path / "result.zip") as archive:
            assert len([name for name in archive.namelist() if name.endswith(".png")]) == 4
            assert "1 of 4 predictions are empty ones" in archive.read("method.txt").decode()
        assert check_zip(job.archive, job.data_path, "test", 2) == ["match.json: missing"]
    else:
        job.dump_path.mkdir()
        (job.dump_path / "result.zip").write_bytes(b"of an earlier run")
        with pytest.raises(UserError, match="red/broken.*--allow-missing"):
            refine_all(source, test)
        assert not (job.dump_path / "result.zip").exists()
    assert "not a readable" in read_json(test.failures, "failures")["red/broken"]
    for key in keys:
        assert (job.dump_path / "test" / f"{key}.png").is_file()


def test_plain_folders_of_images(job: RefinedRun, source: QuarterMasks) -> None:
    write_photographs(job.data_path, "more", 2)
    plain = job.data_path / "mine"
    plain.mkdir()
    for path in (job.data_path / "more").glob("*/*.png"):
        path.rename(plain / path.name)
    refine_all(source, replace(job, mode="mine"))
    assert sorted(path.name for path in (job.dump_path / "mine").glob("*.png")) == [
        "image0.png",
        "image1.png",
    ]


def test_what_the_masks_broke_is_filled_with_the_networks_prediction(
    job: RefinedRun, source: QuarterMasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = write_photographs(job.data_path, "test", 3)

    def refuse(rgb: np.ndarray) -> None:
        raise UserError("too large for SAM")

    monkeypatch.setattr(source, "generate", refuse)
    monkeypatch.setattr(source, "prompt", lambda rgb, points, signs: np.ones(rgb.shape[:2], bool))
    test = replace(job, mode="test", allow_missing=True)
    monkeypatch.setattr(
        Segmenter,
        "logits",
        lambda self, rgb: np.float32([[[0.0]], [[float(rgb.shape[0] != 40)]], [[-1.0]]]),
    )
    refine_all(source, test)
    failed = read_json(job.dump_path / "failed_test.json", "failures")
    assert set(failed.values()) == {"too large for SAM"} and len(failed) == 2
    with zipfile.ZipFile(job.dump_path / "result.zip") as archive:
        assert (
            "2 of 3 predictions are the network's unrefined ones"
            in archive.read("method.txt").decode()
        )
        for key in failed:
            (job.dump_path / "filled.png").write_bytes(archive.read(f"{key}.png"))
            assert (load_label(job.dump_path / "filled.png") == 1).all()
    assert len(keys) == 3


def test_a_finished_run_makes_its_archive_once(
    job: RefinedRun, source: QuarterMasks, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photographs(job.data_path, "validation", 4, masks=True)
    refine_all(source, job)
    stamp = job.archive.stat().st_mtime_ns
    printed = capsys.readouterr().out
    refine_all(source, job)
    assert job.archive.stat().st_mtime_ns == stamp
    assert capsys.readouterr().out == printed  # the same scores
    job.archive.write_bytes(job.archive.read_bytes()[:-1])
    refine_all(source, job)
    assert check_zip(job.archive, job.data_path, "validation", 2) == []
    other = job.archive.read_bytes()
    refine_all(source, replace(job, unmatched=True))
    assert job.archive.read_bytes() != other


class _Moment:
    """Stops a thread at one place until the test lets it go on."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.go.wait(120)


def test_two_modes_at_once_leave_each_others_archive_alone(
    job: RefinedRun, source: QuarterMasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has written the archive and not yet checked it when the other wants to make its own."""
    write_photographs(job.data_path, "validation", 3, masks=True)
    write_photographs(job.data_path, "test", 2)
    moment, check, checked = _Moment(), results.check_zip, []

    def slow_check(archive: Path, data: Path, split: str, num_classes: int) -> list[str]:
        if split == "validation":
            moment()
        checked.append(split)
        return check(archive, data, split, num_classes)

    monkeypatch.setattr(results, "check_zip", slow_check)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(refine_all, source, job)
        assert moment.reached.wait(120)
        second = pool.submit(refine_all, source, replace(job, mode="test"))
        with pytest.raises(TimeoutError):
            second.result(5)
        assert checked == []
        moment.go.set()
        first.result(120)
        second.result(120)
    assert checked == ["validation", "test"]
    assert read_json(job.record, "record")["mode"] == "test"
    assert check_zip(job.archive, job.data_path, "test", 2) == []
    assert not job.claims.exists()


def test_a_failed_mode_leaves_the_archive_that_another_made_meanwhile(
    job: RefinedRun, source: QuarterMasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photographs(job.data_path, "validation", 3, masks=True)
    write_photographs(job.data_path, "test", 2)
    (job.data_path / "test" / "red" / "broken.JPEG").write_bytes(b"\xff\xd8 nothing more")
    with pytest.raises(UserError, match="red/broken"):
        refine_all(source, replace(job, mode="test"))
    logits = Segmenter.logits

    def meanwhile(self: Segmenter, rgb: np.ndarray) -> np.ndarray:
        monkeypatch.setattr(Segmenter, "logits", logits)
        refine_all(source, job)
        return logits(self, rgb)

    monkeypatch.setattr(Segmenter, "logits", meanwhile)
    again = replace(CONFIG, refine=Refine(max_prompted=0.5))
    with pytest.raises(UserError, match="red/broken"):
        refine_all(source, replace(job, mode="test"), again)
    assert check_zip(job.archive, job.data_path, "validation", 2) == []


def test_options_of_the_refinement_make_results_stale(
    job: RefinedRun, source: QuarterMasks, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photographs(job.data_path, "test", 3)
    test = replace(job, mode="test")
    refine_all(source, test)
    changed = replace(CONFIG, refine=Refine(max_prompted=0.5))
    capsys.readouterr()
    refine_all(source, replace(test, keep_stale=True), changed)
    said = capsys.readouterr().err
    assert "3 of 3 results are stale and are kept" in said
    assert "refine.max_prompted was 1.0, is 0.5" in said
    with zipfile.ZipFile(job.archive) as archive:
        method = archive.read("method.txt").decode()
    assert "3 of 3 predictions were made under other settings" in method
    refine_all(source, test, changed)
    assert "3 of 3 results are stale and are made again" in capsys.readouterr().err
    with pytest.raises(UserError, match="refine.vote must be one of count, confidence"):
        refine_all(source, test, replace(CONFIG, refine=Refine(vote="loud")))


def test_time_and_memory_are_printed_and_recorded(
    job: RefinedRun, source: QuarterMasks, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photographs(job.data_path, "test", 3)
    refine_all(source, replace(job, mode="test"))
    said = capsys.readouterr().err
    for part in ("decode", "network", "SAM encode", "SAM masks", "vote", "write", "MiB after 3"):
        assert part in said
    (ledger,) = job.dump_path.glob("test/.ledger/*/*.jsonl")
    for line in ledger.read_text().splitlines():
        facts = json.loads(line)
        assert facts["rule"] in ("vote", "prediction", "prompt")
        assert facts["seconds"]["network"] > 0 and facts["resident_mib"] > 10
