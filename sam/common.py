"""Layers that the Segment Anything networks share, computed by ``core.nn.inference``."""

from __future__ import annotations

from typing import Any

from core.nn import inference
from core.runtime import jt, nn

Var = Any


def to_planes(x: Var) -> Var:
    """Channels-last (B, h, w, C) -> (B, C, h, w)."""
    batch, height, width, channels = x.shape
    flat = inference.transpose(x.reshape(batch, height * width, channels))
    return flat.reshape(batch, channels, height, width)


class Linear(nn.Linear):
    """``nn.Linear`` with the activation and the residual sum in the same pass."""

    def execute(self, x: Var, activation: str = "", residual: Var | None = None) -> Var:
        """(..., in) -> (..., out): activation(W x + b + residual)."""
        return inference.linear(x, self.weight, self.bias, activation, residual)


class LayerNorm(nn.Module):
    """Layer norm over the last axis; mean first, then variance, so that nothing cancels.

    Args:
        channels: size of the last axis.
        eps: 1e-5 as PyTorch's default; SAM's image encoder and its 2-D norms use 1e-6.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        self.weight = jt.ones(channels)
        self.bias = jt.zeros(channels)
        self.eps = eps

    def execute(self, x: Var, activation: str = "") -> Var:
        """(..., C) -> (..., C)."""
        return inference.layer_norm(x, self.weight, self.bias, self.eps, activation)


def layer_norm_2d(channels: int) -> LayerNorm:
    """SAM's ``LayerNorm2d``. Maps are channels-last here, so it is the norm of the last axis."""
    return LayerNorm(channels, eps=1e-6)


class Activation(nn.Module):
    """Stands where the official code has an activation, so that the layers behind it have the
    numbers that checkpoint keys give them. The layer before it computes the activation.
    """

    def execute(self, x: Var) -> Var:
        raise NotImplementedError("the activation is fused into the layer before it")


class Conv2d(nn.Conv2d):
    """Convolution on channels-last maps: (B, H, W, in) -> (B, h, w, out)."""

    def execute(self, x: Var, activation: str = "", channels_first: bool = False) -> Var:
        return inference.conv2d(
            x,
            self.weight,
            self.bias,
            self.stride[0],
            self.padding[0],
            activation,
            channels_first,
        )


class MLP(nn.Module):
    """Linear layers with ReLU between them (keys ``layers.N``): mask vectors and predicted IoU."""

    def __init__(self, inputs: int, hidden: int, outputs: int, depth: int) -> None:
        sizes = [inputs, *[hidden] * (depth - 1), outputs]
        self.layers = nn.ModuleList([Linear(a, b) for a, b in zip(sizes, sizes[1:])])

    def execute(self, x: Var) -> Var:
        """(..., inputs) -> (..., outputs)."""
        *hidden, last = list(self.layers)
        for layer in hidden:
            x = layer(x, "relu")
        return last(x)


class Neck(nn.Sequential):
    """1x1 and 3x3 convolution, each with layer norm, to the embedding's width (keys 0-3)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(
            Conv2d(channels, out_channels, 1, bias=False),
            layer_norm_2d(out_channels),
            Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            layer_norm_2d(out_channels),
        )

    def execute(self, x: Var) -> Var:
        """(B, h, w, channels) -> (B, out_channels, h, w)."""
        for layer in self:
            x = layer(x)
        return to_planes(x)
