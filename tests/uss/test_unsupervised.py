"""The names of class folders, which are the labels, change nothing that is learnt or predicted."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.checkpoints import files as checkpoint
from core.data.imagenet_s import class_names
from core.data.label_maps import load_label
from core.files import read_json
from core.pipeline import origin
from tests.helpers.quarter_masks import write_photographs
from uss import cluster, finetune, pixel_attention, predict, pretrain, pseudo_labels
from uss.config import Config, Heads
from uss.paths import RunFolder
from uss.presets import preset

ARCH = "resnet18"
RENAMED = {"blue": "red", "red": "blue"}


def config(epochs: int) -> Config:
    """All of PASS's stages on a few images of 64 pixels."""
    base = preset("pass50", ARCH)
    return replace(
        base,
        num_classes=2,
        workers=0,
        heads=Heads(hidden_mlp=16, feat_dim=8, prototypes=6),
        pretrain=replace(
            base.pretrain,
            epochs=epochs,
            batch_size=4,
            crop_sizes=(64, 32),
            crop_counts=(2, 1),
            queue_length=4,
            queue_start_epoch=epochs - 1,
            freeze_prototypes_steps=1,
        ),
        pixel_attention=replace(
            base.pixel_attention, epochs=1, batch_size=4, crop_size=64, queue_length=4
        ),
        cluster=replace(base.cluster, batch_size=4, resize=64, crop=64, redo=2),
        pseudo_labels=replace(base.pseudo_labels, resize=64),
        finetune=replace(base.finetune, epochs=epochs, batch_size=4, crop_size=64),
        predict=replace(base.predict, resize=64),
    )


def write_data(root: Path) -> Path:
    """Train, validation (with masks) and test; every stem exists in both class folders."""
    for split, count in (("train", 8), ("validation", 4), ("test", 4)):
        for key in write_photographs(root, split, count, masks=split == "validation"):
            number = int(key.partition("image")[2])
            for folder in (root / split, root / f"{split}-segmentation"):
                path = folder / f"{key}.png"
                if path.is_file():
                    path.rename(path.with_name(f"{number // 2}.png"))
    return root


def with_renamed_classes(data: Path, target: Path) -> Path:
    """A copy whose class folders have swapped their names in every split, masks with them."""
    for folder in data.iterdir():
        for name in class_names(data, folder.name):
            shutil.copytree(folder / name, target / folder.name / RENAMED[name])
    return target


def run_all(data: Path, run: RunFolder, epochs: int) -> None:
    settings = config(epochs)
    for stage in (pretrain, pixel_attention, cluster, pseudo_labels, finetune):
        stage.run(settings, data, run)
    predict.run(settings, data, run, "test")


def weights(folder: Path) -> dict[str, np.ndarray]:
    payload = checkpoint.load_latest(folder)
    assert payload is not None
    return payload["state_dict"]


@pytest.mark.parametrize("epochs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_renamed_class_folders_change_no_weight_and_no_pixel(tmp_path: Path, epochs: int) -> None:
    data = write_data(tmp_path / "data")
    renamed = with_renamed_classes(data, tmp_path / "renamed")
    first, second = RunFolder(tmp_path / "first"), RunFolder(tmp_path / "second")
    run_all(data, first, epochs)
    run_all(renamed, second, epochs)
    for stage in ("pretrain", "pixel_attention"):
        before = weights(getattr(first, stage)(ARCH))
        after = weights(getattr(second, stage)(ARCH))
        for key, value in before.items():
            np.testing.assert_array_equal(after[key], value, err_msg=f"{stage} {key}")
    centres = [np.load(run.cluster(ARCH) / "centroids.npy") for run in (first, second)]
    np.testing.assert_array_equal(*centres)
    # All but the record of their origin, which names the data folder.
    choices = [read_json(run.threshold, "") for run in (first, second)]
    for choice in choices:
        del choice[origin.KEY]
    assert choices[0] == choices[1]
    for key, value in weights(first.segmenter).items():
        np.testing.assert_array_equal(weights(second.segmenter)[key], value, err_msg=key)
    labels = [(run.pseudo_labels("train"), run.predictions("test")) for run in (first, second)]
    for before, after in zip(*labels):
        paths = sorted(before.glob("*/*.png"))
        assert len(paths) in (4, 8)
        for path in paths:
            twin = after / RENAMED[path.parent.name] / path.name
            np.testing.assert_array_equal(load_label(twin), load_label(path))
