"""Flags of ``python -m uss STAGE``: what they set, and what the stage is given."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

import uss.__main__ as command_line
from core.version import VERSION
from core.work.claims import IMAGE_TIMEOUT_S
from uss import cluster, distance_matching, pixel_attention, predict, pretrain, pseudo_labels


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """(config, run, further arguments) of each stage that was run; none does anything."""
    calls: list[tuple[Any, ...]] = []

    def run(config: Any, data: Path, run: Any, **more: Any) -> None:
        calls.append((config, run, more))

    stages = (cluster, distance_matching, pixel_attention, predict, pretrain, pseudo_labels)
    for stage in stages:
        monkeypatch.setattr(stage, "run", run)
    return calls


def call(tmp_path: Path, *arguments: str) -> int:
    places = ["--data", str(tmp_path), "--run", str(tmp_path / "run")]
    return command_line.main([arguments[0], *places, *arguments[1:]])


@pytest.mark.parametrize(
    ("flags", "shallow", "weights"),
    [
        ([], (3,), (1, 1)),
        (["--shallow", "3", "2", "1"], (3, 2, 1), (1, 1, 1, 1)),
        (["--shallow", "1"], (1,), (1, 1)),
        (["--shallow"], (), (1,)),
        (["--shallow", "2", "3", "--weights", "1", "0.5", "2"], (2, 3), (1, 0.5, 2)),
    ],
)
def test_shallow_stages(
    tmp_path: Path,
    called: list[tuple[Any, ...]],
    flags: list[str],
    shallow: tuple[int, ...],
    weights: tuple[float, ...],
) -> None:
    assert call(tmp_path, "pretrain", "--preset", "pass50", *flags) == 0
    config = called[0][0]
    assert config.arch == "resnet18"
    assert (config.pretrain.shallow, config.pretrain.loss_weights) == (shallow, weights)


# What all stages that work image by image take, where nothing is asked for.
PER_IMAGE = {"image_timeout_s": IMAGE_TIMEOUT_S, "verify": False}


def test_pseudo_label_flags(tmp_path: Path, called: list[tuple[Any, ...]]) -> None:
    files = ["--pretrained", "a.pth.tar", "--centroids", "c.npy"]
    assert call(tmp_path, "pseudo-labels", "--mode", "train", "-t", "0.41", *files) == 0
    config, run, more = called[0]
    assert config.pseudo_labels.threshold == 0.41 and more == {"mode": "train", **PER_IMAGE}
    assert (run.given_checkpoint, run.given_centroids) == (Path("a.pth.tar"), Path("c.npy"))
    assert call(tmp_path, "pseudo-labels") == 0
    assert called[1][0].pseudo_labels.threshold < 0 and called[1][2] == {"mode": "all", **PER_IMAGE}


def test_attention_threshold_flag(tmp_path: Path, called: list[tuple[Any, ...]]) -> None:
    """Training and clustering cut the attention off alike, as the reference's scripts do."""
    for command in ("pixel-attention", "cluster"):
        assert call(tmp_path, command, "--threshold", "0.34") == 0
    assert [config.pixel_attention.threshold for config, *_ in called] == [0.34, 0.34]


def test_prediction_flags(tmp_path: Path, called: list[tuple[Any, ...]]) -> None:
    assert call(tmp_path, "predict", "--mode", "test", "--match-file", "match.json") == 0
    assert called[0][2] == {
        "split": "test",
        "match_file": Path("match.json"),
        **PER_IMAGE,
    }
    assert call(tmp_path, "predict") == 0
    assert called[1][2] == {"split": "auto", "match_file": None, **PER_IMAGE}
    assert call(tmp_path, "distance-matching", "--preset", "luss50_r18") == 0
    assert called[2][0].arch == "resnet18" and called[2][2] == {
        "split": "validation",
        "keep_features": False,
    }
    assert call(tmp_path, "cluster", "--keep-features") == 0
    assert called[3][2] == {"keep_features": True}


def test_a_flag_and_its_setting(tmp_path: Path, called: list[tuple[Any, ...]]) -> None:
    setting = ["--set", "pseudo_labels.threshold=0.5"]
    assert call(tmp_path, "pseudo-labels", *setting) == 0
    assert called[0][0].pseudo_labels.threshold == 0.5
    assert call(tmp_path, "predict", "--preset", "luss50_r18", "--arch", "resnet50") == 2


@pytest.mark.parametrize("pipeline", ["uss", "wsss"])
def test_version(pipeline: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module(f"{pipeline}.__main__").main
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{pipeline} {VERSION}\n"
