"""The operations of ``core.nn.inference`` in plain Jittor, for CUDA and to test the CPU kernels.

Same arguments and results; see there for the meaning.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from core.runtime import jt, nn

Var = Any


def activate(x: Var, activation: str) -> Var:
    if activation == "relu":
        return nn.relu(x)
    return nn.gelu(x) if activation == "gelu" else x


def linear(x: Var, weight: Var, bias: Var | None, activation: str, residual: Var | None) -> Var:
    y = nn.matmul_transpose(x, weight)
    if bias is not None:
        y = y + bias
    if residual is not None:
        y = y + residual
    return activate(y, activation)


def layer_norm(x: Var, weight: Var, bias: Var, eps: float, activation: str) -> Var:
    # Two passes: Jittor's own LayerNorm takes E[x^2] - E[x]^2 and is off by 5e-2 at a mean of 100.
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred * centred).mean(-1, keepdims=True)
    return activate(centred / jt.sqrt(variance + eps) * weight + bias, activation)


def conv2d(
    x: Var,
    weight: Var,
    bias: Var | None,
    stride: int,
    padding: int,
    activation: str,
    channels_first: bool,
) -> Var:
    planes = x if channels_first else x.permute(0, 3, 1, 2)
    y = nn.conv2d(planes, weight, bias, stride=stride, padding=padding)
    return activate(y.permute(0, 2, 3, 1), activation)


def depthwise3x3(x: Var, weight: Var, bias: Var, stride: int, activation: str) -> Var:
    channels = weight.shape[0]
    y = nn.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride=stride, padding=1, groups=channels)
    return activate(y.permute(0, 2, 3, 1), activation)


def attention(q: Var, k: Var, v: Var, heads: int, scale: float) -> Var:
    batch, queries, inner = q.shape
    q, k, v = (t.reshape(t.shape[0], t.shape[1], heads, -1).permute(0, 2, 1, 3) for t in (q, k, v))
    mixed = nn.softmax(scale * jt.matmul(q, k.transpose(0, 1, 3, 2)), dim=-1)
    return jt.matmul(mixed, v).permute(0, 2, 1, 3).reshape(batch, queries, inner)


def window_attention(
    qkv: Var,
    pad_row: Var,
    heads: int,
    side: int,
    scale: float,
    head_major: bool,
    offset_table: Var | None,
    rel_h: Var | None,
    rel_w: Var | None,
) -> Var:
    batch, height, width, packed = qkv.shape
    inner, dim = packed // 3, packed // 3 // heads
    rows, columns = -(-height // side), -(-width // side)
    # Pad the map to whole windows: the row stands for every token outside.
    full = jt.zeros((batch, rows * side, columns * side, packed)) + pad_row
    full[:, :height, :width] = qkv
    tokens = full.reshape(batch, rows, side, columns, side, packed).permute(0, 1, 3, 2, 4, 5)
    tokens = tokens.reshape(batch * rows * columns, side * side, packed)
    if head_major:
        split = tokens.reshape(-1, side * side, heads, 3, dim).permute(3, 0, 2, 1, 4)
    else:
        split = tokens.reshape(-1, side * side, 3, heads, dim).permute(2, 0, 3, 1, 4)
    q, k, v = split[0], split[1], split[2]
    scores = scale * jt.matmul(q, k.transpose(0, 1, 3, 2))
    if offset_table is not None:
        scores = scores + offset_table[:, jt.array(_offset_indices(side))]
    if rel_h is not None:
        scores = scores + _decomposed_bias(q, rel_h, rel_w, side)
    y = jt.matmul(nn.softmax(scores, dim=-1), v).permute(0, 2, 1, 3)
    # Windows back to the map, without the padding.
    y = y.reshape(batch, rows, columns, side, side, inner).permute(0, 1, 3, 2, 4, 5)
    return y.reshape(batch, rows * side, columns * side, inner)[:, :height, :width]


def _offset_indices(side: int) -> np.ndarray:
    """int32 (side^2, side^2): |dy| * side + |dx| of each pair of tokens."""
    y, x = np.divmod(np.arange(side * side, dtype=np.int32), side)
    return np.abs(y[:, None] - y) * side + np.abs(x[:, None] - x)


def _decomposed_bias(q: Var, rel_h: Var, rel_w: Var, side: int) -> Var:
    """(n, heads, side^2, side^2): the query's products with the rows for its two distances."""
    n, heads, _, dim = q.shape
    place = np.arange(side, dtype=np.int32)
    distance = jt.array((place[:, None] - place + side - 1).reshape(-1))
    table_h, table_w = (r[distance].reshape(side, side, dim) for r in (rel_h, rel_w))
    grid = q.reshape(n * heads, side, side, dim)
    by_h = jt.linalg.einsum("byxc,ykc->byxk", grid, table_h)
    by_w = jt.linalg.einsum("byxc,xkc->byxk", grid, table_w)
    bias = by_h.unsqueeze(-1) + by_w.unsqueeze(-2)
    return bias.reshape(n, heads, side * side, side * side)
