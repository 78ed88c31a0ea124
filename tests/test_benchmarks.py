"""How benchmarks are measured and reported; the stand-ins for torchvision and timm."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import compare, sam_cases, shims
from tests.conftest import ROOT

EXACT_KEYS = {"name", "ours_ms", "torch_ms", "ratio", "ours_peak_mib", "torch_peak_mib"}


@pytest.fixture
def diary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the sides of the test's cases did, a line each: side, what, process."""
    path = tmp_path / "diary"
    monkeypatch.setenv("DIARY", str(path))
    monkeypatch.setitem(command.SUITES, "sam", "tests.helpers.benchmark_cases")
    return path


def test_sides_take_turns_in_processes_of_their_own(diary: Path) -> None:
    suite = compare.load_suite("tests.helpers.benchmark_cases")
    (outcome,) = compare.measure(suite, ["differing"], runs=3)
    lines = [line.split() for line in diary.read_text().splitlines()]
    turns = [("ours", "run"), ("torch", "run")] * 3
    assert [tuple(line[:2]) for line in lines] == [
        ("ours", "warm-up"),
        ("torch", "warm-up"),
        *turns,
    ]
    processes = {side: {line[2] for line in lines if line[0] == side} for side in compare.SIDES}
    assert len(processes["ours"] | processes["torch"]) == 2 and len(processes["ours"]) == 1
    # The warm-up of half a second is not counted, and neither is the result's summing up.
    assert 20 <= outcome.median_ms["ours"] < 450 and 100 <= outcome.median_ms["torch"] < 450
    assert [len(outcome.runs_ms[side]) for side in compare.SIDES] == [3, 3]
    # Memory is that of one side, and of one run at a time.
    for side, mib in (("ours", 64), ("torch", 256)):
        assert mib - 8 < outcome.peak_mib[side] - outcome.loaded_mib[side] < 1.5 * mib
    assert not outcome.agreement.holds


def test_the_median_counts() -> None:
    outcome = compare.Outcome(
        "case",
        {"ours": [1.0, 90.0, 2.0], "torch": [4.0, 4.0, 5.0]},
        {"ours": 30.0, "torch": 60.0},
        {"ours": 10.0, "torch": 10.0},
        compare.Agreement(True, "same"),
    )
    found = outcome.as_json()
    assert (found["ours_ms"], found["torch_ms"], found["ratio"]) == (2.0, 4.0, 0.5)
    assert "| case | 2 ms | 4 ms | 0.50 | 30 MiB | 60 MiB | 0.50 | yes: same |" in compare.table(
        [outcome]
    )


def test_json_and_exit_code(diary: Path) -> None:
    code = (
        "import sys; from benchmarks import __main__ as command;"
        "command.SUITES['sam'] = 'tests.helpers.benchmark_cases';"
        "sys.exit(command.main(sys.argv[1:]))"
    )
    for case, exit_code in (("agreeing", 0), ("differing", 1)):
        done = subprocess.run(
            [sys.executable, "-c", code, "sam", "--json", "--runs", "1", "--only", case],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == exit_code, done.stderr
        (found,) = json.loads(done.stdout)
        assert set(found) >= EXACT_KEYS and found["name"] == case
        assert "run 1 of 1" in done.stderr


def test_a_side_that_fails_is_named(diary: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command.main(["sam", "--only", "failing"]) == 2
    err = capfd.readouterr().err
    assert "no such weights" in err and "error: failing: ours failed (exit code 1)" in err
    assert command.main(["sam", "--only", "dying"]) == 2
    assert "error: dying: torch was killed by signal 9" in capfd.readouterr().err


def test_what_is_refused(
    diary: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command.main(["sam", "--only", "nothing"]) == 2
    assert "unknown case 'nothing'; the cases are differing" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["sam", "--runs", "0"])
    monkeypatch.setitem(command.SUITES, "sam", "benchmarks.sam_cases")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    capsys.readouterr()
    assert command.main(["sam"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.endswith("run make judge\n")


def test_cases_load_neither_side_with_the_list() -> None:
    code = "import sys, benchmarks.sam_cases; print({'torch', 'jittor'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


# Comparing results ------------------------------------------------------------------------------


def masks_of(count: int) -> dict[str, np.ndarray]:
    """Disjoint bars as masks, with scores."""
    masks = np.zeros((count, 4 * count, 50), bool)
    for number in range(count):
        masks[number, 4 * number : 4 * number + 3] = True
    scores = np.linspace(0.7, 1, count)
    return {"masks": masks, "predicted_iou": scores, "stability_score": scores.copy()}


def test_masks_match_in_any_order() -> None:
    ours, torch = masks_of(50), masks_of(50)
    order = np.random.default_rng(0).permutation(50)
    assert sam_cases.same_masks({key: value[order] for key, value in ours.items()}, torch).holds


def test_one_mask_in_fifty_may_differ_and_no_more() -> None:
    ours, torch = masks_of(50), masks_of(50)
    ours["masks"][7, 28] = False  # a third of it
    assert sam_cases.same_masks(ours, torch).holds
    ours["masks"][9, 36] = False
    assert not sam_cases.same_masks(ours, torch).holds
    fewer = {key: value[:48] for key, value in masks_of(50).items()}
    assert not sam_cases.same_masks(fewer, torch).holds
    assert not sam_cases.same_masks(torch, fewer).holds


def test_a_mask_that_came_twice_matches_once() -> None:
    torch = masks_of(50)
    ours = {key: np.concatenate([value, value[:3]]) for key, value in torch.items()}
    assert not sam_cases.same_masks(ours, torch).holds


@pytest.mark.parametrize("key", ["predicted_iou", "stability_score"])
def test_scores_count(key: str) -> None:
    ours, torch = masks_of(50), masks_of(50)
    ours[key][3] += 0.0009
    assert sam_cases.same_masks(ours, torch).holds
    ours[key][3] += 0.0002
    assert not sam_cases.same_masks(ours, torch).holds


def test_no_masks_on_one_side_is_another_result() -> None:
    none, some = masks_of(0), masks_of(5)
    assert sam_cases.same_masks(none, none).holds
    assert not sam_cases.same_masks(none, some).holds
    assert not sam_cases.same_masks(some, none).holds


def test_values_agree_relative_to_the_largest() -> None:
    torch = {"a": np.array([1000.0, 1.0]), "b": np.array([2.0])}
    assert sam_cases.same_values({"a": torch["a"] + 0.05, "b": torch["b"]}, torch).holds
    assert not sam_cases.same_values({"a": torch["a"], "b": torch["b"] + 0.05}, torch).holds
    assert not sam_cases.same_values({"a": torch["a"] * np.nan, "b": torch["b"]}, torch).holds


def test_the_photograph_is_generated_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("USS_CALTECH4", str(tmp_path))
    photo = sam_cases._photo()
    assert photo.shape == (375, 500, 3) and photo.dtype == np.uint8 and photo.std() > 10
    assert "a generated picture" in capfd.readouterr().err


# Stand-ins --------------------------------------------------------------------------------------


@pytest.mark.torch
def test_nms_keeps_what_the_documented_rule_keeps() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for _ in range(20):
        corner = rng.integers(0, 40, (60, 2))
        boxes = np.concatenate([corner, corner + rng.integers(1, 30, (60, 2))], 1)
        scores, kinds = rng.integers(0, 8, 60) / 8, rng.integers(0, 2, 60)
        kept: list[int] = []
        for i in sorted(range(60), key=lambda i: (-scores[i], i)):
            if all(kinds[i] != kinds[j] or iou(boxes[i], boxes[j]) <= 0.5 for j in kept):
                kept.append(i)
        arguments = (torch.as_tensor(x) for x in (boxes.astype(np.float32), scores, kinds))
        assert shims.batched_nms(*arguments, 0.5).tolist() == kept
    empty = shims.batched_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0), 0.5)
    assert empty.shape == (0,) and empty.dtype == torch.int64


def iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = np.prod(np.maximum(sides, 0))
    return float(shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared))


@pytest.mark.torch
def test_stand_ins_are_put_where_the_official_code_looks() -> None:
    pytest.importorskip("torch")
    code = (
        "from benchmarks import shims; shims.install(); shims.install()\n"
        "import segment_anything, mobile_sam\n"
        "from torchvision.ops.boxes import box_area\n"
        "from timm.models.layers import DropPath, to_2tuple\n"
        "import torch\n"
        "assert box_area(torch.tensor([[1., 2., 4., 6.]])).tolist() == [12.]\n"
        "assert to_2tuple(3) == (3, 3) and to_2tuple([1, 2]) == (1, 2)\n"
        "x = torch.ones(1000, 4, 4)\n"
        "drop = DropPath(0.25)\n"
        "y = drop(x)\n"
        "assert all(len(row.unique()) == 1 for row in y) and abs(y.mean() - 1) < 0.1\n"
        "assert drop.eval()(x) is x and DropPath(0.0)(x) is x\n"
    )
    if importlib.util.find_spec("segment_anything") is None:
        pytest.skip("the official code is not installed (make judge)")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.torch
def test_a_real_case_from_end_to_end() -> None:
    from sam import weights

    if any(importlib.util.find_spec(name) is None for name in sam_cases.SUITE.needs):
        pytest.skip("the official code is not installed (make judge)")
    path = weights.cache_folder() / weights.manifest()["fetched"]["file"]
    if not path.is_file():
        pytest.skip(f"{path} is not there; run: python -m uss weights")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "sam", "--json", "--runs", "1", "--only"]
        + ["tiny_vit_encoder", "mask_decoder_64"],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [case["name"] for case in found] == ["tiny_vit_encoder", "mask_decoder_64"]
    assert all(case["same_result"] and set(case) >= EXACT_KEYS for case in found)
