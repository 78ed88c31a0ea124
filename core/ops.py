"""Inference operations that are fast on a CPU: OpenMP and oneDNN kernels through ``jt.code``; no gradients.

Jittor's generated elementwise and reduce kernels run on one thread, and its batched products do not reach oneDNN.
These kernels (C++ in ``core/kernels``) keep a block of rows in cache from the product to the activation, and read
packed or windowed inputs in place. Where CUDA is on, the same operations run in plain Jittor
(:mod:`core.plain_ops`).

Maps are channels-last, (B, H, W, C) float32. Sizes travel as shapes and data, never as source text, and inputs are
flattened to a fixed number of dimensions: each kernel is compiled once.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from core import plain_ops
from core.runtime import jt, onednn_flags

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
    if jt.flags.use_cuda:
        return plain_ops.linear(x, weight, bias, activation, residual)
    depth, width = x.shape[-1], weight.shape[0]
    _expect(weight.shape[1] == depth, "linear", x, weight)
    rows = x.reshape(-1, depth)
    out = _run(
        "linear",
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
    """Layer norm over the last axis in two passes (mean, then squared differences), then the activation.

    Args:
        x: (..., C).
        weight: (C,).
        bias: (C,).
    """
    if jt.flags.use_cuda:
        return plain_ops.layer_norm(x, weight, bias, eps, activation)
    _expect(weight.shape[0] == x.shape[-1], "layer_norm", x, weight)
    rows = x.reshape(-1, x.shape[-1])
    out = _run(
        "layer_norm",
        'layer_norm(in0_p, in1_p, in2_p, out0_p, in0_shape0, in0_shape1, data["eps"], data["activation"]);',
        rows.shape,
        [rows, weight, bias],
        eps=eps,
        activation=_ACTIVATIONS[activation],
    )
    return out.reshape(x.shape)


def transpose(x: Var) -> Var:
    """(B, M, N) -> (B, N, M)."""
    if jt.flags.use_cuda:
        return x.permute(0, 2, 1)
    batch, rows, columns = x.shape
    return _run(
        "transpose",
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
    if jt.flags.use_cuda:
        return plain_ops.conv2d(x, weight, bias, stride, padding, activation, channels_first)
    batch = x.shape[0]
    channels, height, width = x.shape[1:] if channels_first else (x.shape[3], *x.shape[1:3])
    out_channels, depth, kernel, _ = weight.shape
    _expect(depth == channels, "conv2d", x, weight)
    if kernel == 1 and stride == 1 and not channels_first:
        return linear(x, weight.reshape(out_channels, depth), bias, activation)
    size = [(n + 2 * padding - kernel) // stride + 1 for n in (height, width)]
    return _run(
        "conv",
        """
        const int channels = data["channels"], height = data["height"], width = data["width"];
        const bool first = data["channels_first"];
        const Window window = {height, width, channels, int(data["kernel"]), int(data["stride"]),
                               int(data["padding"]), int(out0_shape1), int(out0_shape2),
                               first ? width : int64_t(width) * channels, first ? 1 : channels,
                               first ? int64_t(height) * width : 1};
        conv2d(in0_p, in1_p, data["bias"] ? in2_p : nullptr, out0_p, in0_shape0, window, out0_shape3,
               data["activation"]);
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
    if jt.flags.use_cuda:
        return plain_ops.depthwise3x3(x, weight, bias, stride, activation)
    batch, height, width, channels = x.shape
    _expect(weight.shape == [channels, 1, 3, 3], "depthwise3x3", x, weight)
    size = [(n - 1) // stride + 1 for n in (height, width)]
    return _run(
        "conv",
        "depthwise3x3(in0_p, in1_p, in2_p, out0_p, in0_shape0, in0_shape1, in0_shape2, in0_shape3,"
        ' data["stride"], out0_shape1, out0_shape2, data["activation"]);',
        (batch, *size, channels),
        [x, weight, bias],
        stride=stride,
        activation=_ACTIVATIONS[activation],
    )


_ATTENTION = """
    const int heads = data["heads"], side = data["side"], dim = data["dim"];
    const AttentionShape shape = {int(in0_shape0), heads, dim, int(in0_shape1), int(in0_shape2), side,
                                  side ? side * side : int(in0_shape2), side ? side * side : int(in1_shape2),
                                  float(data["scale"])};
    const int64_t step = data["head_step"], offset = data["offset"];
    const Tokens q = {in0_p, in3_p, in0_shape3, 0, step}, k = {in1_p, in3_p, in1_shape3, offset, step},
                 v = {in2_p, in3_p, in2_shape3, 2 * offset, step};
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
    if jt.flags.use_cuda:
        return plain_ops.attention(q, k, v, heads, scale)
    batch, queries, inner = q.shape
    _expect(
        k.shape == v.shape and k.shape[0] in (1, batch) and k.shape[2] == inner,
        "attention",
        q,
        k,
        v,
    )
    # Shared keys: the queries of all prompts are one long sequence, whose products are large.
    sequences = k.shape[0]
    flat = q.reshape(sequences, 1, batch * queries // sequences, inner)
    out = _run(
        "attention",
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
        qkv: (B, H, W, 3C), packed as (3, heads, C / heads) or, with ``head_major``, (heads, 3, C / heads).
        pad_row: (3C,), what stands at the places of the last windows that lie outside the map.
        side: side of a window in tokens; side = H = W is global attention.
        offset_table: (heads, side^2), bias by |dy| * side + |dx| (TinyViT).
        rel_h: (2 side - 1, C / heads), the decomposed relative positions of ViTDet, by dy + side - 1; the bias is
            its product with the unscaled query.
        rel_w: likewise for dx.

    Returns:
        (B, H, W, C).
    """
    if jt.flags.use_cuda:
        return plain_ops.window_attention(
            qkv, pad_row, heads, side, scale, head_major, offset_table, rel_h, rel_w
        )
    batch, height, width, packed = qkv.shape
    inner, dim = packed // 3, packed // 3 // heads
    bias, first, second = 0, pad_row.reshape(1, -1), pad_row.reshape(1, -1)
    if offset_table is not None:
        _expect(offset_table.shape == [heads, side * side], "window_attention", qkv, offset_table)
        bias, first = 1, offset_table
    if rel_h is not None and rel_w is not None:
        expected = [2 * side - 1, dim]
        _expect(
            rel_h.shape == expected and rel_w.shape == expected,
            "window_attention",
            qkv,
            rel_h,
            rel_w,
        )
        bias, first, second = 2, rel_h, rel_w
    return _run(
        "attention",
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


def image_to_token(
    x: Var,
    pe: Var,
    k: Var,
    v: Var,
    heads: int,
    wq: Var,
    bq: Var,
    wo: Var,
    bo: Var,
    norm_weight: Var,
    norm_bias: Var,
    eps: float,
) -> Var:
    """LayerNorm(x + attention(queries (x + pe) wq^T + bq, keys k, values v) wo^T + bo): the image looks at tokens.

    Args:
        x: (B or 1, N, C) image places; 1 = the same for all prompts.
        pe: (1, N, C) positions.
        k: (B, T, inner) projected tokens.
        v: (B, T, inner).
        wq: (inner, C).
        wo: (C, inner).

    Returns:
        (B, N, C).
    """
    if jt.flags.use_cuda:
        return plain_ops.image_to_token(
            x, pe, k, v, heads, wq, bq, wo, bo, norm_weight, norm_bias, eps
        )
    _expect(x.shape[0] in (1, k.shape[0]) and k.shape == v.shape, "image_to_token", x, k, v)
    return _run(
        "two_way",
        """
        const TwoWay shape = {int(in2_shape0), int(in0_shape0), int(in0_shape1), int(in0_shape2),
                              int(in2_shape1), int(data["heads"]), int(in2_shape2)};
        image_to_token(shape, in0_p, in1_p, in2_p, in3_p, in4_p, in5_p, in6_p, in7_p, in8_p, in9_p,
                       data["eps"], out0_p);
        """,
        (k.shape[0], *x.shape[1:]),
        [x, pe, k, v, wq, bq, wo, bo, norm_weight, norm_bias],
        heads=heads,
        eps=eps,
    )


def token_to_image(q: Var, x: Var, pe: Var, heads: int, wk: Var, wv: Var, bv: Var) -> Var:
    """attention(queries q, keys (x + pe) wk^T, values x wv^T + bv): the tokens look at the image.

    The keys' bias is left out: it shifts all scores of a query alike, which softmax does not see.

    Args:
        q: (B, T, inner) projected tokens.
        x: (B or 1, N, C) image places.
        pe: (1, N, C) positions.
        wk: (inner, C).
        wv: (inner, C).

    Returns:
        (B, T, inner), before the output projection.
    """
    if jt.flags.use_cuda:
        return plain_ops.token_to_image(q, x, pe, heads, wk, wv, bv)
    _expect(x.shape[0] in (1, q.shape[0]), "token_to_image", q, x)
    return _run(
        "two_way",
        """
        const TwoWay shape = {int(in0_shape0), int(in1_shape0), int(in1_shape1), int(in1_shape2),
                              int(in0_shape1), int(data["heads"]), int(in0_shape2)};
        token_to_image(shape, in1_p, in2_p, in0_p, in3_p, in4_p, in5_p, out0_p);
        """,
        q.shape,
        [q, x, pe, wk, wv, bv],
        heads=heads,
    )


def upscale_masks(
    x: Var,
    w1: Var,
    b1: Var,
    norm_weight: Var,
    norm_bias: Var,
    eps: float,
    w2: Var,
    b2: Var,
    hyper: Var,
) -> Var:
    """Two transposed 2 x 2 convolutions of stride 2 and the product with the masks' vectors.

    The first is followed by layer norm over the channels and GELU, the second by GELU.

    Args:
        x: (B, h, w, C).
        w1: (C, middle, 2, 2), as in ``nn.ConvTranspose2d``.
        w2: (middle, last, 2, 2).
        hyper: (B, M, last).

    Returns:
        (B, M, 4h, 4w).
    """
    if jt.flags.use_cuda:
        return plain_ops.upscale_masks(x, w1, b1, norm_weight, norm_bias, eps, w2, b2, hyper)
    batch, height, width, _ = x.shape
    _expect(
        hyper.shape[0] == batch and hyper.shape[2] == w2.shape[1], "upscale_masks", x, hyper, w2
    )
    return _run(
        "upscale",
        """
        const Upscale shape = {int(in0_shape0), int(in0_shape1), int(in0_shape2), int(in0_shape3),
                               int(in1_shape1), int(in5_shape1), int(in7_shape1)};
        upscale_masks(shape, in0_p, in1_p, in2_p, in3_p, in4_p, data["eps"], in5_p, in6_p, in7_p, out0_p);
        """,
        (batch, hyper.shape[1], 4 * height, 4 * width),
        [x, w1, b1, norm_weight, norm_bias, w2, b2, hyper],
        eps=eps,
    )


# ---------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=None)
def _header(name: str) -> str:
    return "".join((_KERNELS / f"{part}.h").read_text("utf-8") for part in ("common", name))


@functools.lru_cache(maxsize=None)
def _compile_options() -> dict[str, int]:
    return {f"FLAGS: {onednn_flags()} ": 1}


def _run(name: str, call: str, shape: Any, inputs: list[Var], **data: float) -> Var:
    """A new float32 Var of ``shape``, filled by the C++ statement ``call`` with ``core/kernels/<name>.h`` included."""
    out = jt.code(
        shape,
        "float32",
        inputs,
        cpu_header=_header(name),
        cpu_src=call,
        data={key: float(value) for key, value in data.items()},
    )
    out.compile_options = _compile_options()
    return out


def _expect(holds: bool, name: str, *inputs: Var) -> None:
    """The kernels trust their sizes: check them here, in a line that names them."""
    if not holds:
        raise ValueError(f"{name}: shapes {[list(x.shape) for x in inputs]} do not fit together")
