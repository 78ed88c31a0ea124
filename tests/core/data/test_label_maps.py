"""The label codec and its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from core.data import label_maps
from core.errors import UserError


@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int32, np.int64]),
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
        elements=st.integers(0, 255),
    ),
    st.integers(0, 255),
)
def test_encode_then_decode_is_the_identity(ids: np.ndarray, scale: int) -> None:
    wide = ids.astype(np.int64) * scale
    for array in (ids, wide):
        decoded = label_maps.decode(label_maps.encode(array))
        assert decoded.dtype == np.int32
        assert np.array_equal(decoded, array)


def test_encode_puts_the_low_byte_in_red() -> None:
    assert label_maps.encode(np.array([[0, 1, 255, 256, 919, 1000, 65535]]))[0].tolist() == [
        [0, 0, 0],
        [1, 0, 0],
        [255, 0, 0],
        [0, 1, 0],
        [151, 3, 0],
        [232, 3, 0],
        [255, 255, 0],
    ]


@pytest.mark.parametrize(
    "ids", [np.array([[-1]]), np.array([[65536]]), np.array([[0.5]]), np.array([1, 2])]
)
def test_encode_refuses_what_it_cannot_hold(ids: np.ndarray) -> None:
    with pytest.raises(ValueError):
        label_maps.encode(ids)


def test_decode_refuses_blue_and_other_shapes() -> None:
    with pytest.raises(ValueError, match="blue"):
        label_maps.decode(np.array([[[1, 0, 1]]], np.uint8))
    with pytest.raises(ValueError, match="uint8"):
        label_maps.decode(np.zeros((2, 2, 3), np.int32))
    with pytest.raises(ValueError, match="shape"):
        label_maps.decode(np.zeros((2, 2), np.uint8))


def test_file_round_trip_leaves_nothing_else_behind(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 1001, (37, 53))
    path = tmp_path / "new" / "a.png"
    label_maps.save_label(path, ids)
    assert np.array_equal(label_maps.load_label(path), ids)
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]
    with Image.open(path) as image:
        assert image.mode == "RGB" and image.getpixel((0, 0))[0] == ids[0, 0] % 256


def test_a_refused_map_writes_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        label_maps.save_label(tmp_path / "a.png", np.array([[70000]]))
    assert list(tmp_path.iterdir()) == []


def test_masks_that_an_optimiser_stored_as_palette_load(tmp_path: Path) -> None:
    ids = np.array([[0, 3], [1000, 919]])
    image = Image.fromarray(label_maps.encode(ids)).quantize(4)
    image.save(tmp_path / "a.png")
    assert np.array_equal(label_maps.load_label(tmp_path / "a.png"), ids)


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    with pytest.raises(UserError, match="mask.png"):
        label_maps.load_label(path)
    label_maps.save_label(path, np.random.default_rng(0).integers(0, 1001, (40, 40)))
    whole = path.read_bytes()
    for keep in (0, 20, len(whole) // 2, len(whole) - 60):
        path.write_bytes(whole[:keep])
        with pytest.raises(UserError, match="mask.png"):
            label_maps.load_label(path)


def test_pictures_are_not_taken_for_masks(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    Image.fromarray(colour[..., 0]).save(tmp_path / "gray.png")
    Image.fromarray(colour).save(tmp_path / "jpeg.png", "JPEG")
    Image.fromarray(colour[..., 0].astype(np.uint16) * 200).save(tmp_path / "deep.png")
    for name in ("colour", "gray", "jpeg", "deep"):
        with pytest.raises(UserError, match=f"{name}.png.*expected"):
            label_maps.load_label(tmp_path / f"{name}.png")


def test_a_damaged_file_is_never_read_as_something_else(tmp_path: Path) -> None:
    """Bytes changed, cut out and cut off: the very labels or an error that names the file."""
    ids = np.kron(np.arange(12).reshape(3, 4) * 90, np.ones((5, 6), int))
    whole = label_maps.png_of_label(ids)
    path = tmp_path / "label.png"
    rng = np.random.default_rng(0)
    errors = 0
    for number in range(300):
        data = bytearray(whole)
        place = int(rng.integers(8, len(data) - 12))
        if number % 3 == 0:
            data[place] ^= 1 + int(rng.integers(255))
        elif number % 3 == 1:
            del data[place : place + 3]
        else:
            data = data[:place] + data[-12:]
        path.write_bytes(bytes(data))
        try:
            assert np.array_equal(label_maps.load_label(path), ids)
        except UserError as error:
            assert str(path) in str(error)
            errors += 1
    assert errors > 250


def test_a_transparent_colour_is_no_damage(tmp_path: Path) -> None:
    ids = np.arange(12).reshape(3, 4)
    Image.fromarray(label_maps.encode(ids)).save(tmp_path / "a.png", transparency=(3, 0, 0))
    assert np.array_equal(label_maps.load_label(tmp_path / "a.png"), ids)
