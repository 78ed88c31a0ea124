// Batch norm over (batch, channels, area) planes with all that often follows it: the addition of a
// residual and ReLU; and its gradient. Included on its own, without common.h.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace kernels {

struct BatchNorm {
    int batch, channels;
    int64_t area;
    bool affine, relu, add, train;
    double eps, momentum;
};

// x, residual, y (batch, channels, area); weight, bias, mean_in, var_in (running statistics) and
// mean_out, var_out (channels); statistics (3, channels): mean, what float32 lost of the mean,
// 1 / std.
static inline void batch_norm(const BatchNorm& s, const float* __restrict__ x_p,
                              const float* __restrict__ residual_p,
                              const float* __restrict__ weight, const float* __restrict__ bias,
                              const float* __restrict__ mean_in, const float* __restrict__ var_in,
                              float* __restrict__ y_p, float* __restrict__ statistics,
                              float* __restrict__ mean_out, float* __restrict__ var_out) {
    const int batch = s.batch, channels = s.channels;
    const int64_t area = s.area;
    const bool affine = s.affine, relu = s.relu, add = s.add, train = s.train;
    const double eps = s.eps, momentum = s.momentum, count = double(batch) * area;
#pragma omp parallel for schedule(static)
    for (int c = 0; c < channels; c++) {
        double mean = mean_in[c], var = var_in[c];
        if (train) {
            // Sums of differences from a first guess lose nothing to a large mean.
            const float guess = x_p[c * area];
            double sum = 0;
            for (int n = 0; n < batch; n++) {
                const float* x = x_p + (int64_t(n) * channels + c) * area;
                float part = 0;
                for (int64_t i = 0; i < area; i++) part += x[i] - guess;
                sum += part;
            }
            mean = guess + sum / count;
            const float centre = mean;
            double rest = 0, squares = 0;
            for (int n = 0; n < batch; n++) {
                const float* x = x_p + (int64_t(n) * channels + c) * area;
                float part = 0, part_squares = 0;
                for (int64_t i = 0; i < area; i++) {
                    const float d = x[i] - centre;
                    part += d;
                    part_squares += d * d;
                }
                rest += part;
                squares += part_squares;
            }
            rest /= count;
            mean = double(centre) + rest;
            var = squares / count - rest * rest;
            if (var < 0) var = 0;
            mean_out[c] = mean_in[c] + momentum * (mean - mean_in[c]);
            var_out[c] = var_in[c] + momentum * (var * count / (count - 1) - var_in[c]);
        } else {
            mean_out[c] = mean_in[c];
            var_out[c] = var_in[c];
        }
        const float centre = mean, rstd = 1 / std::sqrt(var + eps);
        statistics[c] = centre;
        statistics[channels + c] = float(mean - centre);
        statistics[2 * channels + c] = rstd;
        const float scale = affine ? rstd * weight[c] : rstd;
        const float shift = (affine ? bias[c] : 0.f) - float(mean - centre) * scale;
        const float floor = relu ? 0.f : -std::numeric_limits<float>::max();
        for (int n = 0; n < batch; n++) {
            const int64_t at = (int64_t(n) * channels + c) * area;
            const float* x = x_p + at;
            const float* r = residual_p + at;
            float* y = y_p + at;
            if (add)
                for (int64_t i = 0; i < area; i++)
                    y[i] = std::max((x[i] - centre) * scale + shift + r[i], floor);
            else
                for (int64_t i = 0; i < area; i++)
                    y[i] = std::max((x[i] - centre) * scale + shift, floor);
        }
    }
}

// dy is the gradient of y; dx, dresidual, dweight and dbias are those of the inputs. dresidual is
// written only where there was a residual.
static inline void batch_norm_gradient(const BatchNorm& s, const float* __restrict__ x_p,
                                       const float* __restrict__ y_p,
                                       const float* __restrict__ dy_p,
                                       const float* __restrict__ weight,
                                       const float* __restrict__ statistics,
                                       float* __restrict__ dx_p, float* __restrict__ dresidual_p,
                                       float* __restrict__ dweight, float* __restrict__ dbias) {
    const int batch = s.batch, channels = s.channels;
    const int64_t area = s.area;
    const bool affine = s.affine, relu = s.relu, add = s.add, train = s.train;
    const double count = double(batch) * area;
#pragma omp parallel for schedule(static)
    for (int c = 0; c < channels; c++) {
        const float centre = statistics[c], low = statistics[channels + c],
                    rstd = statistics[2 * channels + c];
        double sum = 0, sum_x = 0;
        for (int n = 0; n < batch; n++) {
            const int64_t at = (int64_t(n) * channels + c) * area;
            const float* x = x_p + at;
            const float* y = y_p + at;
            const float* dy = dy_p + at;
            float part = 0, part_x = 0;
            if (relu)
                for (int64_t i = 0; i < area; i++) {
                    const float g = y[i] > 0 ? dy[i] : 0.f;
                    part += g;
                    part_x += g * (x[i] - centre);
                }
            else
                for (int64_t i = 0; i < area; i++) {
                    part += dy[i];
                    part_x += dy[i] * (x[i] - centre);
                }
            sum += part;
            sum_x += part_x;
        }
        sum_x = (sum_x - low * sum) * rstd;
        dweight[c] = sum_x;
        dbias[c] = sum;
        const float scale = affine ? rstd * weight[c] : rstd;
        const float slope = train ? float(sum_x / count * rstd) : 0.f;
        const float level = train ? float(sum / count) - low * slope : 0.f;
        for (int n = 0; n < batch; n++) {
            const int64_t at = (int64_t(n) * channels + c) * area;
            const float* x = x_p + at;
            const float* y = y_p + at;
            const float* dy = dy_p + at;
            float* dx = dx_p + at;
            if (relu)
                for (int64_t i = 0; i < area; i++) {
                    const float g = y[i] > 0 ? dy[i] : 0.f;
                    dx[i] = (g - level - (x[i] - centre) * slope) * scale;
                }
            else
                for (int64_t i = 0; i < area; i++)
                    dx[i] = (dy[i] - level - (x[i] - centre) * slope) * scale;
            if (add) {
                float* dr = dresidual_p + at;
                for (int64_t i = 0; i < area; i++) dr[i] = relu && !(y[i] > 0) ? 0.f : dy[i];
            }
        }
    }
}

}  // namespace kernels
