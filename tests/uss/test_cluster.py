"""Clustering: faiss on groups plain to see, and the stage on photographs of two colours."""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core import kmeans
from core.data.datasets import EvalDataset
from core.data.imagenet_s import anonymous_order, list_images
from core.data.loader import Loader
from core.errors import UserError
from tests.helpers import stage_process
from uss import cluster
from uss.config import Cluster, Config, Heads, PixelAttention
from uss.paths import RunFolder

STAGE = cluster
CONFIG = Config(
    arch="resnet18",
    num_classes=2,
    workers=0,
    heads=Heads(hidden_mlp=8, feat_dim=4, prototypes=6),
    pixel_attention=PixelAttention(threshold=0.1),
    cluster=Cluster(batch_size=4, resize=40, crop=32, iterations=5, redo=3),
)


def blobs(seed: int, count: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """Three tight groups on axes of an 8-dimensional space, and the group of each point."""
    rng = np.random.default_rng(seed)
    groups = np.arange(count) % 3
    return (np.eye(8)[groups] + rng.normal(0, 0.05, (count, 8))).astype(np.float32), groups


def test_kmeans_finds_the_groups_and_repeats_itself() -> None:
    features, groups = blobs(1)
    centres, objective = kmeans.kmeans(features, 3, iterations=20, redo=5, seed=7)
    again, _ = kmeans.kmeans(features, 3, iterations=20, redo=5, seed=7)
    assert centres.shape == (3, 8) and centres.dtype == np.float32
    np.testing.assert_array_equal(centres, again)
    clusters = kmeans.assign(features, centres)
    assert cluster.agreement(clusters, groups) == pytest.approx((1.0, 1.0))
    squared = ((features - centres[clusters]) ** 2).sum()
    assert objective == pytest.approx(squared, rel=0.01)


def test_centres_are_means_and_points_go_to_the_nearest() -> None:
    features, _ = blobs(2)
    centres, _ = kmeans.kmeans(features, 3, iterations=20, redo=3, seed=0)
    clusters = kmeans.assign(features, centres)
    distances = ((features[:, None] - centres[None]) ** 2).sum(axis=2)
    np.testing.assert_array_equal(clusters, distances.argmin(axis=1))
    for index in range(3):
        np.testing.assert_allclose(
            features[clusters == index].mean(axis=0), centres[index], atol=1e-5
        )


def test_unit_rows_leave_a_zero_row_finite() -> None:
    rows = kmeans.unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0.0, 0.0]], atol=1e-6)


def test_agreement_of_unrelated_and_of_single_clusters() -> None:
    information, accuracy = cluster.agreement(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]))
    assert information == pytest.approx(0.0, abs=1e-12) and accuracy == 0.5
    information, accuracy = cluster.agreement(np.array([1, 1, 0]), np.array([0, 0, 1]))
    assert (information, accuracy) == (pytest.approx(1.0), 1.0)


def photographs(folder: Path, count: int) -> None:
    """Half of them red and flat, half of them blue and striped; another size each."""
    rng = np.random.default_rng(4)
    for index in range(count):
        size = tuple(rng.integers(40, 70, 2))
        pixels = np.zeros((*size, 3), np.uint8)
        if index % 2:
            pixels[..., 0] = 220
        else:
            pixels[:, ::4, 2] = 255
        pixels += rng.integers(0, 20, pixels.shape, dtype=np.uint8)
        path = folder / ("blue", "red")[index % 2] / f"image{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


@pytest.fixture
def run_folder(tmp_path: Path, attention_checkpoint: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    target = run.pixel_attention("resnet18") / "checkpoint.pth.tar"
    target.parent.mkdir(parents=True)
    target.write_bytes(attention_checkpoint.read_bytes())
    return run


def test_the_stage_writes_centres_and_lists_and_skips_a_finished_run(
    tmp_path: Path, run_folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    photographs(data / "train", 10)
    photographs(data / "validation", 4)
    (data / "train" / "red" / "broken.png").write_bytes(b"not an image")
    cluster.run(CONFIG, data, run_folder)

    folder = run_folder.cluster("resnet18")
    centres = np.load(folder / "centroids.npy")
    assert centres.shape == (2, 512) and centres.dtype == np.float32
    lines = (folder / "train_labeled.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == [
        *(f"blue/image{index}.png" for index in (0, 2, 4, 6, 8)),
        *(f"red/image{index}.png" for index in (1, 3, 5, 7, 9)),
    ]
    named = [line.rsplit(" ", 1) for line in lines]
    assert {k for name, k in named if name.startswith("red")} | {
        k for name, k in named if name.startswith("blue")
    } == {"0", "1"}
    assert len({k for name, k in named if name.startswith("red")}) == 1
    assert len((folder / "val_labeled.txt").read_text().splitlines()) == 4
    logged = capsys.readouterr().err
    assert "broken.png" in logged and "accuracy 1.000" in logged

    stamp = (folder / "centroids.npy").stat().st_mtime_ns
    cluster.run(CONFIG, data, run_folder)
    assert "already finished" in capsys.readouterr().err
    assert (folder / "centroids.npy").stat().st_mtime_ns == stamp
    cluster.run(replace(CONFIG, seed=CONFIG.seed + 1), data, run_folder)
    assert (folder / "centroids.npy").stat().st_mtime_ns != stamp


def test_fewer_images_than_clusters(tmp_path: Path, run_folder: RunFolder) -> None:
    photographs(tmp_path / "data" / "train", 2)
    with pytest.raises(UserError, match="2 images, fewer than the 3 clusters"):
        cluster.run(replace(CONFIG, num_classes=3), tmp_path / "data", run_folder)
    assert not run_folder.cluster("resnet18").exists()


@pytest.mark.parametrize("name", ["batch_size", "crop", "iterations", "redo"])
def test_settings_of_zero_are_refused(name: str, tmp_path: Path, run_folder: RunFolder) -> None:
    config = replace(CONFIG, cluster=replace(CONFIG.cluster, **{name: 0}))
    with pytest.raises(UserError, match=rf"cluster\.{name} must be positive, is 0; use --set"):
        cluster.run(config, tmp_path, run_folder)


def test_a_crop_larger_than_the_resized_image_is_refused(
    tmp_path: Path, run_folder: RunFolder
) -> None:
    photographs(tmp_path / "data" / "train", 4)
    config = replace(CONFIG, cluster=replace(CONFIG.cluster, crop=41))
    with pytest.raises(UserError, match=r"cluster\.crop is 41, more than cluster\.resize, 40"):
        cluster.run(config, tmp_path / "data", run_folder)
    assert not run_folder.cluster("resnet18").exists()


def test_a_checkpoint_of_another_trunk_is_refused(tmp_path: Path, run_folder: RunFolder) -> None:
    photographs(tmp_path / "data" / "train", 4)
    (run_folder.root / "resnet18").rename(run_folder.root / "resnet50")
    with pytest.raises(UserError, match="is a resnet18, but resnet50 was asked for"):
        cluster.run(replace(CONFIG, arch="resnet50"), tmp_path / "data", run_folder)


# Blocks -----------------------------------------------------------------------------------------


def small_blocks(patch: pytest.MonkeyPatch) -> None:
    """A batch, four images, a block."""
    patch.setattr(cluster, "BLOCK_IMAGES", 1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    photographs(folder / "train", 14)
    photographs(folder / "validation", 3)
    return folder


def names_of(data: Path) -> list[str]:
    """The images' names in the order of the stage."""
    return [
        item.path.name
        for split in ("train", "validation")
        for item in anonymous_order(list_images(data / split))
    ]


def products(run: RunFolder) -> dict[str, bytes]:
    folder = run.cluster("resnet18")
    assert {path.name for path in folder.iterdir()} == {
        *("centroids.npy", "train_labeled.txt", "val_labeled.txt", "settings.json", "origin.json")
    }
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def other_run(tmp_path: Path, run: RunFolder) -> RunFolder:
    """A run folder with the same checkpoint."""
    other = RunFolder(tmp_path / "other")
    target = other.pixel_attention("resnet18") / "checkpoint.pth.tar"
    target.parent.mkdir(parents=True)
    os.link(run.pixel_attention("resnet18") / "checkpoint.pth.tar", target)
    return other


def test_blocks_give_what_all_features_in_memory_give(
    data: Path, run_folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, with broken images within a batch, at the end of one and as the last one."""
    from core.runtime import jt

    small_blocks(monkeypatch)
    items = anonymous_order(list_images(data / "train"))
    for index in (1, 7, 13):
        items[index].path.write_bytes(b"not an image")
    section = CONFIG.cluster
    loader = Loader(
        EvalDataset(items, section.resize, section.crop),
        section.batch_size,
        seed=1,
        workers=0,
        drop_last=False,
        shuffle=False,
    )
    model = cluster.load_pixel_attention(
        run_folder.pixel_attention("resnet18") / "checkpoint.pth.tar", "resnet18"
    )
    rows = {}
    for images, indices in loader.epoch(0):
        with jt.no_grad():
            features = model.cluster_feature(jt.array(images), CONFIG.pixel_attention.threshold)
        # By index: an image that stands in for a broken one counts once.
        rows.update(zip(indices.tolist(), features.numpy()))
    assert len(rows) == 11
    features = kmeans.unit_rows(np.stack([rows[index] for index in sorted(rows)]))
    centres, _ = kmeans.kmeans(features, 2, section.iterations, section.redo, CONFIG.seed)

    cluster.run(CONFIG, data, run_folder)
    folder = run_folder.cluster("resnet18")
    np.testing.assert_array_equal(np.load(folder / "centroids.npy"), centres)
    assert len((folder / "train_labeled.txt").read_text().splitlines()) == 11


@pytest.mark.parametrize(("kill", "finished"), [("10", 8), ("kmeans", 17)])
def test_the_killed_encodes_no_finished_block_again(
    kill: str,
    finished: int,
    tmp_path: Path,
    data: Path,
    run_folder: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Killed at the second image of the third block, or with all features on disk."""
    log = tmp_path / "log"
    killed = stage_process.start("tests.uss.test_cluster", data, run_folder.root, log, kill)
    said = killed.communicate(timeout=300)[1]
    assert killed.returncode == -signal.SIGKILL, said
    assert log.read_text().split() == names_of(data)[: 17 if kill == "kmeans" else 10]
    small_blocks(monkeypatch)
    read: list[str] = []
    stage_process.noting(monkeypatch, cluster, read.append)
    cluster.run(CONFIG, data, run_folder)
    assert read == names_of(data)[finished:]
    whole = other_run(tmp_path, run_folder)
    cluster.run(CONFIG, data, whole)
    assert products(run_folder) == products(whole)


def test_two_processes_share_the_images(
    tmp_path: Path, data: Path, run_folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = [tmp_path / "first", tmp_path / "second"]
    both = [
        stage_process.start("tests.uss.test_cluster", data, run_folder.root, log) for log in logs
    ]
    said = ""
    for process in both:
        said += process.communicate(timeout=300)[1]
        assert process.returncode == 0, said
    read = [name for log in logs if log.exists() for name in log.read_text().split()]
    assert Counter(read) == Counter(names_of(data))
    assert said.count("k-means of 14 images into 2") == 1
    small_blocks(monkeypatch)
    whole = other_run(tmp_path, run_folder)
    cluster.run(CONFIG, data, whole)
    assert products(run_folder) == products(whole)


def test_features_stay_where_they_are_asked_for(
    data: Path, run_folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.run(CONFIG, data, run_folder, keep_features=True)
    shapes = [
        np.load(path).shape for path in run_folder.features("resnet18").glob("*/features.npy")
    ]
    assert sorted(shapes) == [(3, 512), (14, 512)]
    cluster.run(replace(CONFIG, seed=CONFIG.seed + 1), data, run_folder, keep_features=True)
    assert "cluster train: " not in capsys.readouterr().err.partition("k-means")[2]
    cluster.run(CONFIG, data, run_folder)
    products(run_folder)
