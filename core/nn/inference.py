"""Inference operations that are fast on a CPU: OpenMP and oneDNN kernels, without gradients.

Jittor's generated elementwise and reduce kernels run on one thread, and its batched products do not
reach oneDNN. These kernels (C++ in ``core/nn/kernels``) keep a block of rows in cache from the
product to the activation, and read packed or windowed inputs in place. Where CUDA is on, the same
operations run in plain Jittor (:mod:`core.nn.inference_plain`).

Maps are channels-last, (B, H, W, C) float32. Sizes travel as shapes and data, never as source text,
and inputs are flattened to a fixed number of dimensions: each kernel is compiled once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.nn import inference_plain
from core.nn.cpp import expect, on_cpu, run

Var = Any

_KERNELS = Path(__file__).with_name("kernels")
_ACTIVATIONS = {"": 0, "relu": 1, "gelu": 2}


def linear(
    x: Var,
    weight: Var,
    bias: Var | None = None,
    activation: str = "",
    residual: Var | None = None,
) -> Var:
    """activation(x weight^T + bias + residual).

    Args:
        x: (..., K).
        weight: (N, K), as in ``nn.Linear``.
        activation: "", "relu" or "gelu" (exact).
        residual: (..., N).
    """
    if not on_cpu():
        return inference_plain.linear(x, weight, bias, activation, residual)
    depth, width = x.shape[-1], weight.shape[0]
    expect(weight.shape[1] == depth, "linear", x, weight)
    rows = x.reshape(-1, depth)
    out = run(
        _KERNELS / "linear.h",
        'linear(in0_p, in1_p, data["bias"] ? in2_p : nullptr, data["residual"] ? in3_p : nullptr,'
        ' out0_p, in0_shape0, in1_shape0, in0_shape1, data["activation"]);',
        (rows.shape[0], width),
        [
            rows,
            weight,
            weight.reshape(-1) if bias is None else bias,
            rows if residual is None else residual.reshape(-1, width),
        ],
        bias=bias is not None,
        residual=residual is not None,
        activation=_ACTIVATIONS[activation],
    )
    return out.reshape(*x.shape[:-1], width)


def layer_norm(x: Var, weight: Var, bias: Var, eps: float, activation: str = "") -> Var:
    """Layer norm over the last axis in two passes, then the activation.

    Args:
        x: (..., C).
        weight: (C,).
        bias: (C,).
    """
    if not on_cpu():
        return inference_plain.layer_norm(x, weight, bias, eps, activation)
    expect(weight.shape[0] == x.shape[-1], "layer_norm", x, weight)
    rows = x.reshape(-1, x.shape[-1])
    out = run(
        _KERNELS / "layer_norm.h",
        "layer_norm(in0_p, in1_p, in2_p, out0_p, in0_shape0, in0_shape1, "
        'data["eps"], data["activation"]);',
        rows.shape,
        [rows, weight, bias],
        eps=eps,
        activation=_ACTIVATIONS[activation],
    )
    return out.reshape(x.shape)


def transpose(x: Var) -> Var:
    """(B, M, N) -> (B, N, M)."""
    if not on_cpu():
        return x.permute(0, 2, 1)
    batch, rows, columns = x.shape
    return run(
        _KERNELS / "transpose.h",
        "transpose(in0_p, out0_p, in0_shape0, in0_shape1, in0_shape2);",
        (batch, columns, rows),
        [x],
    )


def conv2d(
    x: Var,
    weight: Var,
    bias: Var | None = None,
    stride: int = 1,
    padding: int = 0,
    activation: str = "",
    channels_first: bool = False,
) -> Var:
    """Convolution with a square kernel, then the activation; the result is (B, h, w, O).

    Args:
        x: (B, H, W, I), or (B, I, H, W) with ``channels_first``.
        weight: (O, I, k, k), as in ``nn.Conv2d``.
    """
    if not on_cpu():
        return inference_plain.conv2d(x, weight, bias, stride, padding, activation, channels_first)
    batch = x.shape[0]
    channels, height, width = x.shape[1:] if channels_first else (x.shape[3], *x.shape[1:3])
    out_channels, depth, kernel, _ = weight.shape
    expect(depth == channels, "conv2d", x, weight)
    if kernel == 1 and stride == 1 and not channels_first:
        return linear(x, weight.reshape(out_channels, depth), bias, activation)
    size = [(n + 2 * padding - kernel) // stride + 1 for n in (height, width)]
    return run(
        _KERNELS / "conv.h",
        """
        const Window window = window_of(data["height"], data["width"], data["channels"],
                                        data["kernel"], data["stride"], data["padding"],
                                        out0_shape1, out0_shape2, data["channels_first"]);
        conv2d(in0_p, in1_p, data["bias"] ? in2_p : nullptr, out0_p, in0_shape0, window,
               out0_shape3, data["activation"]);
        """,
        (batch, *size, out_channels),
        [x, weight, weight.reshape(-1) if bias is None else bias],
        channels=channels,
        height=height,
        width=width,
        kernel=kernel,
        stride=stride,
        padding=padding,
        bias=bias is not None,
        channels_first=channels_first,
        activation=_ACTIVATIONS[activation],
    )


def depthwise3x3(x: Var, weight: Var, bias: Var, stride: int = 1, activation: str = "") -> Var:
    """Depthwise 3 x 3 convolution with padding 1, then the activation.

    Args:
        x: (B, H, W, C).
        weight: (C, 1, 3, 3).
        bias: (C,).
    """
    if not on_cpu():
        return inference_plain.depthwise3x3(x, weight, bias, stride, activation)
    batch, height, width, channels = x.shape
    expect(weight.shape == [channels, 1, 3, 3], "depthwise3x3", x, weight)
    size = [(n - 1) // stride + 1 for n in (height, width)]
    return run(
        _KERNELS / "conv.h",
        "depthwise3x3(in0_p, in1_p, in2_p, out0_p, in0_shape0, in0_shape1, in0_shape2, in0_shape3,"
        ' data["stride"], out0_shape1, out0_shape2, data["activation"]);',
        (batch, *size, channels),
        [x, weight, bias],
        stride=stride,
        activation=_ACTIVATIONS[activation],
    )


# One text for both kinds: the kernel is compiled once.
_ATTENTION = """
    const AttentionShape shape =
        attention_shape(in0_shape0, data["heads"], data["dim"], in0_shape1, in0_shape2, in1_shape2,
                        data["side"], data["scale"]);
    const int64_t step = data["head_step"], offset = data["offset"];
    const Tokens q = {in0_p, in3_p, in0_shape3, 0, step};
    const Tokens k = {in1_p, in3_p, in1_shape3, offset, step};
    const Tokens v = {in2_p, in3_p, in2_shape3, 2 * offset, step};
    attention(shape, q, k, v, data["bias"], in4_p, in5_p, out0_p);
"""


def attention(q: Var, k: Var, v: Var, heads: int, scale: float) -> Var:
    """softmax(scale q k^T) v per head.

    Args:
        q: (B, Nq, inner); head h takes the channels h * inner / heads onwards.
        k: (B or 1, Nk, inner): with 1, all prompts look at the same keys.
        v: like k.

    Returns:
        (B, Nq, inner).
    """
    if not on_cpu():
        return inference_plain.attention(q, k, v, heads, scale)
    batch, queries, inner = q.shape
    fits = k.shape == v.shape and k.shape[0] in (1, batch) and k.shape[2] == inner
    expect(fits, "attention", q, k, v)
    # Shared keys: the queries of all prompts are one long sequence, whose products are large.
    sequences = k.shape[0]
    flat = q.reshape(sequences, 1, batch * queries // sequences, inner)
    out = run(
        _KERNELS / "attention.h",
        _ATTENTION,
        flat.shape,
        [
            flat,
            k.reshape(sequences, 1, -1, inner),
            v.reshape(sequences, 1, -1, inner),
            flat.reshape(-1),
            flat.reshape(1, -1),
            flat.reshape(1, -1),
        ],
        heads=heads,
        side=0,
        dim=inner // heads,
        scale=scale,
        head_step=inner // heads,
        offset=0,
        bias=0,
    )
    return out.reshape(batch, queries, inner)


def window_attention(
    qkv: Var,
    pad_row: Var,
    heads: int,
    side: int,
    scale: float,
    head_major: bool,
    offset_table: Var | None = None,
    rel_h: Var | None = None,
    rel_w: Var | None = None,
) -> Var:
    """Self-attention inside the windows of a map, softmax(scale q k^T + bias) v, bias by position.

    Args:
        qkv: (B, H, W, 3C), packed as (3, heads, C / heads) or, with ``head_major``, as
            (heads, 3, C / heads).
        pad_row: (3C,), what stands at the places of the last windows that lie outside the map.
        side: side of a window in tokens; side = H = W is global attention.
        offset_table: (heads, side^2), bias by |dy| * side + |dx| (TinyViT).
        rel_h: (2 side - 1, C / heads), ViTDet's decomposed relative positions, by dy + side - 1;
            the bias is its product with the unscaled query.
        rel_w: likewise for dx.

    Returns:
        (B, H, W, C).
    """
    if not on_cpu():
        return inference_plain.window_attention(
            qkv, pad_row, heads, side, scale, head_major, offset_table, rel_h, rel_w
        )
    batch, height, width, packed = qkv.shape
    inner, dim = packed // 3, packed // 3 // heads
    bias, first, second = 0, pad_row.reshape(1, -1), pad_row.reshape(1, -1)
    if offset_table is not None:
        expect(offset_table.shape == [heads, side * side], "window_attention", qkv, offset_table)
        bias, first = 1, offset_table
    if rel_h is not None and rel_w is not None:
        fits = rel_h.shape == rel_w.shape == [2 * side - 1, dim]
        expect(fits, "window_attention", qkv, rel_h, rel_w)
        bias, first, second = 2, rel_h, rel_w
    return run(
        _KERNELS / "attention.h",
        _ATTENTION,
        (batch, height, width, inner),
        [qkv, qkv, qkv, pad_row, first, second],
        heads=heads,
        side=side,
        dim=dim,
        scale=scale,
        head_step=3 * dim if head_major else dim,
        offset=dim if head_major else inner,
        bias=bias,
    )
