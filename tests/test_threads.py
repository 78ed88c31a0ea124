"""Numbers do not depend on how many threads compute them.

Jittor can spread its own kernels over threads (the compile option ``parallel``). It does so wrongly
with 32 threads and more, and for ever with 128, so this project never asks for it: its own kernels
and oneDNN's are the only ones with several threads.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.runtime import jt
from tests.conftest import ROOT
from tests.helpers.processes import PATIENCE_S

# Stands in each kernel that Jittor has spread over threads, and in no other.
SPREAD = "get_thread_range_log"

NETWORKS, SAM = "tests/models/test_golden_pass_networks.py", "tests/sam/test_golden_networks.py"
CHEAP = " and not ".join(["golden and compact", "resnet50", "wide", "vit", "queue", "sgd", "it2"])


def loaded_kernels() -> list[str]:
    """The sources of the kernels that Jittor has loaded into this process."""
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    kernels = [Path(name) for name in mapped if name.endswith("_op.so")]
    return [path.with_suffix(".cc").read_text(errors="replace") for path in kernels]


def run_tests(threads: int, *words: str) -> None:
    """pytest on ``words`` in a process of its own with that many threads."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout[-4000:]


def test_no_kernel_of_this_process_was_spread_by_jittor() -> None:
    x = jt.array([1.0, 2.0, 3.0])
    assert ((x * x).sum() - 14).abs().item() < 1e-6
    sources = loaded_kernels()
    assert sources and not [source for source in sources if SPREAD in source]
    assert "parallel" not in jt.flags.compile_options


def test_a_kernel_that_jittor_spreads_is_recognised() -> None:
    code = f"""
from core.runtime import jt
from tests.test_threads import loaded_kernels
y = (jt.ones((8, 8)) * 3).sum(1)
y.compile_options = {{"parallel": 1}}
y.numpy()
print(sum({SPREAD!r} in source for source in loaded_kernels()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.stdout == "1\n", done.stdout + done.stderr


def test_many_threads_give_the_official_numbers() -> None:
    """Forward, backward and SAM's decoder, with kernels of which none was spread by Jittor."""
    run_tests(
        32,
        NETWORKS,
        f"{SAM}::test_golden_sam_small_prompts_and_decoder",
        f"{__file__}::test_no_kernel_of_this_process_was_spread_by_jittor",
        "-k",
        "(pretrain_gradients and resnet18 and compact) or (compact and all) or no_kernel",
    )


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3, 16, 32, 64, 128])
def test_goldens_hold_at_any_number_of_threads(threads: int) -> None:
    """The cheaper golden tests: networks, losses, a step of training, SAM, its predictor."""
    run_tests(
        threads,
        "tests/uss/test_objectives.py",
        "tests/uss/test_pretrain_step.py",
        NETWORKS,
        SAM,
        "tests/sam/test_predictor.py",
        f"{__file__}::test_no_kernel_of_this_process_was_spread_by_jittor",
        "-k",
        f"({CHEAP}) or no_kernel",
    )
