"""Memory of automatic mask generation, in real processes with real limits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from core.memory import container_bytes
from sam import batch_size
from tests.conftest import ROOT

# A SAM of the official decoder around a stand-in for the encoder, so that the decoder's memory is
# what counts; every mask passes the filters.
_START = """
import resource, sys
import numpy as np
from core.runtime import jt, nn
from sam import SamAutomaticMaskGenerator
from sam.build import sam_around


class Encoder(nn.Module):
    img_size = 1024

    def execute(self, x):
        return jt.array(np.random.default_rng(int(x.numpy().sum()) % 1000)
                        .standard_normal((1, 256, 64, 64)).astype(np.float32))


def resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20


jt.set_global_seed(0)
sam = sam_around(Encoder())
everything = dict(pred_iou_thresh=-1e9, stability_score_thresh=0.0)
image = np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)
"""

_LIMITED = (
    _START
    + """
generator = SamAutomaticMaskGenerator(sam, points_per_side=8, points_per_batch=1, **everything)
expected = generator.generate(image)
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (150 << 20), resource.RLIM_INFINITY))
generator = SamAutomaticMaskGenerator(sam, points_per_side=8, points_per_batch=64, **everything)
found = generator.generate(image)
assert [r["area"] for r in found] == [r["area"] for r in expected] and len(found) > 0
print("went on with", generator.points_per_batch)
"""
)

_MANY_IMAGES = (
    _START
    + """
generator = SamAutomaticMaskGenerator(sam, points_per_side=4, **everything)
rng = np.random.default_rng(1)
for number in range(1, 501):
    height, width = rng.integers(40, 400, 2)
    generator.generate(rng.integers(0, 256, (height, width, 3)).astype(np.uint8))
    if number == 50:
        early = resident_mib()
print("grew by", resident_mib() / early)
"""
)


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=1800
    )


def test_memory_that_runs_out_halves_the_batch_and_keeps_the_masks() -> None:
    ended = run(_LIMITED)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "out of memory with 64 points at a time; going on with 32" in ended.stderr
    assert int(ended.stdout.split()[-1]) < 64


@pytest.mark.slow
def test_five_hundred_images_take_no_more_memory_than_fifty() -> None:
    ended = run(_MANY_IMAGES)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert float(ended.stdout.split()[-1]) < 1.05


@pytest.mark.parametrize("free_mib, fits", [(None, True), (10_000.0, True), (100.0, False)])
def test_free_memory_is_asked_for_before_a_batch(
    monkeypatch: pytest.MonkeyPatch, free_mib: float | None, fits: bool
) -> None:
    monkeypatch.setattr(batch_size, "_free_mib", lambda: free_mib)
    batch_size.ask_for(1)
    if fits:
        batch_size.ask_for(64)
    else:
        with pytest.raises(MemoryError, match="320 MiB needed, 100 MiB free"):
            batch_size.ask_for(64)


def test_a_container_s_limit_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1073741824\n")
    (tmp_path / "memory.current").write_text("536870912\n")
    assert container_bytes(tmp_path) == (1 << 30, 512 << 20)
    (tmp_path / "memory.max").write_text("max\n")
    assert container_bytes(tmp_path) is None
    assert container_bytes(tmp_path / "absent") is None
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("1073741824\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("805306368\n")
    assert container_bytes(tmp_path) == (1 << 30, 256 << 20)
