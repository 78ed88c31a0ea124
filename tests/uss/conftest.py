"""Checkpoints of small networks with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def attention_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet18 pixel-attention network with random weights."""
    from core.checkpoint import model_state, save_checkpoint
    from core.runtime import jt
    from models.pass_net import PixelAttentionNet

    jt.sync_all()  # what other tests still have to draw must not draw from this seed
    jt.set_global_seed(5)
    model = PixelAttentionNet("resnet18", hidden_mlp=8, feat_dim=4, prototypes=6)
    folder = tmp_path_factory.mktemp("attention")
    return save_checkpoint(folder, {"state_dict": model_state(model)})
