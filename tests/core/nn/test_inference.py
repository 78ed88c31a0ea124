"""The CPU kernels against numpy in float64, and the plain Jittor versions (for CUDA) against them.

The latter are slow tests: plain Jittor has dozens of kernels compiled.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from core.nn import inference, inference_plain
from core.runtime import jt

TOLERANCE = 3e-6


def draw(*shape: int, seed: int = 0, scale: float = 1.0, offset: float = 0.0) -> np.ndarray:
    values = np.random.default_rng([seed, *shape]).standard_normal(shape)
    return (values * scale + offset).astype(np.float32)


def close(got: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    got, expected = (x.numpy() if isinstance(x, jt.Var) else np.asarray(x) for x in (got, expected))
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


def erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf)(x)


def activated(x: np.ndarray, activation: str) -> np.ndarray:
    if activation == "relu":
        return np.maximum(x, 0)
    return x * (1 + erf(x / math.sqrt(2))) / 2 if activation == "gelu" else x


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("activation", ["", "relu", "gelu"])
@pytest.mark.parametrize("rows", [1, 7, 700])
def test_linear_with_bias_residual_and_activation(activation: str, rows: int) -> None:
    x, w, b, r = draw(rows, 33), draw(130, 33), draw(130), draw(rows, 130, seed=1)
    got = inference.linear(*(jt.array(a) for a in (x, w, b)), activation, jt.array(r))
    sums = x.astype(np.float64) @ w.T + b + r
    close(got, activated(sums, activation))


def test_linear_alone_keeps_leading_axes() -> None:
    x, w = draw(2, 3, 4, 8), draw(5, 8)
    close(inference.linear(jt.array(x), jt.array(w)), x.astype(np.float64) @ w.T)


def test_gelu_is_exact_over_its_whole_range() -> None:
    x = np.linspace(-12, 12, 4001, dtype=np.float32)[:, None]
    got = inference.linear(jt.array(x), jt.ones((1, 1)), None, "gelu").numpy()
    assert np.abs(got - activated(x.astype(np.float64), "gelu")).max() < 1e-6


@pytest.mark.parametrize("offset", [0.0, 100.0, 1000.0])
def test_layer_norm_survives_a_large_mean(offset: float) -> None:
    x, w, b = draw(50, 96, offset=offset), draw(96, seed=1), draw(96, seed=2)
    got = inference.layer_norm(*(jt.array(a) for a in (x, w, b)), 1e-6)
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * w + b
    # The rounding of the mean itself remains: about one unit in the last place of the offset.
    close(got, expected, TOLERANCE + 3e-7 * offset)


def test_transpose() -> None:
    x = draw(2, 37, 70)
    close(inference.transpose(jt.array(x)), x.transpose(0, 2, 1), 0)


CONVOLUTIONS = [(3, 1, 1), (3, 2, 1), (2, 2, 0), (1, 1, 0)]


def patches(x: np.ndarray, kernel: int, stride: int, padding: int) -> np.ndarray:
    """float64 (B, h, w, k, k, C) inputs under the kernel at each place of (B, H, W, C)."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
    views = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(1, 2))
    return views[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)


@pytest.mark.parametrize("kernel,stride,padding", CONVOLUTIONS)
@pytest.mark.parametrize("channels_first", [False, True])
def test_conv2d(kernel: int, stride: int, padding: int, channels_first: bool) -> None:
    x, w, b = draw(2, 13, 11, 8), draw(20, 8, kernel, kernel), draw(20)
    given = np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if channels_first else x
    arguments = [jt.array(a) for a in (given, w, b)]
    got = inference.conv2d(*arguments, stride, padding, "gelu", channels_first)
    sums = np.einsum("bhwyxc,ocyx->bhwo", patches(x, kernel, stride, padding), w) + b
    close(got, activated(sums, "gelu"))


@pytest.mark.parametrize("size", [(12, 9), (1, 1)])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise(size: tuple[int, int], stride: int) -> None:
    x, w, b = draw(2, *size, 8), draw(8, 1, 3, 3), draw(8)
    got = inference.depthwise3x3(*(jt.array(a) for a in (x, w, b)), stride, "relu")
    sums = np.einsum("bhwyxc,cyx->bhwc", patches(x, 3, stride, 1), w[:, 0]) + b
    close(got, activated(sums, "relu"))


@pytest.mark.parametrize("key_batch", [1, 3])
@pytest.mark.parametrize("scale", [0.3, 30.0])
def test_attention(key_batch: int, scale: float) -> None:
    heads, (q, k, v) = 4, (draw(3, 5, 32), draw(key_batch, 50, 32), draw(key_batch, 50, 32, seed=1))
    got = inference.attention(*(jt.array(a) for a in (q, k, v)), heads, scale)
    wide = [
        np.broadcast_to(a, (3, *a.shape[1:])).astype(np.float64).reshape(3, -1, heads, 8)
        for a in (q, k, v)
    ]
    weights = softmax(scale * np.einsum("bqhd,bkhd->bhqk", wide[0], wide[1]))
    # A large scale makes softmax a hard choice and multiplies the rounding of the scores.
    expected = np.einsum("bhqk,bkhd->bqhd", weights, wide[2]).reshape(3, 5, 32)
    close(got, expected, TOLERANCE * max(1.0, scale))


def test_attention_over_many_keys_follows_the_largest_score() -> None:
    q, k, v = draw(2, 500, 60), draw(2, 700, 60), draw(2, 700, 60, seed=1)
    k[:, 650] *= 20  # far above what was seen before, in the last tile of keys
    got = inference.attention(*(jt.array(a) for a in (q, k, v)), 3, 1.0)
    wide = [a.astype(np.float64).reshape(2, -1, 3, 20) for a in (q, k, v)]
    weights = softmax(np.einsum("bqhd,bkhd->bhqk", wide[0], wide[1]))
    expected = np.einsum("bhqk,bkhd->bqhd", weights, wide[2]).reshape(2, 500, 60)
    close(got, expected, 30 * TOLERANCE)


# With padding, global, smaller than a window; more keys than a tile; more queries than four blocks.
MAPS = [((9, 12), 5), ((5, 5), 5), ((3, 4), 5), ((18, 25), 20), ((23, 23), 23)]


def window_reference(
    qkv: np.ndarray,
    pad: np.ndarray,
    heads: int,
    side: int,
    scale: float,
    head_major: bool,
    bias: Any,
) -> np.ndarray:
    """One window and head after the other; bias(head, queries) is added to the scores."""
    batch, height, width, packed = qkv.shape
    dim = packed // 3 // heads
    full = np.empty((batch, height + side, width + side, packed))
    full[:] = pad
    full[:, :height, :width] = qkv
    split = (heads, 3, dim) if head_major else (3, heads, dim)
    out = np.empty((batch, height + side, width + side, heads, dim))
    for i, y, x in np.ndindex(batch, -(-height // side), -(-width // side)):
        place = (i, slice(y * side, (y + 1) * side), slice(x * side, (x + 1) * side))
        tokens = full[place].reshape(side * side, *split)
        for head in range(heads):
            q, k, v = (tokens[:, head, j] if head_major else tokens[:, j, head] for j in range(3))
            mixed = softmax(scale * q @ k.T + bias(head, q)) @ v
            out[(*place, head)] = mixed.reshape(side, side, dim)
    return out[:, :height, :width].reshape(batch, height, width, heads * dim)


def distances(side: int) -> tuple[np.ndarray, np.ndarray]:
    """dy and dx of each pair (query, key) of a window's tokens."""
    y, x = np.divmod(np.arange(side * side), side)
    return y[:, None] - y, x[:, None] - x


@pytest.mark.parametrize("head_major", [False, True])
@pytest.mark.parametrize("size,side", MAPS)
def test_window_attention_with_bias_by_offset(
    head_major: bool, size: tuple[int, int], side: int
) -> None:
    qkv, pad, table = draw(2, *size, 96), draw(96), draw(4, side * side)
    dy, dx = distances(side)
    got = inference.window_attention(
        jt.array(qkv), jt.array(pad), 4, side, 0.3, head_major, offset_table=jt.array(table)
    )
    by_offset = table[:, np.abs(dy) * side + np.abs(dx)]
    close(got, window_reference(qkv, pad, 4, side, 0.3, head_major, lambda h, q: by_offset[h]))


@pytest.mark.parametrize("head_major", [False, True])
@pytest.mark.parametrize("size,side", MAPS)
def test_window_attention_with_decomposed_relative_positions(
    head_major: bool, size: tuple[int, int], side: int
) -> None:
    qkv, pad = draw(2, *size, 96), draw(96)
    rel_h, rel_w = (draw(2 * side - 1, 8, seed=i) for i in range(2))
    dy, dx = distances(side)

    def bias(head: int, q: np.ndarray) -> np.ndarray:
        rows = rel_h[dy + side - 1] + rel_w[dx + side - 1]
        return np.einsum("qc,qkc->qk", q, rows.astype(np.float64))

    got = inference.window_attention(
        jt.array(qkv),
        jt.array(pad),
        4,
        side,
        0.3,
        head_major,
        rel_h=jt.array(rel_h),
        rel_w=jt.array(rel_w),
    )
    close(got, window_reference(qkv, pad, 4, side, 0.3, head_major, bias))


# What runs on a GPU; one case of the windows is enough for every day.
@pytest.mark.parametrize(
    "head_major,size,side",
    [
        pytest.param(major, *case, marks=() if major and case == MAPS[0] else pytest.mark.slow)
        for major in (False, True)
        for case in MAPS
    ],
)
def test_plain_window_attention(head_major: bool, size: tuple[int, int], side: int) -> None:
    qkv, pad = jt.array(draw(2, *size, 96)), jt.array(draw(96))
    table = jt.array(draw(4, side * side))
    relative = [jt.array(draw(2 * side - 1, 8, seed=i)) for i in range(2)]
    for bias in ((table, None, None), (None, *relative), (None, None, None)):
        arguments = (qkv, pad, 4, side, 0.3, head_major, *bias)
        # Plain Jittor's own rounding grows with the number of keys.
        close(
            inference_plain.window_attention(*arguments),
            inference.window_attention(*arguments),
            TOLERANCE * side / 5,
        )


def test_plain_versions_of_the_rest() -> None:
    x, r = jt.array(draw(6, 33)), jt.array(draw(6, 20))
    w, b = jt.array(draw(20, 33)), jt.array(draw(20))
    for activation in ("", "relu", "gelu"):
        arguments = (x, w, b, activation, r)
        close(inference_plain.linear(*arguments), inference.linear(*arguments))
    gain, shift = jt.array(draw(33)), jt.array(draw(33, seed=1))
    arguments = (x, gain, shift, 1e-6, "gelu")
    close(inference_plain.layer_norm(*arguments), inference.layer_norm(*arguments))
    image = jt.array(draw(2, 13, 11, 8))
    for kernel, stride, padding in CONVOLUTIONS:
        arguments = (
            image,
            jt.array(draw(20, 8, kernel, kernel)),
            b,
            stride,
            padding,
            "gelu",
            False,
        )
        close(inference_plain.conv2d(*arguments), inference.conv2d(*arguments))
    depthwise = (image, jt.array(draw(8, 1, 3, 3)), jt.array(draw(8)), 2, "")
    close(inference_plain.depthwise3x3(*depthwise), inference.depthwise3x3(*depthwise))
    q, k = jt.array(draw(3, 5, 32)), jt.array(draw(1, 50, 32))
    close(inference_plain.attention(q, k, k, 4, 0.3), inference.attention(q, k, k, 4, 0.3))


def test_a_padded_token_takes_part_in_its_window() -> None:
    qkv = np.zeros((1, 1, 1, 6), np.float32)
    pad = np.array([0, 0, 0, 0, 3, 6], np.float32)
    got = inference.window_attention(jt.array(qkv), jt.array(pad), 1, 2, 1.0, head_major=False)
    # One real token with value 0 and three padded ones with value (3, 6), all scores equal.
    close(got, np.array([[[[2.25, 4.5]]]]))


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"linear: shapes \[\[2, 3\], \[4, 5\]\]"):
        inference.linear(jt.ones((2, 3)), jt.ones((4, 5)))


def test_calls_leave_nothing_behind() -> None:
    x, w = jt.array(draw(16, 8)), jt.array(draw(8, 8))
    inference.linear(x, w).sync()
    before = jt.number_of_lived_vars()
    for _ in range(5):
        inference.linear(x, w, activation="gelu").sync()
    assert jt.number_of_lived_vars() == before
