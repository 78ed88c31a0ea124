"""The three layouts: what each method gives, and how bad files are named."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.data.coco import Coco
from core.data.imagenet_s import ImageNetS
from core.data.label_maps import IGNORE
from core.data.layout import Layout, class_count, open_layout, validation_split
from core.data.voc import CLASSES, Voc, load_id_mask
from core.errors import UserError
from tests.helpers import voc_sets
from tests.helpers.voc_sets import COCO_KEYS, KEYS, annotation

WRITERS = {
    "voc": (voc_sets.write_voc, Voc, "val"),
    "coco": (voc_sets.write_coco, Coco, "val2014"),
    "imagenet_s": (voc_sets.write_imagenet_s, ImageNetS, "validation"),
}


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return voc_sets.write_voc(tmp_path / "voc")


def listed(root: Path, text: str, name: str = "val") -> None:
    (root / "ImageSets" / "Segmentation" / f"{name}.txt").write_bytes(text.encode())


@pytest.mark.parametrize("name", WRITERS)
def test_every_method_of_each_layout(tmp_path: Path, name: str) -> None:
    write, kind, split = WRITERS[name]
    layout: Layout = open_layout(write(tmp_path / "set"))
    assert layout == kind(tmp_path / "set") and layout.root == tmp_path / "set"
    assert pickle.loads(pickle.dumps(layout)) == layout  # worker processes get it
    assert layout.splits() == [split] and validation_split(layout) == split
    items = layout.images(split)
    keys = [item.key for item in items]
    assert keys == sorted(keys) and len(set(keys)) == 4
    assert all(item.path.is_file() for item in items)
    assert layout.has_truth(split) and not layout.has_truth("nowhere")
    for item in items:
        index = int(item.key[-4:]) - 1
        ids = layout.truth(split, item.key)
        assert ids.dtype == np.int32 and np.array_equal(ids, voc_sets.truth(index))
        assert layout.truth_path(split, item.key).is_file()
        assert layout.truth_folder(split) in layout.truth_path(split, item.key).parents
    assert sorted(layout.class_names(split)) == ["one", "three", "two"]
    assert layout.class_names() == layout.class_names(split)
    assert class_count(tmp_path / "set", split, None) == 3
    assert class_count(tmp_path / "set", split, 7) == 7
    with pytest.raises(UserError, match="nowhere"):
        layout.images("nowhere")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda root: None, "does not exist"),
        (lambda root: root.mkdir(), "is no data set"),
        (lambda root: (root / "JPEGImages").mkdir(parents=True), "no list of a split"),
    ],
)
def test_a_folder_that_is_no_data_set(
    tmp_path: Path, make: Callable[[Path], object], text: str
) -> None:
    make(tmp_path / "set")
    with pytest.raises(UserError, match=text) as caught:
        open_layout(tmp_path / "set")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "2007_000001\r\n2007_000002\r\n",
        "\ufeff2007_000001\n\n  2007_000002  \n",
        "2007_000001  1\n2007_000002 -1\n",
        "/JPEGImages/2007_000001.jpg /SegmentationClass/2007_000001.png\n"
        "/JPEGImages/2007_000002.jpg /SegmentationClass/2007_000002.png",
    ],
)
def test_forms_of_lists(voc: Path, text: str) -> None:
    listed(voc, text)
    assert [item.key for item in Voc(voc).images("val")] == list(KEYS[:2])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2007_000001\n2007_000009\n", "names 1 images .* 2007_000009"),
        ("2007_000001\n2007_000002\n2007_000001\n", r"2007_000001 twice \(lines 1 and 3\)"),
        ("", "names no image"),
        ("\n \r\n", "names no image"),
        ("2007_000001\n../\n", "line 2: expected an id"),
    ],
)
def test_bad_lists_are_named(voc: Path, text: str, expected: str) -> None:
    listed(voc, text)
    with pytest.raises(UserError, match=expected) as caught:
        Voc(voc).images("val")
    assert "val.txt" in str(caught.value) and "\n" not in str(caught.value)


def test_a_list_that_is_no_text(voc: Path) -> None:
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"val\.txt cannot be read"):
        Voc(voc).images("val")


def test_lists_of_classes_in_main_are_no_splits(tmp_path: Path) -> None:
    root = voc_sets.write_voc(tmp_path / "voc")
    (root / "classes.txt").unlink()
    (root / "ImageSets" / "Segmentation").rename(root / "ImageSets" / "Main")
    (root / "ImageSets" / "Main" / "cat_train.txt").write_text("2007_000001 -1\n")
    assert Voc(root).splits() == ["val"]
    assert Voc(root).class_names() == list(CLASSES)


def test_masks_of_another_folder_fill_up_and_a_bare_image_counts(voc: Path) -> None:
    mask = voc / "SegmentationClass" / f"{KEYS[0]}.png"
    other = voc / "SegmentationClassAug" / mask.name
    other.parent.mkdir()
    mask.rename(other)
    assert Voc(voc).truth_path("val", KEYS[0]) == other and Voc(voc).has_truth("val")
    other.unlink()
    assert not Voc(voc).has_truth("val")


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (Image.new("RGB", (53, 41)), "mode RGB"),
        (Image.new("I;16", (53, 41)), "mode I;16"),
        (Image.new("1", (53, 41)), "mode 1"),
    ],
)
def test_masks_that_hold_no_ids(voc: Path, image: Image.Image, text: str) -> None:
    path = voc / "SegmentationClass" / f"{KEYS[0]}.png"
    image.save(path)
    with pytest.raises(UserError, match=f"{KEYS[0]}.*{text}"):
        Voc(voc).truth("val", KEYS[0])


def test_masks_that_cannot_be_read(voc: Path) -> None:
    path = voc / "SegmentationClass" / f"{KEYS[0]}.png"
    path.write_bytes(path.read_bytes()[:200])
    for broken in (path, voc / "SegmentationClass" / "nowhere.png"):
        with pytest.raises(UserError, match=broken.name):
            load_id_mask(broken)
    jpeg = voc / "mask.png"
    Image.new("L", (5, 5)).save(jpeg, "JPEG")
    with pytest.raises(UserError, match="found JPEG"):
        load_id_mask(jpeg)


def test_grey_and_palette_masks_are_read_alike(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 80], [255, 254, 20]], np.uint8)
    Image.fromarray(ids).save(tmp_path / "grey.png")
    palette = Image.fromarray(ids)
    palette.putpalette([value for index in range(256) for value in (index, 255 - index, 7)])
    palette.save(tmp_path / "palette.png")
    for name in ("grey", "palette"):
        found = load_id_mask(tmp_path / f"{name}.png")
        assert found.tolist() == [[0, 1, 80], [IGNORE, 254, 20]]


def test_two_files_of_one_image(voc: Path) -> None:
    voc_sets.picture(9).save(voc / "JPEGImages" / f"{KEYS[0]}.png")
    with pytest.raises(UserError, match=f"both image {KEYS[0]}"):
        Voc(voc).images("val")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.txt", "one\none\n"),
        ("classes.txt", "\n"),
        ("classes.txt", "\n".join(map(str, range(300)))),
        ("classes.json", "{}"),
        ("classes.json", "[1]"),
        ("classes.json", "["),
    ],
)
def test_bad_class_names(voc: Path, name: str, content: str) -> None:
    (voc / "classes.txt").unlink()
    (voc / name).write_text(content)
    with pytest.raises(UserError, match=name):
        Voc(voc).class_names()


def test_background_is_no_class(voc: Path) -> None:
    (voc / "classes.txt").write_text("background\r\ncat\r\n")
    assert Voc(voc).class_names() == ["cat"]


def test_coco_without_lists_and_with_one_folder(tmp_path: Path) -> None:
    root = voc_sets.write_coco(tmp_path / "coco")
    (root / "ImageSets" / "val2014.txt").unlink()
    assert open_layout(root).splits() == ["val2014"]
    assert [item.key for item in open_layout(root).images("val2014")] == list(COCO_KEYS)
    (root / "val2014").rename(root / "JPEGImages")
    (root / "ImageSets" / "few.txt").write_text(f"COCO_val2014_{COCO_KEYS[1]}\n{COCO_KEYS[0]}\n")
    assert [item.key for item in open_layout(root).images("few")] == list(COCO_KEYS[:2])


def test_labels_of_annotations(voc: Path) -> None:
    labels = Voc(voc).image_labels("val")
    assert labels == {KEYS[0]: (1, 2), KEYS[1]: (2, 3), KEYS[2]: (1, 3), KEYS[3]: (1, 2)}
    folder = voc / "Annotations"
    (folder / f"{KEYS[0]}.xml").unlink()  # as of a test image: nothing is known
    (folder / f"{KEYS[1]}.xml").write_text(annotation(KEYS[1], []))  # known to show nothing
    (folder / f"{KEYS[2]}.xml").write_text(annotation(KEYS[2], ["three"], "53 1 60 41"))
    (folder / f"{KEYS[3]}.xml").write_text(annotation(KEYS[3], ["two", "two"], difficult="1"))
    assert Voc(voc).image_labels("val") == {KEYS[1]: (), KEYS[2]: (), KEYS[3]: (2,)}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (annotation(KEYS[1], ["one"]), f"describes {KEYS[1]}.jpg, another image"),
        (annotation(KEYS[0], ["dragon"]), "unknown class 'dragon'"),
        (annotation(KEYS[0], ["one"], "1 1 x 20"), "xmax is 'x', no number"),
        (annotation(KEYS[0], ["one"], "1 1 nan 20"), "no number"),
        ("<annotation>", "cannot be read"),
        ("", "cannot be read"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "without entities"),
    ],
)
def test_bad_annotations_are_named(voc: Path, content: str, text: str) -> None:
    (voc / "Annotations" / f"{KEYS[0]}.xml").write_text(content)
    with pytest.raises(UserError, match=text) as caught:
        Voc(voc).image_labels("val")
    assert f"{KEYS[0]}.xml" in str(caught.value) and "\n" not in str(caught.value)


def test_real_voc(voc_mini: Path) -> None:
    layout = open_layout(voc_mini)
    assert isinstance(layout, Voc) and layout.class_names() == list(CLASSES)
    counts = {split: len(layout.images(split)) for split in layout.splits()}
    assert counts == {"sbd_only": 114, "train": 437, "train_aug": 551, "trainval": 587, "val": 150}
    for key, label in list(layout.image_labels("val").items())[:20]:
        shown = set(np.unique(layout.truth("val", key)).tolist()) - {0, IGNORE}
        assert shown == set(label)


def test_real_coco(coco_mini: Path) -> None:
    layout = open_layout(coco_mini)
    assert isinstance(layout, Coco) and len(layout.class_names()) == 80
    assert layout.has_truth("val2014") and not layout.has_truth("train2014")
    labels = layout.image_labels("train2014")
    assert len(labels) == 85
    assert [key for key, label in labels.items() if not label] == ["000000000250", "000000000508"]
    for key, label in list(layout.image_labels("val2014").items())[:20]:
        shown = set(np.unique(layout.truth("val2014", key)).tolist()) - {0, IGNORE}
        assert shown == set(label)
