"""The operations that take most of the mask decoder's time, each fused into one CPU kernel. On CUDA
plain Jittor computes the same.

A few tokens and thousands of image places attend to each other here. Instead of projecting all
places, the few tokens are projected: (x Wq^T) k^T = x (k Wq)^T, and a v Wo^T = a (v Wo^T). So no
array of the size (places, inner) is made for a prompt, and each block of places is read once and
worked on while it is in the cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.nn import inference_plain
from core.nn.cpp import expect, on_cpu, run
from core.runtime import jt, nn

Var = Any

_KERNELS = Path(__file__).with_name("kernels")
_CHANNELS = 16  # the kernels take the channels of a place in whole vectors


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
    """Attention of the image places to the tokens, with the residual sum and the layer norm.

    LayerNorm(x + attention(queries (x + pe) wq^T + bq, keys k, values v) wo^T + bo).

    Args:
        x: (B or 1, N, C) image places; 1 where they are the same for all prompts.
        pe: (1, N, C) positions.
        k: (B, T, inner) projected tokens.
        v: (B, T, inner).
        wq: (inner, C).
        wo: (C, inner).

    Returns:
        (B, N, C).
    """
    if not on_cpu():
        return _plain_image_to_token(
            x, pe, k, v, heads, wq, bq, wo, bo, norm_weight, norm_bias, eps
        )
    fits = x.shape[0] in (1, k.shape[0]) and k.shape == v.shape and x.shape[2] % _CHANNELS == 0
    expect(fits, "image_to_token", x, k, v)
    return run(
        _KERNELS / "two_way.h",
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
    """Attention of the tokens to the image: queries q, keys (x + pe) wk^T, values x wv^T + bv.

    The keys have no bias here. It would shift all scores of a query alike, and softmax does not
    change by that.

    Args:
        q: (B, T, inner) projected tokens.
        x: (B or 1, N, C) image places.
        pe: (1, N, C) positions.
        wk: (inner, C).
        wv: (inner, C).

    Returns:
        (B, T, inner), before the output projection.
    """
    if not on_cpu():
        return _plain_token_to_image(q, x, pe, heads, wk, wv, bv)
    expect(x.shape[0] in (1, q.shape[0]) and x.shape[2] % _CHANNELS == 0, "token_to_image", q, x)
    return run(
        _KERNELS / "two_way.h",
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
    if not on_cpu():
        return _plain_upscale_masks(x, w1, b1, norm_weight, norm_bias, eps, w2, b2, hyper)
    batch, height, width, _ = x.shape
    fits = hyper.shape[0] == batch and hyper.shape[2] == w2.shape[1] and w2.shape[1] % 4 == 0
    expect(fits, "upscale_masks", x, hyper, w2)
    return run(
        _KERNELS / "upscale.h",
        """
        const Upscale shape = {int(in0_shape0), int(in0_shape1), int(in0_shape2), int(in0_shape3),
                               int(in1_shape1), int(in5_shape1), int(in7_shape1)};
        upscale_masks(shape, in0_p, in1_p, in2_p, in3_p, in4_p, data["eps"], in5_p, in6_p, in7_p,
                      out0_p);
        """,
        (batch, hyper.shape[1], 4 * height, 4 * width),
        [x, w1, b1, norm_weight, norm_bias, w2, b2, hyper],
        eps=eps,
    )


# -------------------------------------------------------------------------------------------------


def _plain_image_to_token(
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
    batch = k.shape[0]
    q = inference_plain.linear(x + pe, wq, bq, "", None)
    if q.shape[0] != batch:
        q = q.broadcast([batch, *q.shape[1:]])
    mixed = inference_plain.attention(q, k, v, heads, (q.shape[2] // heads) ** -0.5)
    return inference_plain.layer_norm(
        x + inference_plain.linear(mixed, wo, bo, "", None), norm_weight, norm_bias, eps, ""
    )


def _plain_token_to_image(q: Var, x: Var, pe: Var, heads: int, wk: Var, wv: Var, bv: Var) -> Var:
    k, v = (
        inference_plain.linear(x + pe, wk, None, "", None),
        inference_plain.linear(x, wv, bv, "", None),
    )
    return inference_plain.attention(q, k, v, heads, (q.shape[2] // heads) ** -0.5)


def _plain_upscale_masks(
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
    y = nn.conv_transpose2d(x.permute(0, 3, 1, 2), w1, b1, stride=2).permute(0, 2, 3, 1)
    y = inference_plain.layer_norm(y, norm_weight, norm_bias, eps, "gelu").permute(0, 3, 1, 2)
    y = nn.gelu(nn.conv_transpose2d(y, w2, b2, stride=2))
    batch, channels, height, width = y.shape
    return jt.matmul(hyper, y.reshape(batch, channels, -1)).reshape(batch, -1, height, width)
