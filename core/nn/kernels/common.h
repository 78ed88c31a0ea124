// What the CPU kernels share: activations and layer norm of a row, oneDNN's single precision matrix
// product. core/nn/cpp.py puts this text in front of each kernel's.
#include <dnnl.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "lanes.h"
namespace kernels {

using Buffer = std::vector<float>;

static inline void gelu_row(float* x, int n) {
    int i = 0;
    for (; i + LANES <= n; i += LANES) lanes(x + i) = gelu(lanes(x + i));
    for (; i < n; i++) x[i] = gelu(x[i]);
}

enum Activation { NONE = 0, RELU = 1, GELU = 2 };

static inline void activate_row(float* x, int n, int activation) {
    if (activation == RELU)
        for (int i = 0; i < n; i++) x[i] = std::max(x[i], 0.0f);
    else if (activation == GELU)
        gelu_row(x, n);
}

// Mean first, then the mean of squared differences: the one-pass formula loses everything at large
// means.
static inline void layer_norm_row(const float* x, float* y, int n, const float* weight,
                                  const float* bias, float eps) {
    const int whole = n / LANES * LANES;
    Lanes sums = {}, squares = {};
    for (int i = 0; i < whole; i += LANES) sums += lanes(x + i);
    float sum = sum_of(sums);
    for (int i = whole; i < n; i++) sum += x[i];
    const float mean = sum / n;
    for (int i = 0; i < whole; i += LANES) {
        const Lanes away = lanes(x + i) - mean;
        squares += away * away;
    }
    float variance = sum_of(squares);
    for (int i = whole; i < n; i++) variance += (x[i] - mean) * (x[i] - mean);
    const float rstd = 1.0f / std::sqrt(variance / n + eps);
    for (int i = 0; i < whole; i += LANES)
        lanes(y + i) = (lanes(x + i) - mean) * rstd * lanes(weight + i) + lanes(bias + i);
    for (int i = whole; i < n; i++) y[i] = (x[i] - mean) * rstd * weight[i] + bias[i];
}

// c (m,n) = alpha * a (m,k) b (k,n) + beta * c, rows ld apart.
static inline void matmul(int m, int n, int k, float alpha, const float* a, int64_t lda,
                          const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
    dnnl_sgemm('N', 'N', m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

// c (m,n) = alpha * a (m,k) b^T + beta * c with b stored as (n,k).
static inline void matmul_t(int m, int n, int k, float alpha, const float* a, int64_t lda,
                            const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
    dnnl_sgemm('N', 'T', m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

// Start of `count` floats in this thread's scratch memory `slot`; kept between calls, never shrunk.
static inline float* scratch(int slot, size_t count) {
    static thread_local Buffer memory[8];
    if (memory[slot].size() < count) memory[slot].resize(count);
    return memory[slot].data();
}

}  // namespace kernels
using namespace kernels;
