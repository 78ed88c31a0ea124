"""The fused kernels of SAM's mask decoder against the plain formulas that run on CUDA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from core.runtime import jt
from sam import decoder_ops


def draw(*shape: int, seed: int = 0) -> Any:
    values = np.random.default_rng([seed, *shape]).standard_normal(shape)
    return jt.array(values.astype(np.float32))


def close(got: Any, expected: Any) -> None:
    got, expected = got.numpy(), expected.numpy()
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 5e-6 * np.abs(expected).max()


@pytest.mark.parametrize("image_batch", [1, 3])
@pytest.mark.parametrize("tokens", [1, 5])
def test_image_and_tokens_look_at_each_other(image_batch: int, tokens: int) -> None:
    x, pe = draw(image_batch, 300, 32), draw(1, 300, 32, seed=1)
    k, v = draw(3, tokens, 16), draw(3, tokens, 16, seed=1)
    wq, bq, wo, bo = draw(16, 32), draw(16), draw(32, 16), draw(32)
    arguments = (x, pe, k, v, 4, wq, bq, wo, bo, draw(32, seed=2), draw(32, seed=3), 1e-5)
    close(decoder_ops.image_to_token(*arguments), decoder_ops._plain_image_to_token(*arguments))
    arguments = (k, x, pe, 4, wq, draw(16, 32, seed=1), bq)
    close(decoder_ops.token_to_image(*arguments), decoder_ops._plain_token_to_image(*arguments))


@pytest.mark.parametrize("masks", [1, 3])
def test_upscaling(masks: int) -> None:
    first = (draw(32, 16, 2, 2), draw(16), draw(16, seed=1), draw(16, seed=2), 1e-6)
    arguments = (draw(2, 5, 6, 32), *first, draw(16, 8, 2, 2), draw(8), draw(2, masks, 8))
    close(decoder_ops.upscale_masks(*arguments), decoder_ops._plain_upscale_masks(*arguments))
