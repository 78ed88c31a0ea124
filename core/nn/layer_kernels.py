"""CPU kernels with gradients for the layers that training needs most: OpenMP in Jittor functions.

Jittor's generated elementwise and reduce kernels use one thread and one pass over memory per
operation. These fuse what belongs together. Numbers that vary are passed as data, not as source
text, so that each kernel is compiled once.
"""

from __future__ import annotations

from typing import Any

from core.runtime import jt

Var = Any


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


# Per channel c over n planes of `area` values: in0 x, in1 residual, in2 weight, in3 bias, in4/5
# running mean/var; out0 y, out1 statistics (3,C): mean, what float32 lost of the mean, 1/std;
# out2/3 new running mean/var.
_BATCH_NORM = """
    const int batch = in0_shape0, channels = in0_shape1; const int64 area = in0_shape2;
    const bool affine = data["affine"], relu = data["relu"];
    const bool add = data["residual"], train = data["train"];
    const double eps = data["eps"], momentum = data["momentum"], count = double(batch) * area;
    #pragma omp parallel for schedule(static)
    for (int c = 0; c < channels; c++) {
        double mean = in4_p[c], var = in5_p[c];
        if (train) {
            // Sums of differences from a first guess lose nothing to a large mean.
            const float guess = in0_p[c * area];
            double sum = 0;
            for (int n = 0; n < batch; n++) {
                const float* x = in0_p + (int64(n) * channels + c) * area;
                float part = 0;
                for (int64 i = 0; i < area; i++) part += x[i] - guess;
                sum += part;
            }
            mean = guess + sum / count;
            const float centre = mean;
            double rest = 0, squares = 0;
            for (int n = 0; n < batch; n++) {
                const float* x = in0_p + (int64(n) * channels + c) * area;
                float part = 0, part_squares = 0;
                for (int64 i = 0; i < area; i++) {
                    const float d = x[i] - centre;
                    part += d; part_squares += d * d;
                }
                rest += part; squares += part_squares;
            }
            rest /= count;
            mean = double(centre) + rest;
            var = squares / count - rest * rest;
            if (var < 0) var = 0;
            out2_p[c] = in4_p[c] + momentum * (mean - in4_p[c]);
            out3_p[c] = in5_p[c] + momentum * (var * count / (count - 1) - in5_p[c]);
        } else { out2_p[c] = in4_p[c]; out3_p[c] = in5_p[c]; }
        const float centre = mean, rstd = 1 / std::sqrt(var + eps);
        out1_p[c] = centre;
        out1_p[channels + c] = float(mean - centre);
        out1_p[2 * channels + c] = rstd;
        const float scale = affine ? rstd * in2_p[c] : rstd;
        const float shift = (affine ? in3_p[c] : 0.f) - float(mean - centre) * scale;
        const float floor = relu ? 0.f : -std::numeric_limits<float>::max();
        for (int n = 0; n < batch; n++) {
            const int64 at = (int64(n) * channels + c) * area;
            const float* x = in0_p + at; const float* r = in1_p + at; float* y = out0_p + at;
            if (add) for (int64 i = 0; i < area; i++)
                y[i] = std::max((x[i] - centre) * scale + shift + r[i], floor);
            else for (int64 i = 0; i < area; i++)
                y[i] = std::max((x[i] - centre) * scale + shift, floor);
        }
    }
"""

# in0 x, in1 y, in2 gradient of y, in3 weight, in4 statistics; out0..3 gradients of x, residual,
# weight, bias.
_BATCH_NORM_GRAD = """
    const int batch = in0_shape0, channels = in0_shape1; const int64 area = in0_shape2;
    const bool affine = data["affine"], relu = data["relu"];
    const bool add = data["residual"], train = data["train"];
    const double count = double(batch) * area;
    #pragma omp parallel for schedule(static)
    for (int c = 0; c < channels; c++) {
        const float centre = in4_p[c], low = in4_p[channels + c], rstd = in4_p[2 * channels + c];
        double sum = 0, sum_x = 0;
        for (int n = 0; n < batch; n++) {
            const int64 at = (int64(n) * channels + c) * area;
            const float* x = in0_p + at; const float* y = in1_p + at; const float* dy = in2_p + at;
            float part = 0, part_x = 0;
            if (relu) for (int64 i = 0; i < area; i++) {
                const float g = y[i] > 0 ? dy[i] : 0.f;
                part += g; part_x += g * (x[i] - centre);
            } else for (int64 i = 0; i < area; i++) {
                part += dy[i]; part_x += dy[i] * (x[i] - centre);
            }
            sum += part; sum_x += part_x;
        }
        sum_x = (sum_x - low * sum) * rstd;
        out2_p[c] = sum_x; out3_p[c] = sum;
        const float scale = affine ? rstd * in3_p[c] : rstd;
        const float slope = train ? float(sum_x / count * rstd) : 0.f;
        const float level = train ? float(sum / count) - low * slope : 0.f;
        for (int n = 0; n < batch; n++) {
            const int64 at = (int64(n) * channels + c) * area;
            const float* x = in0_p + at; const float* y = in1_p + at; const float* dy = in2_p + at;
            float* dx = out0_p + at;
            if (relu) for (int64 i = 0; i < area; i++) {
                const float g = y[i] > 0 ? dy[i] : 0.f;
                dx[i] = (g - level - (x[i] - centre) * slope) * scale;
            } else for (int64 i = 0; i < area; i++)
                dx[i] = (dy[i] - level - (x[i] - centre) * slope) * scale;
            if (add) {
                float* dr = out1_p + at;
                for (int64 i = 0; i < area; i++) dr[i] = relu && !(y[i] > 0) ? 0.f : dy[i];
            }
        }
    }
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
        y, statistics, self.new_mean, self.new_var = jt.code(
            shapes, ["float32"] * 4, inputs, cpu_src=_BATCH_NORM, data=self.settings
        )
        self.keep(x, y, scale, statistics)
        return y

    def grad(self, dy: Var) -> tuple[Var | None, ...]:
        x, y, scale, statistics = self.kept()
        channels = x.shape[1]
        residual, affine = self.settings["residual"], self.settings["affine"]
        shapes = [x.shape, x.shape if residual else [1, 1, 1], [channels], [channels]]
        inputs = [x, y, dy, scale, statistics]
        dx, dresidual, dweight, dbias = jt.code(
            shapes, ["float32"] * 4, inputs, cpu_src=_BATCH_NORM_GRAD, data=self.settings
        )
        return (
            dx,
            dresidual if residual else None,
            dweight if affine else None,
            dbias if affine else None,
            None,
            None,
        )


# From the sizes (h, w) of the source and (H, W) of the result: two source rows and two source
# columns of each pixel of the result, their weights, and the loop over planes that follows.
_RESIZE_TABLES = """
    auto table = [](int from, int to) {
        std::vector<int> low(to), high(to); std::vector<float> share(to);
        for (int i = 0; i < to; i++) {
            const double at = std::max(0.0, (i + 0.5) * from / to - 0.5);
            low[i] = std::min(int(at), from - 1); high[i] = std::min(low[i] + 1, from - 1);
            share[i] = float(at - low[i]);
        }
        return std::make_tuple(low, high, share);
    };
    const int64 planes = int64(in0_shape0) * in0_shape1;
    auto rows = table(h, H), cols = table(w, W);
    const int *y0 = std::get<0>(rows).data(), *y1 = std::get<1>(rows).data();
    const int *x0 = std::get<0>(cols).data(), *x1 = std::get<1>(cols).data();
    const float *fy = std::get<2>(rows).data(), *fx = std::get<2>(cols).data();
    #pragma omp parallel for schedule(static)
"""

_RESIZE = (
    """
    const int h = in0_shape2, w = in0_shape3, H = out0_shape2, W = out0_shape3;
"""
    + _RESIZE_TABLES
    + """
    for (int64 p = 0; p < planes; p++) {
        const float* x = in0_p + p * h * w; float* y = out0_p + p * H * W;
        std::vector<float> mixed(w);
        for (int i = 0; i < H; i++) {
            const float *a = x + y0[i] * w, *b = x + y1[i] * w;
            for (int j = 0; j < w; j++) mixed[j] = a[j] + (b[j] - a[j]) * fy[i];
            for (int j = 0; j < W; j++)
                y[i * W + j] = mixed[x0[j]] + (mixed[x1[j]] - mixed[x0[j]]) * fx[j];
        }
    }
"""
)

# The adjoint of the above: in0 is the gradient (N,C,H,W) of the larger or smaller result, out0 that
# of the source.
_RESIZE_GRAD = (
    """
    const int h = out0_shape2, w = out0_shape3, H = in0_shape2, W = in0_shape3;
"""
    + _RESIZE_TABLES
    + """
    for (int64 p = 0; p < planes; p++) {
        float* dx = out0_p + p * h * w; const float* dy = in0_p + p * H * W;
        std::vector<float> mixed(w);
        std::fill(dx, dx + h * w, 0.f);
        for (int i = 0; i < H; i++) {
            std::fill(mixed.begin(), mixed.end(), 0.f);
            for (int j = 0; j < W; j++) {
                const float g = dy[i * W + j];
                mixed[x0[j]] += g * (1 - fx[j]); mixed[x1[j]] += g * fx[j];
            }
            float *a = dx + y0[i] * w, *b = dx + y1[i] * w;
            for (int j = 0; j < w; j++) a[j] += mixed[j] * (1 - fy[i]);
            for (int j = 0; j < w; j++) b[j] += mixed[j] * fy[i];
        }
    }
"""
)


class _Resize(jt.Function):
    """Bilinear resize of (N,C,h,w) float32 to a fixed size, and its exact adjoint."""

    def __init__(self, size_hw: tuple[int, int]) -> None:
        super().__init__()
        self.size_hw = size_hw

    def execute(self, x: Var) -> Var:
        self.source = x.shape
        return jt.code([*x.shape[:2], *self.size_hw], "float32", [x], cpu_src=_RESIZE)

    def grad(self, dy: Var) -> Var:
        return jt.code(self.source, "float32", [dy], cpu_src=_RESIZE_GRAD)


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
