"""Distance matching: votes by hand, regions against the long way round, and the whole command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.data.imagenet_s import list_images, mask_path
from core.data.images import load_rgb
from core.data.label_maps import IGNORE, load_label, save_label
from core.errors import UserError
from core.files import read_json
from core.pipeline import label_origin, origin
from tests.helpers.quarter_masks import write_photographs
from uss import distance_matching
from uss.config import DistanceMatching
from uss.paths import RunFolder
from uss.presets import preset

CONFIG = replace(preset("luss50_r18"), num_classes=2, distance_matching=DistanceMatching(resize=64))


def test_votes_of_the_nearest() -> None:
    labels = np.array([0, 1, 1, 2])
    similarity = np.array([[0.9, 0.1], [0.83, 0.2], [0.1, 0.97], [0.0, 0.9]], np.float32)
    votes = distance_matching.vote(similarity, labels, 4, neighbours=2, temperature=0.07)
    weight = np.exp(-1)  # 0.07 less similar
    expected = [[1, 0], [weight, 1], [0, weight], [0, 0]]
    np.testing.assert_allclose(votes, np.array(expected) / (1 + weight), rtol=1e-5)
    every = distance_matching.vote(similarity, labels, 4, neighbours=10, temperature=1.0)
    np.testing.assert_allclose(every.sum(0), 1, rtol=1e-6)
    assert (every[3] == 0).all() and every[1, 0] > votes[1, 0]


def test_a_region_is_the_mean_of_its_features(tmp_path: Path, attention_checkpoint: Path) -> None:
    write_photographs(tmp_path, "train-semi", 2, masks=True)
    items = list_images(tmp_path / "train-semi")
    path = mask_path(tmp_path, "train-semi", items[0].key)
    mask = load_label(path)
    mask[: mask.shape[0] // 4] = IGNORE
    save_label(path, mask)
    features = distance_matching.TrunkFeatures(attention_checkpoint, "resnet18", 64)
    bank, labels = distance_matching.region_bank(features, tmp_path, items, 2)
    assert labels.tolist() == [0, 1, 0, 2] and bank.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(bank, axis=1), 1, rtol=1e-5)
    grid = features.enlarged(load_rgb(items[0].path))
    rows, columns = (np.arange(n) * size // n for n, size in zip(grid.shape[1:], mask.shape))
    mean = grid[:, mask[rows][:, columns] == 1].mean(1)
    np.testing.assert_allclose(bank[1], mean / np.linalg.norm(mean), rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="holds id 2, but num_classes is 1"):
        distance_matching.region_bank(features, tmp_path, items, 1)


def test_the_command_predicts_class_ids_and_scores_them(
    tmp_path: Path, attention_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    write_photographs(data, "train-semi", 4, masks=True)
    keys = write_photographs(data, "validation", 3, masks=True)
    run = RunFolder(tmp_path / "run", given_checkpoint=attention_checkpoint)
    nearest = replace(CONFIG, distance_matching=DistanceMatching(neighbours=1, resize=256))
    distance_matching.run(nearest, data, run)
    folder = run.distance_matching("resnet18", "validation")
    scores = read_json(folder / "evaluation_validation.json", "scores")["distance_matching"]
    assert scores["miou"] > 0.3 and not scores["matched_here"]
    assert not (folder / "match.json").exists()
    chain = label_origin.chain_of_labels(folder, label_origin.fingerprints(folder))
    assert [link.supervision for link in chain] == [origin.UNKNOWN, origin.LABELS]
    # Each pixel is the one of the feature grid below it, as the reference enlarges predictions.
    features = distance_matching.TrunkFeatures(attention_checkpoint, "resnet18", 256)
    examples = list_images(data / "train-semi")
    bank, labels = distance_matching.region_bank(features, data, examples, 2)
    for key in keys:
        rgb = load_rgb(data / "validation" / f"{key}.png")
        grid = features(rgb)
        nearest_region = (bank @ grid.reshape(len(grid), -1)).argmax(0)
        small = labels[nearest_region].reshape(grid.shape[1:])
        rows, columns = (np.arange(n) * m // n for n, m in zip(rgb.shape[:2], small.shape))
        np.testing.assert_array_equal(load_label(folder / f"{key}.png"), small[rows][:, columns])
    capsys.readouterr()
    distance_matching.run(nearest, data, run)
    assert "3 of 3 finished earlier" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["neighbours", "temperature", "resize"])
def test_settings_of_zero_are_refused(name: str, tmp_path: Path) -> None:
    config = replace(CONFIG, distance_matching=replace(CONFIG.distance_matching, **{name: 0}))
    with pytest.raises(UserError, match=f"distance_matching.{name} must be positive, is 0"):
        distance_matching.run(config, tmp_path, RunFolder(tmp_path))


def test_a_trunk_of_another_kind_is_refused(tmp_path: Path, attention_checkpoint: Path) -> None:
    write_photographs(tmp_path / "data", "train-semi", 2, masks=True)
    write_photographs(tmp_path / "data", "validation", 2, masks=True)
    run = RunFolder(tmp_path / "run", given_checkpoint=attention_checkpoint)
    with pytest.raises(UserError, match="is a resnet18, but resnet50 was asked for"):
        distance_matching.run(replace(CONFIG, arch="resnet50"), tmp_path / "data", run)
    missing = RunFolder(tmp_path / "run", given_checkpoint=tmp_path / "none.pth")
    with pytest.raises(UserError, match="none.pth does not exist"):
        distance_matching.run(CONFIG, tmp_path / "data", missing)
