"""Evaluation of prediction folders, with real files in the ImageNet-S layout."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from core.data.imagenet_s import list_images, mask_path
from core.data.label_maps import IGNORE, load_label, save_label
from core.errors import UserError
from core.scoring.matching import apply_match, read_match
from core.scoring.metrics import SegmentationMetrics
from core.scoring.threshold_curve import hundredths
from tools.evaluate.folder import evaluate, threshold_curve
from uss.__main__ import main

CLASSES = 3
ROTATION = {0: 0, 1: 2, 2: 3, 3: 1}  # prediction id -> class id


@pytest.fixture
def data(tmp_path):
    """Six images of three classes, masks with an ignored strip."""
    root = tmp_path / "data"
    for index in range(2 * CLASSES):
        name, class_id = f"n0{index % CLASSES}/img_{index}", index % CLASSES + 1
        height, width = 20 + index, 30 - index
        image = root / "validation" / f"{name}.JPEG"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height), (index * 20, 90, 50)).save(image)
        mask = np.zeros((height, width), np.int32)
        mask[3:15, 4:20] = class_id
        mask[0] = IGNORE
        save_label(mask_path(root, "validation", name), mask)
    return root


@pytest.fixture
def predictions(tmp_path, data):
    """Cluster ids (ROTATION maps them to classes), shifted by two pixels, with level maps."""
    folder = tmp_path / "predictions"
    back = {class_id: cluster for cluster, class_id in ROTATION.items()}
    rng = np.random.default_rng(0)
    for item in list_images(data / "validation"):
        mask = load_label(mask_path(data, "validation", item.key))
        shifted = np.roll(np.where(mask == IGNORE, 0, mask), 2, 1)
        save_label(folder / f"{item.key}.png", apply_match(shifted, back))
        np.save(folder / f"{item.key}.npy", rng.random(mask.shape, np.float32))
    return folder


def test_match_is_found_and_scores_hold(data, predictions, tmp_path):
    output = tmp_path / "evaluation.json"
    result = evaluate(predictions, data, "validation", CLASSES, result_path=output)
    assert result.match == ROTATION and result.matched_here
    iou = 14 / 18  # 16 columns shifted by 2
    assert result.scores.iou[1] == pytest.approx(iou) and result.scores.images == 6
    assert result.scores.accuracy == 1 and 0 < result.scores.mbiou < iou
    stored = json.loads(output.read_text())
    assert stored["miou"] == result.scores.miou and stored["match"]["1"] == 2
    assert stored["bins"]["S"] is None


def test_given_match_is_used(data, predictions):
    identity = {label: label for label in range(CLASSES + 1)}
    result = evaluate(predictions, data, "validation", CLASSES, identity, boundary=False)
    assert not result.matched_here and result.scores.iou[1:].sum() == 0
    assert result.scores.mbiou is None


def test_curve_equals_evaluation_of_thresholded_files(data, predictions, tmp_path):
    points = threshold_curve(predictions, data, "validation", CLASSES, hundredths(10, 12))
    metrics = SegmentationMetrics(CLASSES, boundary=False)
    for item in list_images(data / "validation"):
        label = load_label(predictions / f"{item.key}.png")
        level = np.load(predictions / f"{item.key}.npy")
        truth = load_label(mask_path(data, "validation", item.key))
        metrics.update(np.where(level < 0.11, 0, label), truth)
        archive = tmp_path / "archives" / f"{item.key}.npz"
        archive.parent.mkdir(parents=True, exist_ok=True)
        np.savez(archive, label=label, hundredths=np.floor(level * 100).astype(np.uint8))
    assert points[1].miou == pytest.approx(metrics.compute(ROTATION).miou)
    cut = evaluate(predictions, data, "validation", CLASSES, ROTATION, threshold=0.11)
    assert cut.scores.miou == metrics.compute(ROTATION).miou
    again = threshold_curve(tmp_path / "archives", data, "validation", CLASSES, hundredths(10, 12))
    assert again == points


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda path: path.unlink(), r"1 of 6 \.png files are missing .*n00/img_0"),
        (lambda path: path.write_bytes(path.read_bytes()[:40]), "img_0.png"),
        (lambda path: save_label(path, np.zeros((5, 5), int)), "img_0.png: .* 5x5 .* 20x30"),
        (lambda path: save_label(path, np.full((20, 30), 4)), "img_0.png: .*id 4"),
    ],
)
def test_bad_predictions_are_named(data, predictions, spoil, text):
    spoil(predictions / "n00" / "img_0.png")
    with pytest.raises(UserError, match=text):
        evaluate(predictions, data, "validation", CLASSES)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY broken", b"PK broken"])
def test_bad_levels_are_named(data, predictions, content):
    (predictions / "n00" / "img_0.npy").write_bytes(content)
    with pytest.raises(UserError, match="img_0.npy"):
        threshold_curve(predictions, data, "validation", CLASSES, [0.5])


def damaged_inside(path):
    """A whole archive, whose compressed data is none."""
    np.savez_compressed(
        path, label=np.zeros((20, 30), np.uint16), hundredths=np.zeros((20, 30), int)
    )
    content = bytearray(path.read_bytes())
    start = 30 + int.from_bytes(content[26:28], "little") + int.from_bytes(content[28:30], "little")
    content[start : start + 8] = b"\xff" * 8
    path.write_bytes(content)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"PK\x03\x04 broken"),
        damaged_inside,
        lambda path: np.savez(path, label=np.zeros((20, 30), int)),
        lambda path: np.savez(path, label=np.zeros(3, int), hundredths=np.zeros(3, int)),
        lambda path: np.savez(path, label=np.zeros((2, 2)), hundredths=np.array([["a"] * 2] * 2)),
    ],
)
def test_bad_archives_are_named(data, tmp_path, spoil):
    for item in list_images(data / "validation"):
        archive = tmp_path / "archives" / f"{item.key}.npz"
        archive.parent.mkdir(parents=True, exist_ok=True)
        np.savez(archive, label=np.zeros((20, 30), int), hundredths=np.zeros((20, 30), int))
    spoil(tmp_path / "archives" / "n00" / "img_0.npz")
    with pytest.raises(UserError, match="img_0.npz"):
        threshold_curve(tmp_path / "archives", data, "validation", CLASSES, [0.5])


def test_a_threshold_without_levels_is_an_error(data, predictions):
    """The reference leaves such predictions uncut and goes on."""
    (predictions / "n01" / "img_1.npy").unlink()
    for call in (
        lambda: evaluate(predictions, data, "validation", CLASSES, threshold=0.5),
        lambda: threshold_curve(predictions, data, "validation", CLASSES, [0.5]),
    ):
        with pytest.raises(UserError, match=r"1 of 6 \.npy files are missing .*n01/img_1"):
            call()
    np.save(predictions / "n01" / "img_1.npy", np.zeros((2, 2), np.float32))
    with pytest.raises(UserError, match=r"img_1: the level map is \(2, 2\)"):
        evaluate(predictions, data, "validation", CLASSES, threshold=0.5)


def test_split_without_masks(data, predictions):
    (data / "test" / "n00").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(data / "test" / "n00" / "a.JPEG")
    with pytest.raises(UserError, match="has no masks"):
        evaluate(predictions, data, "test", CLASSES)
    mask_path(data, "validation", "n00/img_0").unlink()
    with pytest.raises(UserError, match="n00/img_0"):
        evaluate(predictions, data, "validation", CLASSES)


def test_command_prints_a_table_and_writes_the_match(data, predictions, tmp_path, capsys):
    match = tmp_path / "match.json"
    command = ["--data", str(data), "--predictions", str(predictions)]
    assert main(["evaluate", *command, "--classes", "--write-match", str(match)]) == 0
    table = capsys.readouterr().out
    assert "mIoU       80.48" in table and "n02" in table and "found on these images" in table
    assert read_match(match, CLASSES) == ROTATION
    assert main(["evaluate", *command, "--match-file", str(match), "--no-boundary"]) == 0
    table = capsys.readouterr().out
    assert "mIoU       80.48" in table and "given" in table and "BIoU" not in table


def test_command_prints_the_curve(data, predictions, tmp_path, capsys):
    command = ["--data", str(data), "--predictions", str(predictions), "-c", "3", "--curve"]
    assert main(["evaluate", *command, "--max", "3", "--output", str(tmp_path / "curve.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and lines[-1].startswith("best threshold 0.00")
    assert len(json.loads((tmp_path / "curve.json").read_text())["curve"]) == 4
    assert main(["evaluate", *command[:-2], "0"]) == 2
    assert "-c must be 1 to 999, is 0" in capsys.readouterr().err
    assert main(["evaluate", *command, "--min", "5", "--max", "3"]) == 2
    assert "hundredths" in capsys.readouterr().err


def test_command_refuses_a_match_of_another_class_count(data, predictions, tmp_path, capsys):
    match = tmp_path / "match.json"
    match.write_text('{"0": 0, "1": 1}')
    command = ["--data", str(data), "--predictions", str(predictions)]
    assert main(["evaluate", *command, "--match-file", str(match)]) == 2
    assert "3 classes" in capsys.readouterr().err


@pytest.mark.parametrize("threshold", [35.0, float("nan")])
def test_a_threshold_in_percent_is_refused(data, predictions, threshold):
    with pytest.raises(UserError, match="threshold is a fraction, not"):
        evaluate(predictions, data, "validation", CLASSES, threshold=threshold)
    cut = evaluate(predictions, data, "validation", CLASSES, threshold=1.5)
    assert cut.scores.iou[1:].sum() == 0


def test_processes_change_no_result(data, predictions):
    alone = evaluate(predictions, data, "validation", CLASSES, workers=1)
    shared = evaluate(predictions, data, "validation", CLASSES, workers=2)
    assert json.dumps(shared.to_dict()) == json.dumps(alone.to_dict())
    thresholds = hundredths(10, 12)
    assert threshold_curve(
        predictions, data, "validation", CLASSES, thresholds, workers=2
    ) == threshold_curve(predictions, data, "validation", CLASSES, thresholds, workers=1)


def test_a_bad_file_is_named_by_a_worker_too(data, predictions):
    (predictions / "n00" / "img_0.png").write_bytes(b"no PNG")
    with pytest.raises(UserError, match="img_0.png"):
        evaluate(predictions, data, "validation", CLASSES, workers=2)
    with pytest.raises(UserError, match="at least 1"):
        evaluate(predictions, data, "validation", CLASSES, workers=0)


def test_scores_state_what_they_are_to_be_compared_with(data, predictions, tmp_path, capsys):
    """The trivial map's score, the split, how clusters were matched, and which seed it was."""
    truths = [
        load_label(mask_path(data, "validation", i.key)) for i in list_images(data / "validation")
    ]
    judged = np.concatenate([truth[truth != IGNORE] for truth in truths])
    trivial = (judged == 0).mean() / (CLASSES + 1)
    command = ["evaluate", "--data", str(data), "--predictions", str(predictions)]
    output = tmp_path / "scores.json"
    assert main([*command, "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert f"trivial    {100 * trivial:.2f}  mIoU of background everywhere" in said
    assert "split      validation" in said and "by the same masks that judge" in said
    assert "seeds      one run, seed not known: no mean and no spread" in said
    content = json.loads(output.read_text())
    assert content["background_miou"] == pytest.approx(trivial)
    assert (content["split"], content["matched_here"], content["seeds"]) == ("validation", True, [])

    for item in list_images(data / "validation"):
        mask = load_label(mask_path(data, "validation", item.key))
        save_label(tmp_path / "empty" / f"{item.key}.png", np.zeros_like(mask))
    empty = evaluate(tmp_path / "empty", data, "validation", CLASSES)
    assert empty.scores.miou == pytest.approx(trivial) == empty.scores.background_miou

    assert main([*command, "--curve", "--output", str(output)]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert "of validation, chosen by the same masks that judge" in said
    assert f"(background everywhere {100 * trivial:.2f})" in said
    assert json.loads(output.read_text())["background_miou"] == pytest.approx(trivial)
    assert main([*command, "--compare", str(tmp_path / "empty")]) == 0
    said = capsys.readouterr().out
    assert (
        said.startswith("split validation; match found on these images")
        and "background everywhere" in said
    )
    assert main([*command, "--ids", "classes"]) == 0
    assert "match      not found on these images" in capsys.readouterr().out
