"""The layers against float64 numpy, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest

from core.nn import layers
from core.nn.layers import (
    BatchNorm,
    Conv2d,
    adaptive_avg_pool2d,
    cross_entropy,
    grid_sample_bilinear,
    l2_normalise,
    resize_bilinear,
)
from core.runtime import jt, nn

EPS = 1e-5


def _normal(seed: int, shape: tuple[int, ...], mean: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) + mean).astype(np.float32)


def _relative(got, expected: np.ndarray) -> float:
    return float(np.abs(got.numpy() - expected).max() / np.abs(expected).max())


def _batch_norm_float64(x, weight, bias, residual, dy, statistics=None):
    """relu(bn(x) + residual), gradients of x, residual, weight and bias, mean, variance."""
    axes, shape = (0, *range(2, x.ndim)), (1, -1) + (1,) * (x.ndim - 2)
    x = x.astype(np.float64)
    mean, var = statistics or (x.mean(axes), x.var(axes))
    rstd = (1 / np.sqrt(var + EPS)).reshape(shape)
    normal = (x - mean.reshape(shape)) * rstd
    y = normal * weight.reshape(shape) + bias.reshape(shape) + residual
    g = dy * (y > 0)
    dweight, dbias, count = (g * normal).sum(axes), g.sum(axes), x.size / x.shape[1]
    dx = g
    if statistics is None:
        dx = g - dbias.reshape(shape) / count - normal * dweight.reshape(shape) / count
    return np.maximum(y, 0), dx * rstd * weight.reshape(shape), g, dweight, dbias, mean, var


@pytest.mark.parametrize("mean", [0.0, 100.0, 1000.0])
@pytest.mark.parametrize("shape", [(4, 5, 7, 6), (6, 5)])
@pytest.mark.parametrize("path", ["_fused", "_plain"])
def test_batch_norm_training(path, shape, mean):
    x, residual, dy = (_normal(i, shape, mean * (i == 0)) for i in range(3))
    weight, bias = _normal(3, shape[1:2]), _normal(4, shape[1:2])
    bn = BatchNorm(shape[1])
    bn.weight.assign(jt.array(weight))
    bn.bias.assign(jt.array(bias))
    inputs = [jt.array(x), jt.array(residual)]

    y = getattr(bn, path)(*inputs, True)
    gradients = jt.grad((y * jt.array(dy)).sum(), [*inputs, bn.weight, bn.bias])

    *expected, mu, var = _batch_norm_float64(x, weight, bias, residual, dy)
    tolerance = 1e-6 if path == "_fused" else 1e-5 * max(1, mean / 100)
    for got, want in zip([y, *gradients], expected):
        assert _relative(got, want) < tolerance
    count = x.size // shape[1]
    assert _relative(bn.running_mean, 0.1 * mu) < 1e-6
    assert _relative(bn.running_var, 0.9 + 0.1 * var * count / (count - 1)) < 1e-5


@pytest.mark.parametrize("path", ["_fused", "_plain"])
def test_batch_norm_evaluation(path):
    shape = (4, 5, 7, 6)
    x, residual, dy = (_normal(i, shape) for i in range(3))
    weight, bias, mean = (_normal(i, (5,)) for i in (3, 4, 5))
    var = np.abs(_normal(6, (5,))) + 0.5
    bn = BatchNorm(5)
    for vector, value in zip(
        (bn.weight, bn.bias, bn.running_mean, bn.running_var), (weight, bias, mean, var)
    ):
        vector.update(jt.array(value))
    bn.is_train = False
    inputs = [jt.array(x), jt.array(residual)]

    y = getattr(bn, path)(*inputs, True)
    gradients = jt.grad((y * jt.array(dy)).sum(), [*inputs, bn.weight, bn.bias])

    *expected, _, _ = _batch_norm_float64(x, weight, bias, residual, dy, (mean, var))
    for got, want in zip([y, *gradients], expected):
        assert _relative(got, want) < 1e-6
    np.testing.assert_array_equal(bn.running_mean.numpy(), mean)


def test_batch_norm_without_affine_terms_has_statistics_only():
    x = _normal(0, (6, 5))
    bn = BatchNorm(5, affine=False)
    y = bn(jt.array(x))
    assert sorted(bn.state_dict()) == ["running_mean", "running_var"]
    assert _relative(y, (x - x.mean(0)) / np.sqrt(x.var(0) + EPS)) < 1e-5


def test_batch_norm_over_a_constant_channel_is_finite():
    x = jt.array(np.full((2, 3, 4, 4), 7.0, np.float32))
    bn = BatchNorm(3)
    y = bn(x, relu=True)
    gradient = jt.grad(y.sum(), x)
    assert np.abs(y.numpy()).max() == 0 and np.isfinite(gradient.numpy()).all()


def test_batch_norm_holds_no_memory():
    bn = BatchNorm(5)
    x = jt.array(_normal(0, (4, 5, 3, 3)))

    def step() -> int:
        jt.grad(bn(x, x, True).sum(), bn.weight).sync()
        return jt.number_of_lived_vars()

    first = step()
    assert [step(), step()] == [first, first]


def test_batch_norm_refuses_what_it_cannot_normalise():
    with pytest.raises(ValueError, match="more than one value"):
        BatchNorm(5)(jt.zeros((1, 5)))
    with pytest.raises(ValueError, match="5 channels"):
        BatchNorm(5)(jt.zeros((2, 4)))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (7, 2, 3), (1, 2, 0)]
)
def test_convolution_and_its_gradients(kernel, stride, padding):
    x, weight, bias = _normal(0, (2, 3, 9, 8)), _normal(1, (4, 3, kernel, kernel)), _normal(2, (4,))
    conv = Conv2d(3, 4, kernel, stride=stride, padding=padding)
    conv.weight, conv.bias = jt.array(weight), jt.array(bias)
    var = jt.array(x)
    y = conv(var)
    dy = _normal(3, tuple(y.shape))
    gradients = jt.grad((y * jt.array(dy)).sum(), [var, conv.weight, conv.bias])

    # The same by sums over windows, in float64.
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), (2, 3))
    windows = windows[:, :, ::stride, ::stride]
    assert (
        _relative(y, np.einsum("ncijkl,ockl->noij", windows, weight) + bias[:, None, None]) < 1e-5
    )
    dx = np.zeros_like(padded)
    for i, j in np.ndindex(*y.shape[2:]):
        patch = np.einsum("no,ockl->nckl", dy[:, :, i, j], weight)
        dx[:, :, i * stride : i * stride + kernel, j * stride : j * stride + kernel] += patch
    inside = slice(padding, -padding or None)
    assert _relative(gradients[0], dx[:, :, inside, inside]) < 1e-5
    assert _relative(gradients[1], np.einsum("ncijkl,noij->ockl", windows, dy)) < 1e-5
    assert _relative(gradients[2], dy.sum((0, 2, 3))) < 1e-5


def test_convolution_refuses_other_channels():
    with pytest.raises(ValueError, match="3 channels"):
        Conv2d(3, 4, 1)(jt.zeros((2, 4, 5, 5)))


def test_l2_normalise():
    x = _normal(0, (3, 4))
    x[1] = 0
    var = jt.array(x)
    y = l2_normalise(var)
    dy = _normal(1, (3, 4))
    gradient = jt.grad((y * jt.array(dy)).sum(), var).numpy()
    for row in (0, 2):
        unit = x[row] / np.linalg.norm(x[row])
        np.testing.assert_allclose(y.numpy()[row], unit, rtol=1e-5)
        expected = (dy[row] - unit * (unit @ dy[row])) / np.linalg.norm(x[row])
        np.testing.assert_allclose(gradient[row], expected, rtol=1e-4, atol=1e-6)
    assert not y.numpy()[1].any() and not gradient[1].any()


@pytest.mark.parametrize(
    ("size", "bins", "expected"),
    [
        (8, 3, [1, 3.5, 6]),
        (8, 6, [0.5, 1.5, 2.5, 4.5, 5.5, 6.5]),
        (2, 3, [0, 0.5, 1]),
        (1, 2, [0, 0]),
    ],
)
def test_adaptive_pooling_follows_the_rule_of_pytorch(size, bins, expected):
    ramp = np.arange(size, dtype=np.float32)
    x = jt.array(np.stack([np.tile(ramp, (size, 1)), np.tile(ramp[:, None], (1, size))])[None])
    got = adaptive_avg_pool2d(x, bins).numpy()[0]
    np.testing.assert_allclose(got[0], np.tile(expected, (bins, 1)), atol=1e-6)
    np.testing.assert_allclose(got[1], np.tile(expected, (bins, 1)).T, atol=1e-6)


def test_adaptive_pooling_of_an_uneven_map_has_the_right_gradient():
    x = jt.array(_normal(0, (1, 1, 5, 3)))
    gradient = jt.grad(adaptive_avg_pool2d(x, 2).sum(), x).numpy()[0, 0]
    rows, cols = np.array([1, 1, 2, 1, 1]) / 3, np.array([1, 2, 1]) / 2
    np.testing.assert_allclose(gradient, np.outer(rows, cols), rtol=1e-6)


def _resize_matrix(source: int, target: int) -> np.ndarray:
    """(target, source) weights of bilinear resizing, align_corners False."""
    matrix = np.zeros((target, source))
    for i in range(target):
        at = max((i + 0.5) * source / target - 0.5, 0)
        low = min(int(at), source - 1)
        matrix[i, low] += 1 - (at - low)
        matrix[i, min(low + 1, source - 1)] += at - low
    return matrix


@pytest.mark.parametrize("target", [(10, 14), (3, 4), (1, 1), (5, 7), (13, 2)])
def test_resize_and_its_adjoint(target):
    x = _normal(0, (2, 3, 5, 7))
    dy = _normal(1, (2, 3, *target))
    rows, cols = _resize_matrix(5, target[0]), _resize_matrix(7, target[1])
    var = jt.array(x)
    y = resize_bilinear(var, target)
    gradient = jt.grad((y * jt.array(dy)).sum(), var)
    assert _relative(y, rows @ x @ cols.T) < 1e-6
    assert _relative(gradient, rows.T @ dy @ cols) < 1e-6


def test_resize_takes_the_same_values_from_plain_jittor():
    """A GPU has no kernel of ours."""
    x = jt.array(_normal(0, (2, 3, 5, 7)))
    for target in ((10, 14), (3, 4), (13, 2)):
        plain = nn.interpolate(x, size=target, mode="bilinear", align_corners=False)
        assert _relative(resize_bilinear(x, target), plain.numpy()) < 1e-5


def test_resize_of_one_pixel_spreads_and_gathers():
    x = jt.array(np.full((1, 1, 1, 1), 3.0, np.float32))
    y = resize_bilinear(x, (7, 7))
    assert (y.numpy() == 3).all()
    assert jt.grad(y.sum(), x).item() == pytest.approx(49)


def test_grid_sample_attenuates_at_the_edge_and_is_zero_outside():
    x = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4) + 1
    grid = np.array([[[[0, 0], [-1, -1], [1, 0], [-2, -2]]]], np.float32)
    var = jt.array(x)
    y = grid_sample_bilinear(var, jt.array(grid))
    # The centre lies between columns 1 and 2 of row 1; a corner point sees a quarter of its pixel.
    np.testing.assert_allclose(y.numpy()[0, 0, 0], [6.5, 0.25, 4.0, 0.0], rtol=1e-6)
    gradient = jt.grad(y.sum(), var).numpy()[0, 0]
    expected = np.zeros((3, 4))
    expected[1, 1:3] += 0.5
    expected[0, 0] += 0.25
    expected[1, 3] += 0.5
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_grid_sample_takes_x_first():
    x = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
    columns = (np.arange(3) * 2 + 1) / 3 - 1
    rows = (np.arange(2) * 2 + 1) / 2 - 1
    grid = np.stack(np.meshgrid(columns, rows), -1)[None].astype(np.float32)
    np.testing.assert_allclose(
        grid_sample_bilinear(jt.array(x), jt.array(grid)).numpy(), x, atol=1e-6
    )


@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 3, 5)])
def test_cross_entropy(shape):
    # Large logits must not overflow.
    logits = _normal(0, shape) * 100
    labels = np.random.default_rng(1).integers(0, 4, (shape[0], *shape[2:]))
    var = jt.array(logits)
    loss = cross_entropy(var, labels)
    gradient = jt.grad(loss, var).numpy()
    scores = np.moveaxis(logits.astype(np.float64), 1, -1)
    scores = scores - scores.max(-1, keepdims=True)
    share = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    chosen = np.eye(4)[labels]
    expected = -(chosen * (scores - np.log(np.exp(scores).sum(-1, keepdims=True)))).sum(-1).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    wanted = np.moveaxis((share - chosen) / labels.size, -1, 1)
    np.testing.assert_allclose(gradient, wanted, atol=1e-6)


@pytest.mark.parametrize("label", [-1, 4, 1000])
def test_cross_entropy_refuses_labels_that_do_not_exist(label):
    with pytest.raises(ValueError, match="4 classes"):
        cross_entropy(jt.zeros((2, 4)), np.array([0, label]))


def test_pooling_weights_are_cached_and_untouched():
    assert layers._pooling_matrix(8, 8, 6, False) is layers._pooling_matrix(8, 8, 6, False)
    np.testing.assert_allclose(layers._pooling_matrix(7, 5, 3, False).sum(0), 1, rtol=1e-6)
