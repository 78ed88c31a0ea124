"""What one sample of each stage is."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from core.data import crops
from core.data.datasets import EvalDataset, JointDataset
from core.data.imagenet_s import list_images
from core.data.images import load_rgb
from core.data.label_maps import save_label
from core.data.loader import Loader
from core.errors import UserError
from core.synthetic.scenes import KINDS, render
from uss.views import MultiCrop, MultiCropDataset, correspondence_grids


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four small pictures of odd sizes in two class folders; the left half is white, the right
    black.
    """
    for index, (height, width) in enumerate([(40, 61), (33, 30), (20, 25), (70, 35)]):
        rgb = np.zeros((height, width, 3), np.uint8)
        rgb[:, : width // 2] = 255
        path = tmp_path / "train" / f"n{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgb).save(path)
    return tmp_path


def test_multi_crop_samples_stack_into_batches(photos: Path) -> None:
    items = list_images(photos / "train")
    dataset = MultiCropDataset(items, MultiCrop((32, 16), (2, 2), (0.14, 0.05), (1.0, 0.14)))
    (batch,) = Loader(dataset, 4, 0, 2).epoch(0)
    assert [field.shape for field in batch] == [
        (4, 3, 32, 32),
        (4, 3, 32, 32),
        (4, 3, 16, 16),
        (4, 3, 16, 16),
        (4, 7, 7, 2),
        (4, 7, 7, 2),
    ]
    assert all(field.dtype == np.float32 for field in batch)
    views, placements = dataset.multi_crop(
        np.asarray(Image.open(items[1].path)), np.random.default_rng([0, 0, 1])
    )
    sample = dataset.get(1, np.random.default_rng([0, 0, 1]))
    assert np.array_equal(sample[0], views[0])
    assert np.array_equal(sample[-2], correspondence_grids(*placements)[0])


def test_views_of_a_large_photograph_are_those_of_its_reduced_jpeg(tmp_path: Path) -> None:
    rgb = cv2.resize(render(KINDS[0], 300, 400, np.random.RandomState(0))[0], (1600, 1200))
    (tmp_path / "train").mkdir()
    for name in ("a.jpg", "b.png"):
        Image.fromarray(rgb).save(tmp_path / "train" / name, quality=95)
    whole = MultiCrop((96, 64), (2, 2), (1.0, 0.3), (1.0, 0.3), distortion=0)
    jpeg, png = list_images(tmp_path / "train")
    assert load_rgb(jpeg.path, enough=whole.enough).shape == (300, 400, 3)
    assert load_rgb(png.path, enough=whole.enough).shape == rgb.shape
    dataset = MultiCropDataset([jpeg, png], whole)
    for seed in range(4):
        reduced, exact = (dataset.get(i, np.random.default_rng(seed)) for i in range(2))
        # In standard deviations; the two views of a part may lie a fraction of a pixel apart.
        for ours, theirs, close in zip(reduced[:4], exact[:4], (0.01, 0.01, 0.1, 0.1)):
            assert abs(ours - theirs).mean() < close
        for ours, theirs in zip(reduced[4:], exact[4:]):
            np.testing.assert_allclose(ours, theirs, atol=0.02)


def test_crops_of_a_panorama_are_not_enlarged_from_a_reduced_decode(tmp_path: Path) -> None:
    """It has pixels enough for a reduction, but its crops are no higher than it is."""
    stripes = 127 + 100 * np.sin(np.arange(200) * 2 * np.pi / 8)
    rgb = np.tile(stripes.astype(np.uint8)[:, None, None], (1, 4000, 3))
    (tmp_path / "train").mkdir()
    for name in ("a.jpg", "b.png"):
        Image.fromarray(rgb).save(tmp_path / "train" / name, quality=95)
    views = MultiCrop((96,), (2,), (1.0,), (1.0,), distortion=0)
    dataset = MultiCropDataset(list_images(tmp_path / "train"), views)
    reduced, exact = (dataset.get(i, np.random.default_rng(0)) for i in range(2))
    assert load_rgb(dataset.path(0), enough=views.enough).shape[0] == 50  # of 96 that are needed
    for ours, theirs in zip(reduced[:2], exact[:2]):
        assert abs(ours - theirs).mean() < 0.1 < theirs.std() / 5  # the stripes are still there
    assert load_rgb(dataset.path(0), enough=1, shortest=50).shape == (50, 1000, 3)
    assert load_rgb(dataset.path(0), enough=1, shortest=50.1).shape == (100, 2000, 3)


@pytest.mark.parametrize(("enough", "height"), [(None, 200), (100.1, 200), (100, 100), (25, 25)])
def test_a_jpeg_is_decoded_as_small_as_is_enough(
    enough: float | None, height: int, tmp_path: Path
) -> None:
    path = tmp_path / "a.jpg"
    Image.new("L", (200, 200)).save(path)
    assert load_rgb(path, enough=enough).shape == (height, height, 3)


def test_eval_samples_are_central_and_say_whose_they_are(photos: Path) -> None:
    items = list_images(photos / "train")
    items[2].path.write_bytes(b"broken")
    for square in (False, True):
        dataset = EvalDataset(items, resize=32, crop=24, square=square)
        loader = Loader(dataset, 4, 0, 0, shuffle=False)
        ((images, indices),) = loader.epoch(0)
        assert images.shape == (4, 3, 24, 24)
        # The pixels in place 2 are those of image 3: the caller can tell.
        assert indices.tolist() == [0, 1, 3, 3]
        assert list(loader.broken) == [str(items[2].path)]


def test_a_strip_is_named_and_stands_back_as_a_broken_image_does(photos: Path) -> None:
    items = list_images(photos / "train")
    Image.new("RGB", (66_000, 1)).save(items[1].path, "PNG")
    loader = Loader(EvalDataset(items, resize=256, crop=24), 4, 0, 0, shuffle=False)
    ((_, indices),) = loader.epoch(0)
    assert indices.tolist() == [0, 2, 2, 3]
    (reason,) = loader.broken.values()
    assert reason.startswith(f"{items[1].path}: an image of 66000 x 1 pixels")


def test_joint_samples_fit_labels_of_another_size(photos: Path) -> None:
    items = list_images(photos / "train")
    for number, item in enumerate(items):
        with Image.open(item.path) as image:
            width, height = image.size
        scale = 1 if number % 2 else 2  # some labels lie on a grid of twice the size
        label = np.zeros((height * scale, width * scale), np.int32)
        label[:, : (width // 2) * scale] = 3
        save_label(photos / "labels" / f"{item.key}.png", label)
    dataset = JointDataset(items, photos / "labels", size=24, min_scale=0.3)
    for index in range(len(items)):
        image, label = dataset.get(index, np.random.default_rng(index))
        assert image.shape == (3, 24, 24) and label.shape == (24, 24) and label.dtype == np.int32
        red = image[0] * crops.STD[0] + crops.MEAN[0]
        sure = (red < 0.01) | (red > 0.99)
        assert ((red > 0.5) == (label == 3))[sure].all()


def test_a_missing_label_is_named(photos: Path) -> None:
    dataset = JointDataset(list_images(photos / "train"), photos / "labels", size=24)
    with pytest.raises(UserError, match="labels/n0/0.png"):
        dataset.get(0, np.random.default_rng(0))
    with pytest.raises(UserError, match="none of the 4 images"):
        next(Loader(dataset, 2, 0, 0).epoch(0))
