#include "panels.h"

// softmax(scale q k^T + bias) v for all heads, on whole sequences or on windows of a map. Rows of q,
// k, v may lie apart (packed qkv). The keys are taken tile by tile with a running maximum and sum
// (Milakov and Gimelshein 2018), so that scores exist for one tile only, in the cache.
namespace kernels {

struct Tokens {  // a batch of token maps; head h of a token starts at row + offset + h * head_step
    const float* data;
    const float* pad;  // the row that stands for tokens outside the map
    int64_t row_step, offset, head_step;
};

struct AttentionShape {
    int batch, heads, dim;    // dim floats per head
    int height, width, side;  // the map and the window's side; side 0: one sequence per batch entry
    int queries, keys;        // per sequence or window
    float scale;

    int windows() const {
        return side ? round_up(height, side) / side * (round_up(width, side) / side) : 1;
    }
    int query_map() const { return side ? height * width : queries; }
    int key_map() const { return side ? height * width : keys; }
};

// Of maps of queries (height, width) with windows, or of sequences of `width` queries and
// `key_count` keys where `side` is 0.
static AttentionShape attention_shape(int batch, int heads, int dim, int height, int width,
                                      int key_count, int side, float scale) {
    const int in_window = side * side;
    return {batch, heads, dim,   height, width, side, side ? in_window : width,
            side ? in_window : key_count, scale};
}

enum BiasKind { NO_BIAS = 0, OFFSET_TABLE = 1, DECOMPOSED = 2 };

// The place in its map of each token of each window, or -1 outside of the map; windows one after
// another.
static std::vector<int> window_places(const AttentionShape& s) {
    std::vector<int> places;
    for (int y0 = 0; y0 < s.height; y0 += s.side)
        for (int x0 = 0; x0 < s.width; x0 += s.side)
            for (int y = y0; y < y0 + s.side; y++)
                for (int x = x0; x < x0 + s.side; x++)
                    places.push_back(y < s.height && x < s.width ? y * s.width + x : -1);
    return places;
}

// One head of one sequence or window.
struct Head {
    const AttentionShape& shape;
    int batch, head;
    const int* places;  // of its window; null: token i lies at i

    int place(int i) const { return places ? places[i] : i; }
    const float* row(const Tokens& t, int tokens, int i) const {
        const int64_t at = place(i), start = t.offset + head * t.head_step;
        return at < 0 ? t.pad + start
                      : t.data + (int64_t(batch) * tokens + at) * t.row_step + start;
    }
};

// Keys as (dim, keys) and values as (keys, dim), in panels.
static void pack_head(const Head& h, const Tokens& k, const Tokens& v, float* keys,
                      float* values) {
    const AttentionShape& s = h.shape;
    const int tokens = s.key_map();
    for (int i0 = 0; i0 < s.keys; i0 += PANEL, keys += int64_t(PANEL) * s.dim) {
        const float* rows[PANEL];
        const int n = std::min(PANEL, s.keys - i0);
        for (int i = 0; i < n; i++) rows[i] = h.row(k, tokens, i0 + i);
        for (int d = 0; d < s.dim; d++)
            for (int i = 0; i < n; i++) keys[d * PANEL + i] = rows[i][d];
    }
    for (int i = 0; i < s.keys; i++) {
        const float* row = h.row(v, tokens, i);
        for (int d = 0; d < s.dim; d += PANEL)
            std::memcpy(values + int64_t(d) * s.keys + int64_t(i) * PANEL, row + d,
                        sizeof(float) * std::min(PANEL, s.dim - d));
    }
}

// What the scores of a query gain by position, in an order that runs with the keys: of key (ky, kx)
// TinyViT takes table[|dy| * side + |dx|], ViT q . rel_h[qy - ky + side - 1] + q . rel_w[qx - kx +
// side - 1].
struct Bias {
    int kind, side, span;  // span = 2 side - 1
    // OFFSET_TABLE: (heads, side, span), by |dy| and kx - qx + side - 1.
    // DECOMPOSED: both tables as (dim, 2 * span) in panels, each in reverse order.
    Buffer table;

    Bias(int kind, const AttentionShape& s, const float* first, const float* second)
        : kind(kind), side(s.side), span(2 * s.side - 1) {
        if (kind == OFFSET_TABLE) {
            table.resize(size_t(s.heads) * side * span + LANES);
            float* to = table.data();
            for (int row = 0; row < s.heads * side; row++)
                for (int dx = 1 - side; dx < side; dx++)
                    *to++ = first[row * side + std::abs(dx)];
        } else if (kind == DECOMPOSED) {
            table.resize(packed_size(s.dim, 2 * span));
            for (int c = 0; c < 2 * span; c++) {
                const float* from = (c < span ? first : second) +
                                    int64_t(span - 1 - c % span) * s.dim;
                for (int d = 0; d < s.dim; d++) table[packed_at(s.dim, d, c)] = from[d];
            }
        }
    }

    int width() const { return round_up(2 * span, LANES); }

    // DECOMPOSED: products of n queries with both tables, (n, width()).
    void of_queries(int n, int dim, const float* queries, float* products) const {
        panel_product(n, 2 * span, dim, {queries, dim, 1}, packed(table.data(), dim), false,
                      products, width());
    }

    // Writes the bias of keys k0..k1 for query `query`; up to LANES floats behind them may change.
    void write(int head, int query, const float* products, int k0, int k1, float* scores) const {
        const int qy = query / side, qx = query % side;
        for (int k = k0; k < k1;) {
            const int ky = k / side, kx = k % side, n = std::min(side - kx, k1 - k);
            const float* along;
            float of_row = 0;
            if (kind == OFFSET_TABLE) {
                along = table.data() + (int64_t(head) * side + std::abs(qy - ky)) * span;
            } else {
                of_row = products[side - 1 - qy + ky];
                along = products + span;
            }
            along += side - 1 - qx + kx;
            for (int i = 0; i < n; i += LANES)
                lanes(scores + k - k0 + i) = of_row + lanes(along + i);
            k += n;
        }
    }
};

enum { QUERY_BLOCK = 108, KEY_TILE = 256 };

// n queries (n, dim) from query q0 on -> result (n, dim). The queries are scaled in place.
static void attend(const Head& h, const Bias& bias, float* queries, int q0, int n,
                   const float* keys, const float* values, float* result) {
    const AttentionShape& s = h.shape;
    const int width = round_up(s.dim, LANES);
    float* scores = scratch(3, QUERY_BLOCK * KEY_TILE + LANES);
    float* mixed = scratch(4, size_t(n) * width);
    float* products = nullptr;
    if (bias.kind == DECOMPOSED) {
        products = scratch(2, size_t(n) * bias.width() + LANES);
        bias.of_queries(n, s.dim, queries, products);
    }
    for (int i = 0; i < n * s.dim; i++) queries[i] *= s.scale;
    float top[QUERY_BLOCK], sum[QUERY_BLOCK];
    std::fill(top, top + n, -1e30f);
    std::fill(sum, sum + n, 0.0f);
    std::memset(mixed, 0, sizeof(float) * n * width);
    for (int k0 = 0; k0 < s.keys; k0 += KEY_TILE) {
        const int count = std::min(s.keys - k0, int(KEY_TILE)), whole = round_up(count, LANES);
        if (bias.kind != NO_BIAS)
            for (int i = 0; i < n; i++)
                bias.write(h.head, q0 + i, products + i * bias.width(), k0, k0 + count,
                           scores + i * KEY_TILE);
        panel_product(n, count, s.dim, {queries, s.dim, 1},
                      packed(keys + int64_t(k0) * s.dim, s.dim), bias.kind != NO_BIAS, scores,
                      KEY_TILE);
        for (int i = 0; i < n; i++) {
            float* row = scores + i * KEY_TILE;
            std::fill(row + count, row + whole, -1e30f);
            const float higher = std::max(top[i], max_of(row, whole));
            const float shrink = exp_not_positive(top[i] - higher);
            sum[i] = sum[i] * shrink + exp_below(row, whole, higher);
            if (higher > top[i] && k0 > 0)
                for (int d = 0; d < width; d += LANES) lanes(mixed + i * width + d) *= shrink;
            top[i] = higher;
        }
        const Right of_tile = {values + int64_t(k0) * PANEL, int64_t(PANEL) * s.keys, PANEL};
        panel_product(n, s.dim, count, {scores, KEY_TILE, 1}, of_tile, true, mixed, width);
    }
    for (int i = 0; i < n; i++) {
        const float share = 1.0f / sum[i];
        for (int d = 0; d < s.dim; d++) result[i * s.dim + d] = mixed[i * width + d] * share;
    }
}

static void attention(const AttentionShape& s, const Tokens& q, const Tokens& k, const Tokens& v,
                      int bias_kind, const float* bias_a, const float* bias_b, float* out) {
    const int windows = s.windows(), heads = s.batch * windows * s.heads;
    const std::vector<int> places = s.side ? window_places(s) : std::vector<int>();
    const Bias bias(bias_kind, s, bias_a, bias_b);
    const int most = (s.queries + QUERY_BLOCK - 1) / QUERY_BLOCK;
    const int rows = round_up((s.queries + most - 1) / most, TILE_ROWS);  // of a block of queries
    const int blocks = (s.queries + rows - 1) / rows;
    const size_t of_keys = packed_size(s.dim, s.keys);
    const size_t of_head = of_keys + packed_size(s.keys, s.dim);
    const auto head_at = [&](int i) {
        const int window = i / s.heads % windows;
        return Head{s, i / s.heads / windows, i % s.heads,
                    s.side ? places.data() + int64_t(window) * s.keys : nullptr};
    };
    const auto block_of = [&](const Head& head, int block, const float* keys) {
        const int q0 = block * rows, n = std::min(rows, s.queries - q0);
        float* queries = scratch(1, size_t(2) * n * s.dim);
        float* result = queries + size_t(n) * s.dim;
        for (int i = 0; i < n; i++)
            std::memcpy(queries + i * s.dim, head.row(q, s.query_map(), q0 + i),
                        sizeof(float) * s.dim);
        attend(head, bias, queries, q0, n, keys, keys + of_keys, result);
        for (int i = 0; i < n; i++) {
            const int64_t at = head.place(q0 + i);
            if (at < 0) continue;
            const int64_t row = int64_t(head.batch) * s.query_map() + at;
            std::memcpy(out + (row * s.heads + head.head) * s.dim, result + i * s.dim,
                        sizeof(float) * s.dim);
        }
    };
    if (blocks <= 4) {
#pragma omp parallel for schedule(dynamic)
        for (int i = 0; i < heads; i++) {
            float* keys = scratch(0, of_head);
            pack_head(head_at(i), k, v, keys, keys + of_keys);
            for (int block = 0; block < blocks; block++) block_of(head_at(i), block, keys);
        }
        return;
    }
    // A head has many blocks of queries: all threads share the keys and values of a few heads.
    const int group = std::min(heads, 1 + 4 * omp_get_max_threads() / blocks);
    Buffer packed_heads(of_head * group);
    for (int first = 0; first < heads; first += group) {
        const int count = std::min(group, heads - first);
#pragma omp parallel
        {
#pragma omp for schedule(static)
            for (int i = 0; i < count; i++) {
                float* keys = packed_heads.data() + of_head * i;
                pack_head(head_at(first + i), k, v, keys, keys + of_keys);
            }
#pragma omp for schedule(dynamic)
            for (int task = 0; task < count * blocks; task++)
                block_of(head_at(first + task / blocks), task % blocks,
                         packed_heads.data() + of_head * (task / blocks));
        }
    }
}

}  // namespace kernels
