"""One decoder for every kind of file that Pillow writes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from core.data.images import image_size, load_rgb
from core.errors import UserError

_SAME_FOLDER = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def colours(channels: int) -> st.SearchStrategy[np.ndarray]:
    sides = st.integers(1, 24)
    return st.tuples(sides, sides).flatmap(
        lambda side: hnp.arrays(np.uint8, (*side, channels), elements=st.integers(0, 255))
    )


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """What an RGB picture looks like over white, float."""
    share = alpha[..., None] / 255
    return rgb * share + 255 * (1 - share)


@_SAME_FOLDER
@given(colours(3))
def test_lossless_rgb_comes_back_unchanged(tmp_path: Path, rgb: np.ndarray) -> None:
    Image.fromarray(rgb).save(tmp_path / "a.png")
    got = load_rgb(tmp_path / "a.png")
    assert got.dtype == np.uint8 and got.flags.writeable and np.array_equal(got, rgb)
    assert image_size(tmp_path / "a.png") == rgb.shape[:2]


@_SAME_FOLDER
@given(colours(3))
def test_gray_is_repeated_in_eight_and_sixteen_bits(tmp_path: Path, rgb: np.ndarray) -> None:
    gray = rgb[..., 0]
    Image.fromarray(gray).save(tmp_path / "l.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "l16.png")
    expected = np.repeat(gray[..., None], 3, axis=2)
    assert np.array_equal(load_rgb(tmp_path / "l.png"), expected)
    assert np.array_equal(load_rgb(tmp_path / "l16.png"), expected)


def test_sixteen_bits_are_scaled_and_rounded_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 128, 129, 300, 32768, 65535]], np.uint16)).save(
        tmp_path / "a.png"
    )
    assert load_rgb(tmp_path / "a.png")[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


@_SAME_FOLDER
@given(colours(4))
def test_transparency_lies_over_white_in_every_mode(tmp_path: Path, rgba: np.ndarray) -> None:
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    got = load_rgb(tmp_path / "rgba.png").astype(float)
    assert np.abs(got - over_white(rgba[..., :3], rgba[..., 3])).max() <= 1.01
    Image.merge("LA", [Image.fromarray(rgba[..., band]) for band in (2, 3)]).save(
        tmp_path / "la.png"
    )
    got = load_rgb(tmp_path / "la.png").astype(float)
    gray = np.repeat(rgba[..., 2:3], 3, axis=2)
    assert np.abs(got - over_white(gray, rgba[..., 3])).max() <= 1.01


def test_transparent_palette_and_colour_key_agree_with_alpha(tmp_path: Path) -> None:
    indices = np.array([[0, 1], [1, 2]], np.uint8)
    palette = Image.fromarray(indices)
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    palette.save(tmp_path / "plain.png")
    palette.save(tmp_path / "key.png", transparency=1)
    palette.save(tmp_path / "key.gif", transparency=1)
    plain = np.array([[[10, 20, 30], [40, 50, 60]], [[40, 50, 60], [70, 80, 90]]])
    keyed = np.where((indices == 1)[..., None], 255, plain)
    assert np.array_equal(load_rgb(tmp_path / "plain.png"), plain)
    assert np.array_equal(load_rgb(tmp_path / "key.png"), keyed)
    assert np.array_equal(load_rgb(tmp_path / "key.gif"), keyed)
    Image.fromarray(plain.astype(np.uint8)).save(tmp_path / "rgb.png", transparency=(40, 50, 60))
    assert np.array_equal(load_rgb(tmp_path / "rgb.png"), keyed)


def test_cmyk_keeps_its_colours(tmp_path: Path) -> None:
    rgb = np.zeros((16, 48, 3), np.uint8)
    rgb[:, :16, 0], rgb[:, 16:32, 1], rgb[:, 32:] = 220, 180, 240
    path = tmp_path / "a.jpg"
    Image.fromarray(rgb).convert("CMYK").save(path, quality=95)
    # Adobe's marker says that the inks are stored inverted; as they are nearly everywhere.
    assert b"Adobe" in path.read_bytes()
    assert np.abs(load_rgb(path).astype(int) - rgb).mean() < 3


@pytest.mark.parametrize("turn", range(1, 9))
def test_the_stored_grid_counts_not_the_rotation_tag(tmp_path: Path, turn: int) -> None:
    rgb = np.zeros((20, 30, 3), np.uint8)
    rgb[:10, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = turn
    for name in ("a.jpg", "a.png"):
        Image.fromarray(rgb).save(tmp_path / name, exif=exif)
        got = load_rgb(tmp_path / name)
        assert got.shape == rgb.shape and image_size(tmp_path / name) == (20, 30)
        assert got[4, 4].min() > 240 and got[15, 25].max() < 15


def test_a_png_named_jpeg_loads(tmp_path: Path) -> None:
    rgb = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    Image.fromarray(rgb).save(tmp_path / "n02105855_2933.JPEG", "PNG")
    assert np.array_equal(load_rgb(tmp_path / "n02105855_2933.JPEG"), rgb)


def _files() -> list[bytes]:
    rgb = np.random.default_rng(1).integers(0, 256, (24, 30, 3)).astype(np.uint8)
    files = []
    for mode, kind in [("RGB", "JPEG"), ("RGB", "PNG"), ("P", "PNG"), ("L", "PNG"), ("P", "GIF")]:
        buffer = io.BytesIO()
        Image.fromarray(rgb).convert(mode).save(buffer, kind)
        files.append(buffer.getvalue())
    return files


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.3, 0.7, 0.95])
def test_truncated_files_are_refused_by_name(tmp_path: Path, kind: int, keep: float) -> None:
    whole = _files()[kind]
    (tmp_path / "half.img").write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(UserError, match="half.img.*:") as caught:
        load_rgb(tmp_path / "half.img")
    assert "\n" not in str(caught.value)


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(0, 4),
    st.lists(
        st.tuples(st.floats(0, 0.999, allow_subnormal=False), st.integers(0, 255)),
        min_size=1,
        max_size=8,
    ),
)
def test_damaged_files_give_an_image_or_a_user_error(
    tmp_path: Path, kind: int, damage: list[tuple[float, int]]
) -> None:
    data = bytearray(_files()[kind])
    for place, value in damage:
        data[int(place * len(data))] = value
    (tmp_path / "bad.img").write_bytes(bytes(data))
    try:
        rgb = load_rgb(tmp_path / "bad.img")
        assert rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3
    except UserError as error:
        assert "bad.img" in str(error)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("text.jpg", "folder.jpg", "missing.jpg"):
        with pytest.raises(UserError, match=name):
            load_rgb(tmp_path / name)
        with pytest.raises(UserError, match=name):
            image_size(tmp_path / name)


def test_decompression_bombs_are_refused(tmp_path: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(tmp_path / "bomb.png")
    with pytest.raises(UserError, match="bomb.png has 10000 x 10000 pixels.*--max-pixels"):
        load_rgb(tmp_path / "bomb.png")
    assert image_size(tmp_path / "bomb.png") == (10_000, 10_000)
    Image.new("RGB", (100, 90)).save(tmp_path / "small.png")
    with pytest.raises(UserError, match="100 x 90"):
        load_rgb(tmp_path / "small.png", max_pixels=8999)
    assert load_rgb(tmp_path / "small.png", max_pixels=9000).shape == (90, 100, 3)
