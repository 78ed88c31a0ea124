// What the CPU kernels share: exp and GELU, layer norm of a row, oneDNN's single precision matrix
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

// exp(x) to about 2 ulp: 2^n by the exponent bits times a polynomial on [-ln2/2, ln2/2].
static inline float fast_exp(float x) {
    x = std::min(std::max(x, -87.0f), 88.0f);
    const float n = std::floor(x * 1.44269504f + 0.5f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const int32_t bits = (int32_t(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return p * power;
}

// Exact GELU, x * Phi(x); erf by formula 7.1.26 of Abramowitz and Stegun (absolute error 1.5e-7).
static inline float gelu(float x) {
    const float z = std::fabs(x) * 0.70710678f;
    const float t = 1.0f / (1.0f + 0.3275911f * z);
    const float poly =
        t * (0.254829592f +
             t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    const float tail = 0.5f * poly * fast_exp(-z * z);  // Phi(-|x|)
    return x * (x < 0 ? tail : 1.0f - tail);
}

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

// c (m,n) = alpha * a^T b + beta * c with a stored as (k,m).
static inline void t_matmul(int m, int n, int k, float alpha, const float* a, int64_t lda,
                            const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
    dnnl_sgemm('T', 'N', m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

// Start of `count` floats in this thread's scratch memory `slot`; kept between calls, never shrunk.
static inline float* scratch(int slot, size_t count) {
    static thread_local Buffer memory[8];
    if (memory[slot].size() < count) memory[slot].resize(count);
    return memory[slot].data();
}

}  // namespace kernels
using namespace kernels;
