"""test.py on a folder of everything that image folders hold in real life."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.data.label_maps import load_label
from tests.helpers.calls_of_test_py import call, on_test_split

# Name -> (height, width) of the label map that is expected.
GOOD = {
    "png_named.JPEG": (40, 50),
    "cmyk.jpg": (40, 50),
    "deep16.png": (40, 50),
    "palette_alpha.png": (40, 50),
    "rotated.jpg": (40, 50),
    "one.png": (1, 1),
    "wide.png": (3, 4000),
    "animated.png": (40, 50),
    "with space.jpg": (40, 50),
    "dots.in.name.jpg": (40, 50),
    "été_猫.jpg": (40, 50),
    "UPPER.JPG": (40, 50),
}
BROKEN = {
    "truncated.jpg": "truncated",
    "empty.jpg": "not a readable",
    "text.png": "not a readable",
    "loop.jpg": "symbolic links",
    "dangling.png": "No such file",
    "bomb.png": "--max-pixels",
}


LARGE = {"large.jpg": (6000, 8000)}


def write_corpus(folder: Path, large: bool) -> None:
    folder.mkdir(parents=True)
    rgb = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    photo = Image.fromarray(rgb)
    photo.save(folder / "png_named.JPEG", "PNG")
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(rgb[..., 0].astype(np.uint16) * 257).save(folder / "deep16.png")
    photo.convert("P").save(folder / "palette_alpha.png", transparency=3)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    photo.save(folder / "rotated.jpg", exif=exif)
    Image.new("RGB", (1, 1), "red").save(folder / "one.png")
    Image.new("RGB", (4000, 3), "green").save(folder / "wide.png")
    if large:
        photo.resize((8000, 6000)).save(folder / "large.jpg", quality=50)
    frames = [Image.new("RGB", (50, 40), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "animated.png", "GIF", save_all=True, append_images=frames[1:])
    for name in ("with space.jpg", "dots.in.name.jpg", "été_猫.jpg", ".hidden.jpg"):
        photo.save(folder / name)
    photo.save(folder / "UPPER.JPG", "JPEG")
    whole = (folder / "with space.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("not an image")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "dangling.png").symlink_to("nowhere.png")
    Image.new("1", (10_000, 10_000)).save(folder / "bomb.png")
    (folder / "folder.jpg").mkdir()
    (folder / "folder.jpg" / "inner.jpg").write_bytes(whole)
    (folder / "circle").symlink_to(".")
    (folder / "notes.txt").write_text("ignored")


@pytest.mark.parametrize("large", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_everything_awkward(tmp_path: Path, plain_checkpoint: Path, large: bool) -> None:
    photos = tmp_path / "data" / "test" / "photos"
    write_corpus(photos, large)
    good = {**GOOD, **(LARGE if large else {})}
    images = len(good) + len(BROKEN)
    job = [*on_test_split(plain_checkpoint), "--run", "run"]
    first = call(tmp_path, *job)
    assert first.returncode == 2 and "Traceback" not in first.stderr, first.stderr
    errors = [line for line in first.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "failed_test.json" in errors[0]
    failed = json.loads((tmp_path / "result" / "failed_test.json").read_text())
    assert failed.keys() == {f"photos/{name.partition('.')[0]}" for name in BROKEN}
    for name, reason in BROKEN.items():
        assert reason in failed[f"photos/{name.partition('.')[0]}"], failed
    for name, size_hw in good.items():
        label = tmp_path / "result" / "test" / "photos" / f"{name.partition('.')[0]}.png"
        assert load_label(label).shape == size_hw, name
    assert not (tmp_path / "result" / "result.zip").exists()

    second = call(tmp_path, *job, "--allow-missing", "--image-timeout", 600)
    assert second.returncode == 0, second.stderr
    said = f"6 of {images} predictions are empty ones"
    assert said in second.stderr
    with zipfile.ZipFile(tmp_path / "result" / "result.zip") as archive:
        assert said in archive.read("method.txt").decode()
        assert sum(name.endswith(".png") for name in archive.namelist()) == images


def test_two_images_of_one_stem_are_an_error_before_any_work(
    tmp_path: Path, plain_checkpoint: Path
) -> None:
    photos = tmp_path / "data" / "test" / "photos"
    photos.mkdir(parents=True)
    for name in ("a.jpg", "a.second.png"):
        Image.new("RGB", (9, 9)).save(photos / name)
    done = call(tmp_path, *on_test_split(plain_checkpoint), "--run", "run")
    assert done.returncode == 2
    assert "a.jpg and a.second.png, both of which would write a.png" in done.stderr
    assert not (tmp_path / "result").exists()
