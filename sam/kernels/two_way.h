// Cross attention between a few tokens and many image places, multiplied out so that nothing of
// size (places, inner) is ever projected. With R = heads * tokens rows,
//   scores = (x + pe) Wq^T . k = (x + pe) . (k Wq)   and   (a v) Wo^T = a . (v Wo^T)
// cost 2 * R * places * channels instead of 2 * inner * places * channels. Every block of image
// places is read once and worked on in cache.
namespace kernels {

struct TwoWay {
    int batch, image_batch;  // image_batch 1: the same image places for all prompts
    int places, channels, tokens, heads, inner;
};

// rows (heads*tokens, channels) = alpha * per-head product of t (tokens, inner) and w (inner,
// channels).
static void expand_heads(const TwoWay& s, float alpha, const float* t, const float* w,
                         float* rows) {
    const int dim = s.inner / s.heads;
    for (int h = 0; h < s.heads; h++)
        matmul(s.tokens, s.channels, dim, alpha, t + h * dim, s.inner,
               w + int64_t(h) * dim * s.channels, s.channels, 0,
               rows + int64_t(h) * s.tokens * s.channels, s.channels);
}

// Softmax down each column of (tokens, n), rows `ld` apart: neighbouring places side by side in a
// vector.
static void softmax_columns(float* x, int tokens, int n, int64_t ld, float* top, float* sum) {
    std::memcpy(top, x, sizeof(float) * n);
    for (int t = 1; t < tokens; t++)
        for (int i = 0; i < n; i++) top[i] = std::max(top[i], x[t * ld + i]);
    std::memset(sum, 0, sizeof(float) * n);
    for (int t = 0; t < tokens; t++) {
        float* row = x + t * ld;
#pragma omp simd
        for (int i = 0; i < n; i++) {
            row[i] = fast_exp(row[i] - top[i]);
            sum[i] += row[i];
        }
    }
    for (int i = 0; i < n; i++) sum[i] = 1.0f / sum[i];
    for (int t = 0; t < tokens; t++)
        for (int i = 0; i < n; i++) x[t * ld + i] *= sum[i];
}

// x' = LayerNorm(x + attention(queries x + pe, keys k, values v)): the image looks at the tokens.
// k, v (batch, tokens, inner); wq (inner, channels); wo (channels, inner); out (batch, places,
// channels).
static void image_to_token(const TwoWay& s, const float* x, const float* pe, const float* k,
                           const float* v, const float* wq, const float* bq, const float* wo,
                           const float* bo, const float* norm_weight, const float* norm_bias,
                           float eps, float* out) {
    const int rows = s.heads * s.tokens, dim = s.inner / s.heads, C = s.channels;
    const int64_t per_prompt = int64_t(rows) * C;
    const float scale = 1.0f / std::sqrt(float(dim));
    Buffer u(per_prompt * s.batch), shift(size_t(rows) * s.batch), p(per_prompt * s.batch);
#pragma omp parallel for schedule(dynamic)
    for (int b = 0; b < s.batch; b++) {
        const float* keys = k + int64_t(b) * s.tokens * s.inner;
        const float* values = v + int64_t(b) * s.tokens * s.inner;
        expand_heads(s, scale, keys, wq, u.data() + b * per_prompt);
        for (int h = 0; h < s.heads; h++) {
            for (int t = 0; t < s.tokens; t++) {
                float dot = 0;
                for (int d = 0; d < dim; d++)
                    dot += keys[t * s.inner + h * dim + d] * bq[h * dim + d];
                shift[size_t(b) * rows + h * s.tokens + t] = scale * dot;
            }
            matmul_t(s.tokens, C, dim, 1, values + h * dim, s.inner, wo + h * dim, s.inner, 0,
                     p.data() + b * per_prompt + int64_t(h) * s.tokens * C, C);
        }
    }
    const int block = 128, blocks = (s.places + block - 1) / block;
#pragma omp parallel for schedule(dynamic)
    for (int task = 0; task < s.batch * blocks; task++) {
        const int b = task / blocks, p0 = task % blocks * block, n = std::min(block, s.places - p0);
        const float* from = x + (int64_t(s.image_batch == 1 ? 0 : b) * s.places + p0) * C;
        const float* place = pe + int64_t(p0) * C;
        float* to = out + (int64_t(b) * s.places + p0) * C;
        float* sum = scratch(0, size_t(block) * C);
        float* scores = scratch(1, size_t(block) * (rows + 2));
        float* top = scores + size_t(block) * rows;
        for (int i = 0; i < n * C; i++) sum[i] = from[i] + place[i];
        matmul_t(rows, n, C, 1, u.data() + b * per_prompt, C, sum, C, 0, scores, block);
        const float* add = shift.data() + size_t(b) * rows;
        for (int r = 0; r < rows; r++)
            for (int i = 0; i < n; i++) scores[r * block + i] += add[r];
        for (int h = 0; h < s.heads; h++)
            softmax_columns(scores + h * s.tokens * block, s.tokens, n, block, top, top + block);
        t_matmul(n, C, rows, 1, scores, block, p.data() + b * per_prompt, C, 0, sum, C);
        for (int i = 0; i < n; i++) {
            float* y = sum + i * C;
            for (int c = 0; c < C; c++) y[c] += from[i * C + c] + bo[c];
            layer_norm_row(y, to + i * C, C, norm_weight, norm_bias, eps);
        }
    }
}

// attention(queries q, keys (x + pe) Wk^T + bk, values x Wv^T + bv) before the output projection.
// q (batch, tokens, inner); wk, wv (inner, channels); out (batch, tokens, inner). bk shifts all
// scores of a query alike, which softmax does not see: it is not needed.
static void token_to_image(const TwoWay& s, const float* x, const float* pe, const float* q,
                           const float* wk, const float* wv, const float* bv, float* out) {
    const int rows = s.heads * s.tokens, dim = s.inner / s.heads, C = s.channels, block = 256;
#pragma omp parallel for schedule(dynamic)
    for (int b = 0; b < s.batch; b++) {
        const float* image = x + int64_t(s.image_batch == 1 ? 0 : b) * s.places * C;
        float* u = scratch(0, size_t(rows) * C);
        float* sum = scratch(1, size_t(block) * C);
        float* scores = scratch(2, size_t(rows) * s.places);
        float* context = scratch(3, size_t(rows) * C);
        expand_heads(s, 1.0f / std::sqrt(float(dim)), q + int64_t(b) * s.tokens * s.inner, wk, u);
        for (int p0 = 0; p0 < s.places; p0 += block) {
            const int n = std::min(block, s.places - p0);
            const float *from = image + int64_t(p0) * C, *place = pe + int64_t(p0) * C;
            for (int i = 0; i < n * C; i++) sum[i] = from[i] + place[i];
            matmul_t(rows, n, C, 1, u, C, sum, C, 0, scores + p0, s.places);
        }
        for (int r = 0; r < rows; r++) softmax_row(scores + int64_t(r) * s.places, s.places);
        matmul(rows, C, s.places, 1, scores, s.places, image, C, 0, context, C);
        float* to = out + int64_t(b) * s.tokens * s.inner;
        for (int h = 0; h < s.heads; h++)
            matmul_t(s.tokens, dim, C, 1, context + int64_t(h) * s.tokens * C, C,
                     wv + int64_t(h) * dim * C, C, 0, to + h * dim, s.inner);
        for (int t = 0; t < s.tokens; t++)
            for (int d = 0; d < s.inner; d++) to[t * s.inner + d] += bv[d];
    }
}

}  // namespace kernels
