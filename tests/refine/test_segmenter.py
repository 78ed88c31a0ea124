"""The segmenter: argmax at the image's size, and which checkpoints are one."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.data.crops import network_input
from core.errors import StopWork, UserError
from refine.segmenter import Segmenter, label_of_logits
from refine.settings import Predict
from uss.networks import SegmenterFacts, load_segmenter


def test_argmax_of_resized_logits() -> None:
    logits = np.random.default_rng(2).normal(size=(5, 4, 6)).astype(np.float32)
    full = np.stack([cv2.resize(channel, (31, 17)) for channel in logits])
    label = label_of_logits(logits, (17, 31))
    assert label.dtype == np.int32
    np.testing.assert_array_equal(label, full.argmax(axis=0))


@given(
    classes=st.integers(2, 40),
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    levels=st.sampled_from([2, 1000]),
)
def test_classes_that_cannot_win_are_left_out_and_change_nothing(
    classes: int, grid: tuple[int, int], size: tuple[int, int], levels: int
) -> None:
    rng = np.random.default_rng(classes)
    logits = rng.integers(0, levels, (classes, *grid)).astype(np.float32) / levels
    logits += (rng.random(classes) < 0.2)[:, None, None].astype(np.float32)
    full = np.stack([cv2.resize(channel, size[::-1]).reshape(size) for channel in logits])
    np.testing.assert_array_equal(label_of_logits(logits, size), full.argmax(axis=0))


def test_equal_logits_give_background() -> None:
    np.testing.assert_array_equal(label_of_logits(np.zeros((3, 2, 2), np.float32), (4, 4)), 0)


@given(
    height=st.integers(1, 90), width=st.integers(1, 90), max_res=st.sampled_from([1, 7, 20, 1000])
)
def test_max_res_caps_the_area_and_keeps_the_size(height: int, width: int, max_res: int) -> None:
    logits = np.random.default_rng(height).normal(size=(3, 5, 4)).astype(np.float32)
    sizes = []
    resize = cv2.resize

    def spied(values: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
        sizes.append(size)
        return resize(values, size, interpolation=interpolation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cv2, "resize", spied)
        label = label_of_logits(logits, (height, width), max_res)
    assert label.shape == (height, width)
    small_width, small_height = sizes[0]
    # Half a pixel of rounding a side, and never below one pixel.
    assert small_width * small_height <= max(
        (max_res + 0.5) ** 2 * 1.5, max(small_height, small_width)
    )
    if height * width <= max_res**2:
        assert (small_height, small_width) == (height, width)


def test_a_long_image_is_capped_in_both_directions() -> None:
    """500 x 4000 is 2 million pixels: at most 1000 x 1000 are computed, of the same aspect."""
    logits = np.zeros((2, 2, 2), np.float32)
    logits[1, :, 1] = 1.0
    label = label_of_logits(logits, (500, 4000), 1000)
    assert label.shape == (500, 4000)
    assert not label[:, :1000].any() and label[:, 3100:].all()


@pytest.mark.parametrize(
    ("arch", "num_classes", "message"),
    [
        ("resnet50", None, "is a resnet18, but resnet50 was asked for"),
        ("resnet18", 3, "has 2 classes, but 3 were asked for; use --set num_classes=2"),
        ("resnet_uppernet18", None, "its head is a 1x1 convolution"),
        ("vgg", None, "unknown architecture 'vgg'"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(
    plain_checkpoint: Path, arch: str, num_classes: int | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_segmenter(plain_checkpoint, arch, num_classes)


def test_other_files_are_no_segmenter(attention_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fine-tuned segmenter"):
        load_segmenter(attention_checkpoint)
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match="text.pth"):
        load_segmenter(tmp_path / "text.pth")


def test_kind_and_class_count_come_from_the_checkpoint(plain_checkpoint: Path) -> None:
    segmenter = Segmenter(*load_segmenter(plain_checkpoint, "resnet18"), Predict(resize=64))
    assert segmenter.facts == SegmenterFacts("resnet18", 2, None)
    assert segmenter.facts.name == "ResNet18-1x1 convolution"
    rgb = np.random.default_rng(0).integers(0, 255, (40, 80, 3), dtype=np.uint8)
    assert segmenter.logits(rgb).shape == (3, 2, 4)
    square = Segmenter(*load_segmenter(plain_checkpoint), Predict(resize=64, square=True))
    assert square.logits(rgb).shape == (3, 2, 2)


@pytest.mark.parametrize("square", [False, True])
def test_a_size_that_is_none_ends_the_work_and_not_one_image(square: bool) -> None:
    with pytest.raises(StopWork, match="cannot be brought to 0 pixels"):
        network_input(np.zeros((4, 6, 3), np.uint8), 0, square)
