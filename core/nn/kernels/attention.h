// softmax(scale q k^T + bias) v for all heads, on whole sequences or on windows of a map, without
// copies of the score matrix for more than a block of queries. Rows of q, k, v may lie apart
// (packed qkv).
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

// Index of token i of window `window` in its map, or -1 outside.
static inline int token_at(const AttentionShape& s, int window, int i) {
    if (s.side == 0) return i;
    const int per_row = (s.width + s.side - 1) / s.side;
    const int y = window / per_row * s.side + i / s.side,
              x = window % per_row * s.side + i % s.side;
    return y < s.height && x < s.width ? y * s.width + x : -1;
}

// Rows i0..i1 of a head as a matrix with row distance `ld`: in place where they lie evenly, else
// copied.
static const float* head_rows(const AttentionShape& s, const Tokens& t, int batch, int tokens,
                              int window, int head, int i0, int i1, int slot, int64_t* ld) {
    const float* map =
        t.data + int64_t(batch) * tokens * t.row_step + t.offset + head * t.head_step;
    if (s.side == 0 || (s.side == s.height && s.side == s.width)) {
        *ld = t.row_step;
        return map + i0 * t.row_step;
    }
    float* copy = scratch(slot, size_t(i1 - i0) * s.dim);
    for (int i = i0; i < i1; i++) {
        const int at = token_at(s, window, i);
        const float* row = at < 0 ? t.pad + t.offset + head * t.head_step : map + at * t.row_step;
        std::memcpy(copy + int64_t(i - i0) * s.dim, row, sizeof(float) * s.dim);
    }
    *ld = s.dim;
    return copy;
}

// TinyViT: bias of a pair = table[|dy| * side + |dx|].
static void add_offset_table(const float* table, int side, int query, float* scores) {
    const int qy = query / side, qx = query % side;
    for (int y = 0; y < side; y++) {
        const float* row = table + std::abs(qy - y) * side;
        float* s = scores + y * side;
        for (int x = 0; x < qx; x++) s[x] += row[qx - x];
        for (int x = qx; x < side; x++) s[x] += row[x - qx];
    }
}

// ViT: bias of a pair = q . rel_h[qy - ky + side - 1] + q . rel_w[qx - kx + side - 1], the products
// given.
static void add_decomposed(const float* by_h, const float* by_w, int side, int query,
                           float* scores) {
    const float* h = by_h + query / side + side - 1;
    const float* w = by_w + query % side + side - 1;
    float* reversed = scratch(6, side);
    for (int x = 0; x < side; x++) reversed[x] = w[-x];
    for (int y = 0; y < side; y++) {
        float* s = scores + int64_t(y) * side;
        const float of_row = h[-y];
        for (int x = 0; x < side; x++) s[x] += of_row + reversed[x];
    }
}

static void attention(const AttentionShape& s, const Tokens& q, const Tokens& k, const Tokens& v,
                      int bias_kind, const float* bias_a, const float* bias_b, float* out) {
    const int per_row = s.side ? (s.width + s.side - 1) / s.side : 1;
    const int windows = s.side ? per_row * ((s.height + s.side - 1) / s.side) : 1;
    const int in_query_map = s.side ? s.height * s.width : s.queries;
    const int in_key_map = s.side ? s.height * s.width : s.keys;
    const int block = std::max(16, std::min(s.queries, 262144 / s.keys));
    const int blocks = (s.queries + block - 1) / block, relative = 2 * s.side - 1;
    const int64_t out_step = int64_t(s.heads) * s.dim;
#pragma omp parallel for schedule(dynamic)
    for (int task = 0; task < s.batch * windows * s.heads * blocks; task++) {
        const int q0 = task % blocks * block, n = std::min(block, s.queries - q0);
        const int head = task / blocks % s.heads, window = task / blocks / s.heads % windows;
        const int batch = task / blocks / s.heads / windows;
        int64_t ldq, ldk, ldv;
        const float* queries =
            head_rows(s, q, batch, in_query_map, window, head, q0, q0 + n, 0, &ldq);
        const float* keys = head_rows(s, k, batch, in_key_map, window, head, 0, s.keys, 1, &ldk);
        const float* values = head_rows(s, v, batch, in_key_map, window, head, 0, s.keys, 2, &ldv);
        float* scores = scratch(3, size_t(n) * s.keys);
        matmul_t(n, s.keys, s.dim, s.scale, queries, ldq, keys, ldk, 0, scores, s.keys);
        float* by_h = nullptr;
        if (bias_kind == DECOMPOSED) {
            by_h = scratch(4, size_t(2) * n * relative);
            matmul_t(n, relative, s.dim, 1, queries, ldq, bias_a, s.dim, 0, by_h, relative);
            matmul_t(n, relative, s.dim, 1, queries, ldq, bias_b, s.dim, 0, by_h + n * relative,
                     relative);
        }
        for (int i = 0; i < n; i++) {
            float* row = scores + int64_t(i) * s.keys;
            if (bias_kind == OFFSET_TABLE)
                add_offset_table(bias_a + int64_t(head) * s.keys, s.side, q0 + i, row);
            else if (bias_kind == DECOMPOSED)
                add_decomposed(by_h + i * relative, by_h + (n + i) * relative, s.side, q0 + i, row);
            softmax_row(row, s.keys);
        }
        float* to = out + int64_t(batch) * in_query_map * out_step + head * s.dim;
        if (s.side == 0) {
            matmul(n, s.dim, s.keys, 1, scores, s.keys, values, ldv, 0, to + q0 * out_step,
                   out_step);
            continue;
        }
        float* result = scratch(5, size_t(n) * s.dim);
        matmul(n, s.dim, s.keys, 1, scores, s.keys, values, ldv, 0, result, s.dim);
        for (int i = 0; i < n; i++) {
            const int at = token_at(s, window, q0 + i);
            if (at >= 0)
                std::memcpy(to + at * out_step, result + int64_t(i) * s.dim, sizeof(float) * s.dim);
        }
    }
}

}  // namespace kernels
