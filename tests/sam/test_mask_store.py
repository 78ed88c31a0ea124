"""Stored masks come back, stay apart from those of other settings, and broken files count as
missing.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from core.errors import UserError
from sam import masks as M
from sam.mask_store import MaskStore
from sam.superpixels import SuperpixelMaskGenerator

FINGERPRINT = {"weights": {"model": "vit_t", "sha256": "0" * 64}, "points_per_side": 8}


def records() -> list[M.Record]:
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
    forms = (mask, M.encode(mask), M.uncompressed(mask))
    return [{**record, "segmentation": form} for form in forms]


def test_records_come_back_as_coco_rle_with_every_digit(tmp_path: Path) -> None:
    store = MaskStore(tmp_path, FINGERPRINT)
    assert store.get("n01/a") is None
    store.put("n01/a", records())
    got = store.get("n01/a")
    expected = {**records()[0], "segmentation": M.encode(records()[0]["segmentation"])}
    assert got == [expected] * 3
    assert store.path("n01/a").parent == store.folder / "n01"
    store.put("plain", [])
    assert store.get("plain") == []


def test_the_same_masks_are_the_same_bytes(tmp_path: Path) -> None:
    first, second = MaskStore(tmp_path / "1", FINGERPRINT), MaskStore(tmp_path / "2", FINGERPRINT)
    first.put("a", records())
    second.put("a", records())
    assert first.path("a").read_bytes() == second.path("a").read_bytes()


def test_other_settings_never_see_these_masks(tmp_path: Path) -> None:
    store = MaskStore(tmp_path, FINGERPRINT)
    store.put("a", records())
    assert MaskStore(tmp_path, {**FINGERPRINT, "points_per_side": 16}).get("a") is None
    again = MaskStore(tmp_path, dict(reversed(FINGERPRINT.items())))
    assert again.get("a") is not None
    assert json.loads((again.folder / "settings.json").read_text()) == FINGERPRINT


def test_settings_that_were_edited_are_refused(tmp_path: Path) -> None:
    store = MaskStore(tmp_path, FINGERPRINT)
    (store.folder / "settings.json").write_text("{}")
    with pytest.raises(UserError, match="states others; remove that folder"):
        MaskStore(tmp_path, FINGERPRINT)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "flipped", "other"])
def test_a_broken_file_counts_as_missing(tmp_path: Path, damage: str) -> None:
    store = MaskStore(tmp_path, FINGERPRINT)
    store.put("a", records())
    whole = store.path("a").read_bytes()
    content = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"hello",
        "flipped": whole[:30] + bytes([whole[30] ^ 0xFF]) + whole[31:],
        "other": gzip.compress(b'{"a": 1}'),
    }[damage]
    store.path("a").write_bytes(content)
    assert store.get("a") is None
    store.put("a", records())
    assert store.get("a") is not None and len(list(store.folder.iterdir())) == 2


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
    masks = [M.decode(record["segmentation"]) for record in found]
    assert max((mask & truth).sum() / (mask | truth).sum() for mask in masks) > 0.9
    assert np.any(masks, axis=0).all()
    for record, mask in zip(found, masks):
        x, y = (int(value) for value in record["point_coords"][0])
        assert mask[y, x] and record["area"] == mask.sum() >= 100
        assert record["bbox"] == M.to_xywh(M.box_of(mask)).tolist()


def test_superpixels_come_in_every_output_mode_and_are_repeatable(tmp_path: Path) -> None:
    modes = ("binary_mask", "uncompressed_rle", "coco_rle")
    runs = [SuperpixelMaskGenerator(output_mode=mode).generate(two_tone()) for mode in modes]
    for records_of_mode in zip(*runs):
        forms = [record["segmentation"] for record in records_of_mode]
        assert isinstance(forms[0], np.ndarray) and isinstance(forms[1]["counts"], list)
        assert M.encode(forms[0]) == M.compressed(forms[1]) == forms[2]
    store = MaskStore(tmp_path, SuperpixelMaskGenerator().settings)
    store.put("a", runs[0])
    assert store.get("a") == SuperpixelMaskGenerator().generate(two_tone())
