"""A set of hashes answers as a set of the values does."""

from __future__ import annotations

import pytest

from core.work import fingerprints as module
from core.work.fingerprints import Fingerprints


@pytest.mark.parametrize("most_new", [0, 1, 7, 1 << 14])
def test_it_holds_what_was_added(monkeypatch: pytest.MonkeyPatch, most_new: int) -> None:
    monkeypatch.setattr(module, "_MOST_NEW", most_new)
    found = Fingerprints()
    values = [("cat/a", 5, ((1, 2),)), ("cat/a", 5, ((1, 3),)), "b", ("b",), 7, "7", "\udc80"]
    values += [f"n{index}" for index in range(50)]
    for number, value in enumerate(values):
        assert value not in found
        found.add(value)
        found.add(values[number // 2])
        assert all(each in found for each in values[: number + 1])
