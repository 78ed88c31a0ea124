"""Distance matching: votes by hand, regions against the long way round, and the whole command."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.data.imagenet_s import list_images, mask_path
from core.data.images import load_rgb
from core.data.label_maps import IGNORE, load_label, save_label
from core.errors import UserError
from core.files import read_json
from core.pipeline import label_origin, origin
from tests.helpers import stage_process
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


# Blocks -----------------------------------------------------------------------------------------

STAGE = distance_matching


def small_blocks(patch: pytest.MonkeyPatch) -> None:
    """Two examples a block."""
    patch.setattr(distance_matching, "BLOCK_IMAGES", 2)


def test_the_killed_encodes_no_finished_block_again(
    tmp_path: Path, attention_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at the second example of the second block; the label maps are those of a whole run."""
    data, log = tmp_path / "data", tmp_path / "log"
    write_photographs(data, "train-semi", 7, masks=True)
    keys = write_photographs(data, "validation", 3, masks=True)
    run = RunFolder(tmp_path / "run")
    own = run.pretrain("resnet18") / "checkpoint.pth.tar"
    own.parent.mkdir(parents=True)
    own.write_bytes(attention_checkpoint.read_bytes())
    killed = stage_process.start("tests.uss.test_distance_matching", data, run.root, log, "4")
    said = killed.communicate(timeout=300)[1]
    assert killed.returncode == -signal.SIGKILL, said
    examples = [item.path.name for item in list_images(data / "train-semi")]
    assert log.read_text().split() == examples[:4]

    small_blocks(monkeypatch)
    read: list[str] = []
    stage_process.noting(monkeypatch, distance_matching, read.append)
    distance_matching.run(CONFIG, data, run, keep_features=True)
    validation = [item.path.name for item in list_images(data / "validation")]
    assert read == [*examples[2:], *validation]
    (bank,) = (np.load(path) for path in run.regions("resnet18").glob("*/features.npy"))
    features = distance_matching.TrunkFeatures(attention_checkpoint, "resnet18", 64)
    expected = distance_matching.region_bank(features, data, list_images(data / "train-semi"), 2)
    np.testing.assert_array_equal(bank, expected[0])

    whole = RunFolder(tmp_path / "whole", given_checkpoint=attention_checkpoint)
    distance_matching.run(CONFIG, data, whole)
    maps = [folder.distance_matching("resnet18", "validation") for folder in (run, whole)]
    for key in keys:
        assert len({(folder / f"{key}.png").read_bytes() for folder in maps}) == 1
    assert not whole.regions("resnet18").exists()


def test_another_mask_makes_other_regions(
    tmp_path: Path, attention_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept features of labelled regions are used for another split, and never for other masks."""
    data = tmp_path / "data"
    write_photographs(data, "train-semi", 2, masks=True)
    for split in ("validation", "test"):
        write_photographs(data, split, 2)
    run = RunFolder(tmp_path / "run", given_checkpoint=attention_checkpoint)
    read: list[str] = []
    stage_process.noting(monkeypatch, distance_matching, read.append)
    distance_matching.run(CONFIG, data, run, keep_features=True)
    assert len(read) == 4
    read.clear()
    distance_matching.run(CONFIG, data, run, split="test", keep_features=True)
    assert len(read) == 2
    path = mask_path(data, "train-semi", list_images(data / "train-semi")[0].key)
    mask = load_label(path)
    mask[0, 0] = 2
    save_label(path, mask)
    write_photographs(data, "testA", 2)
    read.clear()
    distance_matching.run(CONFIG, data, run, split="testA")
    assert len(read) == 4 and not run.regions("resnet18").exists()


def test_similarities_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many regions and pixels as memory should hold; the labels are the same."""
    rng = np.random.default_rng(0)
    bank, labels = rng.standard_normal((9, 4), np.float32), np.arange(9) % 3
    pixels = rng.standard_normal((4, 50), np.float32)
    whole = distance_matching._nearest_labels(CONFIG, bank, labels, pixels)
    sizes: list[int] = []
    vote = distance_matching.vote

    def noted(similarity: np.ndarray, *arguments: Any) -> np.ndarray:
        sizes.append(similarity.size)
        return vote(similarity, *arguments)

    monkeypatch.setattr(distance_matching, "vote", noted)
    monkeypatch.setattr(distance_matching, "_SIMILARITIES", 70)
    parts = distance_matching._nearest_labels(CONFIG, bank, labels, pixels)
    np.testing.assert_array_equal(parts, whole)
    assert max(sizes) <= 70 and sum(sizes) == 9 * 50
