"""Official SAM files: another content under their names is told, and the command fetches them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from core import checksums, download
from core.checkpoints.files import write_pickle
from core.checksums import remembered_sha256
from core.errors import UserError
from sam import published, weights
from tests.helpers.file_server import FileServer, serving
from tools import weights as weights_command
from uss.pipeline import PIPELINE

OFFICIAL = "sam_vit_b_01ec64.pth"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving(np.random.default_rng(0).bytes(5 << 20)) as running:
        yield running


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("USS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def sam_file(path: Path) -> Path:
    write_pickle(path, {"image_encoder.pos_embed": np.zeros((1, 2, 2, 768), np.float32)})
    return path


def test_the_manifest_has_the_published_addresses_and_checksums() -> None:
    entries = published.published(weights.manifest())
    assert sorted(entries) == ["mobile_sam", "vit_b", "vit_h", "vit_l"]
    for entry in entries.values():
        assert entry["url"].startswith("https://") and entry["url"].endswith("/" + entry["file"])
        assert len(entry["sha256"]) == 64


@pytest.mark.parametrize("find", [lambda p: weights.find_sam(p.parent), weights.sam_at])
def test_a_cut_download_is_refused_with_what_mends_it(tmp_path: Path, find) -> None:
    whole = sam_file(tmp_path / "mine.pth.tar").read_bytes()
    path = tmp_path / OFFICIAL
    path.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="is not the published .*cut or damaged") as caught:
        find(path)
    command = f"`python -m uss weights vit_b --weights-dir {tmp_path}` fetches it again"
    assert command in str(caught.value) and str(caught.value).isprintable()


def test_other_weights_under_an_official_name_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = sam_file(tmp_path / OFFICIAL)
    assert weights.sam_at(path).model == "vit_b"
    told = capsys.readouterr().err
    assert f"warning: {path} is not the published {OFFICIAL} (SHA-256 differs)" in told
    weights.sam_at(sam_file(tmp_path / "my_sam.pth"))
    assert "warning" not in capsys.readouterr().err


def test_a_large_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(bytes(16 << 20))
    calls = []

    def counted(place: Path) -> str:
        calls.append(place)
        return hashlib.sha256(place.read_bytes()).hexdigest()

    monkeypatch.setattr(checksums, "sha256_of", counted)
    first = [remembered_sha256(path) for _ in range(2)]
    assert len(calls) == 2, "a file of this moment may change within its time stamp"
    monkeypatch.setattr(checksums, "_SETTLED_S", -1.0)
    assert [remembered_sha256(path) for _ in range(3)] == [first[0]] * 3 and len(calls) == 3
    path.write_bytes(b"1" * (16 << 20))
    assert remembered_sha256(path) == counted(path) != first[0]
    for entry in (tmp_path / "cache" / "checksums").iterdir():
        entry.write_text("[broken")
    assert remembered_sha256(path) == counted(path)


def test_the_command_fetches_an_official_file(
    tmp_path: Path,
    server: FileServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    listed = weights.manifest()
    published.published(listed)["vit_l"]["sha256"] = hashlib.sha256(server.content).hexdigest()
    monkeypatch.setattr(weights_command, "manifest", lambda: listed)
    monkeypatch.setenv(published.MIRROR, server.url.rpartition("/")[0] + "/")
    server.path = "/sam_vit_l_0b3195.pth"
    server.cuts = [1_000_000]
    monkeypatch.setattr(download, "_PAUSE_S", 0.0)
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "sam_vit_l_0b3195.pth").write_bytes(server.content[:1000])
    asked = ["vit_l", "--weights-dir", str(folder)]
    assert weights_command.main(asked, PIPELINE) == 0
    assert (folder / "sam_vit_l_0b3195.pth").read_bytes() == server.content
    assert [path.name for path in folder.iterdir()] == ["sam_vit_l_0b3195.pth"]
    shown = capsys.readouterr()
    assert "is damaged and will be replaced" in shown.err and "vit_l: 100%" in shown.err
    assert "5 MB" in next(line for line in shown.out.splitlines() if "sam_vit_l_0b3195" in line)
    asked_before = len(server.asked)
    assert weights_command.main(asked, PIPELINE) == 0 and len(server.asked) == asked_before
    monkeypatch.setenv(published.MIRROR, "http://127.0.0.1:1")
    with pytest.raises(UserError, match="cannot be fetched.*put sam_vit_b_01ec64.pth into"):
        weights_command.main(["vit_b", "--weights-dir", str(folder)], PIPELINE)


def test_other_weights_are_not_overwritten(tmp_path: Path) -> None:
    path = sam_file(tmp_path / OFFICIAL)
    before = path.read_bytes()
    with pytest.raises(UserError, match="holds other weights.*move it away"):
        weights_command.main(["vit_b", "--weights-dir", str(tmp_path)], PIPELINE)
    assert path.read_bytes() == before


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="'vit_b', 'vit_l', 'vit_h', 'mobile_sam'"):
        weights_command.main(["vit_x"], PIPELINE)
