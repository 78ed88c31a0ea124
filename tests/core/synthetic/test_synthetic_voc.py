"""The generated data set in VOC form: its layout, its pixels, its determinism."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.data.images import image_size, load_rgb
from core.data.label_maps import IGNORE
from core.data.layout import open_layout
from core.data.voc import Voc
from core.errors import UserError
from core.synthetic.generated import MARKER
from core.synthetic.scenes import KINDS, render_many
from core.synthetic.voc import make_dataset, voc_palette
from tests.conftest import ROOT
from tools.data.check import check

SMALL = {"seed": 3, "classes": 6, "train": 12, "val": 8}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "small", **SMALL)


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_layout_is_that_of_voc(small: Path) -> None:
    layout = open_layout(small)
    assert layout == Voc(small) and layout.splits() == ["train", "val"]
    assert len(layout.class_names()) == 6
    seen: set[int] = set()
    touching = several = 0
    for split, count in (("train", 12), ("val", 8)):
        items, labels = layout.images(split), layout.image_labels(split)
        assert len(items) == count and layout.has_truth(split)
        for item in items:
            ids = layout.truth(split, item.key)
            assert ids.shape == image_size(item.path)
            assert all(side % 2 for side in ids.shape)
            shown = set(np.unique(ids).tolist()) - {0, IGNORE}
            assert shown == set(labels[item.key]) and 1 <= len(shown) <= 3
            assert 0.02 < (ids == IGNORE).mean() < 0.4
            seen |= shown
            several += len(shown) > 1
            touching += bands_join(ids)
    assert seen == set(range(1, 7))
    assert several >= 8 and touching >= 3
    assert check(small).problems == []


def bands_join(ids: np.ndarray) -> bool:
    """Whether a pixel of the ignored band has two classes within four pixels of it in a row."""
    for shift in (5, 6):
        for first, second in ((ids[shift:], ids[:-shift]), (ids[:, shift:], ids[:, :-shift])):
            classes = (first > 0) & (first < IGNORE) & (second > 0) & (second < IGNORE)
            if (classes & (first != second)).any():
                return True
    return False


def test_files_are_as_in_voc(small: Path) -> None:
    modes = set()
    for path in (small / "JPEGImages").iterdir():
        with Image.open(path) as image:
            assert image.format == "JPEG"
            modes.add(image.mode)
    assert modes == {"RGB", "L"}
    with Image.open(next((small / "SegmentationClass").iterdir())) as mask:
        assert mask.mode == "P"
    palette = np.array(voc_palette()).reshape(-1, 3).tolist()
    assert palette[:4] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert palette[20] == [0, 64, 128] and palette[255] == [224, 224, 192]


def test_another_process_makes_the_same_bytes(small: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from core.synthetic.voc import make_dataset; "
        f"make_dataset(Path(sys.argv[1]), **{SMALL!r}); assert 'jittor' not in sys.modules"
    )
    again = tmp_path / "again"
    subprocess.run(
        [sys.executable, "-c", code, str(again)], check=True, cwd=ROOT, capture_output=True
    )
    assert digests(again) == digests(small)


def test_seeds_differ_but_counts_do_not_matter(small: Path, tmp_path: Path) -> None:
    ours = digests(small)
    fewer = make_dataset(tmp_path / "b", **{**SMALL, "train": 2, "val": 1})
    for name, value in digests(fewer).items():
        if name != MARKER and not name.startswith("ImageSets"):
            assert ours[name] == value
    other = make_dataset(tmp_path / "a", **{**SMALL, "seed": 4, "train": 2, "val": 1})
    pictures = {name: value for name, value in digests(other).items() if name.endswith(".jpg")}
    assert not set(pictures.values()) & set(ours.values())


def test_objects_stand_where_their_owner_says() -> None:
    rgb, owners = render_many(KINDS[:3], 71, 121, np.random.RandomState(5))
    assert rgb.shape == (71, 121, 3) and rgb.dtype == np.uint8 and owners.shape == (71, 121)
    assert set(np.unique(owners)) == {0, 1, 2, 3}
    centres = [np.argwhere(owners == place)[:, 1].mean() for place in (1, 2, 3)]
    assert centres == sorted(centres)


def test_a_second_run_does_nothing_and_mends_what_is_missing(tmp_path: Path) -> None:
    root = tmp_path / "data"
    settings = {"seed": 1, "train": 1, "val": 1}
    make_dataset(root, **settings)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert make_dataset(root, **settings) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    whole = digests(root)
    next((root / "JPEGImages").iterdir()).unlink()
    make_dataset(root, **settings)
    assert digests(root) == whole
    make_dataset(root, **{**settings, "seed": 2})
    assert digests(root) != whole
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_what_was_not_generated_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="was not generated here"):
        make_dataset(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    for wrong in ({"classes": 4}, {"classes": 11}, {"train": 0}, {"seed": -1}):
        with pytest.raises(UserError):
            make_dataset(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


def test_pixels_are_the_same_on_every_machine() -> None:
    digest = hashlib.sha256()
    for seed in range(3):
        rgb, owners = render_many(KINDS[seed : seed + 3], 91, 67, np.random.RandomState(seed))
        digest.update(rgb.tobytes())
        digest.update(owners.astype(np.uint8).tobytes())
    assert digest.hexdigest()[:16] == "73e74dc5560592ca"


def test_load_rgb_takes_the_grey_ones(small: Path) -> None:
    for item in open_layout(small).images("val"):
        assert load_rgb(item.path).ndim == 3
