"""``data check`` on data sets whose images are named by lists."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.synthetic.voc import palette_png
from tests.conftest import ROOT
from tests.helpers import voc_sets
from tests.helpers.voc_sets import COCO_KEYS, KEYS, annotation
from tools.data.check import check
from tools.doctor.data import data as doctor_data
from tools.doctor.data import images as doctor_images
from uss.__main__ import main
from uss.pipeline import PIPELINE
from uss.presets import preset


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return voc_sets.write_voc(tmp_path / "voc")


def run_check(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "uss", "data", "check", *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["voc", "coco", "imagenet_s"])
def test_sound_sets_of_every_layout(tmp_path: Path, name: str) -> None:
    root = getattr(voc_sets, f"write_{name}")(tmp_path / name)
    if name == "imagenet_s":
        (root / "validation").rename(root / "train")
        (root / "validation-segmentation").rename(root / "train-segmentation")
    done = run_check(root, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(done.stdout)
    assert content["problems"] == []
    split = {"voc": "val", "coco": "val2014", "imagenet_s": "train"}[name]
    assert content["splits"] == {split: {"images": 4, "classes": 3, "masks": 4}}


def mask(root: Path, index: int) -> Path:
    return root / "SegmentationClass" / f"{KEYS[index]}.png"


def one_problem(root: Path) -> tuple[str, str, str]:
    """(kind, name of the file, detail) of the only problem."""
    found = check(root).problems
    assert len(found) == 1, found
    return found[0].kind, Path(found[0].path).name, found[0].detail


def test_a_list_that_names_a_missing_image(voc: Path) -> None:
    path = voc / "ImageSets" / "Segmentation" / "val.txt"
    path.write_text(path.read_text() + "\n2007_000009\n")
    kind, name, detail = one_problem(voc)
    assert (kind, name) == ("list", "val") and "names 1 images" in detail and "_000009" in detail
    path.write_text(f"{KEYS[0]}\n{KEYS[0]}\n")
    kind, _, detail = one_problem(voc)
    assert kind == "list" and "twice" in detail


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (annotation(KEYS[1], ["one"]), "another image"),
        (annotation(KEYS[0], ["dragon"]), "unknown class"),
        ("<annotation>", "cannot be read"),
    ],
)
def test_bad_annotations(voc: Path, text: str, expected: str) -> None:
    (voc / "Annotations" / f"{KEYS[0]}.xml").write_text(text)
    # A list that repeats the image does not repeat the problem.
    (voc / "ImageSets" / "Segmentation" / "again.txt").write_text(KEYS[0])
    kind, name, detail = one_problem(voc)
    assert (kind, name) == ("annotation", f"{KEYS[0]}.xml") and expected in detail


def test_a_label_that_its_mask_contradicts(voc: Path) -> None:
    (voc / "Annotations" / f"{KEYS[0]}.xml").write_text(annotation(KEYS[0], ["one"]))
    kind, name, detail = one_problem(voc)
    assert (kind, name) == ("annotation", f"{KEYS[0]}.png")
    assert detail == "shows class 2, but the image label names 1"
    # What the mask leaves out as ignored may be named.
    names = ["one", "two", "three"]
    (voc / "Annotations" / f"{KEYS[0]}.xml").write_text(annotation(KEYS[0], names))
    assert check(voc).problems == []
    mask(voc, 0).write_bytes(palette_png(np.zeros((41, 53), np.uint8)))
    assert "shows no class, but the image label names 1, 2, 3" in one_problem(voc)[2]


def test_masks(voc: Path) -> None:
    mask(voc, 0).write_bytes(palette_png(np.full((41, 54), 255, np.uint8)))
    assert "54 x 41 pixels, its image 53 x 41" in one_problem(voc)[2]
    mask(voc, 0).write_bytes(palette_png(np.full((41, 53), 4, np.uint8)))
    detail = one_problem(voc)[2]
    assert detail == "ids 4; expected 0 (background) to 3, or 255 (ignored)"
    mask(voc, 0).write_bytes(palette_png(np.full((41, 53), 255, np.uint8)))
    assert check(voc).problems == []  # ignored, whatever the label names
    Image.new("RGB", (53, 41)).save(mask(voc, 0))
    assert "mode RGB" in one_problem(voc)[2]
    mask(voc, 0).unlink()
    assert "1 of 4 images have no mask" in one_problem(voc)[2]
    path = voc / "ImageSets" / "Segmentation"
    (path / "val.txt").rename(path / "train_aug.txt")  # nothing need be scored on it
    assert check(voc).problems == [] and check(voc).splits["train_aug"].masks == 3
    mask(voc, 0).with_name("stray.png").write_bytes(mask(voc, 1).read_bytes())
    assert one_problem(voc)[:2] == ("mask", "stray.png")


def test_images_are_looked_into_as_well(voc: Path) -> None:
    (voc / "JPEGImages" / f"{KEYS[0]}.jpg").write_bytes(b"no image")
    (voc / "JPEGImages" / "unlisted.jpg").write_bytes(b"not looked at")
    done = run_check(voc)
    assert done.returncode == 1 and "broken: 1" in done.stdout and "unlisted" not in done.stdout


def test_coco_labels(tmp_path: Path) -> None:
    root = voc_sets.write_coco(tmp_path / "coco")
    labels = {key: ["one", "two", "three"] for key in COCO_KEYS}
    (root / "image_labels.json").write_text(json.dumps(labels))
    assert check(root).problems == []
    labels[COCO_KEYS[0]] = []
    (root / "image_labels.json").write_text(json.dumps(labels))
    assert "image label names none" in one_problem(root)[2]
    (root / "image_labels.json").write_text("{")
    assert one_problem(root)[0] == "annotation"


def test_without_lists_it_is_a_folder_of_images(voc: Path, tmp_path: Path) -> None:
    arguments = ["data", "split", str(voc), "--data", str(tmp_path / "new"), "-c", "2"]
    assert main(arguments) == 2  # a data set is not made of another by chance
    (voc / "ImageSets" / "Segmentation" / "val.txt").unlink()
    assert list(check(voc).splits) == ["images"]
    arguments[2] = str(voc / "JPEGImages")
    assert main(arguments) == 0
    assert len(list((tmp_path / "new" / "train").iterdir())) == 4


def test_real_sets(voc_mini: Path, coco_mini: Path) -> None:
    for root in (voc_mini, coco_mini):
        assert check(root).problems == []


def test_the_doctor_counts_images_and_masks(voc: Path) -> None:
    config = preset("demo", "resnet50")
    (found,) = doctor_data(voc, config, PIPELINE)
    assert (found.name, found.state) == ("data val", "ok")
    assert found.found == "4 images, 3 classes, each with a mask"
    assert doctor_images(voc, "val") == 4 and doctor_images(voc, "train") == 0
    mask(voc, 0).unlink()
    (found,) = doctor_data(voc, config, PIPELINE)
    assert found.state == "fail" and KEYS[0] in found.found
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("nowhere")
    (found,) = doctor_data(voc, config, PIPELINE)
    assert found.state == "fail" and "nowhere" in found.found
    (voc / "ImageSets" / "Segmentation" / "val.txt").unlink()
    (found,) = doctor_data(voc, config, PIPELINE)
    assert (found.name, found.state) == ("data", "fail")
    assert doctor_images(voc, "val") == 0
