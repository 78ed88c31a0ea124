"""Pictures of what networks see: right colours, ids and names, and files for every image."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.pictures import label_colours
from core.pipeline.folders import CHECKPOINT
from tests.conftest import ROOT
from tools import visualize
from tools.visualize import Names, heated, labelled
from uss.paths import RunFolder

GREY = np.full((80, 120, 3), 100, np.uint8)


def regions() -> np.ndarray:
    """Two squares of the ids 1 and 4 on background."""
    label = np.zeros((80, 120), np.int32)
    label[10:60, 10:50], label[10:60, 70:110] = 1, 4
    return label


def test_colours_are_those_of_the_classes() -> None:
    """Of the class that the match names, on the rim and in the legend."""
    for match, wanted in ((None, (1, 4)), ({0: 0, 1: 3, 4: 2}, (3, 2))):
        picture = np.asarray(labelled(GREY, regions(), Names(match, ["a", "b", "c", "d"])))
        colours = label_colours(5)
        assert tuple(picture[10, 10]) == tuple(colours[wanted[0]])
        assert tuple(picture[10, 70]) == tuple(colours[wanted[1]])
        legend = picture[80:].reshape(-1, 3)
        for index in wanted:
            assert (legend == colours[index]).all(axis=1).any()
        other = next(index for index in (1, 2, 3, 4) if index not in wanted)
        assert not (legend == colours[other]).all(axis=1).any()


def test_every_region_bears_its_id() -> None:
    label = regions()
    label[70:72, 5:7] = 2  # too small to write on
    label[10:60, 20:22] = 0  # the left square falls in two; a sliver and the rest
    places = list(visualize._places(label))
    assert [index for index, _ in places] == [1, 1, 4]
    assert all(label[y, x] == index for index, (x, y) in places)


def test_names() -> None:
    assert Names(None, []).of(3) == "cluster 3"
    assert Names({1: 1}, ["cat", "dog"]).of(2) == "2 dog"
    assert Names({1: 1}, []).of(2) == "class 2"


def test_attention_is_lighter_where_it_is_higher() -> None:
    level = np.linspace(0, 1, 12, dtype=np.float32)[None].repeat(8, 0)
    picture = np.asarray(heated(GREY, level)).astype(int)
    lightness = picture[40, :120].sum(axis=1)
    assert (np.diff(lightness[::10]) >= 0).all() and lightness[-1] > lightness[0] + 100
    assert picture[40, 2, 2] > picture[40, 2, 0] and picture[40, 117, 0] > picture[40, 117, 2]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for index, name in enumerate(("a/one.jpg", "b/one.jpg", "b/two.png")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(index)
        rgb = rng.integers(0, 100, (64, 90, 3)).astype(np.uint8)
        rgb[20:50, 20:60] += 120
        Image.fromarray(rgb).save(path)
    return folder


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "uss", "visualize", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_the_command(
    photos: Path, tmp_path: Path, plain_checkpoint: Path, attention_checkpoint: Path
) -> None:
    """All kinds of pictures of a folder, with the networks of a run; a broken image is named."""
    run = RunFolder(tmp_path / "run")
    for source, folder in (
        (plain_checkpoint, run.segmenter),
        (attention_checkpoint, run.pixel_attention("resnet18")),
    ):
        folder.mkdir(parents=True)
        shutil.copy(source, folder / CHECKPOINT)
    (photos / "a" / "not.jpg").write_text("no image")
    kinds = ("prediction", "refined", "masks", "attention")
    flags = [part for kind in kinds for part in ("--show", kind)]
    settings = ["--preset", "demo", "--set", "masks.source=superpixels"]
    out = tmp_path / "out"
    done = command(str(photos), *flags, *settings, "--run", str(run.root), "--out", str(out))
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("not.jpg: not a readable") == 1
    wanted = {f"{stem}_{kind}.png" for stem in ("one", "one_2", "two") for kind in kinds}
    assert {path.name for path in out.iterdir()} == wanted
    for name in wanted:
        with Image.open(out / name) as image:
            assert image.width >= 260 and image.height > 64
            assert len(set(image.convert("RGB").crop((0, 0, 90, 64)).getdata())) > 50


def test_what_is_missing(tmp_path: Path, photos: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for arguments, text in (
        ([str(tmp_path / "none.jpg")], "does not exist"),
        ([str(run)], "no images in"),
        ([str(photos), "--run", str(tmp_path / "norun")], "is not a folder"),
        ([str(photos), "--run", str(run)], "bash train_4.sh"),
        ([str(photos), "--run", str(run), "--show", "attention"], "bash train_2.sh"),
    ):
        done = command(*arguments)
        assert done.returncode == 2 and text in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1
