// Cross attention between a few tokens and many image places, multiplied out so that nothing of
// size (places, inner) is ever projected. With R = heads * tokens rows,
//   scores = (x + pe) Wq^T . k = (x + pe) . (k Wq)   and   (a v) Wo^T = a . (v Wo^T)
// cost 2 * R * places * channels instead of 2 * inner * places * channels. Every block of image
// places is read once and worked on in cache.
#include "panels.h"
namespace kernels {

struct TwoWay {
    int batch, image_batch;  // image_batch 1: the same image places for all prompts
    int places, channels, tokens, heads, inner;

    int rows() const { return heads * tokens; }
    int width() const { return round_up(rows(), LANES); }  // of a place's scores in memory
    // First place of a prompt's image.
    const float* image(const float* x, int prompt) const {
        return x + int64_t(image_batch == 1 ? 0 : prompt) * places * channels;
    }
};

enum { PLACES = 48 };  // of a block: whole tiles of the product

// Row of token t and head h among the scores: the heads of a token side by side.
static inline int score_row(const TwoWay& s, int t, int h) { return t * s.heads + h; }

// The tokens' part of the scores, alpha * t (tokens, inner) by w (inner, channels) per head, as
// (channels, rows) in panels; `room` for (tokens, channels).
static void expand_tokens(const TwoWay& s, float alpha, const float* t, const float* w, float* room,
                          float* panels) {
    const int dim = s.inner / s.heads;
    for (int h = 0; h < s.heads; h++) {
        matmul(s.tokens, s.channels, dim, alpha, t + h * dim, s.inner,
               w + int64_t(h) * dim * s.channels, s.channels, 0, room, s.channels);
        for (int i = 0; i < s.tokens; i++)
            for (int c = 0; c < s.channels; c++)
                panels[packed_at(s.channels, c, score_row(s, i, h))] = room[i * s.channels + c];
    }
}

// Softmax over the tokens for GROUP neighbouring heads of one place.
template <int GROUP>
static inline void softmax_heads(float* x, int tokens, int heads) {
    float top[GROUP], sum[GROUP] = {};
    std::memcpy(top, x, sizeof top);
    for (int t = 1; t < tokens; t++)
        for (int h = 0; h < GROUP; h++) top[h] = std::max(top[h], x[t * heads + h]);
    for (int t = 0; t < tokens; t++)
#pragma omp simd
        for (int h = 0; h < GROUP; h++)
            sum[h] += x[t * heads + h] = exp_not_positive(x[t * heads + h] - top[h]);
    for (int h = 0; h < GROUP; h++) sum[h] = 1.0f / sum[h];
    for (int t = 0; t < tokens; t++)
        for (int h = 0; h < GROUP; h++) x[t * heads + h] *= sum[h];
}

static inline void softmax_tokens(const TwoWay& s, float* scores) {
    int h = 0;
    for (; h + 8 <= s.heads; h += 8) softmax_heads<8>(scores + h, s.tokens, s.heads);
    for (; h < s.heads; h++) softmax_heads<1>(scores + h, s.tokens, s.heads);
}

// What the image places look at, made once for a prompt.
struct Looked {
    Buffer keys;    // (channels, rows) in panels, scaled
    Buffer shift;   // (rows), what the bias of the queries adds to the scores
    Buffer values;  // (rows, channels) in panels

    void fill(const TwoWay& s, const float* k, const float* v, const float* wq, const float* bq,
              const float* wo) {
        const int dim = s.inner / s.heads, C = s.channels;
        const float scale = 1.0f / std::sqrt(float(dim));
        keys.assign(packed_size(C, s.rows()), 0.0f);
        shift.assign(s.width(), 0.0f);
        values.assign(packed_size(s.rows(), C), 0.0f);
        float* room = scratch(0, size_t(s.tokens) * C);
        expand_tokens(s, scale, k, wq, room, keys.data());
        for (int h = 0; h < s.heads; h++) {
            matmul_t(s.tokens, C, dim, 1, v + h * dim, s.inner, wo + h * dim, s.inner, 0, room, C);
            for (int t = 0; t < s.tokens; t++) {
                const int row = score_row(s, t, h);
                for (int c = 0; c < C; c++)
                    values[packed_at(s.rows(), row, c)] = room[t * C + c];
                for (int d = 0; d < dim; d++)
                    shift[row] += scale * k[t * s.inner + h * dim + d] * bq[h * dim + d];
            }
        }
    }
};

// x' = LayerNorm(x + attention(queries x + pe, keys k, values v)): the image looks at the tokens.
// k, v (batch, tokens, inner); wq (inner, channels); wo (channels, inner); out (batch, places,
// channels).
static void image_to_token(const TwoWay& s, const float* x, const float* pe, const float* k,
                           const float* v, const float* wq, const float* bq, const float* wo,
                           const float* bo, const float* norm_weight, const float* norm_bias,
                           float eps, float* out) {
    const int C = s.channels, width = s.width(), blocks = (s.places + PLACES - 1) / PLACES;
    const int64_t of_prompt = int64_t(s.tokens) * s.inner;
    std::vector<Looked> looked(s.batch);
#pragma omp parallel for schedule(dynamic)
    for (int b = 0; b < s.batch; b++)
        looked[b].fill(s, k + b * of_prompt, v + b * of_prompt, wq, bq, wo);
#pragma omp parallel for schedule(dynamic)
    for (int task = 0; task < s.batch * blocks; task++) {
        const int b = task / blocks, p0 = task % blocks * PLACES,
                  n = std::min(int(PLACES), s.places - p0);
        const float *from = s.image(x, b) + int64_t(p0) * C, *place = pe + int64_t(p0) * C;
        float* to = out + (int64_t(b) * s.places + p0) * C;
        float* sum = scratch(0, size_t(PLACES) * C);
        float* scores = scratch(1, size_t(PLACES) * width);
        for (int i = 0; i < n * C; i += LANES) lanes(sum + i) = lanes(from + i) + lanes(place + i);
        for (int i = 0; i < n; i++)
            std::memcpy(scores + i * width, looked[b].shift.data(), sizeof(float) * width);
        panel_product(n, s.rows(), C, {sum, C, 1}, packed(looked[b].keys.data(), C), true, scores,
                      width);
        for (int i = 0; i < n; i++) softmax_tokens(s, scores + i * width);
        for (int i = 0; i < n; i++)
            for (int c = 0; c < C; c += LANES)
                lanes(sum + i * C + c) = lanes(from + i * C + c) + lanes(bo + c);
        panel_product(n, C, s.rows(), {scores, width, 1},
                      packed(looked[b].values.data(), s.rows()), true, sum, C);
        for (int i = 0; i < n; i++)
            layer_norm_row(sum + i * C, to + i * C, C, norm_weight, norm_bias, eps);
    }
}

// Scores (n, width) of a block of places -> exp(scores - top) with the largest score so far of each
// column; sum and the rows of context follow.
static void softmax_block(const TwoWay& s, int n, float* scores, float* top, float* sum,
                          float* context) {
    const int width = s.width(), C = s.channels;
    for (int v = 0; v < width; v += LANES) {
        Lanes higher = lanes(top + v);
        for (int i = 0; i < n; i++) higher = larger(higher, lanes(scores + i * width + v));
        const Lanes shrink = exp_not_positive(lanes(top + v) - higher);
        Lanes total = lanes(sum + v) * shrink;
        for (int i = 0; i < n; i++)
            total += lanes(scores + i * width + v) =
                exp_not_positive(lanes(scores + i * width + v) - higher);
        for (int r = v; r < std::min(s.rows(), v + int(LANES)); r++)
            if (higher[r - v] > top[r])
                for (int c = 0; c < C; c += LANES) lanes(context + r * C + c) *= shrink[r - v];
        lanes(top + v) = higher;
        lanes(sum + v) = total;
    }
}

// attention(queries q, keys (x + pe) Wk^T + bk, values x Wv^T + bv) before the output projection.
// q (batch, tokens, inner); wk, wv (inner, channels); out (batch, tokens, inner). bk shifts all
// scores of a query alike, which softmax does not see: it is not needed.
static void token_to_image(const TwoWay& s, const float* x, const float* pe, const float* q,
                           const float* wk, const float* wv, const float* bv, float* out) {
    const int rows = s.rows(), width = s.width(), dim = s.inner / s.heads, C = s.channels;
#pragma omp parallel for schedule(dynamic)
    for (int b = 0; b < s.batch; b++) {
        float* queries = scratch(0, packed_size(C, rows));
        float* sum = scratch(1, size_t(PLACES) * C);
        float* scores = scratch(2, size_t(PLACES + 2) * width);
        float *top = scores + PLACES * width, *total = top + width;
        float* context = scratch(3, size_t(rows) * C);
        std::memset(queries, 0, sizeof(float) * packed_size(C, rows));
        expand_tokens(s, 1.0f / std::sqrt(float(dim)), q + int64_t(b) * s.tokens * s.inner, wk, sum,
                      queries);
        std::fill(top, top + width, -1e30f);
        std::fill(total, total + width, 0.0f);
        std::memset(context, 0, sizeof(float) * rows * C);
        for (int p0 = 0; p0 < s.places; p0 += PLACES) {
            const int n = std::min(int(PLACES), s.places - p0);
            const float *from = s.image(x, b) + int64_t(p0) * C, *place = pe + int64_t(p0) * C;
            for (int i = 0; i < n * C; i += LANES)
                lanes(sum + i) = lanes(from + i) + lanes(place + i);
            panel_product(n, rows, C, {sum, C, 1}, packed(queries, C), false, scores, width);
            softmax_block(s, n, scores, top, total, context);
            panel_product(rows, C, n, {scores, 1, width}, {from, PANEL, C}, true, context, C);
        }
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < C; c++) context[r * C + c] /= total[r];
        float* to = out + int64_t(b) * s.tokens * s.inner;
        for (int h = 0; h < s.heads; h++)
            matmul_t(s.tokens, dim, C, 1, context + score_row(s, 0, h) * C, s.heads * C,
                     wv + int64_t(h) * dim * C, C, 0, to + h * dim, s.inner);
        for (int t = 0; t < s.tokens; t++)
            for (int d = 0; d < s.inner; d++) to[t * s.inner + d] += bv[d];
    }
}

}  // namespace kernels
