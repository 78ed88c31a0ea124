"""ResNet trunk with torchvision's key names, shared by every network here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from core.errors import UserError
from core.nn.layers import BatchNorm, Conv2d
from core.runtime import jt, nn

Var = Any


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = BatchNorm(width)
        self.conv2 = Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = BatchNorm(width)
        self.downsample = _shortcut(inputs, width * self.expansion, stride)

    def execute(self, x: Var) -> Var:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.bn1(self.conv1(x), relu=True)
        return self.bn2(self.conv2(y), shortcut, relu=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride), 1x1 convolutions with a shortcut; 4 times as wide."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(inputs, width, 1, bias=False)
        self.bn1 = BatchNorm(width)
        self.conv2 = Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = BatchNorm(width)
        self.conv3 = Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = BatchNorm(width * self.expansion)
        self.downsample = _shortcut(inputs, width * self.expansion, stride)

    def execute(self, x: Var) -> Var:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.bn1(self.conv1(x), relu=True)
        y = self.bn2(self.conv2(y), relu=True)
        return self.bn3(self.conv3(y), shortcut, relu=True)


@dataclass(frozen=True)
class Trunk:
    """What tells one ResNet from another."""

    block: type
    blocks: tuple[int, int, int, int]
    channels: tuple[int, int, int, int]


TRUNKS = {
    "resnet18": Trunk(BasicBlock, (2, 2, 2, 2), (64, 128, 256, 512)),
    "resnet50": Trunk(Bottleneck, (3, 4, 6, 3), (256, 512, 1024, 2048)),
}


class ResNet(nn.Module):
    """The trunk alone: (B,3,H,W) float32, normalised -> maps at strides 4, 8, 16 and 32.

    Networks with heads derive from this class, so that the trunk's keys (``conv1.weight``,
    ``layer1.0...``) lie at the top level of their state, where published checkpoints have them.
    Convolutions start Kaiming-normal (fan-out) from Jittor's random generator, batch norms with
    weight 1 and bias 0.
    """

    def __init__(self, arch: str) -> None:
        super().__init__()
        if arch not in TRUNKS:
            raise UserError(f"arch must be one of {', '.join(sorted(TRUNKS))}, not {arch!r}")
        variant = TRUNKS[arch]
        self.arch = arch
        self.channels = variant.channels
        self.conv1 = Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = BatchNorm(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = 64
        for stage, (count, channels) in enumerate(zip(variant.blocks, variant.channels), start=1):
            stride = 1 if stage == 1 else 2
            setattr(self, f"layer{stage}", _stage(variant.block, inputs, channels, count, stride))
            inputs = channels
        initialise(self)

    def trunk(self, x: Var) -> list[Var]:
        """[c1, c2, c3, c4], ``self.channels`` wide; c1 is ceil(H/4) x ceil(W/4), each next half."""
        x = self.maxpool(self.bn1(self.conv1(x), relu=True))
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps


def initialise(module: Any) -> None:
    """Kaiming-normal (fan-out) weights for every convolution below ``module``."""
    for layer in module.modules():
        if isinstance(layer, Conv2d):
            outputs, _, rows, cols = layer.weight.shape
            std = math.sqrt(2.0 / (outputs * rows * cols))
            layer.weight = jt.init.gauss(layer.weight.shape, "float32", 0.0, std)


def _stage(block: Any, inputs: int, channels: int, count: int, stride: int) -> Any:
    width = channels // block.expansion
    first = block(inputs, width, stride)
    return nn.Sequential(first, *(block(channels, width, 1) for _ in range(count - 1)))


def _shortcut(inputs: int, outputs: int, stride: int) -> Any:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(Conv2d(inputs, outputs, 1, stride=stride, bias=False), BatchNorm(outputs))
