"""The fused kernels of SAM's mask decoder against the textbook formulas in numpy (float64).

The plain Jittor versions, which run on CUDA, are compared with the kernels in slow tests: they have
dozens of kernels compiled.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from core.runtime import jt
from sam import decoder_ops

EPS = 1e-5


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def close(got: Any, expected: np.ndarray) -> None:
    assert tuple(got.shape) == expected.shape
    assert np.abs(got.numpy() - expected).max() <= 5e-6 * np.abs(expected).max()


def variables(arguments: tuple[Any, ...]) -> list[Any]:
    return [jt.array(a) if isinstance(a, np.ndarray) else a for a in arguments]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def normed(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS) * weight + bias


def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> np.ndarray:
    q, k, v = (a.astype(np.float64).reshape(*a.shape[:2], heads, -1) for a in (q, k, v))
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)
    return mixed.reshape(*mixed.shape[:2], -1)


def image_to_token_arguments(image_batch: int, tokens: int) -> tuple[Any, ...]:
    x, pe = draw(image_batch, 300, 32), draw(1, 300, 32, seed=1)
    k, v = draw(3, tokens, 16), draw(3, tokens, 16, seed=1)
    projections = (draw(16, 32), draw(16), draw(32, 16), draw(32))
    return (x, pe, k, v, 4, *projections, draw(32, seed=2), draw(32, seed=3), EPS)


def token_to_image_arguments(image_batch: int, tokens: int) -> tuple[Any, ...]:
    x, pe = draw(image_batch, 300, 32), draw(1, 300, 32, seed=1)
    return (draw(3, tokens, 16), x, pe, 4, draw(16, 32), draw(16, 32, seed=1), draw(16))


def upscale_arguments(masks: int) -> tuple[Any, ...]:
    first = (draw(32, 16, 2, 2), draw(16), draw(16, seed=1), draw(16, seed=2), EPS)
    return (draw(2, 5, 6, 32), *first, draw(16, 8, 2, 2), draw(8), draw(2, masks, 8))


def doubled(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Transposed 2 x 2 convolution of stride 2: (B, h, w, C) -> (B, 2h, 2w, O)."""
    batch, height, width, _ = x.shape
    blocks = np.einsum("bhwc,coyx->bhywxo", x, w)
    return blocks.reshape(batch, 2 * height, 2 * width, -1) + b


@pytest.mark.parametrize("image_batch", [1, 3])
@pytest.mark.parametrize("tokens", [1, 5])
def test_the_image_looks_at_tokens(image_batch: int, tokens: int) -> None:
    arguments = image_to_token_arguments(image_batch, tokens)
    x, pe, k, v, heads, wq, bq, wo, bo, weight, bias, _ = arguments
    q = np.broadcast_to((x.astype(np.float64) + pe) @ wq.T + bq, (3, 300, 16))
    expected = normed(x + attended(q, k, v, heads) @ wo.T + bo, weight, bias)
    close(decoder_ops.image_to_token(*variables(arguments)), expected)


@pytest.mark.parametrize("image_batch", [1, 3])
@pytest.mark.parametrize("tokens", [1, 5])
def test_tokens_look_at_the_image(image_batch: int, tokens: int) -> None:
    arguments = token_to_image_arguments(image_batch, tokens)
    q, x, pe, heads, wk, wv, bv = arguments
    wide = np.broadcast_to(x.astype(np.float64), (3, *x.shape[1:]))
    expected = attended(q, (wide + pe) @ wk.T, wide @ wv.T + bv, heads)
    close(decoder_ops.token_to_image(*variables(arguments)), expected)


@pytest.mark.parametrize("masks", [1, 3])
def test_upscaling(masks: int) -> None:
    arguments = upscale_arguments(masks)
    x, w1, b1, weight, bias, _, w2, b2, hyper = arguments
    middle = gelu(normed(doubled(x.astype(np.float64), w1, b1), weight, bias))
    expected = np.einsum("bmc,bhwc->bmhw", hyper, gelu(doubled(middle, w2, b2)))
    close(decoder_ops.upscale_masks(*variables(arguments)), expected)


@pytest.mark.parametrize("image_batch", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_plain_versions(image_batch: int) -> None:
    for name, arguments in (
        ("image_to_token", image_to_token_arguments(image_batch, 5)),
        ("token_to_image", token_to_image_arguments(image_batch, 5)),
        ("upscale_masks", upscale_arguments(3)),
    ):
        given = variables(arguments)
        plain = getattr(decoder_ops, f"_plain_{name}")(*given)
        close(plain, getattr(decoder_ops, name)(*given).numpy())
