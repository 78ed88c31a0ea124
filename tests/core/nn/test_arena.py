"""The block that arrays are cut from: where it is reserved, and where it would be in the way."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from core.nn import arena
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def ask_again():
    arena.reserve.cache_clear()
    yield
    arena.reserve.cache_clear()


def test_not_under_a_limit_of_address_space(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 33, resource.RLIM_INFINITY))
    assert not arena.reserve()


def test_not_where_reserved_memory_counts_as_used(monkeypatch, tmp_path):
    strict = tmp_path / "overcommit_memory"
    strict.write_text("2\n")
    monkeypatch.setattr(arena, "_OVERCOMMIT", strict)
    assert not arena.reserve()


_RESERVED = """
from core.nn import arena
from core.memory import resident_mib
from core.runtime import jt

before = resident_mib()
assert arena.reserve() and arena.reserve()
print(resident_mib("VmHWM") - before)
for size in range(1, 25):  # 300 MiB in all, of which no more than 24 at a time
    jt.ones((size << 18,)).sync()
print(resident_mib() - before)
"""


def test_reserved_memory_is_taken_only_where_it_is_written():
    if not arena.reserve():
        pytest.skip("reserved memory counts as used on this machine")
    command = [sys.executable, "-c", _RESERVED]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    reserved, written = map(float, ended.stdout.split())
    assert reserved < 16
    assert written < 64
