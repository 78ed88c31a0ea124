"""One's own images: what is wrong with them, and a data set of any folder of them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from core.data.imagenet_s import list_images
from core.data.label_maps import save_label
from core.errors import UserError
from tests.conftest import ROOT
from tools.data import check, command
from uss.paths import RunFolder
from uss.pipeline import commands_after_split
from uss.presets import preset


def picture(path: Path, seed: int = 0, size_hw: tuple[int, int] = (40, 50)) -> Path:
    """A noisy image, another one for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = np.random.default_rng(seed).integers(0, 255, (*size_hw, 3)).astype(np.uint8)
    Image.fromarray(rgb).save(path)
    return path


def data(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "uss", "data", *arguments], cwd=ROOT, capture_output=True, text=True
    )


def fingerprint(folder: Path) -> dict[str, str]:
    """Content and time of every file of a folder."""
    return {
        str(path.relative_to(folder)): f"{hashlib.sha256(path.read_bytes()).hexdigest()} "
        f"{path.stat().st_mtime_ns}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def kinds(report: check.DataReport) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for problem in report.problems:
        found.setdefault(problem.kind, []).append(Path(problem.path).name)
    return found


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A sound data set of two classes with masks."""
    root = tmp_path / "set"
    for number, name in enumerate(("cat", "dog")):
        for split in ("train", "validation"):
            picture(
                root / split / name / f"{name}_{split}.png", seed=100 * (number + 1) + len(split)
            )
        ids = np.full((40, 50), number + 1, np.int32)
        save_label(root / "validation-segmentation" / name / f"{name}_validation.png", ids)
    return root


def test_a_sound_data_set(labelled: Path) -> None:
    done = data("check", str(labelled), "--json")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["problems"] == []
    assert content["splits"]["validation"] == {"images": 2, "classes": 2, "masks": 2}
    assert content["splits"]["train"]["masks"] is None


def test_every_kind_of_problem_is_named(labelled: Path) -> None:
    train = labelled / "train" / "cat"
    whole = picture(train / "whole.png", 7)
    (train / "again.png").write_bytes(whole.read_bytes())
    (train / "cut.png").write_bytes(whole.read_bytes()[:300])
    picture(train / "small.png", 8, (31, 60))
    picture(train / "two.v1.png", 9)
    picture(train / "two.v2.png", 10)
    picture(train / "deep" / "lost.png", 11)
    (labelled / "train" / "empty").mkdir()
    masks = labelled / "validation-segmentation"
    save_label(masks / "cat" / "cat_validation.png", np.full((40, 50), 3, np.int32))
    save_label(masks / "dog" / "dog_validation.png", np.full((40, 51), 1, np.int32))
    save_label(masks / "dog" / "stray.png", np.full((40, 50), 1, np.int32))
    found = kinds(check.check(labelled))
    assert sorted(found.pop("mask")) == ["cat_validation.png", "dog_validation.png", "stray.png"]
    assert found == {
        "broken": ["cut.png"],
        "duplicate": ["whole.png"],  # the first in order, again.png, counts as the original
        "tiny": ["small.png"],
        "collision": ["two.v2.png"],
        "layout": ["deep", "empty"],
    }
    done = data("check", str(labelled))
    assert done.returncode == 1
    assert "duplicate: 1" in done.stdout and "ids 3; expected 0 (background) to 2" in done.stdout


def test_train_semi_repeats_images_of_train(labelled: Path) -> None:
    source = labelled / "train" / "cat" / "cat_train.png"
    for split in ("train-semi", "testA"):
        (labelled / split / "cat").mkdir(parents=True)
        (labelled / split / "cat" / "same.png").write_bytes(source.read_bytes())
    found = check.check(labelled).problems
    assert [(each.kind, Path(each.path).parts[-3]) for each in found] == [("duplicate", "train")]
    assert "testA" in found[0].detail


def test_oversized_images_are_told_from_their_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "a.png")
    monkeypatch.setattr(check, "MAX_PIXELS", 1999)
    assert kinds(check.check(tmp_path)) == {"oversized": ["a.png"]}


def test_ids_of_masks_by_number_of_classes(labelled: Path) -> None:
    assert kinds(check.check(labelled, num_classes=1)) == {"mask": ["dog_validation.png"]}


def test_several_processes_find_the_same(labelled: Path) -> None:
    (labelled / "train" / "dog" / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert check.check(labelled, workers=2) == check.check(labelled, workers=1)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "c.jpg").touch()
    done = data("check", str(tmp_path))
    assert done.returncode == 1 and "broken: 3" in done.stdout, done.stderr
    assert "b.jpg: no regular file" in done.stdout
    assert "3/3" in done.stderr


def test_a_closed_folder_is_named(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    (problem,) = check.check(photos).problems
    assert (problem.kind, problem.path) == ("layout", str(photos / "a"))
    assert problem.detail == "cannot be listed: Permission denied"
    split = command.make_split(photos, tmp_path / "set", 0.0, 0, copy=False)
    assert split.left_out == {"a": "cannot be listed: Permission denied"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("check", ".", "-c", "0"), "-c must be 1 to 999"),
        (
            ("split", "x", "--data", "y", "-c", "2", "--seed", "-1"),
            "--seed must be 0 to 4294967295",
        ),
        (
            ("split", "x", "--data", "y", "-c", "2", "--test", "few"),
            "error: --test must be a finite number, a share from 0 to below 1, is 'few'; see ",
        ),
    ],
)
def test_numbers_out_of_range(arguments: tuple[str, ...], said: str) -> None:
    done = data(*arguments)
    assert done.returncode == 2 and said in done.stderr, done.stderr


def test_what_is_no_folder_of_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    for folder, text in ((tmp_path, "no images"), (tmp_path / "none", "is not a folder")):
        done = data("check", str(folder))
        assert done.returncode == 2 and text in done.stderr


def test_the_demo_is_a_sound_data_set(tmp_path: Path) -> None:
    done = data("demo", "--data", str(tmp_path / "demo"))
    assert done.returncode == 0, done.stderr
    report = check.check(tmp_path / "demo")
    assert report.problems == []
    assert {name: counts.images for name, counts in report.splits.items()} == {
        "train": 50,
        "validation": 20,
        "test": 20,
    }


# split ------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve images, flat and nested, with names that collide once they are in one folder."""
    root = tmp_path / "photos"
    for index in range(8):
        picture(root / f"img {index}.jpg", index)
    picture(root / "a" / "b.png", 20)
    picture(root / "a_b.png", 21)
    picture(root / "a" / "c.v1.png", 22)
    picture(root / "a" / "c.v2.webp", 23)
    (root / "readme.txt").write_text("not an image")
    picture(root / ".hidden" / "x.png", 24)
    return root


def test_split_links_each_image_once_and_reads_only(photos: Path, tmp_path: Path) -> None:
    before = fingerprint(photos)
    target = tmp_path / "set"
    split = command.make_split(photos, target, test=0.25, seed=3, copy=False)
    assert (split.count("train"), split.count("test")) == (9, 3)
    items = [*list_images(target / "train"), *list_images(target / "test")]
    assert len({item.key for item in items}) == len(items) == 12
    for name, origin in split.files.items():
        place = target / name
        if place.suffix == ".png" and origin.endswith(".webp"):
            assert not place.is_symlink()
            with Image.open(place) as image:
                assert image.format == "PNG"
        else:
            assert place.is_symlink() and place.resolve() == (photos / origin).resolve()
    assert json.loads((target / command.RECORD).read_text())["files"] == split.files
    assert fingerprint(photos) == before
    assert check.check(target).problems == []


def test_split_is_decided_by_the_seed(photos: Path, tmp_path: Path) -> None:
    splits = [
        command.make_split(photos, tmp_path / f"set{n}", 0.25, seed, copy=True).files
        for n, seed in enumerate((1, 1, 2))
    ]
    assert splits[0] == splits[1] != splits[2]
    assert not any(path.is_symlink() for path in (tmp_path / "set0").rglob("*"))


def test_split_leaves_out_what_cannot_be_used(photos: Path, tmp_path: Path) -> None:
    (photos / "cut.jpg").write_bytes((photos / "img 0.jpg").read_bytes()[:200])
    (photos / "z.jpg").write_bytes((photos / "img 0.jpg").read_bytes())
    split = command.make_split(photos, tmp_path / "set", 0.0, 0, copy=False)
    assert sorted(split.left_out) == ["cut.jpg", "z.jpg"]
    assert split.count("train") == 12 and not (tmp_path / "set" / "test").exists()


def test_split_refuses(photos: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    for target, text in (
        (there, "exists and is left alone"),
        (photos / "set", "among the images"),
        (photos, "exists"),
    ):
        with pytest.raises(UserError, match=text):
            command.make_split(photos, target, 0.0, 0, copy=False)
    with pytest.raises(UserError, match="expected at least 13, one for each cluster"):
        command.make_split(photos, tmp_path / "set", 0.0, 0, copy=False, clusters=13)
    assert not (tmp_path / "set").exists() and list(there.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "there"]
    assert data("split", str(photos), "--data", str(tmp_path / "set"), "-c", "1").returncode == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_split_where_nothing_can_be_written(photos: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot make"):
        command.make_split(photos, closed / "set", 0.0, 0, copy=False)


def test_commands_fit_the_number_of_images() -> None:
    lines = commands_after_split("small", Path("/d d"), Path("/r"), 3, 12, has_test=True)
    assert lines[0] == "export PRESET=small DATA='/d d' RUN=/r"
    settings = [part for part in lines[1].split() if "=" in part]
    assert settings == [
        "num_classes=3",
        "heads.prototypes=30",
        "pretrain.batch_size=12",
        "pixel_attention.batch_size=12",
        "finetune.batch_size=12",
    ]
    assert any("train_3.sh" in line and "--threshold 0.35" in line for line in lines)
    classes = preset("small").num_classes
    many = commands_after_split("small", Path("/d"), Path("/r"), classes, 1000, has_test=False)
    assert many[1] == f"bash train_1.sh --set num_classes={classes}"
    assert many[-2].startswith("SPLIT=train ") and "--mode train" in many[-1]


# What the printed commands do -------------------------------------------------------------------

TINY = (
    "heads.hidden_mlp=16 heads.feat_dim=8 pretrain.epochs=1 pretrain.batch_size=8 "
    "pretrain.crop_sizes=64,32 pretrain.crop_counts=2,1 pretrain.queue_length=0 "
    "pixel_attention.epochs=1 pixel_attention.batch_size=8 pixel_attention.crop_size=64 "
    "pixel_attention.queue_length=0 cluster.resize=64 cluster.crop=64 pseudo_labels.resize=64 "
    "finetune.epochs=1 finetune.batch_size=8 finetune.crop_size=64 finetune.head_width=16 "
    "predict.resize=64 masks.source=superpixels"
).split()


@pytest.mark.slow
def test_the_printed_commands_run(tmp_path: Path) -> None:
    """From a folder of 24 unlabelled images to label maps, with no mask anywhere."""
    photos = tmp_path / "photos"
    for index in range(24):
        picture(photos / f"{index // 8}" / f"{index}.jpg", index, (70, 90))
    target, run = tmp_path / "set", tmp_path / "run"
    places = ["--data", str(target), "--run", str(run)]
    done = data("split", str(photos), *places, "-c", "3", "--test", "0.2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split(":\n\n", 1)[1].splitlines()
    tiny = " ".join(f"--set {setting}" for setting in TINY)
    script = "\n".join(f"{line} {tiny}" if " train_" in line else line for line in lines).replace(
        ".venv/bin/python test.py", '"$PYTHON" test.py --masks superpixels'
    )
    environment = {**os.environ, "PYTHON": sys.executable}
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=1500,
    )
    assert ended.returncode == 0, ended.stdout[-3000:]
    made = sorted(path.stem for path in (run / "result" / "test").glob("*.png"))
    assert made == [item.key for item in list_images(target / "test")]
    assert json.loads(RunFolder(run).threshold.read_text()) == {
        "threshold": 0.35,
        "chosen_by": "setting",
        "num_classes": 3,
        "masks": "superpixels",
    }
