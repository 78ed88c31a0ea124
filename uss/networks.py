"""Networks of finished stages for inference: what a checkpoint holds is read from the checkpoint
itself.

A checkpoint of another trunk, class count or stage ends in a :class:`UserError` before anything
runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.checkpoints.files import load_state
from core.checkpoints.torch_reader import state_dict_of
from core.config import fraction
from core.data.crops import network_input
from core.errors import UserError

State = Mapping[str, np.ndarray]

# The 3x3 block of ResNet18 has two convolutions, the bottleneck of ResNet50 three.
_BOTTLENECK_KEY = "layer1.0.conv3.weight"
_TRUNK_KEY = "layer4.0.conv1.weight"
_PLAIN_KEY = "last_layer.weight"
_UPERNET_KEY = "last_layer.conv_seg.weight"
# What training needs and inference does not; a published file may lack it.
_TRAINING_ONLY = ("projection_head.", "prototypes.")
_HEAD_KEYS = ("projection_head.0.weight", "projection_head.3.weight", "prototypes.weight")


def arch_of(state: State, path: Path) -> str:
    """Trunk of a state dict, "resnet18" or "resnet50".

    Raises:
        UserError: no trunk in it; ``path`` names the file.
    """
    if _TRUNK_KEY not in state:
        raise UserError(
            f"{path}: expected a network with a ResNet trunk, but {_TRUNK_KEY} is not in it; "
            "is this another kind of checkpoint?"
        )
    return "resnet50" if _BOTTLENECK_KEY in state else "resnet18"


def load_pixel_attention(path: Path, arch: str) -> Any:
    """``models.pass_net.PixelAttentionNet`` of a checkpoint, in eval mode.

    Raises:
        UserError: not a checkpoint of step 2.1, or one of another trunk than ``arch``.
    """
    from models.pass_net import PixelAttentionNet

    state = state_dict_of(path)
    _check_arch(arch_of(state, path), arch, path)
    if "fbg.threshold" not in state:
        raise UserError(
            f"{path}: expected a pixel-attention network, but there is no attention (fbg) in it; "
            "give the checkpoint of the pixel_attention stage"
        )
    # The head is built as wide as the file has it, so that a file with another head still loads.
    widths = [_rows(state, key) for key in _HEAD_KEYS]
    model = PixelAttentionNet(arch, *widths)
    load_state(model, state, str(path), missing_ok=_TRAINING_ONLY)
    model.eval()
    return model


def check_attention_threshold(threshold: float) -> None:
    """Refuse a threshold that would leave nothing of the attention, or that is none.

    Raises:
        UserError: outside of 0..1, such as one in percent.
    """
    fraction().require("pixel_attention.threshold", threshold)


@dataclass(frozen=True)
class SegmenterFacts:
    """What a fine-tuned network is, told from its checkpoint without building it."""

    arch: str
    """Trunk, "resnet50" or "resnet18"."""
    num_classes: int
    head_width: int | None
    """Channels inside the UPerNet; None where the head is the plain 1x1 convolution."""

    @property
    def name(self) -> str:
        """For people, as in ``method.txt``."""
        head = "1x1 convolution" if self.head_width is None else "UPerNet"
        return f"{self.arch.replace('resnet', 'ResNet')}-{head}"


def segmenter_facts(
    path: Path, arch: str | None = None, num_classes: int | None = None
) -> SegmenterFacts:
    """Trunk, head and class count of a segmenter's checkpoint; starts no Jittor.

    Args:
        path: any checkpoint file that ``core.checkpoints.torch_reader`` reads.
        arch, num_classes: what the user asked for, checked against the file; None takes any.
            ``resnet_uppernet50`` (the reference's name) also asks for the UPerNet head.

    Raises:
        UserError: not a segmentation checkpoint, or not what was asked for.
    """
    return _facts_of(state_dict_of(path), path, arch, num_classes)


def load_segmenter(
    path: Path, arch: str | None = None, num_classes: int | None = None, fixed_pool: bool = False
) -> tuple[Any, SegmenterFacts]:
    """The fine-tuned network of a checkpoint, in eval mode, and its facts.

    Args:
        path, arch, num_classes: see :func:`segmenter_facts`.
        fixed_pool: how a UPerNet pools its pyramid.

    Raises:
        UserError: not a segmentation checkpoint, or not what was asked for.
    """
    from models.pass_net import PlainSegmenter
    from models.upernet import UPerNet

    state = state_dict_of(path)
    facts = _facts_of(state, path, arch, num_classes)
    if facts.head_width is None:
        model = PlainSegmenter(facts.arch, facts.num_classes)
    else:
        model = UPerNet(facts.arch, facts.num_classes, facts.head_width, fixed_pool)
    load_state(model, state, str(path))
    model.eval()
    return model, facts


def mean_attention(model: Any, rgb: np.ndarray, resize: int, square: bool = False) -> np.ndarray:
    """(h, w) float32 in 0..1: attention of a uint8 RGB image (H, W, 3), averaged over channels, on
    the grid of the network that :func:`load_pixel_attention` gave.
    """
    from core.runtime import jt

    with jt.no_grad():
        return model.attention_map(jt.array(network_input(rgb, resize, square))).numpy()[0, 0]


def _facts_of(
    state: State, path: Path, arch: str | None, num_classes: int | None
) -> SegmenterFacts:
    trunk, needs_upernet = _parsed_arch(arch)
    found_arch = arch_of(state, path)
    if trunk is not None:
        _check_arch(found_arch, trunk, path)
    is_upernet = _UPERNET_KEY in state
    key = _UPERNET_KEY if is_upernet else _PLAIN_KEY
    if key not in state:
        raise UserError(
            f"{path}: expected a fine-tuned segmenter, but neither {_UPERNET_KEY} nor {_PLAIN_KEY} "
            "is in it; give the checkpoint that train_4.sh makes"
        )
    if needs_upernet and not is_upernet:
        raise UserError(
            f"{path}: its head is a 1x1 convolution, but {arch} was asked for; pass -a {trunk}"
        )
    found_classes = _rows(state, key) - 1
    if num_classes is not None and found_classes != num_classes:
        raise UserError(
            f"{path}: its head has {found_classes} classes, but {num_classes} were asked for; "
            f"use --set num_classes={found_classes} (test.py: --num-classes {found_classes}) or "
            f"another checkpoint"
        )
    width = int(state[key].shape[1]) if is_upernet else None
    return SegmenterFacts(found_arch, found_classes, width)


def _parsed_arch(arch: str | None) -> tuple[str | None, bool]:
    """(trunk or None, whether a UPerNet head was asked for) of ``-a``."""
    if arch is None:
        return None, False
    for trunk in ("resnet50", "resnet18"):
        if arch in (trunk, f"resnet_uppernet{trunk[6:]}", f"resnet_upernet{trunk[6:]}"):
            return trunk, arch != trunk
    raise UserError(
        f"unknown architecture {arch!r}: expected resnet50, resnet18, resnet_uppernet50 or "
        "resnet_uppernet18"
    )


def _check_arch(found: str, wanted: str, path: Path) -> None:
    if found != wanted:
        raise UserError(
            f"{path}: its trunk is a {found}, but {wanted} was asked for; "
            f"choose {found} or another checkpoint"
        )


def _rows(state: State, key: str) -> int:
    """Outputs of a layer; 1 where the file does not have it."""
    return int(state[key].shape[0]) if key in state else 1
