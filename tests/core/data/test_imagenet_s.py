"""Listing of image folders in both layouts, and what is said about broken ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.data import imagenet_s
from core.errors import UserError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_class_folders_are_sorted_and_strays_ignored(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "n2/b.JPEG",
        "n2/a.x.png",
        "n1/z.jpg",
        "n1/Y.JpEg",
        "n1/notes.txt",
        "n1/.hidden.jpg",
        "n1/._z.jpg",
        ".cache/a.jpg",
        "README.md",
    )
    items = imagenet_s.list_images(tmp_path)
    assert [item.key for item in items] == ["n1/Y", "n1/z", "n2/a", "n2/b"]
    assert items[2].path == tmp_path / "n2" / "a.x.png"


def test_plain_folders_have_plain_keys(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a.PNG", "notes/readme.txt")
    assert [item.key for item in imagenet_s.list_images(tmp_path)] == ["a", "b"]


def test_keys_are_sorted_by_key_not_by_file_name(tmp_path: Path) -> None:
    # "a-1.jpg" < "a.jpg" as file names ('-' < '.'), but "a" < "a-1" as keys.
    touch(tmp_path, "a-1.jpg", "a.jpg", "c/x.txt")
    assert [item.key for item in imagenet_s.list_images(tmp_path)] == ["a", "a-1"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["n1/a.jpg", "n2/readme.txt"], ["n2", "no images"]),
        (["n1/a.jpg", "n1/a.PNG"], ["n1", "a.PNG", "a.jpg"]),
        (["a.1.jpg", "a.2.jpg"], ["a.1.jpg", "a.2.jpg"]),
        (["a.jpg", "n1/b.jpg"], ["a.jpg", "n1"]),
        (["n1/deep/a.jpg"], ["no images", "one level"]),
        (["readme.txt"], ["no images", ".JPEG"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, files: list[str], words: list[str]) -> None:
    touch(tmp_path, *files)
    with pytest.raises(UserError) as caught:
        imagenet_s.list_images(tmp_path)
    for word in words:
        assert word in str(caught.value)


def test_same_stem_in_two_classes_is_fine(tmp_path: Path) -> None:
    touch(tmp_path, "n1/a.jpg", "n2/a.png")
    assert len(imagenet_s.list_images(tmp_path)) == 2


def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "odd.jpg/a.jpg")
    assert [item.key for item in imagenet_s.list_images(tmp_path)] == ["odd.jpg/a"]


def test_missing_folders_say_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        imagenet_s.split_folder(tmp_path / "nowhere", "train")
    touch(tmp_path, "validation/n1/a.jpg", "test/n1/a.jpg")
    with pytest.raises(UserError, match="'train'; found: test, validation"):
        imagenet_s.split_folder(tmp_path, "train")
    assert imagenet_s.split_folder(tmp_path, "test") == tmp_path / "test"
    with pytest.raises(UserError, match="nowhere"):
        imagenet_s.list_images(tmp_path / "nowhere")


def test_masks_and_class_names(tmp_path: Path) -> None:
    touch(tmp_path, "validation/n2/a.jpg", "validation/n1/a.jpg", "validation/x.txt", "flat/a.jpg")
    assert imagenet_s.class_names(tmp_path, "validation") == ["n1", "n2"]
    with pytest.raises(UserError, match="no class folders"):
        imagenet_s.class_names(tmp_path, "flat")
    assert (
        imagenet_s.mask_path(tmp_path, "validation", "n1/a")
        == tmp_path / "validation-segmentation" / "n1" / "a.png"
    )


def test_real_photographs_all_have_masks(caltech4: Path) -> None:
    items = imagenet_s.list_images(imagenet_s.split_folder(caltech4, "validation"))
    assert len(items) == 40
    assert all(imagenet_s.mask_path(caltech4, "validation", item.key).is_file() for item in items)


def test_anonymous_order_does_not_know_the_names_of_class_folders(tmp_path: Path) -> None:
    contents = {
        "n1/a.jpg": b"1",
        "n1/c.jpg": b"3",
        "n2/a.jpg": b"02",
        "n3/a.jpg": b"0",
        "n3/b": b"",
    }
    renamed = {"n1": "n3", "n2": "n1", "n3": "n2"}
    for name, content in contents.items():
        folder, _, file = name.partition("/")
        for root, place in (("before", folder), ("after", renamed[folder])):
            (tmp_path / root / place).mkdir(parents=True, exist_ok=True)
            (tmp_path / root / place / file).write_bytes(content)
    before, after = (
        imagenet_s.anonymous_order(imagenet_s.list_images(tmp_path / root))
        for root in ("before", "after")
    )
    order = [item.path.read_bytes() for item in before]
    assert sorted(order[:2]) == [b"0", b"1"] and order[2:] == [b"02", b"3"]
    assert [item.path.read_bytes() for item in after] == order
    assert [item.key for item in before] != [item.key for item in after]
