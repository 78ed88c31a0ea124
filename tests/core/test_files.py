"""JSON files that are missing, broken or of another kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import UserError
from core.files import json_or_empty, read_json, write_json


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
