// Bilinear resizing of planes, half-pixel centres and edges clamped, and its exact adjoint.
// Included on its own, without common.h.
#include <algorithm>
#include <cstdint>
#include <vector>

namespace kernels {

// The two places of the source that each place of the result lies between, and the share of the
// second.
struct Interpolation {
    std::vector<int> low, high;
    std::vector<float> share;

    Interpolation(int from, int to) : low(to), high(to), share(to) {
        for (int i = 0; i < to; i++) {
            const double at = std::max(0.0, (i + 0.5) * from / to - 0.5);
            low[i] = std::min(int(at), from - 1);
            high[i] = std::min(low[i] + 1, from - 1);
            share[i] = float(at - low[i]);
        }
    }
};

// x (planes, h, w) -> y (planes, H, W).
static inline void resize_bilinear(int64_t planes, int h, int w, int H, int W,
                                   const float* __restrict__ x_p, float* __restrict__ y_p) {
    const Interpolation rows(h, H), cols(w, W);
    const int *y0 = rows.low.data(), *y1 = rows.high.data();
    const int *x0 = cols.low.data(), *x1 = cols.high.data();
    const float *fy = rows.share.data(), *fx = cols.share.data();
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < planes; p++) {
        const float* x = x_p + p * h * w;
        float* y = y_p + p * H * W;
        std::vector<float> mixed(w);
        for (int i = 0; i < H; i++) {
            const float *a = x + y0[i] * w, *b = x + y1[i] * w;
            for (int j = 0; j < w; j++) mixed[j] = a[j] + (b[j] - a[j]) * fy[i];
            for (int j = 0; j < W; j++)
                y[i * W + j] = mixed[x0[j]] + (mixed[x1[j]] - mixed[x0[j]]) * fx[j];
        }
    }
}

// The adjoint of the above: dy (planes, H, W) is the gradient of the result, dx (planes, h, w) that
// of the source.
static inline void resize_bilinear_gradient(int64_t planes, int h, int w, int H, int W,
                                            const float* __restrict__ dy_p,
                                            float* __restrict__ dx_p) {
    const Interpolation rows(h, H), cols(w, W);
    const int *y0 = rows.low.data(), *y1 = rows.high.data();
    const int *x0 = cols.low.data(), *x1 = cols.high.data();
    const float *fy = rows.share.data(), *fx = cols.share.data();
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < planes; p++) {
        float* dx = dx_p + p * h * w;
        const float* dy = dy_p + p * H * W;
        std::vector<float> mixed(w);
        std::fill(dx, dx + h * w, 0.f);
        for (int i = 0; i < H; i++) {
            std::fill(mixed.begin(), mixed.end(), 0.f);
            for (int j = 0; j < W; j++) {
                const float g = dy[i * W + j];
                mixed[x0[j]] += g * (1 - fx[j]);
                mixed[x1[j]] += g * fx[j];
            }
            float *a = dx + y0[i] * w, *b = dx + y1[i] * w;
            for (int j = 0; j < w; j++) a[j] += mixed[j] * (1 - fy[i]);
            for (int j = 0; j < w; j++) b[j] += mixed[j] * fy[i];
        }
    }
}

}  // namespace kernels
