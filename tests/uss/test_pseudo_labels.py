"""Pseudo labels: one image against the long way round, and the stage with its stops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from core.data.crops import network_input
from core.data.imagenet_s import ImageItem
from core.data.images import load_rgb
from core.data.label_maps import load_label
from core.errors import UserError
from core.files import read_json, write_json
from refine.mask_sources import ImageMasks
from tests.helpers.quarter_masks import QuarterMasks, write_photographs
from uss import pseudo_labels
from uss.config import Config, PseudoLabels
from uss.networks import load_pixel_attention
from uss.origins import chosen_by_masks
from uss.paths import RunFolder

CONFIG = Config(
    arch="resnet18",
    num_classes=2,
    pseudo_labels=PseudoLabels(resize=64, min_threshold=0.0, max_threshold=1.0),
)


@pytest.fixture
def centroids() -> np.ndarray:
    return np.random.default_rng(8).random((2, 512)).astype(np.float32)


@pytest.fixture
def run_folder(tmp_path: Path, attention_checkpoint: Path, centroids: np.ndarray) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    target = run.pixel_attention("resnet18") / "checkpoint.pth.tar"
    target.parent.mkdir(parents=True)
    target.write_bytes(attention_checkpoint.read_bytes())
    run.cluster("resnet18").mkdir()
    np.save(run.cluster("resnet18") / "centroids.npy", centroids)
    return run


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> QuarterMasks:
    quarters = QuarterMasks()
    monkeypatch.setattr(pseudo_labels, "mask_source", lambda config: quarters)
    return quarters


def labels_of(run: RunFolder, keys: list[str]) -> list[np.ndarray]:
    return [load_label(run.pseudo_labels("train") / f"{key}.png") for key in keys]


def test_a_label_is_that_of_features_averaged_at_full_size(
    tmp_path: Path, attention_checkpoint: Path, centroids: np.ndarray, source: QuarterMasks
) -> None:
    from core.runtime import jt

    key = write_photographs(tmp_path, "train", 1)[0]
    item = ImageItem(tmp_path / "train" / f"{key}.png", key)
    np.save(tmp_path / "centroids.npy", centroids)
    labeller = pseudo_labels.Labeller(CONFIG, attention_checkpoint, tmp_path / "centroids.npy")
    got = labeller.label(item, ImageMasks(source, tmp_path / "masks"))

    rgb = load_rgb(item.path)
    height, width = rgb.shape[:2]
    model = load_pixel_attention(attention_checkpoint, "resnet18")
    with jt.no_grad():
        features, attention = (
            x.numpy()[0] for x in model.features(jt.array(network_input(rgb, 64)))
        )
    features /= np.linalg.norm(features, axis=0)
    full = np.stack([cv2.resize(channel, (width, height)) for channel in features])
    level = cv2.resize(attention.mean(axis=0), (width, height))
    unit = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    for part in (
        np.s_[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4],
        np.s_[: height // 4, : width // 4],
    ):
        whole = np.s_[: height // 2, : width // 2] if part[0].start is None else part
        mean = full[:, whole[0], whole[1]].mean(axis=(1, 2))
        assert (got.label[part] == 1 + (unit @ mean).argmax()).all()
        np.testing.assert_allclose(got.level[part], level[whole].mean(), atol=1e-4)
    np.testing.assert_allclose(got.level[-1], level[-1], atol=1e-4)
    np.testing.assert_array_equal(got.at(2.0), 0)


def test_sweep_then_labels_and_nothing_twice(
    tmp_path: Path,
    run_folder: RunFolder,
    source: QuarterMasks,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "data"
    train = write_photographs(data, "train", 4)
    write_photographs(data, "validation", 3, masks=True)
    broken = data / "train" / "red" / "broken.jpg"
    broken.write_bytes(b"nothing")
    pseudo_labels.run(CONFIG, data, run_folder)

    chosen = read_json(run_folder.threshold, "threshold")
    assert (chosen["chosen_by"], chosen["num_classes"]) == ("validation masks", 2)
    assert [point[0] for point in chosen["curve"]] == [step / 100 for step in range(101)]
    assert chosen["miou"] == max(point[1] for point in chosen["curve"])
    assert dict(chosen["curve"])[chosen["threshold"]] == chosen["miou"]
    for key, label in zip(train, labels_of(run_folder, train)):
        assert label.shape == load_rgb(data / "train" / f"{key}.png").shape[:2]
        assert set(np.unique(label)) <= {0, 1, 2}
    assert "broken.jpg" in capsys.readouterr().err
    assert len(source.generated) == 7

    pseudo_labels.run(CONFIG, data, run_folder)
    assert "4 of 5 finished earlier" in capsys.readouterr().err
    by_hand = replace(CONFIG, pseudo_labels=replace(CONFIG.pseudo_labels, threshold=1.5))
    pseudo_labels.run(by_hand, data, run_folder)
    assert not any(label.any() for label in labels_of(run_folder, train))
    assert read_json(run_folder.threshold, "threshold")["threshold"] == 1.5
    assert len(source.generated) == 7, "masks must come from the store"


def test_a_stop_keeps_what_is_finished(
    tmp_path: Path,
    run_folder: RunFolder,
    source: QuarterMasks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = tmp_path / "data"
    train = write_photographs(data, "train", 4)
    config = replace(CONFIG, pseudo_labels=replace(CONFIG.pseudo_labels, threshold=0.5))
    generate, limit = source.generate, 2

    def interrupted(rgb: np.ndarray) -> list:
        if len(source.generated) == limit:
            raise KeyboardInterrupt
        return generate(rgb)

    monkeypatch.setattr(source, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pseudo_labels.run(config, data, run_folder)
    finished = [run_folder.pseudo_labels("train") / f"{key}.png" for key in train]
    stamps = [path.stat().st_mtime_ns for path in finished if path.exists()]
    assert len(stamps) == 2
    monkeypatch.setattr(source, "generate", generate)
    pseudo_labels.run(config, data, run_folder)
    assert [path.stat().st_mtime_ns for path in finished[:2]] == stamps
    assert all(path.exists() for path in finished) and len(source.generated) == 4


@pytest.mark.parametrize(
    ("centres", "message"),
    [
        (np.ones((3, 512), np.float32), "3 cluster centres, but num_classes is 2"),
        (np.ones((2, 2048), np.float32), "2048 channels, but the network's features have 512"),
        (np.ones(7, np.float32), "expected cluster centres"),
    ],
)
def test_centres_that_do_not_fit(
    tmp_path: Path, run_folder: RunFolder, source: QuarterMasks, centres: np.ndarray, message: str
) -> None:
    np.save(run_folder.cluster("resnet18") / "centroids.npy", centres)
    write_photographs(tmp_path / "data", "train", 2)
    config = replace(CONFIG, pseudo_labels=replace(CONFIG.pseudo_labels, threshold=0.5))
    with pytest.raises(UserError, match=message):
        pseudo_labels.run(config, tmp_path / "data", run_folder)
    assert not run_folder.pseudo_labels("train").exists()


def test_without_validation_masks_the_threshold_must_be_given(
    tmp_path: Path, run_folder: RunFolder, source: QuarterMasks
) -> None:
    write_photographs(tmp_path / "data", "train", 2)
    write_photographs(tmp_path / "data", "validation", 2)
    with pytest.raises(UserError, match="train_3.sh --threshold"):
        pseudo_labels.run(CONFIG, tmp_path / "data", run_folder)


def test_a_segmenter_is_no_pixel_attention_network(
    tmp_path: Path, run_folder: RunFolder, source: QuarterMasks, plain_checkpoint: Path
) -> None:
    target = run_folder.pixel_attention("resnet18") / "checkpoint.pth.tar"
    target.write_bytes(plain_checkpoint.read_bytes())
    write_photographs(tmp_path / "data", "train", 2)
    config = replace(CONFIG, pseudo_labels=replace(CONFIG.pseudo_labels, threshold=0.5))
    with pytest.raises(UserError, match="pixel-attention network"):
        pseudo_labels.run(config, tmp_path / "data", run_folder)


PIXELS = replace(CONFIG, pseudo_labels=replace(CONFIG.pseudo_labels, per_mask=False))


def test_without_masks_each_pixel_stands_for_itself(
    tmp_path: Path,
    run_folder: RunFolder,
    source: QuarterMasks,
    attention_checkpoint: Path,
    centroids: np.ndarray,
) -> None:
    data = tmp_path / "data"
    (key, *_) = write_photographs(data, "train", 2)
    write_photographs(data, "validation", 2, masks=True)
    pseudo_labels.run(PIXELS, data, run_folder, mode="validation")
    assert not run_folder.pseudo_labels("train").exists()
    threshold = read_json(run_folder.threshold, "threshold")["threshold"]
    by_hand = replace(PIXELS, pseudo_labels=replace(PIXELS.pseudo_labels, threshold=threshold))
    pseudo_labels.run(PIXELS, data, run_folder, mode="train")
    (before,) = labels_of(run_folder, [key])
    assert read_json(run_folder.threshold, "threshold")["chosen_by"] == "validation masks"
    pseudo_labels.run(by_hand, data, run_folder, mode="train")
    assert read_json(run_folder.threshold, "threshold")["chosen_by"] == "setting"
    assert not source.generated

    # The long way round, as PASS writes it down.
    rgb = load_rgb(data / "train" / f"{key}.png")
    height, width = rgb.shape[:2]
    model = load_pixel_attention(attention_checkpoint, "resnet18")
    features, attention = (part.numpy()[0] for part in model.features(network_input(rgb, 64)))
    unit = features / np.linalg.norm(features, axis=0)
    centres = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    label = 1 + np.tensordot(centres, unit, 1).argmax(0)
    rows = np.arange(height) * label.shape[0] // height
    columns = np.arange(width) * label.shape[1] // width
    level = cv2.resize(attention.mean(0), (width, height), interpolation=cv2.INTER_LINEAR)
    expected = np.where(level < threshold, 0, label[rows][:, columns])
    assert (before == expected).mean() > 0.99  # equal but for levels at the very threshold
    np.testing.assert_array_equal(labels_of(run_folder, [key])[0], before)


@pytest.mark.parametrize("content", [{}, {"threshold": "high"}, {"threshold": True}])
def test_a_file_without_a_threshold_is_one_line(
    tmp_path: Path, run_folder: RunFolder, source: QuarterMasks, content: dict[str, object]
) -> None:
    write_photographs(tmp_path / "data", "train", 2)
    write_json(run_folder.threshold, content)
    with pytest.raises(UserError, match="expected the threshold .*threshold.json, found"):
        pseudo_labels.run(CONFIG, tmp_path / "data", run_folder, "train")
    assert chosen_by_masks(run_folder.threshold, None) == ""
    write_json(run_folder.threshold, {**content, "chosen_by": "validation masks"})
    assert chosen_by_masks(run_folder.threshold, None).startswith("validation masks chose")


def test_a_threshold_of_other_clusters_is_not_taken(
    tmp_path: Path, run_folder: RunFolder, source: QuarterMasks
) -> None:
    write_photographs(tmp_path / "data", "train", 2)
    write_json(run_folder.threshold, {"threshold": 0.3, "num_classes": 7})
    with pytest.raises(UserError, match="for 7 clusters, but num_classes is 2"):
        pseudo_labels.run(CONFIG, tmp_path / "data", run_folder, "train")


@pytest.mark.parametrize(
    ("fields", "mode", "message"),
    [
        ({"per_mask": False, "uncovered": "background"}, "all", "without masks"),
        ({"threshold": 41.0}, "all", "did you mean 0.41"),
        ({"threshold": float("nan")}, "all", "threshold is a fraction"),
        ({}, "test", "--mode must be one of"),
        ({}, "train", "--mode validation"),
    ],
)
def test_settings_that_cannot_work(
    tmp_path: Path, run_folder: RunFolder, fields: dict, mode: str, message: str
) -> None:
    write_photographs(tmp_path / "data", "train", 2)
    config = replace(CONFIG, pseudo_labels=replace(CONFIG.pseudo_labels, **fields))
    with pytest.raises(UserError, match=message):
        pseudo_labels.run(config, tmp_path / "data", run_folder, mode)
