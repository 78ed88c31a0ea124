"""Archives are built deterministically and checked without trust."""

from __future__ import annotations

import io
import shutil
import stat
import struct
import subprocess
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from core.data.imagenet_s import list_images
from core.data.label_maps import load_label, png_of_label, save_label
from core.errors import UserError
from core.scoring.matching import match_text, read_match
from tests.conftest import ROOT
from tools.submission.archive import Method, build_zip
from tools.submission.check import check_zip
from uss.__main__ import main

CLASSES = 3
MATCH = {0: 0, 1: 2, 2: 3, 3: 1}
NAMES = ("n01/a", "n01/b", "n02/c")


@pytest.fixture
def data(tmp_path):
    for index, name in enumerate(NAMES):
        path = tmp_path / "data" / "test" / f"{name}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + index, 10)).save(path)
    return tmp_path / "data"


@pytest.fixture
def items(data):
    return list_images(data / "test")


@pytest.fixture
def predictions(tmp_path):
    for index, name in enumerate(NAMES):
        label = np.zeros((10, 20 + index), np.int32)
        label[2:6, 3:9] = index + 1
        save_label(tmp_path / "predictions" / f"{name}.png", label)
    return tmp_path / "predictions"


@pytest.fixture
def archive(tmp_path, predictions, items):
    path = tmp_path / "result.zip"
    build_zip(predictions, items, path, MATCH, Method(description="two\nlines"))
    return path


def rewrite(archive, change):
    """Read all entries as {name: bytes}, let ``change`` edit them, write them back."""
    with zipfile.ZipFile(archive) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    change(entries)
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in entries.items():
            file.writestr(name, content)


def test_archive_holds_predictions_match_and_method(archive, predictions, data):
    with zipfile.ZipFile(archive) as file:
        assert file.namelist() == [*(f"{name}.png" for name in NAMES), "match.json", "method.txt"]
        assert file.read("n01/a.png") == (predictions / "n01" / "a.png").read_bytes()
        assert file.read("match.json").decode() == match_text(MATCH)
        method = file.read("method.txt").decode().splitlines()
    assert len(method) == 6 and method[-1] == "Method description: two lines"
    assert check_zip(archive, data, "test", CLASSES) == []
    assert check_zip(archive, data, "test", CLASSES, "unmatched") == []


def test_same_input_same_bytes(archive, predictions, items, tmp_path):
    again = tmp_path / "again.zip"
    (predictions / "n01" / "a.png").touch()
    build_zip(predictions, list(reversed(items)), again, MATCH, Method(description="two\nlines"))
    assert again.read_bytes() == archive.read_bytes()


def test_matched_archive_holds_class_ids(archive, predictions, items, tmp_path, data):
    path = tmp_path / "matched.zip"
    build_zip(predictions, items, path, MATCH, Method(), matched=True)
    with zipfile.ZipFile(path) as file:
        (tmp_path / "out.png").write_bytes(file.read("n01/a.png"))
        (tmp_path / "match.json").write_bytes(file.read("match.json"))
    assert load_label(tmp_path / "out.png").max() == MATCH[1]
    assert read_match(tmp_path / "match.json", CLASSES) == {label: label for label in range(4)}
    assert check_zip(path, data, "test", CLASSES, "matched") == []
    (problem,) = check_zip(archive, data, "test", CLASSES, "matched")
    assert "class ids are expected" in problem


def test_missing_predictions_make_no_archive(predictions, items, tmp_path, data, capsys):
    (predictions / "n01" / "b.png").unlink()
    path = tmp_path / "result.zip"
    with pytest.raises(UserError, match="1 of 3 predictions are missing .* n01/b"):
        build_zip(predictions, items, path, MATCH, Method())
    assert not path.exists()


def test_missing_predictions_can_be_filled(predictions, items, tmp_path, data, capsys):
    (predictions / "n01" / "b.png").unlink()
    (data / "test" / "n02" / "c.JPEG").write_bytes(b"broken")
    (predictions / "n02" / "c.png").unlink()
    path, match = tmp_path / "result.zip", tmp_path / "match.json"
    match.write_text(match_text(MATCH))
    where = ["--data_path", str(data), "--mode", "test", "-c", "3", "--match-file", str(match)]
    build = ["build", str(predictions), str(path), *where]
    assert main(["submission", *build]) == 2 and not path.exists()
    assert main(["submission", *build, "--allow-missing"]) == 0
    assert "2 of 3 predictions are empty ones: n01/b, n02/c" in capsys.readouterr().err
    assert check_zip(path, data, "test", CLASSES) == []
    with zipfile.ZipFile(path) as file:
        assert "2 of 3 predictions are empty ones" in file.read("method.txt").decode()
        for name, size in (("n01/b.png", (21, 10)), ("n02/c.png", (1, 1))):
            image = Image.open(io.BytesIO(file.read(name)))
            assert image.size == size and not np.asarray(image).any()


def test_unknown_ids_make_no_archive(predictions, items, tmp_path):
    path = tmp_path / "result.zip"
    with pytest.raises(UserError, match="c.png.*id 3"):
        build_zip(predictions, items, path, {0: 0, 1: 1, 2: 2}, Method(), matched=True)
    assert not path.exists() and not list(tmp_path.glob(".result*"))


def test_plain_folder(tmp_path):
    (tmp_path / "data" / "shots").mkdir(parents=True)
    Image.new("RGB", (5, 4)).save(tmp_path / "data" / "shots" / "one.png")
    save_label(tmp_path / "out" / "one.png", np.ones((4, 5), np.int32))
    items = list_images(tmp_path / "data" / "shots")
    build_zip(tmp_path / "out", items, tmp_path / "r.zip", {0: 0, 1: 1}, Method())
    assert check_zip(tmp_path / "r.zip", tmp_path / "data", "shots", 1) == []


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def with_crc(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


GOOD = png_of_label(np.ones((10, 20), np.int32))
HUGE = GOOD[:8] + with_crc(b"IHDR", struct.pack(">IIBBBBB", 1 << 30, 1 << 30, 8, 2, 0, 0, 0))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "not a PNG"),
        (b"GIF89a" + bytes(60), "not a PNG"),
        (GOOD[:-30], "n01/a.png: "),
        (GOOD[:40] + bytes(len(GOOD) - 40), "n01/a.png: "),
        (HUGE + bytes(40), "1073741824x1073741824"),
        (png(Image.new("L", (20, 10))), "not an RGB PNG"),
        (png(Image.new("RGBA", (20, 10))), "not an RGB PNG"),
        (png(Image.new("RGB", (10, 20))), "20x10 but its image is 10x20"),
        (png(Image.new("RGB", (20, 10), (0, 0, 9))), "blue"),
        (png_of_label(np.full((10, 20), 4)), "id 4"),
        (png_of_label(np.full((10, 20), 1000)), "id 1000"),
        (bytes(1 << 20), "plausible"),
    ],
)
def test_bad_images_are_named(archive, data, content, text):
    rewrite(archive, lambda entries: entries.update({"n01/a.png": content}))
    (problem,) = check_zip(archive, data, "test", CLASSES)
    assert problem.startswith("n01/a.png: ") and text in problem


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("n01/a.txt", "does not belong here"),
        ("n02/a.png", "does not belong here"),
        ("n01/a.JPEG.png", "does not belong here"),
        ("result/n01/a.png", "n01/a.png should lie at the root"),
        ("result/match.json", "match.json should lie at the root"),
        (".DS_Store", "does not belong here"),
        ("empty/", "does not belong here"),
        ("/etc/passwd", "absolute"),
        ("C:/a.png", "absolute"),
        ("../n01/a.png", "leaves the archive"),
        ("n01\\..\\..\\a.png", "leaves the archive"),
        ("n01\\a.png", "odd characters"),
    ],
)
def test_stray_entries_are_named(archive, data, name, text):
    rewrite(archive, lambda entries: entries.update({name: b"x"}))
    (problem,) = check_zip(archive, data, "test", CLASSES)
    assert text in problem


def test_folder_entries_are_harmless(archive, data):
    rewrite(archive, lambda entries: entries.update({"n01/": b""}))
    assert check_zip(archive, data, "test", CLASSES) == []


@pytest.mark.parametrize("name", ["match.json", "method.txt", "n02/c.png"])
def test_missing_entries_are_named(archive, data, name):
    rewrite(archive, lambda entries: entries.pop(name))
    assert check_zip(archive, data, "test", CLASSES) == [f"{name}: missing"]


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"{}", '"0": 0'), (b"\xff\xfe", "utf-8"), (b'{"0": 0, "1": 1}', "3 classes")],
)
def test_bad_match_in_archive(archive, data, content, text):
    rewrite(archive, lambda entries: entries.update({"match.json": content}))
    (problem,) = check_zip(archive, data, "test", CLASSES)
    assert problem.startswith("match.json") and text in problem


def test_empty_method(archive, data):
    rewrite(archive, lambda entries: entries.update({"method.txt": b"\n"}))
    assert check_zip(archive, data, "test", CLASSES) == ["method.txt: is empty"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicates_are_named(archive, data):
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("n01/a.png", GOOD)
    assert check_zip(archive, data, "test", CLASSES) == ["n01/a.png: occurs twice"]


def test_links_and_other_compressions_are_named(archive, data):
    with zipfile.ZipFile(archive) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            if name == "n01/a.png":
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            if name == "n01/b.png":
                info.compress_type = zipfile.ZIP_BZIP2
            file.writestr(info, content)
    problems = check_zip(archive, data, "test", CLASSES)
    assert problems == ["n01/a.png: is a link", "n01/b.png: is neither stored nor deflated"]


def test_encrypted_entries_are_named(archive, data):
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    assert check_zip(archive, data, "test", CLASSES) == ["n01/a.png: is encrypted"]


def test_bomb_with_a_false_size_is_not_inflated(archive, data):
    bomb = zlib.compress(bytes(50 << 20), 9)
    rewrite(archive, lambda entries: entries.pop("n01/a.png"))
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("n01/a.png", bytes(50 << 20))
    content = bytearray(archive.read_bytes())
    central = content.rindex(b"PK\x01\x02")
    assert len(bomb) < 1 << 17 and content[central + 46 :].startswith(b"n01/a.png")
    struct.pack_into("<I", content, central + 24, 300)
    archive.write_bytes(content)
    (problem,) = check_zip(archive, data, "test", CLASSES)
    assert problem.startswith("n01/a.png: ")


def test_broken_checksum_is_named(archive, data):
    content = bytearray(archive.read_bytes())
    place = content.index(b"IDAT")
    content[place + 6] ^= 0xFF
    archive.write_bytes(content)
    (problem,) = check_zip(archive, data, "test", CLASSES)
    assert "n01/a.png" in problem and "CRC" in problem


@pytest.mark.parametrize("keep", [0, 10, 300, -8])
def test_truncated_archives_give_a_problem(archive, data, keep):
    archive.write_bytes(archive.read_bytes()[:keep])
    problems = check_zip(archive, data, "test", CLASSES)
    assert problems and "cannot be read" in problems[0]


def test_flipped_bytes_never_raise(archive, data):
    original = archive.read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(150):
        content = bytearray(original)
        for place in rng.integers(0, len(content), 3):
            content[place] = rng.integers(0, 256)
        archive.write_bytes(content)
        check_zip(archive, data, "test", CLASSES)


def test_what_other_readers_refuse_is_named(archive, data):
    whole = archive.read_bytes()
    archive.write_bytes(b"#!/bin/sh\n" + whole)
    assert check_zip(archive, data, "test", CLASSES) == ["10 bytes stand before the first entry"]
    with zipfile.ZipFile(io.BytesIO(whole)) as file:
        entries = {name: file.read(name) for name in file.namelist()}

    class Stream(io.RawIOBase):
        """Cannot seek, so that sizes are written behind the entries."""

        def __init__(self):
            self.parts = []

        def writable(self):
            return True

        def write(self, content):
            self.parts.append(bytes(content))
            return len(content)

    stream = Stream()
    with zipfile.ZipFile(stream, "w") as file:
        for name, content in entries.items():
            file.writestr(name, content)
    archive.write_bytes(b"".join(stream.parts))
    (problem,) = check_zip(archive, data, "test", CLASSES)
    assert "Java's reader refuses (5 such entries)" in problem


@pytest.mark.parametrize("reader", ["unzip", "java"])
def test_other_readers_accept_the_archive(tmp_path, reader):
    if shutil.which(reader) is None:
        pytest.skip(f"{reader} is not installed")
    names = ("été/Ä b", "n01/猫", "n 02/plain")
    for name in names:
        path = tmp_path / "data" / "test" / f"{name}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10)).save(path)
        save_label(tmp_path / "out" / f"{name}.png", np.ones((10, 20), np.int32))
    items = list_images(tmp_path / "data" / "test")
    build_zip(tmp_path / "out", items, tmp_path / "r.zip", {0: 0, 1: 1}, Method())
    assert check_zip(tmp_path / "r.zip", tmp_path / "data", "test", 1) == []
    java = str(ROOT / "tests" / "java" / "ReadZip.java")
    command = {"unzip": ["unzip", "-t"], "java": ["java", java]}[reader]
    done = subprocess.run(
        [*command, str(tmp_path / "r.zip")], capture_output=True, text=True, check=False
    )
    if reader == "java" and "compiler" in done.stderr:
        pytest.skip("this Java cannot compile")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("No errors detected" if reader == "unzip" else "5 5") in done.stdout


def test_command_line(predictions, data, tmp_path, capsys):
    match = tmp_path / "match.json"
    match.write_text(match_text(MATCH))
    archive = tmp_path / "result.zip"
    where = ["--data_path", str(data), "--mode", "test", "-c", "3"]
    build = ["build", str(predictions), str(archive), "--match-file", str(match), *where]
    assert main(["submission", *build, "--method", "mine"]) == 0
    assert main(["submission", "check", str(archive), *where, "--unmatched"]) == 0
    printed = capsys.readouterr().out
    assert "no problems; ids inside are cluster ids" in printed
    assert "3 of 3 images good" in printed and "the largest 10 x 22" in printed
    assert main(["submission", "check", str(archive), *where, "--matched"]) == 1
    assert "1 problems" in capsys.readouterr().out
    assert main(["submission", "check", str(archive), *where[:-1], "-2"]) == 2
    assert "-c must be 1 to 999, is -2" in capsys.readouterr().err
    assert main(["submission", "check", str(tmp_path / "none.zip"), *where]) == 1
    assert (
        main(["submission", "check", str(archive), "--data_path", str(data), "--mode", "testA"])
        == 2
    )
