"""Network layers whose Jittor 1.3.11 versions are inexact or slow, written once for all networks.

Jittor's batch norm takes the variance as E[x^2] - E[x]^2 (an error of 0.05 at mean 100), keeps a
biased running variance and runs on one thread; its adaptive pooling is wrong for uneven bins; its
``normalize`` has a gradient of 1e15 at zero; its cross entropy accepts labels that do not exist. On
the CPU the heavy ones are OpenMP kernels (``core.nn.layer_kernels``); on a GPU, and where
statistics are shared between processes, plain Jittor computes the same.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from core import distributed
from core.nn import layer_kernels as kernels
from core.runtime import jt, nn

Var = Any  # jittor.Var: the module is only there after Jittor has been started


class BatchNorm(nn.Module):
    """Batch norm of (N,C) or (N,C,H,W) float32 over all axes but the second, as in PyTorch.

    State: ``weight``, ``bias`` (C,) where affine, ``running_mean``, ``running_var`` (C,). The
    running variance is the unbiased one. Under MPI, statistics are those of all processes, whose
    batches must be of equal size.

    ``bn(x, residual, relu=True)`` is relu(bn(x) + residual) in one pass over memory.
    """

    def __init__(
        self, channels: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True
    ) -> None:
        self.channels, self.eps, self.momentum, self.affine = channels, eps, momentum, affine
        self.is_train = True
        if affine:
            self.weight = jt.ones((channels,))
            self.bias = jt.zeros((channels,))
        self.running_mean = jt.zeros((channels,)).stop_grad()
        self.running_var = jt.ones((channels,)).stop_grad()

    def execute(self, x: Var, residual: Var | None = None, relu: bool = False) -> Var:
        if x.ndim not in (2, 4) or x.shape[1] != self.channels:
            raise ValueError(
                f"batch norm of {self.channels} channels needs (N,C) or (N,C,H,W), got {x.shape}"
            )
        if self.is_train and x.numel() // self.channels * distributed.world_size() < 2:
            raise ValueError(
                f"batch norm in training needs more than one value per channel, got {x.shape}"
            )
        if jt.flags.use_cuda or (self.is_train and distributed.world_size() > 1):
            return self._plain(x, residual, relu)
        return self._fused(x, residual, relu)

    def _fused(self, x: Var, residual: Var | None, relu: bool) -> Var:
        flat = (x.shape[0], self.channels, x.numel() // (x.shape[0] * self.channels))
        y, mean, var = kernels.batch_norm(
            x.reshape(flat),
            None if residual is None else residual.reshape(flat),
            self.weight if self.affine else None,
            self.bias if self.affine else None,
            self.running_mean,
            self.running_var,
            eps=self.eps,
            momentum=self.momentum,
            relu=relu,
            train=self.is_train,
        )
        if self.is_train:
            self._store(mean, var)
        return y.reshape(x.shape)

    def _plain(self, x: Var, residual: Var | None, relu: bool) -> Var:
        dims = [0, *range(2, x.ndim)]
        shape = [1, self.channels] + [1] * (x.ndim - 2)
        if self.is_train:
            mean = distributed.all_reduce_mean(x.mean(dims))
            # A float32 sum of many values is a little off: a second look at what is left corrects
            # mean and variance.
            centred = x - mean.reshape(shape)
            rest = distributed.all_reduce_mean(centred.mean(dims))
            var = distributed.all_reduce_mean((centred * centred).mean(dims)) - rest * rest
            centred = centred - rest.reshape(shape)
            count = x.numel() // self.channels * distributed.world_size()
            with jt.no_grad():
                step, unbiased = self.momentum, var * (count / (count - 1))
                self._store(
                    self.running_mean + (mean + rest - self.running_mean) * step,
                    self.running_var + (unbiased - self.running_var) * step,
                )
        else:
            var = self.running_var
            centred = x - self.running_mean.reshape(shape)
        scale = 1.0 / jt.sqrt(var + self.eps)
        if self.affine:
            scale = scale * self.weight
        y = centred * scale.reshape(shape)
        if self.affine:
            y = y + self.bias.reshape(shape)
        if residual is not None:
            y = y + residual
        return nn.relu(y) if relu else y

    def _store(self, mean: Var, var: Var) -> None:
        self.running_mean.update(mean)
        self.running_var.update(var)


class Conv2d(nn.Conv2d):
    """Jittor's convolution without groups or dilation, calling oneDNN by name on the CPU.

    Jittor finds oneDNN by matching a pattern of generated kernels, three of which it compiles for
    every combination of size, stride and padding although none of them ever runs.
    """

    def execute(self, x: Var) -> Var:
        if jt.flags.use_cuda:
            return super().execute(x)
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"convolution of {self.in_channels} channels got {tuple(x.shape)}")
        y = kernels.convolution(x, self.weight, self.stride, self.padding)
        return y if self.bias is None else y + self.bias.reshape(1, -1, 1, 1)


def l2_normalise(x: Var, dim: int = 1, eps: float = 1e-12) -> Var:
    """``x`` over its norm along ``dim``; a vector shorter than ``eps`` gives 0 with gradient 0."""
    return _L2Normalise(dim, eps)(x)


class _L2Normalise(kernels.Function):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps

    def execute(self, x: Var) -> Var:
        square = (x * x).sum(self.dim, keepdims=True)
        long_enough = square > self.eps * self.eps
        scale = long_enough / jt.sqrt(jt.maximum(square, self.eps * self.eps))
        y = x * scale
        self.keep(scale, y)
        return y

    def grad(self, dy: Var) -> Var:
        scale, y = self.kept()
        return scale * (dy - y * (y * dy).sum(self.dim, keepdims=True))


def adaptive_avg_pool2d(x: Var, bins: int, fixed: bool = False) -> Var:
    """Mean of an (N,C,H,W) map over cells -> (N,C,bins,bins), by PyTorch's rule.

    Bin i covers rows floor(i*H/bins) up to ceil((i+1)*H/bins): bins overlap where H is not a
    multiple, and a map smaller than the bins repeats its values.

    ``fixed`` takes the rule of early Jittor instead: windows of one size, H - (bins-1)*s rows, at
    steps of s = floor(H/bins); it has none for a map smaller than the bins, which is pooled as
    above.
    """
    n, c, h, w = x.shape
    cells = jt.array(_pooling_matrix(h, w, bins, fixed))
    return nn.matmul(x.reshape(n * c, h * w), cells).reshape(n, c, bins, bins)


@functools.lru_cache(maxsize=64)
def _pooling_matrix(h: int, w: int, bins: int, fixed: bool) -> np.ndarray:
    """(h*w, bins*bins) float32: column = weights of one bin, row-major on both sides."""

    def along(size: int) -> np.ndarray:
        index = np.arange(bins)
        start, stop = index * size // bins, -(-(index + 1) * size // bins)
        if fixed and size >= bins:
            step = size // bins
            start, stop = index * step, index * step + size - (bins - 1) * step
        inside = (np.arange(size)[:, None] >= start) & (np.arange(size)[:, None] < stop)
        return inside / (stop - start)

    return np.ascontiguousarray(np.kron(along(h), along(w)), dtype=np.float32)


def resize_bilinear(x: Var, size_hw: tuple[int, int]) -> Var:
    """(N,C,h,w) float32 -> (N,C,*size_hw), bilinear, align_corners False, no antialias."""
    if tuple(x.shape[2:]) == tuple(size_hw):
        return x
    if jt.flags.use_cuda:
        return nn.interpolate(x, size=tuple(size_hw), mode="bilinear", align_corners=False)
    return kernels.resize_bilinear(x, size_hw)


def grid_sample_bilinear(x: Var, grid: Var | np.ndarray) -> Var:
    """Values of ``x`` (N,C,H,W) at ``grid`` (N,h,w,2) -> (N,C,h,w); x first, -1..1 edge to edge.

    Bilinear, zero outside the map, align_corners False; the grid gets no gradient. Meant for few
    points: the weights of every point for every cell are laid out as a matrix.
    """
    n, c, h, w = x.shape
    grid = _array(grid).astype(np.float32)
    rows, cols = grid.shape[1:3]
    points = grid.reshape(n, 1, rows * cols, 2)

    def near(axis: int, size: int) -> np.ndarray:
        # A cell's weight falls from 1 to 0 within one cell of distance: none is left outside.
        at = (points[..., axis] + 1) * (size / 2) - 0.5
        return np.maximum(1 - np.abs(at - np.arange(size).reshape(1, size, 1)), 0)

    weights = (near(1, h)[:, :, None] * near(0, w)[:, None]).reshape(n, h * w, rows * cols)
    sampled = nn.bmm(x.reshape(n, c, h * w), jt.array(weights.astype(np.float32)))
    return sampled.reshape(n, c, rows, cols)


def binary_cross_entropy(logits: Var, wanted: Var) -> Var:
    """Mean over all of -wanted * log(p) - (1 - wanted) * log(1 - p), p = sigmoid(logits): (1,).

    Args:
        logits: float32 of any shape.
        wanted: the same shape, 0..1.
    """
    # log(1 + exp(x)) - x * wanted, without overflow.
    soft = jt.maximum(logits, 0.0) + jt.log(1.0 + jt.exp(-jt.abs(logits)))
    return (soft - logits * wanted).mean()


def cross_entropy(logits: Var, target: Var | np.ndarray) -> Var:
    """Mean over all pixels of -log softmax(logits)[target].

    Args:
        logits: (N,K,H,W) or (N,K) float32.
        target: (N,H,W) or (N,) integers 0..K-1; nothing is ignored.

    Raises:
        ValueError: shapes do not fit, or a target is outside 0..K-1.
    """
    labels = _array(target)
    classes = logits.shape[1]
    if labels.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(f"targets {labels.shape} do not fit logits {tuple(logits.shape)}")
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(
            f"targets {labels.min()}..{labels.max()} do not fit {classes} classes; "
            "check num_classes and the labels"
        )
    flat = labels.reshape(labels.shape[0], 1, -1).astype(np.int32)
    scores = logits.reshape(labels.shape[0], classes, -1)
    scores = scores - scores.max(1, keepdims=True).stop_grad()
    chosen = (scores * (jt.array(flat) == jt.index(scores.shape, 1)).float32()).sum(1)
    return (jt.log(jt.exp(scores).sum(1)) - chosen).mean()


def _array(x: Var | np.ndarray) -> np.ndarray:
    return x.numpy() if isinstance(x, jt.Var) else np.asarray(x)
