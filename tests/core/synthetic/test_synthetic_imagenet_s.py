"""The generated data set: same bytes, exact masks, layout, safety of what is already there."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from core.data.imagenet_s import class_names, list_images, mask_path, split_folder
from core.data.images import image_size, load_rgb
from core.data.label_maps import load_label
from core.errors import UserError
from core.synthetic.imagenet_s import MARKER, make_dataset
from core.synthetic.scenes import KINDS, MAX_COVER, MIN_COVER, render
from core.synthetic.shapes import OUTLINES, TEXTURES
from tests.conftest import ROOT

SMALL = {"seed": 7, "classes": 3, "train": 6, "validation": 2, "test": 1}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "small", **SMALL)


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_layout_is_that_of_imagenet_s(small: Path) -> None:
    for split, count in [("train", 6), ("validation", 2), ("test", 1)]:
        items = list_images(split_folder(small, split))
        assert len(items) == 3 * count
        assert class_names(small, split) == ["n00000001", "n00000002", "n00000003"]
        for item in items:
            mask = mask_path(small, split, item.key)
            assert mask.is_file() == (split != "train")
            if mask.is_file():
                label = load_label(mask)
                assert label.shape == image_size(item.path)
                wnid = int(item.key[1:9])
                assert set(np.unique(label)) == {0, wnid}
    assert not (small / "train-segmentation").exists()


def test_files_and_sizes_vary(small: Path) -> None:
    items = list_images(small / "train")
    assert {item.path.suffix for item in items} == {".JPEG", ".jpg", ".png"}
    modes = set()
    for item in items:
        with Image.open(item.path) as image:
            modes.add(image.mode)
    assert modes == {"RGB", "L", "P"}
    sizes = [image_size(item.path) for item in items]
    assert len(set(sizes)) > len(items) // 2
    assert all(120 <= max(size) <= 220 and min(size) * 2 >= max(size) for size in sizes)


def test_another_process_makes_the_same_bytes(small: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from core.synthetic.imagenet_s import make_dataset; "
        f"make_dataset(Path(sys.argv[1]), **{SMALL!r}); assert 'jittor' not in sys.modules"
    )
    again = tmp_path / "again"
    subprocess.run(
        [sys.executable, "-c", code, str(again)], check=True, cwd=ROOT, capture_output=True
    )
    assert digests(again) == digests(small)


def test_pixels_are_the_same_on_every_machine() -> None:
    """Hash of one picture and mask of each class, before any file format comes in."""
    digest = hashlib.sha256()
    for index, kind in enumerate(KINDS):
        rgb, mask = render(kind, 93 + index, 120 - index, np.random.RandomState([1, index]))
        digest.update(rgb.tobytes())
        digest.update(mask.tobytes())
    assert digest.hexdigest()[:16] == "78287cc04f03fe2a"


@pytest.mark.parametrize("index", range(len(KINDS)))
def test_objects_cover_their_share_and_stand_out(index: int) -> None:
    for seed in range(4):
        rng = np.random.RandomState([index, seed])
        height, width = (66, 120) if seed % 2 else (121, 97)
        rgb, mask = render(KINDS[index], height, width, rng)
        assert rgb.shape == (height, width, 3) and rgb.dtype == np.uint8 and mask.dtype == bool
        # A second object may add a little to the main one's share.
        assert MIN_COVER <= 100 * mask.mean() <= MAX_COVER + 15
        number, _, sizes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
        assert 1 <= number - 1 <= 6
        inside, outside = rgb[mask].astype(float), rgb[~mask].astype(float)
        assert inside.std(axis=0).max() > 15
        assert np.abs(inside.mean(0) - outside.mean(0)).max() + inside.std() > 30


def test_classes_differ_in_everything() -> None:
    for field in ("outline", "texture", "main"):
        assert len({getattr(kind, field) for kind in KINDS}) == len(KINDS)
    assert {kind.outline for kind in KINDS} == set(OUTLINES)
    assert {kind.texture for kind in KINDS} == set(TEXTURES)


def test_seeds_differ_but_counts_do_not_matter(small: Path, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "a", seed=8, classes=2, train=1, validation=1, test=1)
    fewer = make_dataset(tmp_path / "b", seed=7, classes=2, train=1, validation=1, test=1)
    ours = digests(small)
    for name, value in digests(fewer).items():
        if name != MARKER:
            assert ours[name] == value
    assert not set(digests(other).values()) & set(ours.values())


def test_a_second_run_does_nothing_and_mends_what_is_missing(tmp_path: Path) -> None:
    root = tmp_path / "data"
    settings = {"seed": 1, "classes": 2, "train": 1, "validation": 1, "test": 1}
    make_dataset(root, **settings)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert make_dataset(root, **settings) == root
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    whole = digests(root)
    list_images(root / "train")[0].path.unlink()
    make_dataset(root, **settings)
    assert digests(root) == whole
    make_dataset(root, **{**settings, "train": 2})
    assert len(list_images(root / "train")) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="not generated here"):
        make_dataset(tmp_path, classes=2, train=1, validation=1, test=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_failed_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("core.synthetic.imagenet_s.save_label", fail)
    with pytest.raises(OSError, match="disk full"):
        make_dataset(tmp_path / "data", classes=2, train=1, validation=1, test=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"classes": 1}, {"classes": 99}, {"train": 0}, {"seed": -1}])
def test_settings_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(UserError):
        make_dataset(tmp_path / "data", **wrong)


def test_the_decoder_reads_every_file(small: Path) -> None:
    for split in ("train", "validation", "test"):
        for item in list_images(small / split):
            assert load_rgb(item.path).shape[:2] == image_size(item.path)
