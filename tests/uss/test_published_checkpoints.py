"""Checkpoints as PASS publishes them, in every container, load into the right networks."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.checkpoints.files import model_state
from core.errors import UserError
from models.pass_net import PixelAttentionNet, PlainSegmenter, PretrainNet
from models.upernet import UPerNet
from tests.helpers import torch_files as files
from uss import finetune, pixel_attention, pseudo_labels
from uss.config import Heads
from uss.distance_matching import TrunkFeatures
from uss.networks import load_pixel_attention, load_segmenter, segmenter_facts
from uss.presets import preset

HEADS = Heads(hidden_mlp=16, feat_dim=8, prototypes=6)
CONFIG = replace(preset("pass50"), heads=HEADS, num_classes=2)
State = dict[str, np.ndarray]


def random_state(model: Any, seed: int) -> State:
    """Positive random values for every entry of a model."""
    rng = np.random.default_rng(seed)
    return {
        key: rng.uniform(0.1, 1, value.shape).astype(np.float32)
        for key, value in model_state(model).items()
    }


def tracked(state: State) -> State:
    """With ``module.`` prefixes and the counters that PyTorch's batch norms keep."""
    counters = {
        key.replace("running_mean", "num_batches_tracked"): np.array(500, np.int64)
        for key in state
        if key.endswith("running_mean")
    }
    return {f"module.{key}": value for key, value in {**state, **counters}.items()}


def beside() -> dict[str, Any]:
    """What a trainer keeps beside the weights."""
    group = {"lr": 0.6, "momentum": 0.9, "params": [0, 1]}
    return {
        "epoch": 200,
        "optimizer": {"state": {}, "param_groups": [group]},
        "amp": None,
        "args": argparse.Namespace(arch="resnet18", data_path=Path("/data"), shallow=[3]),
    }


def by_hand(path: Path, state: State, legacy: bool) -> Path:
    values = {str(number): value for number, value in enumerate(tracked(state).values())}
    tensors = {
        key: files.tensor(files.storage_of(str(number), value), value.shape)
        for number, (key, value) in enumerate(tracked(state).items())
    }
    content = {"state_dict": tensors, **beside()}
    if legacy:
        return files.write_legacy(path, content, values)
    return files.write_zip(path, content, {key: value.tobytes() for key, value in values.items()})


def by_torch(path: Path, state: State, legacy: bool) -> Path:
    torch = pytest.importorskip("torch")
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in tracked(state).items()}
    content = {"state_dict": tensors, **beside()}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def by_jittor(path: Path, state: State) -> Path:
    from core.runtime import jt

    content = {"state_dict": {key: jt.array(value) for key, value in state.items()}, "epoch": 200}
    jt.save(content, str(path))
    return path


WRITERS: dict[str, Callable[[Path, State], Path]] = {
    "zip": lambda path, state: by_hand(path, state, legacy=False),
    "legacy": lambda path, state: by_hand(path, state, legacy=True),
    "jittor": by_jittor,
    "torch zip": lambda path, state: by_torch(path, state, legacy=False),
    "torch legacy": lambda path, state: by_torch(path, state, legacy=True),
}
containers = pytest.mark.parametrize(
    "writer",
    [
        pytest.param(write, id=name, marks=pytest.mark.torch if "torch" in name else ())
        for name, write in WRITERS.items()
    ],
)


def assert_holds(model: Any, state: State) -> None:
    """All entries of the model that ``state`` has are equal."""
    got = model_state(model)
    shared = set(got) & set(state)
    assert len(shared) >= 100
    for key in shared:
        np.testing.assert_array_equal(got[key], state[key], err_msg=key)


@containers
def test_pretrained(tmp_path: Path, writer: Callable[[Path, State], Path]) -> None:
    state = random_state(PretrainNet("resnet18", 16, 8, 6), 0)
    path = writer(tmp_path / "pass50_pretrained.pth.tar", state)
    attention = pixel_attention.build(CONFIG, path)
    assert_holds(attention, state)
    assert "prototypes.weight" in model_state(attention)
    assert_holds(finetune.build(CONFIG, path), state)
    assert TrunkFeatures(path, "resnet18", 64)(np.zeros((64, 64, 3), np.uint8)).shape[0] == 512
    wider = replace(CONFIG, heads=replace(HEADS, prototypes=7))
    with pytest.raises(UserError, match="trained with 6 prototypes, not 7"):
        pixel_attention.build(wider, path)


@containers
def test_pixel_attention(tmp_path: Path, writer: Callable[[Path, State], Path]) -> None:
    state = random_state(PixelAttentionNet("resnet18", 16, 8, 6), 1)
    path = writer(tmp_path / "pass50_pixelatt.pth.tar", state)
    assert_holds(load_pixel_attention(path, "resnet18"), state)


@containers
def test_finetuned(tmp_path: Path, writer: Callable[[Path, State], Path]) -> None:
    state = random_state(PlainSegmenter("resnet18", 2), 2)
    path = writer(tmp_path / "pass50_finetuning.pth.tar", state)
    assert segmenter_facts(path, "resnet18", 2).name == "ResNet18-1x1 convolution"
    model, _ = load_segmenter(path)
    assert isinstance(model, PlainSegmenter)
    assert_holds(model, state)


@containers
def test_upernet(tmp_path: Path, writer: Callable[[Path, State], Path]) -> None:
    state = random_state(UPerNet("resnet18", 2, 8), 3)
    model, _ = load_segmenter(writer(tmp_path / "checkpoint.pth.tar", state))
    assert isinstance(model, UPerNet)
    assert_holds(model, state)


def test_centroids_need_no_unit_rows(tmp_path: Path) -> None:
    """The published file is (50, 512) float32, rows shorter than 1; a cosine needs unit ones."""
    centres = np.random.default_rng(4).random((50, 512)).astype(np.float32)
    centres *= np.linspace(0.577, 0.844, 50, dtype=np.float32)[:, None] / np.linalg.norm(
        centres, axis=1, keepdims=True
    )
    np.save(tmp_path / "centroids.npy", centres)
    loaded = pseudo_labels.load_centroids(tmp_path / "centroids.npy", 50, 512)
    assert loaded.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(loaded, axis=1), 1, rtol=1e-5)
    cosine = (loaded * centres).sum(1) / np.linalg.norm(centres, axis=1)
    np.testing.assert_allclose(cosine, 1, rtol=1e-5)
