"""CPU kernels with gradients for the layers that training needs most: OpenMP in Jittor functions.

Jittor's generated elementwise and reduce kernels use one thread and one pass over memory per
operation. These fuse what belongs together. The C++ functions lie in ``core/nn/kernels``. Numbers
that vary are passed as data, not as source text, so that each kernel is compiled once.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.runtime import jt

Var = Any

_KERNELS = Path(__file__).with_name("kernels")


class Function(jt.Function):
    """A Jittor function that lets go of what it kept as soon as its gradient is asked for.

    What Python still holds stays in memory until the step is done: a network's activations would
    live on beside all gradients of them.
    """

    def keep(self, *values: Var) -> None:
        """Keep ``values`` for the gradient."""
        self._kept: tuple[Var, ...] | None = values

    def kept(self) -> tuple[Var, ...]:
        """What was kept, once.

        Raises:
            RuntimeError: a second gradient of the same result.
        """
        values, self._kept = self._kept, None
        if values is None:
            raise RuntimeError("the gradient can be taken once; compute the result again")
        return values


_BATCH_NORM_SHAPE = """
    const kernels::BatchNorm shape = {in0_shape0, in0_shape1, in0_shape2, bool(data["affine"]),
                                      bool(data["relu"]), bool(data["residual"]),
                                      bool(data["train"]), data["eps"], data["momentum"]};
"""
_BATCH_NORM = f"""{_BATCH_NORM_SHAPE}
    kernels::batch_norm(shape, in0_p, in1_p, in2_p, in3_p, in4_p, in5_p, out0_p, out1_p, out2_p,
                        out3_p);
"""
_BATCH_NORM_GRAD = f"""{_BATCH_NORM_SHAPE}
    kernels::batch_norm_gradient(shape, in0_p, in1_p, in2_p, in3_p, in4_p, out0_p, out1_p, out2_p,
                                 out3_p);
"""


def batch_norm(
    x: Var,
    residual: Var | None,
    weight: Var | None,
    bias: Var | None,
    running_mean: Var,
    running_var: Var,
    eps: float,
    momentum: float,
    relu: bool,
    train: bool,
) -> tuple[Var, Var, Var]:
    """(relu(batch_norm(x) + residual), new running mean, new running variance) of (N,C,S) float32.

    Vectors are (C,). Where ``train`` is false the running statistics normalise and come back
    unchanged.
    """
    settings = {
        "eps": eps,
        "momentum": momentum,
        "affine": int(weight is not None),
        "residual": int(residual is not None),
        "relu": int(relu),
        "train": int(train),
    }
    function = _BatchNorm(settings)
    y = function(x, residual, weight, bias, running_mean, running_var)
    return y, function.new_mean, function.new_var


class _BatchNorm(Function):
    """The two kernels above as one function, differentiable in x, residual, weight and bias."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.settings = settings

    def execute(
        self,
        x: Var,
        residual: Var | None,
        weight: Var | None,
        bias: Var | None,
        running_mean: Var,
        running_var: Var,
    ) -> Var:
        # A kernel is compiled per number and kind of inputs: something of its kind stands in for
        # what is absent.
        scale = running_var if weight is None else weight
        inputs = [
            x,
            x if residual is None else residual,
            scale,
            running_mean if bias is None else bias,
            running_mean,
            running_var,
        ]
        channels = x.shape[1]
        shapes = [x.shape, [3, channels], [channels], [channels]]
        y, statistics, self.new_mean, self.new_var = _run(
            "batch_norm.h", _BATCH_NORM, shapes, inputs, self.settings
        )
        self.keep(x, y, scale, statistics)
        return y

    def grad(self, dy: Var) -> tuple[Var | None, ...]:
        x, y, scale, statistics = self.kept()
        channels = x.shape[1]
        residual, affine = self.settings["residual"], self.settings["affine"]
        shapes = [x.shape, x.shape if residual else [1, 1, 1], [channels], [channels]]
        inputs = [x, y, dy, scale, statistics]
        dx, dresidual, dweight, dbias = _run(
            "batch_norm.h", _BATCH_NORM_GRAD, shapes, inputs, self.settings
        )
        return (
            dx,
            dresidual if residual else None,
            dweight if affine else None,
            dbias if affine else None,
            None,
            None,
        )


_RESIZE = """
    kernels::resize_bilinear(int64(in0_shape0) * in0_shape1, in0_shape2, in0_shape3, out0_shape2,
                             out0_shape3, in0_p, out0_p);
"""
_RESIZE_GRAD = """
    kernels::resize_bilinear_gradient(int64(in0_shape0) * in0_shape1, out0_shape2, out0_shape3,
                                      in0_shape2, in0_shape3, in0_p, out0_p);
"""


class _Resize(jt.Function):
    """Bilinear resize of (N,C,h,w) float32 to a fixed size, and its exact adjoint."""

    def __init__(self, size_hw: tuple[int, int]) -> None:
        super().__init__()
        self.size_hw = size_hw

    def execute(self, x: Var) -> Var:
        self.source = x.shape
        (y,) = _run("resize.h", _RESIZE, [[*x.shape[:2], *self.size_hw]], [x])
        return y

    def grad(self, dy: Var) -> Var:
        (dx,) = _run("resize.h", _RESIZE_GRAD, [self.source], [dy])
        return dx


def resize_bilinear(x: Var, size_hw: tuple[int, int]) -> Var:
    """(N,C,h,w) float32 -> (N,C,*size_hw), align_corners False."""
    return _Resize(size_hw)(x)


def convolution(x: Var, weight: Var, stride: tuple[int, int], padding: tuple[int, int]) -> Var:
    """(N,C,H,W) and (O,C,kh,kw) float32 -> (N,O,H',W'), by oneDNN."""
    return _Convolution(stride, padding)(x, weight)


class _Convolution(Function):
    def __init__(self, stride: tuple[int, int], padding: tuple[int, int]) -> None:
        super().__init__()
        # Stride and padding, rows first, then no dilation.
        self.geometry = (*stride, *padding, 1, 1)

    def execute(self, x: Var, weight: Var) -> Var:
        self.keep(x, weight)
        return jt.mkl_ops.mkl_conv(x, weight, *self.geometry)

    def grad(self, dy: Var) -> tuple[Var, Var]:
        x, weight = self.kept()
        height, width = x.shape[2:]
        rows, cols = weight.shape[2:]
        return (
            jt.mkl_ops.mkl_conv_backward_x(weight, dy, height, width, *self.geometry),
            jt.mkl_ops.mkl_conv_backward_w(x, dy, rows, cols, *self.geometry),
        )


@functools.cache
def _source(header: str) -> str:
    return (_KERNELS / header).read_text("utf-8")


def _run(
    header: str,
    call: str,
    shapes: Sequence[Sequence[int]],
    inputs: Sequence[Var],
    data: Mapping[str, float] | None = None,
) -> list[Var]:
    """New float32 Vars of ``shapes``, filled by ``call``: C++ that uses functions of ``header``."""
    return jt.code(
        shapes,
        ["float32"] * len(shapes),
        inputs,
        cpu_header=_source(header),
        cpu_src=call,
        data=dict(data or {}),
    )
