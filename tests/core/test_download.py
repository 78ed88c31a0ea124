"""Fetching from a real server of this machine: cut connections, servers without ranges, other
content, a full disk.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from core import download
from core.download import fetch
from core.errors import UserError
from tests.helpers.file_server import FileServer, serving

CONTENT = np.random.default_rng(0).bytes(5 << 20)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(download, "_PAUSE_S", 0.0)
    with serving(CONTENT) as running:
        yield running


def fetched(server: FileServer, path: Path, url: str | None = None) -> None:
    fetch(url or server.url, path, SHA256, "weights", "put the file there")


def test_a_file_comes_whole_with_progress(
    tmp_path: Path, server: FileServer, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "new" / "a.pth"
    fetched(server, path)
    assert path.read_bytes() == CONTENT and [p.name for p in path.parent.iterdir()] == ["a.pth"]
    assert re.search(r"weights: 100%.*5\.24M/5\.24M", capsys.readouterr().err)


def test_a_cut_connection_goes_on_by_itself(tmp_path: Path, server: FileServer) -> None:
    server.cuts = [1_000_000, 0, 2_000_000]
    fetched(server, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000000-", "bytes=1000000-", "bytes=3000000-"]


def test_a_dead_server_keeps_what_came_and_the_next_call_goes_on(
    tmp_path: Path, server: FileServer
) -> None:
    path = tmp_path / "a.pth"
    server.cuts = [1_500_000, 0, 0, 0]
    with pytest.raises(UserError, match="after 2 MB, which are kept.*same command again") as caught:
        fetched(server, path)
    assert str(caught.value).isprintable() and not path.exists()
    assert (tmp_path / "a.pth.part").read_bytes() == CONTENT[:1_500_000]
    server.asked, server.cuts = [], []
    fetched(server, path)
    assert server.asked == ["bytes=1500000-"] and path.read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_a_server_without_ranges_begins_anew(tmp_path: Path, server: FileServer) -> None:
    server.ranges = False
    (tmp_path / "a.pth.part").write_bytes(CONTENT[:1_500_000])
    fetched(server, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT and server.asked == ["bytes=1500000-"]


def test_a_whole_part_is_not_fetched_again(tmp_path: Path, server: FileServer) -> None:
    (tmp_path / "a.pth.part").write_bytes(CONTENT)
    fetched(server, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT and server.asked == [f"bytes={5 << 20}-"]


@pytest.mark.parametrize("part", [b"", b"another file", CONTENT + b"x"])
def test_another_content_leaves_nothing(tmp_path: Path, server: FileServer, part: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(b"what was there")
    if part:
        (tmp_path / "a.pth.part").write_bytes(part)
    else:
        server.content = CONTENT[:-1] + b"?"
    with pytest.raises(UserError, match=f"has SHA-256 .* expected {SHA256}; nothing of it was"):
        fetched(server, tmp_path / "a.pth")
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]
    assert (tmp_path / "a.pth").read_bytes() == b"what was there"


def test_what_the_network_refuses_is_one_line(tmp_path: Path, server: FileServer) -> None:
    path = tmp_path / "a.pth"
    with pytest.raises(UserError, match="answered with 404 Not Found; put the file there"):
        fetched(server, path, server.url + "s")
    with pytest.raises(UserError, match="cannot be fetched .*: see to the network"):
        fetched(server, path, "http://127.0.0.1:1/file")
    with pytest.raises(UserError, match="expected an http or https address"):
        fetched(server, path, "file:///etc/hostname")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line(
    tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_space = pytest.raises(UserError, match="/dev/full cannot be written: No space left")
    with open("/dev/full", "wb", buffering=0) as part, no_space:
        download._write(part, b"x" * 10)
    usage = download.shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(UserError, match="has 1 MB left, expected room for 5 MB more; make room"):
        fetched(server, tmp_path / "a.pth")
    assert not (tmp_path / "a.pth").exists()


def test_two_processes_do_not_write_one_file(tmp_path: Path, server: FileServer) -> None:
    refused = pytest.raises(UserError, match="another process is fetching")
    with download._opened(tmp_path / "a.pth.part"), refused:
        fetched(server, tmp_path / "a.pth")
    fetched(server, tmp_path / "a.pth")
