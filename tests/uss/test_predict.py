"""Prediction: argmax at the image's size, fitting checkpoints, splits with and without masks."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quarter_masks import QuarterMasks, write_photographs

from core.data.images import load_rgb
from core.errors import UserError
from core.files import read_json, write_json
from core.labels import load_label, save_label
from core.matching import write_match
from uss import predict
from uss.config import Config, Predict
from uss.paths import RunFolder
from uss.refine import vote_refine

CONFIG = Config(arch="resnet18", num_classes=2, predict=Predict(resize=64, max_res=0))


@pytest.fixture
def run_folder(tmp_path: Path, plain_checkpoint: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.segmenter.mkdir(parents=True)
    (run.segmenter / "checkpoint.pth.tar").write_bytes(plain_checkpoint.read_bytes())
    return run


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> QuarterMasks:
    quarters = QuarterMasks()
    monkeypatch.setattr(predict, "mask_source", lambda config, path: quarters)
    return quarters


@pytest.fixture
def job(tmp_path: Path, run_folder: RunFolder) -> predict.RefinedRun:
    return predict.RefinedRun(
        data_path=tmp_path / "data",
        mode="validation",
        dump_path=tmp_path / "result",
        run=run_folder,
        pretrained=run_folder.segmenter / "checkpoint.pth.tar",
    )


def test_argmax_of_resized_logits() -> None:
    logits = np.random.default_rng(2).normal(size=(5, 4, 6)).astype(np.float32)
    full = np.stack([cv2.resize(channel, (31, 17)) for channel in logits])
    label = predict.label_of_logits(logits, (17, 31))
    assert label.dtype == np.int32
    np.testing.assert_array_equal(label, full.argmax(axis=0))


def test_equal_logits_give_background() -> None:
    np.testing.assert_array_equal(
        predict.label_of_logits(np.zeros((3, 2, 2), np.float32), (4, 4)), 0
    )


@given(
    height=st.integers(1, 90), width=st.integers(1, 90), max_res=st.sampled_from([1, 7, 20, 1000])
)
def test_max_res_caps_the_area_and_keeps_the_size(height: int, width: int, max_res: int) -> None:
    logits = np.random.default_rng(height).normal(size=(3, 5, 4)).astype(np.float32)
    sizes = []
    resize = cv2.resize

    def spied(values: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
        sizes.append(size)
        return resize(values, size, interpolation=interpolation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cv2, "resize", spied)
        label = predict.label_of_logits(logits, (height, width), max_res)
    assert label.shape == (height, width)
    small_width, small_height = sizes[0]
    # Half a pixel of rounding a side, and never below one pixel.
    assert small_width * small_height <= max(
        (max_res + 0.5) ** 2 * 1.5, max(small_height, small_width)
    )
    if height * width <= max_res**2:
        assert (small_height, small_width) == (height, width)


def test_a_long_image_is_capped_in_both_directions() -> None:
    """500 x 4000 is 2 million pixels: at most 1000 x 1000 are computed, of the same aspect."""
    logits = np.zeros((2, 2, 2), np.float32)
    logits[1, :, 1] = 1.0
    label = predict.label_of_logits(logits, (500, 4000), 1000)
    assert label.shape == (500, 4000)
    assert not label[:, :1000].any() and label[:, 3100:].all()


@pytest.mark.parametrize(
    ("arch", "num_classes", "message"),
    [
        ("resnet50", None, "is a resnet18, but resnet50 was asked for"),
        ("resnet18", 3, "has 2 classes, but 3 were asked for"),
        ("resnet_uppernet18", None, "its head is a 1x1 convolution"),
        ("vgg", None, "unknown architecture 'vgg'"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(
    plain_checkpoint: Path, arch: str, num_classes: int | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        predict.Segmenter(plain_checkpoint, Predict(), arch, num_classes)


def test_other_files_are_no_segmenter(attention_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fine-tuned segmenter"):
        predict.Segmenter(attention_checkpoint, Predict())
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match="text.pth"):
        predict.Segmenter(tmp_path / "text.pth", Predict())


def test_kind_and_class_count_come_from_the_checkpoint(plain_checkpoint: Path) -> None:
    segmenter = predict.Segmenter(plain_checkpoint, Predict(resize=64), "resnet18")
    assert segmenter.num_classes == 2 and segmenter.name == "ResNet18-1x1 convolution"
    rgb = np.random.default_rng(0).integers(0, 255, (40, 80, 3), dtype=np.uint8)
    assert segmenter.logits(rgb).shape == (3, 2, 4)
    square = predict.Segmenter(plain_checkpoint, Predict(resize=64, square=True))
    assert square.logits(rgb).shape == (3, 2, 2)


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
        segmenter = predict.Segmenter(run_folder.segmenter / "checkpoint.pth.tar", CONFIG.predict)
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
    both = "threshold 0.35; validation masks matched clusters to classes)"
    assert both in method(None)
    origin = read_json(run_folder.predictions("validation") / "match_origin.json", "origin")
    assert origin["chosen_by"] == "validation masks"


def test_refined_label_maps_score_and_archive(
    job: predict.RefinedRun, source: QuarterMasks, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = write_photographs(job.data_path, "validation", 4, masks=True)
    predict.run_refined(CONFIG, job)
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


def test_sam_is_asked_only_where_it_can_change_something(
    job: predict.RefinedRun, source: QuarterMasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks where there is foreground to vote with, one prompt where there is none, never both."""
    write_photographs(job.data_path, "validation", 4, masks=True)

    def logits(self: predict.Segmenter, rgb: np.ndarray) -> np.ndarray:
        values = np.zeros((3, 2, 2), np.float32)
        values[0] = 1.0
        values[2, 0, 0] = 5.0 if rgb.shape[0] == 40 else 0.5
        return values

    monkeypatch.setattr(predict.Segmenter, "logits", logits)
    predict.run_refined(CONFIG, job)
    assert source.generated == [(40, 56)] * 2
    assert len(source.prompted) == 2


def test_running_again_skips_and_still_scores_all(
    job: predict.RefinedRun, source: QuarterMasks, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = write_photographs(job.data_path, "validation", 4, masks=True)
    predict.run_refined(CONFIG, job)
    first = read_json(job.dump_path / "evaluation_validation.json", "evaluation")
    (job.dump_path / "validation_unrefined" / f"{keys[0]}.png").write_bytes(b"\x89PNG half")
    stamps = {key: (job.dump_path / "validation" / f"{key}.png").stat().st_mtime_ns for key in keys}
    capsys.readouterr()
    predict.run_refined(CONFIG, job)
    assert "3 of 4 finished earlier, 1 to do" in capsys.readouterr().err
    changed = [
        key
        for key in keys
        if (job.dump_path / "validation" / f"{key}.png").stat().st_mtime_ns != stamps[key]
    ]
    assert changed == [keys[0]]
    assert read_json(job.dump_path / "evaluation_validation.json", "evaluation") == first


def test_the_match_follows_to_test_and_never_from_another_checkpoint(
    job: predict.RefinedRun, source: QuarterMasks, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photographs(job.data_path, "validation", 4, masks=True)
    write_photographs(job.data_path, "test", 2)
    predict.run_refined(CONFIG, job)
    test = replace(job, mode="test")
    predict.run_refined(CONFIG, test)
    with zipfile.ZipFile(job.dump_path / "result.zip") as archive:
        assert archive.read("match.json") == (job.dump_path / "match.json").read_bytes()

    origin = read_json(job.dump_path / "match_origin.json", "origin")
    assert origin["split"] == "validation"
    write_json(job.dump_path / "match_origin.json", {**origin, "checkpoint_sha256": "other"})
    capsys.readouterr()
    predict.run_refined(CONFIG, test)
    logged = capsys.readouterr().err
    assert "belongs to another checkpoint" in logged and "cluster ids" in logged
    with zipfile.ZipFile(job.dump_path / "result.zip") as archive:
        assert "match.json" not in archive.namelist()
        assert "cluster ids" in archive.read("method.txt").decode()


def test_the_masks_of_a_test_split_do_not_name_its_clusters(
    job: predict.RefinedRun, source: QuarterMasks
) -> None:
    """The masks of test have the classes swapped; the match of validation must not change."""
    write_photographs(job.data_path, "validation", 4, masks=True)
    write_photographs(job.data_path, "test", 4, masks=True)
    for path in (job.data_path / "test-segmentation").glob("*/*.png"):
        truth = load_label(path)
        save_label(path, np.where(truth > 0, 3 - truth, 0))
    predict.run_refined(CONFIG, job)
    kept = (job.dump_path / "match.json").read_bytes()
    predict.run_refined(CONFIG, replace(job, mode="test"))
    assert (job.dump_path / "match.json").read_bytes() == kept
    scores = read_json(job.dump_path / "evaluation_test.json", "evaluation")
    assert not scores["after_refinement"]["matched_here"]
    with zipfile.ZipFile(job.dump_path / "result.zip") as archive:
        assert archive.read("match.json") == kept


def test_a_match_file_that_does_not_fit_stops_before_any_image(
    job: predict.RefinedRun, source: QuarterMasks, tmp_path: Path
) -> None:
    write_photographs(job.data_path, "test", 2)
    write_json(tmp_path / "match.json", {"0": 0, "1": 1})
    with pytest.raises(UserError, match="1 ids but there are 2 classes"):
        predict.run_refined(CONFIG, replace(job, mode="test", match_file=tmp_path / "match.json"))
    assert not source.generated and not job.dump_path.exists()


@pytest.mark.parametrize("allow", [False, True])
def test_a_broken_image(job: predict.RefinedRun, source: QuarterMasks, allow: bool) -> None:
    keys = write_photographs(job.data_path, "test", 3)
    (job.data_path / "test" / "red" / "broken.JPEG").write_bytes(b"\xff\xd8 nothing more")
    test = replace(job, mode="test", allow_missing=allow)
    if allow:
        predict.run_refined(CONFIG, test)
        with zipfile.ZipFile(job.dump_path / "result.zip") as archive:
            assert len([name for name in archive.namelist() if name.endswith(".png")]) == 3
    else:
        job.dump_path.mkdir()
        (job.dump_path / "result.zip").write_bytes(b"of an earlier run")
        with pytest.raises(UserError, match="red/broken.*--allow-missing"):
            predict.run_refined(CONFIG, test)
        assert not (job.dump_path / "result.zip").exists()
    for key in keys:
        assert (job.dump_path / "test" / f"{key}.png").is_file()


def test_plain_folders_of_images(job: predict.RefinedRun, source: QuarterMasks) -> None:
    write_photographs(job.data_path, "more", 2)
    plain = job.data_path / "mine"
    plain.mkdir()
    for path in (job.data_path / "more").glob("*/*.png"):
        path.rename(plain / path.name)
    predict.run_refined(CONFIG, replace(job, mode="mine"))
    assert sorted(path.name for path in (job.dump_path / "mine").glob("*.png")) == [
        "image0.png",
        "image1.png",
    ]
