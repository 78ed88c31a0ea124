"""UPerNet: ResNet trunk, pyramid pooling and feature pyramid (Xiao et al. 2018, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.nn.layers import BatchNorm, Conv2d, adaptive_avg_pool2d, resize_bilinear
from core.runtime import jt, nn
from models.resnet import ResNet, initialise

Var = Any

POOL_BINS = (1, 2, 3, 6)
HEAD_WIDTH = 512
DROPOUT = 0.1


class UPerNet(ResNet):
    """(B,3,H,W) float32, normalised -> logits (B, num_classes+1, H/4, W/4). Index 0 is what
    belongs to no class.

    Args:
        arch: a key of ``models.resnet.TRUNKS``.
        num_classes: classes without background.
        head_width: channels inside the head, 512 in the reference. On a CPU nine tenths of the time
            go into the head, and that time grows with the square of this width.
        fixed_pool: see :func:`core.nn.layers.adaptive_avg_pool2d`.
    """

    def __init__(
        self,
        arch: str,
        num_classes: int,
        head_width: int = HEAD_WIDTH,
        fixed_pool: bool = False,
    ) -> None:
        super().__init__(arch)
        self.num_classes = num_classes
        self.last_layer = UPerHead(self.channels, head_width, num_classes + 1, fixed_pool)
        initialise(self)

    def execute(self, x: Var) -> Var:
        return self.last_layer(self.trunk(x))


class UPerHead(nn.Module):
    """Maps [c1..c4], finest first -> logits (B,outputs,h,w) at the size of c1."""

    def __init__(
        self, in_channels: Sequence[int], width: int, outputs: int, fixed_pool: bool = False
    ) -> None:
        super().__init__()
        deep = in_channels[-1]
        self.psp_modules = nn.Sequential(
            *(
                nn.Sequential(_AdaptivePool(bins, fixed_pool), ConvBnRelu(deep, width, 1))
                for bins in POOL_BINS
            )
        )
        self.bottleneck = ConvBnRelu(deep + len(POOL_BINS) * width, width, 3)
        self.lateral_convs = nn.Sequential(*(ConvBnRelu(c, width, 1) for c in in_channels[:-1]))
        self.fpn_convs = nn.Sequential(*(ConvBnRelu(width, width, 3) for _ in in_channels[:-1]))
        self.fpn_bottleneck = ConvBnRelu(len(in_channels) * width, width, 3)
        self.dropout = nn.Dropout(DROPOUT, is_train=True)
        self.conv_seg = Conv2d(width, outputs, 1)

    def execute(self, maps: Sequence[Var]) -> Var:
        # Add what lies above to each level, top down.
        levels = [lateral(m) for lateral, m in zip(self.lateral_convs, maps)]
        levels.append(self.pyramid(maps[-1]))
        for i in range(len(levels) - 2, -1, -1):
            levels[i] = levels[i] + resize_bilinear(levels[i + 1], _size_hw(levels[i]))
        # Join all levels at the finest size; the top one has no convolution of its own.
        fine = [conv(level) for conv, level in zip(self.fpn_convs, levels)] + [levels[-1]]
        size = _size_hw(fine[0])
        joined = jt.concat([resize_bilinear(level, size) for level in fine], 1)
        return self.conv_seg(self.dropout(self.fpn_bottleneck(joined)))

    def pyramid(self, x: Var) -> Var:
        """Pyramid pooling, (B,C4,h,w) -> (B,width,h,w): the map is joined with its means over grids
        of 1, 2, 3 and 6 cells a side.
        """
        pooled = [resize_bilinear(branch(x), _size_hw(x)) for branch in self.psp_modules]
        return self.bottleneck(jt.concat([x, *pooled], 1))


class ConvBnRelu(nn.Module):
    """Convolution without bias that keeps the size, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = BatchNorm(outputs)

    def execute(self, x: Var) -> Var:
        return self.bn(self.conv(x), relu=True)


class _AdaptivePool(nn.Module):
    def __init__(self, bins: int, fixed: bool) -> None:
        super().__init__()
        self.bins, self.fixed = bins, fixed

    def execute(self, x: Var) -> Var:
        return adaptive_avg_pool2d(x, self.bins, self.fixed)


def _size_hw(x: Var) -> tuple[int, int]:
    return (x.shape[2], x.shape[3])
