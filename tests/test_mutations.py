"""Damaged files of every kind end in a success or in one line, soon, and without much memory."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.work.child import Child, ChildFailed
from tests.helpers import mutations
from tests.helpers.mutations import KINDS, MEBIBYTES, SECONDS, Outcome

_WALL_S = 60.0  # the machine may be busy; the limit proper is on the processor's time
_FAST, _SLOW = 3, 100  # changes of each kind


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    child = Child("tests.helpers.mutations:reader", None)
    yield child
    child.close()


def outcome(child: Child, kind: str, path: Path) -> Outcome:
    if not child.running:
        child.start(_WALL_S)
    try:
        return child.ask((kind, str(path)), _WALL_S)
    except ChildFailed as error:
        return Outcome(None, f"the process is gone: {error}", 0.0, 0)


def check(child: Child, kind: str, folder: Path, seeds: range) -> None:
    path, content = mutations.valid(kind, folder)
    assert outcome(child, kind, path)[:2] == (None, None)
    wrong = []
    for seed in seeds:
        path.write_bytes(mutations.changed(KINDS[kind], content, random.Random(f"{kind} {seed}")))
        found = outcome(child, kind, path)
        one_line = found.error is None or ("\n" not in found.error and len(found.error) < 1000)
        small = found.seconds <= SECONDS and found.mebibytes <= MEBIBYTES
        if found.bug or not one_line or not small:
            wrong.append(f"{kind} {seed}: {mutations.as_json(found)}")
            if found.mebibytes > MEBIBYTES:
                child.close()  # its peak would stand for all that follow
    assert not wrong, f"{len(wrong)} of {len(seeds)}\n" + "\n".join(wrong[:5])


@pytest.mark.parametrize("kind", KINDS)
def test_some_changes(child: Child, tmp_path: Path, kind: str) -> None:
    check(child, kind, tmp_path / "valid", range(_FAST))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_changes(child: Child, tmp_path: Path, kind: str) -> None:
    assert _SLOW * len(KINDS) >= 1000
    check(child, kind, tmp_path / "valid", range(_FAST, _FAST + _SLOW))
