"""Stored masks come back, stay apart from those of other settings, and broken files count as
missing.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from core.data import rle
from core.errors import UserError
from core.work import mask_store
from core.work.mask_store import ImageIdentity, MaskStore
from refine.superpixels import SuperpixelMaskGenerator
from tests.conftest import ROOT

FINGERPRINT = {"weights": {"model": "vit_t", "sha256": "0" * 64}, "points_per_side": 8}


def records() -> list[rle.Record]:
    mask = np.zeros((20, 30), bool)
    mask[3:9, 4:17] = True
    record = {
        "area": 78,
        "bbox": [4, 3, 12, 5],
        "predicted_iou": 0.1 + 0.2,
        "point_coords": [[7.5, 4.25]],
        "stability_score": 0.97,
        "crop_box": [0, 0, 30, 20],
    }
    forms = (mask, rle.encode(mask), rle.uncompressed(mask))
    return [{**record, "segmentation": form} for form in forms]


IMAGE = ImageIdentity(crc32=7, height=20, width=30)


def test_records_come_back_as_coco_rle_with_every_digit(tmp_path: Path) -> None:
    store = MaskStore(tmp_path, FINGERPRINT)
    assert store.get("n01/a", IMAGE) is None and not store.has("n01/a")
    size = store.put("n01/a", IMAGE, records())
    assert store.path("n01/a").stat().st_size == size and store.has("n01/a")
    expected = {**records()[0], "segmentation": rle.encode(records()[0]["segmentation"])}
    assert store.get("n01/a", IMAGE) == [expected] * 3
    store.put("plain", IMAGE, [])
    assert store.get("plain", IMAGE) == [] and store.fault("plain") is None


def test_a_score_that_is_not_defined_comes_back(tmp_path: Path) -> None:
    empty = np.zeros((20, 30), bool)
    record = {"segmentation": rle.encode(empty), "area": 0, "stability_score": float("nan")}
    store = MaskStore(tmp_path, FINGERPRINT)
    store.put("a", IMAGE, [record])
    got = store.get("a", IMAGE)
    assert got is not None and np.isnan(got[0]["stability_score"])


def test_the_same_masks_are_the_same_bytes(tmp_path: Path) -> None:
    first, second = MaskStore(tmp_path / "1", FINGERPRINT), MaskStore(tmp_path / "2", FINGERPRINT)
    first.put("a", IMAGE, records())
    second.put("a", IMAGE, records())
    assert first.path("a").read_bytes() == second.path("a").read_bytes()


def test_a_replaced_image_has_no_masks_yet(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    store = MaskStore(tmp_path, FINGERPRINT)
    store.put("a", ImageIdentity.of(rgb), records())
    assert store.get("a", ImageIdentity.of(rgb.copy())) is not None
    assert store.get("a", ImageIdentity.of(rgb[::-1])) is None
    turned = rgb.reshape(30, 20, 3)
    assert ImageIdentity.of(turned).crc32 == ImageIdentity.of(rgb).crc32
    assert store.get("a", ImageIdentity.of(turned)) is None


def test_what_is_missing_is_told_by_names_alone(tmp_path: Path) -> None:
    store = MaskStore(tmp_path, FINGERPRINT)
    keys = [f"n{number % 7:02d}/image_{number}" for number in range(600)]
    assert store.missing(keys) == keys
    for key in keys[::3]:
        store.path(key).parent.mkdir(exist_ok=True)
        store.path(key).write_bytes(b"not read")
    store.path(keys[1]).parent.mkdir(exist_ok=True)
    store.path(keys[1]).with_name(f".{store.path(keys[1]).name}.abc.tmp").touch()
    assert store.missing(iter(keys)) == [key for i, key in enumerate(keys) if i % 3]


def test_a_million_images_make_folders_of_equal_size() -> None:
    """Flat folders of one prefix as well as class folders: 256 folders, evenly filled."""
    store = MaskStore.__new__(MaskStore)
    store.folder = Path("/store")
    for pattern in ("ILSVRC2012_test_%08d", "n01440764/n01440764_%d"):
        places = [store.path(pattern % number).parent for number in range(25600)]
        counts = Counter(places)
        assert len(counts) == 256 and max(counts.values()) < 200
        assert {place.parent for place in counts} == {store.folder}


@pytest.mark.parametrize(
    "key", ["n01/a", "n01%2Fa", ".hidden", "../../up", "ü" * 120, "ü" * 121, "x" * 255]
)
def test_every_key_has_a_readable_file_of_its_own(tmp_path: Path, key: str) -> None:
    store = MaskStore(tmp_path, FINGERPRINT)
    for other in ("n01/a", "n01%2Fa"):
        store.put(other, IMAGE, [])
    store.put(key, IMAGE, records())
    assert len(store.get(key, IMAGE) or []) == 3
    path = store.path(key)
    assert path.resolve().parent.parent == store.folder and not path.name.startswith(".")
    assert key.strip("./")[:2] in path.name


def test_a_file_under_another_key_does_not_count(tmp_path: Path) -> None:
    store = MaskStore(tmp_path, FINGERPRINT)
    store.put("a", IMAGE, records())
    store.path("b").parent.mkdir(exist_ok=True)
    store.path("a").rename(store.path("b"))
    assert store.get("b", IMAGE) is None
    assert store.fault("b") == "holds the masks of image 'a'"


def test_other_settings_and_formats_never_see_these_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MaskStore(tmp_path, FINGERPRINT)
    store.put("a", IMAGE, records())
    assert not MaskStore(tmp_path, {**FINGERPRINT, "points_per_side": 16}).has("a")
    again = MaskStore(tmp_path, dict(reversed(FINGERPRINT.items())))
    assert again.get("a", IMAGE) is not None
    settings = json.loads((again.folder / "settings.json").read_text())
    assert settings == {"format": 2, "masks": FINGERPRINT, "schema": 1}
    monkeypatch.setattr(mask_store, "_FORMAT", 3)
    assert not MaskStore(tmp_path, FINGERPRINT).has("a")


def test_settings_that_were_edited_are_refused(tmp_path: Path) -> None:
    store = MaskStore(tmp_path, FINGERPRINT)
    (store.folder / "settings.json").write_text("{}")
    with pytest.raises(UserError, match="states others; remove that folder"):
        MaskStore(tmp_path, FINGERPRINT)


def test_leftovers_of_the_killed_go_after_an_hour(tmp_path: Path) -> None:
    store = MaskStore(tmp_path, FINGERPRINT)
    store.put("a", IMAGE, records())
    young, old = (store.path("a").with_name(f".a.json.gz.{name}.tmp") for name in ("y", "o"))
    at_start = store.folder / ".settings.json.x.tmp"
    for path, age in ((young, 3000), (old, 4000), (at_start, 4000)):
        path.touch()
        then = path.stat().st_mtime - age
        os.utime(path, (then, then))
    store.remove_leftovers()
    assert young.exists() and not old.exists() and not at_start.exists() and store.has("a")


# What lies there may be broken or hostile: it counts as missing.


def lines_of(store: MaskStore, key: str) -> list[dict[str, Any]]:
    text = gzip.decompress(store.path(key).read_bytes())
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "flipped", "other", "longer"])
def test_a_broken_file_counts_as_missing(tmp_path: Path, damage: str) -> None:
    store = MaskStore(tmp_path, FINGERPRINT)
    store.put("a", IMAGE, records())
    whole = store.path("a").read_bytes()
    content = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"hello",
        "flipped": whole[:30] + bytes([whole[30] ^ 0xFF]) + whole[31:],
        "other": gzip.compress(b'{"a": 1}'),
        "longer": whole + gzip.compress(b"{}"),
    }[damage]
    store.path("a").write_bytes(content)
    assert store.get("a", IMAGE) is None and store.fault("a")
    store.put("a", IMAGE, records())
    assert store.get("a", IMAGE) is not None and len(list(store.path("a").parent.iterdir())) == 1


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    store = MaskStore(tmp_path, FINGERPRINT)
    store.put("a", IMAGE, records())
    whole = store.path("a").read_bytes()
    for length in range(len(whole)):
        store.path("a").write_bytes(whole[:length])
        assert store.get("a", IMAGE) is None, length


RECORD: dict[str, Any] = {
    "segmentation": {"size": [20, 30], "counts": rle.encode(np.ones((20, 30), bool))["counts"]},
    "area": 600,
}
ONES = coco.frPyObjects({"size": [20, 30], "counts": [0, 600]}, 20, 30)["counts"].decode()


def with_counts(counts: Any, area: int = 600) -> dict[str, Any]:
    return {"segmentation": {"size": [20, 30], "counts": counts}, "area": area}


@pytest.mark.parametrize(
    ("reason", "record"),
    {
        "no mask": ("without run lengths", {"area": 3}),
        "other size": (
            "of size",
            {**RECORD, "segmentation": {**RECORD["segmentation"], "size": [30, 20]}},
        ),
        "too few": ("add up", with_counts(rle.encode(np.ones((10, 30), bool))["counts"], 300)),
        "too many": ("add up", with_counts(rle.encode(np.ones((40, 30), bool))["counts"])),
        "negative": ("add up", with_counts(rle.encode(np.ones((20, 30), bool))["counts"] + "Od0")),
        "unended": ("do not belong", with_counts(ONES + "P")),
        "other characters": ("do not belong", with_counts("~" * 5 + "0")),
        "overlong": ("add up", with_counts("o" * 500 + "0")),
        "no characters": ("add up", with_counts("", 0)),
        "not ASCII": ("", with_counts("\u0660")),
        "plain counts": ("another form", with_counts([0, 600])),
        "area": ("another area", {**RECORD, "area": 599}),
        "no area": ("another area", {"segmentation": RECORD["segmentation"]}),
        "infinite": ("'predicted_iou' is not", {**RECORD, "predicted_iou": float("inf")}),
        "text": ("'bbox' is not", {**RECORD, "bbox": ["a", 1, 2, 3]}),
        "deep": ("'point_coords' is not", {**RECORD, "point_coords": [[[[1.0]]]]}),
        "object": ("'crop_box' is not", {**RECORD, "crop_box": {}}),
    }.values(),
)
def test_a_record_that_is_not_one_of_the_image(
    tmp_path: Path, reason: str, record: dict[str, Any]
) -> None:
    store = MaskStore(tmp_path, FINGERPRINT)
    store.put("a", IMAGE, [RECORD])
    header, good = lines_of(store, "a")
    assert good == RECORD and store.get("a", IMAGE) == [RECORD]
    write_lines(store, "a", [header, record])
    assert store.get("a", IMAGE) is None
    assert reason in str(store.fault("a"))


@pytest.mark.parametrize(
    "change",
    [
        {"size": [20]},
        {"size": [20, -30]},
        {"size": [1 << 40, 1 << 40]},
        {"size": [20.0, 30]},
        {"crc32": None},
        {"masks": 2},
        {"masks": 0},
        {"masks": 1 << 60},
        {"masks": -1},
        {"masks": True},
        {"key": "b"},
        {"key": ["a"] * 1000},
    ],
    ids=str,
)
def test_a_header_that_does_not_fit(tmp_path: Path, change: dict[str, Any]) -> None:
    store = MaskStore(tmp_path, FINGERPRINT)
    store.put("a", IMAGE, [RECORD])
    header, record = lines_of(store, "a")
    write_lines(store, "a", [{**header, **change}, record])
    assert store.get("a", IMAGE) is None and store.fault("a")


def write_lines(store: MaskStore, key: str, lines: list[Any]) -> None:
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    store.path(key).write_bytes(gzip.compress(text.encode()))


@pytest.mark.parametrize("bomb", ["header", "record", "tail", "lists", "nested"])
def test_a_file_that_unpacks_a_thousandfold_takes_little_memory(tmp_path: Path, bomb: str) -> None:
    """200 MB of the same bytes in a file of 200 KB; read in a process of its own, whose peak is
    taken.
    """
    store = MaskStore(tmp_path, FINGERPRINT)
    store.put("a", IMAGE, [RECORD])
    header, record = (json.dumps(line).encode() + b"\n" for line in lines_of(store, "a"))
    start, unit = {
        "header": (b"", b" "),
        "record": (header, b'"'),
        "tail": (header + record, b"\n"),
        "lists": (header, b"[],"),
        "nested": (header, b"["),
    }[bomb]
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    with store.path("a").open("wb") as file:
        file.write(packer.compress(start))
        for _ in range(200):
            file.write(packer.compress(unit * (1_000_000 // len(unit))))
        file.write(packer.flush())
    code = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from core.work.mask_store import ImageIdentity, MaskStore\n"
        "store = MaskStore(Path(sys.argv[1]), 'other')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "store.folder = Path(sys.argv[2])\n"
        "assert store.get('a', ImageIdentity(7, 20, 30)) is None and store.fault('a')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(store.folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100 * 1024  # KiB


def test_masks_beyond_any_reason_are_refused(tmp_path: Path) -> None:
    store = MaskStore(tmp_path, FINGERPRINT)
    with pytest.raises(UserError, match="20000 masks of image a take .* expected at most"):
        store.put("a", IMAGE, [RECORD] * 20000)
    assert not store.has("a")


def test_masks_of_noise_fit(tmp_path: Path) -> None:
    """The most that a mask can need, many times over: every run is one pixel long."""
    height, width = 60, 80
    noise = np.indices((height, width)).sum(0) % 2 == 0
    record = {"segmentation": rle.encode(noise), "area": int(noise.sum())}
    image = ImageIdentity(1, height, width)
    store = MaskStore(tmp_path, FINGERPRINT)
    store.put("a", image, [record] * 30)
    assert len(store.get("a", image) or []) == 30


# Superpixels: the same form of records, from no model.


def two_tone() -> np.ndarray:
    image = np.full((60, 80, 3), (30, 60, 200))
    image[15:45, 20:60] = (220, 180, 20)
    noise = np.random.default_rng(0).integers(-20, 20, image.shape)
    return (image + noise).astype(np.uint8)


def test_superpixels_find_a_rectangle_and_cover_the_image() -> None:
    found = SuperpixelMaskGenerator().generate(two_tone())
    truth = np.zeros((60, 80), bool)
    truth[15:45, 20:60] = True
    masks = [rle.decode(record["segmentation"]) for record in found]
    assert max((mask & truth).sum() / (mask | truth).sum() for mask in masks) > 0.9
    assert np.any(masks, axis=0).all()
    for record, mask in zip(found, masks):
        x, y = (int(value) for value in record["point_coords"][0])
        assert mask[y, x] and record["area"] == mask.sum() >= 100
        assert record["bbox"] == rle.to_xywh(rle.box_of(mask)).tolist()


def test_superpixels_are_repeatable_in_every_form(tmp_path: Path) -> None:
    found = SuperpixelMaskGenerator().generate(two_tone())
    forms = (rle.decode, rle.uncompressed, rle.compressed)
    whole = [
        {**record, "segmentation": forms[index % 3](record["segmentation"])}
        for index, record in enumerate(found)
    ]
    store = MaskStore(tmp_path, SuperpixelMaskGenerator().settings)
    image = ImageIdentity.of(two_tone())
    store.put("a", image, whole)
    assert store.get("a", image) == SuperpixelMaskGenerator().generate(two_tone())
