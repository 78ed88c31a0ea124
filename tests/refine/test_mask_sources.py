"""Masks through their store: made once per image and settings, given largest first."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from core.data.imagenet_s import list_images, mask_path
from core.data.images import load_rgb
from core.data.label_maps import load_label
from core.errors import StopWork, UserError
from core.work.mask_store import ImageIdentity
from refine import mask_sources
from refine.mask_sources import ImageMasks, SamSource, SuperpixelSource, mask_source
from refine.settings import Masks
from refine.vote import spread_points
from sam.weights import SamWeights
from tests.helpers.quarter_masks import QuarterMasks
from uss.presets import preset


@pytest.fixture
def rgb() -> np.ndarray:
    """A red square on blue noise, 60 x 80."""
    pixels = np.random.default_rng(6).integers(0, 60, (60, 80, 3), dtype=np.uint8)
    pixels[..., 2] += 150
    pixels[20:45, 30:60] = (230, 20, 20)
    return pixels


@pytest.fixture
def weights(tmp_path: Path) -> SamWeights:
    (tmp_path / "sam.pth").write_bytes(b"weights")
    return SamWeights("vit_t", tmp_path / "sam.pth")


def test_masks_are_made_once_and_come_largest_first(tmp_path: Path, rgb: np.ndarray) -> None:
    source = QuarterMasks()
    first = list(ImageMasks(source, tmp_path).masks("a/b", rgb))
    areas = [int(mask.sum()) for mask in first]
    assert areas == sorted(areas, reverse=True) and all(mask.dtype == bool for mask in first)
    again = list(ImageMasks(source, tmp_path).masks("a/b", rgb))
    np.testing.assert_array_equal(np.stack(first), np.stack(again))
    assert len(source.generated) == 1


def test_another_image_of_the_same_name_and_size_gets_its_own_masks(
    tmp_path: Path, rgb: np.ndarray
) -> None:
    source = QuarterMasks()
    masks = ImageMasks(source, tmp_path)
    list(masks.masks("a", rgb))
    list(masks.masks("a", rgb[::-1]))
    assert len(source.generated) == 2


def test_another_writer_at_the_same_time_shows_whole_files_only(
    tmp_path: Path, rgb: np.ndarray
) -> None:
    """A thread stands for another process: it replaces the file, and removes it, all the time."""
    source = QuarterMasks()
    images = ImageMasks(source, tmp_path)
    expected = list(images.masks("a", rgb))
    records = source.generate(rgb)
    stop = threading.Event()

    def rewrite() -> None:
        while not stop.is_set():
            images.store.put("a", ImageIdentity.of(rgb), records)
            images.store.put("a", ImageIdentity.of(rgb), records * 40)
            images.store.remove("a")

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(150):
            got = list(images.masks("a", rgb))
            assert len(got) in (2, 80)
            np.testing.assert_array_equal(got[0], expected[0])
            np.testing.assert_array_equal(got[-1], expected[-1])
    finally:
        stop.set()
        writer.join()


def test_only_what_changes_masks_changes_the_fingerprint(weights: SamWeights) -> None:
    base = SamSource(Masks(), weights).fingerprint
    assert SamSource(replace(Masks(), points_per_batch=7), weights).fingerprint == base
    assert SamSource(replace(Masks(), points_per_side=32), weights).fingerprint != base
    weights.path.write_bytes(b"other weights")
    assert SamSource(Masks(), weights).fingerprint != base


def test_sam_is_loaded_at_the_first_missing_image_only(
    tmp_path: Path, rgb: np.ndarray, weights: SamWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    generate = QuarterMasks().generate

    def generator(model: str, **settings: Any) -> SimpleNamespace:
        loaded.append((model, settings))
        return SimpleNamespace(generate=generate)

    import sam

    registry = {"vit_t": lambda checkpoint: f"vit_t of {checkpoint.name}"}
    monkeypatch.setitem(vars(sam), "sam_model_registry", registry)
    monkeypatch.setitem(vars(sam), "SamAutomaticMaskGenerator", generator)
    masks = ImageMasks(SamSource(Masks(), weights), tmp_path / "store")
    assert not loaded
    list(masks.masks("a", rgb))
    list(masks.masks("b", rgb))
    assert len(loaded) == 1
    model, settings = loaded[0]
    assert model == "vit_t of sam.pth"
    assert settings["points_per_side"] == 64 and settings["min_mask_region_area"] == 100
    list(ImageMasks(SamSource(Masks(), weights), tmp_path / "store").masks("a", rgb))
    assert len(loaded) == 1


def test_superpixels_answer_points_with_the_segments_that_hold_them(rgb: np.ndarray) -> None:
    source = SuperpixelSource(Masks(min_mask_region_area=20))
    mask = source.prompt(rgb, np.array([[45, 32], [5, 5]], np.float32), np.array([1, 0]))
    assert mask.shape == (60, 80) and mask[32, 45] and not mask[5, 5]
    inside = np.zeros((60, 80), dtype=bool)
    inside[20:45, 30:60] = True
    # Coarse segments reach a little over the edge.
    assert (mask & inside).sum() / inside.sum() > 0.9
    assert (mask & inside).sum() / (mask | inside).sum() > 0.6


@pytest.mark.slow
def test_real_sam_finds_a_photographed_animal(tmp_path: Path, caltech4: Path) -> None:
    """With whatever weights are at hand: by its own points, and by prompts on the animal."""
    item = list_images(caltech4 / "validation")[0]
    truth = load_label(mask_path(caltech4, "validation", item.key)) > 0
    photograph = load_rgb(item.path)
    try:
        source = mask_source(preset("small", "resnet18").masks)
    except UserError as error:
        pytest.skip(str(error))
    masks = list(ImageMasks(source, tmp_path).masks(item.key, photograph))
    assert masks and all(mask.shape == truth.shape for mask in masks)
    inside = cv2.distanceTransform(truth.astype(np.uint8), cv2.DIST_L2, 5)
    points_xy, signs = spread_points(np.where(truth, inside, -1).astype(np.float32))
    prompted = source.prompt(photograph, points_xy, signs)
    assert prompted.shape == truth.shape and prompted.dtype == bool
    assert (prompted & truth).sum() / (prompted | truth).sum() > 0.5


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"points_per_side": 0}, "masks.points_per_side must be at least 1, is 0"),
        ({"points_per_batch": 0}, "masks.points_per_batch must be at least 1, is 0"),
        ({"crop_n_layers": -1}, "masks.crop_n_layers must be at least 0, is -1"),
        ({"crop_n_points_downscale_factor": 0}, "downscale_factor must be at least 1, is 0"),
        ({"points_per_side": 3, "crop_n_layers": 2}, "no point is left in crop layer 2"),
    ],
)
def test_settings_that_cannot_work_stop_before_sam_is_looked_for(
    settings: dict[str, int], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        mask_source(replace(Masks(), **settings))


def test_weights_that_do_not_load_end_the_work_and_not_one_image(
    rgb: np.ndarray, weights: SamWeights
) -> None:
    source = SamSource(Masks(), weights)
    for ask in (source.generate, lambda image: source.prompt(image, np.zeros((1, 2)), np.ones(1))):
        with pytest.raises(StopWork, match="sam.pth"):
            ask(rgb)


def test_unknown_source() -> None:
    with pytest.raises(UserError, match="sam, superpixels"):
        mask_source(Masks(source="magic"))


def test_a_sam_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing.pth"):
        mask_sources.mask_source(Masks(), tmp_path / "nothing.pth")
