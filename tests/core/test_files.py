"""JSON files that are missing, broken or of another kind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from core.errors import UserError
from core.files import atomic_write, json_or_empty, private_folder, read_json, write_json


@pytest.mark.parametrize(
    "content", [b"{", b"[1, 2]", b"7", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a": ' * 100_000]
)
def test_what_is_no_json_object_is_one_line_or_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "threshold.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="expected the threshold at .*threshold.json"):
        read_json(path, "the threshold")
    assert json_or_empty(path) == {}


def test_a_missing_file_and_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "facts.json"
    with pytest.raises(UserError, match="expected the facts at .*No such file"):
        read_json(path, "the facts")
    assert json_or_empty(path) == {}
    write_json(path, {"a": [1]})
    assert read_json(path, "the facts") == json_or_empty(path) == {"a": [1]}


def of_another(folder: Path) -> Path:
    """A folder of another user: made so by root, or one that every machine has."""
    if os.geteuid():
        return Path("/usr")
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    return folder


def test_a_new_private_folder_is_for_its_user_alone(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        made = private_folder(tmp_path / "a" / "cache")
    finally:
        os.umask(before)
    assert made == tmp_path.resolve() / "a" / "cache" and made.stat().st_mode & 0o777 == 0o700
    assert made.parent.stat().st_mode & 0o777 == 0o775  # as the user's own mask wants it


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o2755])
def test_a_folder_that_others_only_read_is_private(tmp_path: Path, mode: int) -> None:
    folder, link = tmp_path / "cache", tmp_path / "link"
    folder.mkdir()
    folder.chmod(mode)
    link.symlink_to(folder)
    assert private_folder(folder) == private_folder(link) == folder.resolve()


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o1777])
def test_a_folder_that_others_write_is_refused(tmp_path: Path, mode: int) -> None:
    folder, link = tmp_path / "my cache", tmp_path / "link"
    folder.mkdir()
    folder.chmod(mode)
    link.symlink_to(folder)
    for path in (folder, link):
        with pytest.raises(UserError) as said:
            private_folder(path)
        problem, _, mend = str(said.value).partition("; ")
        assert problem.startswith(f"{folder} can be written by other users")
        assert f"chmod go-w '{folder}'" in mend


def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder, link = of_another(tmp_path / "theirs"), tmp_path / "link"
    link.symlink_to(folder)
    for path in (folder, link):
        with pytest.raises(UserError, match=f"^{folder} belongs to user .*; name a folder of you"):
            private_folder(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes links of other users")
def test_a_link_of_another_user_is_refused(tmp_path: Path) -> None:
    own, link = tmp_path / "own", tmp_path / "link"
    own.mkdir(mode=0o700)
    link.symlink_to(own)
    os.lchown(link, 12345, 12345)
    with pytest.raises(UserError, match=f"^{link} belongs to user 12345"):
        private_folder(link)


def test_a_folder_that_everybody_may_rename_is_refused(tmp_path: Path) -> None:
    """In /tmp they may not: its sticky bit forbids it."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    assert private_folder(shared / "a" / "cache").is_dir()
    shared.chmod(0o777)
    with pytest.raises(UserError, match=f"every user can write into {shared} .*; chmod o-w "):
        private_folder(shared / "a" / "cache")


def test_a_file_is_no_private_folder(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for name in ("cache", "nowhere"):
        with pytest.raises(UserError, match=f"{name} is no folder; "):
            private_folder(tmp_path / name)


def test_a_write_that_fails_names_the_file(tmp_path: Path) -> None:
    path, full = tmp_path / "facts.json", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left on device: '.*facts.json'"):
        with atomic_write(path):
            raise full
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="Operation not permitted|No such file.*: '/proc/facts.json'"):
        write_json(Path("/proc/facts.json"), {})
