"""MobileSAM's image encoder TinyViT-5M: an MBConv stage, then three of windowed attention.

Keys as in MobileSAM, with ``Conv2d_BN`` pairs ``.c`` (convolution) and ``.bn``. Inference only:
batch norm always uses its running statistics and is folded into the convolution. The classifier
(``norm_head``, ``head``) that the published checkpoint still carries is not part of the encoder.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from core.nn import inference
from core.runtime import jt, nn
from sam.common import Activation, Conv2d, LayerNorm, Linear, Neck

Var = Any

_EXPAND = 4  # widening inside MBConv and MLP


class TinyViT(nn.Module):
    """TinyViT with a neck to 256 channels; stride 16 in all (the last downsampling keeps the size).

    Args:
        img_size: side of the square input in pixels.
        embed_dims, depths, num_heads, window_sizes: per stage; stage 0 is convolutional.
        out_chans: channels of the embedding.
    """

    def __init__(
        self,
        img_size: int = 1024,
        embed_dims: tuple[int, ...] = (64, 128, 160, 320),
        depths: tuple[int, ...] = (2, 2, 6, 2),
        num_heads: tuple[int, ...] = (2, 4, 5, 10),
        window_sizes: tuple[int, ...] = (7, 7, 14, 7),
        out_chans: int = 256,
    ) -> None:
        self.img_size = img_size
        self.patch_embed = PatchEmbed(embed_dims[0])
        stages: list[Any] = []
        for i, dim in enumerate(embed_dims):
            block = (
                [MBConv(dim) for _ in range(depths[i])]
                if i == 0
                else [TinyViTBlock(dim, num_heads[i], window_sizes[i]) for _ in range(depths[i])]
            )
            following = embed_dims[i + 1] if i + 1 < len(embed_dims) else None
            stages.append(Stage(block, dim, following))
        self.layers = nn.ModuleList(stages)
        self.neck = Neck(embed_dims[-1], out_chans)

    def execute(self, x: Var) -> Var:
        """float32 (B, 3, s, s), normalised -> (B, out_chans, s / 16, s / 16), s = img_size."""
        with jt.no_grad():
            x = self.patch_embed(x)
            for stage in self.layers:
                x = stage(x)
            x = self.neck(x)
            x.sync()
        return x


class ConvBN(nn.Module):
    """Convolution without bias (key ``c``) and batch norm (key ``bn``) as one convolution."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        self.c = Conv2d(
            inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs)
        self.stride, self.depthwise = stride, groups > 1

    def folded(self) -> tuple[Var, Var]:
        """Weight (O, I / groups, k, k) and bias (O,) with the running statistics inside.

        Done anew at every call, by numpy: it costs microseconds, needs no kernel, and cannot go
        stale.
        """
        bn = self.bn
        gain, shift, mean, variance = (
            v.numpy() for v in (bn.weight, bn.bias, bn.running_mean, bn.running_var)
        )
        scale = gain / np.sqrt(variance + np.float32(bn.eps))
        weight = self.c.weight.numpy() * scale.reshape(-1, 1, 1, 1)
        return jt.array(weight), jt.array(shift - mean * scale)

    def execute(
        self,
        x: Var,
        activation: str = "",
        residual: Var | None = None,
        channels_first: bool = False,
    ) -> Var:
        """(B, H, W, I) -> (B, h, w, O); a residual only with a 1 x 1 kernel."""
        weight, bias = self.folded()
        if self.depthwise:
            return inference.depthwise3x3(x, weight, bias, self.stride, activation)
        if residual is not None:
            return inference.linear(
                x, weight.reshape(weight.shape[0], -1), bias, activation, residual
            )
        padding = weight.shape[-1] // 2
        return inference.conv2d(x, weight, bias, self.stride, padding, activation, channels_first)


class PatchEmbed(nn.Module):
    """Two 3 x 3 convolutions of stride 2 with GELU between them (keys ``seq.0``, ``seq.2``)."""

    def __init__(self, dim: int) -> None:
        self.seq = nn.Sequential(
            ConvBN(3, dim // 2, 3, 2), Activation(), ConvBN(dim // 2, dim, 3, 2)
        )

    def execute(self, x: Var) -> Var:
        """(B, 3, H, W) -> (B, H / 4, W / 4, dim)."""
        return self.seq[2](self.seq[0](x, "gelu", channels_first=True))


class MBConv(nn.Module):
    """Widen, depthwise convolution, narrow, residual; GELU after each."""

    def __init__(self, dim: int) -> None:
        hidden = dim * _EXPAND
        self.conv1 = ConvBN(dim, hidden)
        self.conv2 = ConvBN(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvBN(hidden, dim)

    def execute(self, x: Var) -> Var:
        """(B, H, W, C) -> (B, H, W, C)."""
        return self.conv3(self.conv2(self.conv1(x, "gelu"), "gelu"), "gelu", residual=x)


class PatchMerging(nn.Module):
    """Between two stages: 1 x 1, depthwise 3 x 3 (stride 2, before the last stage 1), 1 x 1."""

    def __init__(self, dim: int, out_dim: int) -> None:
        # TinyViT's own rule: before stages of these widths MobileSAM keeps the resolution.
        stride = 1 if out_dim in (320, 448, 576) else 2
        self.conv1 = ConvBN(dim, out_dim)
        self.conv2 = ConvBN(out_dim, out_dim, 3, stride, groups=out_dim)
        self.conv3 = ConvBN(out_dim, out_dim)

    def execute(self, x: Var) -> Var:
        """(B, H, W, dim) -> (B, h, w, out_dim)."""
        return self.conv3(self.conv2(self.conv1(x, "gelu"), "gelu"))


class Stage(nn.Module):
    """Blocks of one width and the downsampling to the next (key ``downsample``)."""

    def __init__(self, blocks: list[Any], dim: int, out_dim: int | None) -> None:
        self.blocks = nn.ModuleList(blocks)
        self.downsample = PatchMerging(dim, out_dim) if out_dim is not None else None

    def execute(self, x: Var) -> Var:
        """(B, H, W, dim) -> (B, h, w, out_dim)."""
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class TinyViTBlock(nn.Module):
    """Windowed attention, a depthwise convolution across the windows, MLP."""

    def __init__(self, dim: int, num_heads: int, side: int) -> None:
        self.attn = Attention(dim, num_heads, side)
        self.local_conv = ConvBN(dim, dim, 3, groups=dim)
        self.mlp = Mlp(dim, dim * _EXPAND)

    def execute(self, x: Var) -> Var:
        """(B, H, W, C) -> (B, H, W, C)."""
        return self.mlp(self.local_conv(self.attn(x)))


class Attention(nn.Module):
    """Windowed attention with a learned bias per head and absolute offset, residual included.

    The official code pads the map with zeros *before* the norm: a padded token is the norm's bias.
    """

    def __init__(self, dim: int, num_heads: int, side: int) -> None:
        self.num_heads, self.side = num_heads, side
        self.scale = (dim // num_heads) ** -0.5
        self.norm = LayerNorm(dim)
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        # By |dy| * side + |dx|, which is the official order, that of first appearance.
        self.attention_biases = jt.zeros((num_heads, side * side))

    def execute(self, x: Var) -> Var:
        """(B, H, W, C) -> x + attention(x), (B, H, W, C)."""
        mixed = inference.window_attention(
            self.qkv(self.norm(x)),
            self.qkv(self.norm.bias.reshape(1, -1)).reshape(-1),
            self.num_heads,
            self.side,
            self.scale,
            head_major=True,
            offset_table=self.attention_biases,
        )
        return self.proj(mixed, residual=x)


class Mlp(nn.Module):
    """Norm, two linear layers with GELU between them, residual included."""

    def __init__(self, dim: int, hidden: int) -> None:
        self.norm = LayerNorm(dim)
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def execute(self, x: Var) -> Var:
        """(..., dim) -> x + mlp(x), (..., dim)."""
        return self.fc2(self.fc1(self.norm(x), "gelu"), residual=x)
