// Products of small matrices that stay in the cache, without the copies that a library makes of both
// sides at every call: c (m, n) = a (m, k) b. b lies in panels of PANEL columns.
namespace kernels {

// The sums of a tile take 24 of 32 registers, or 12 of 16.
enum { TILE_ROWS = 6, TILE_VECTORS = LANES == 16 ? 4 : 2 };
static const int PANEL = LANES * TILE_VECTORS;

struct Left {
    const float* data;
    int64_t row, column;  // distance of neighbours in floats
};

struct Right {  // row i of panel p starts at data + p * panel + i * row
    const float* data;
    int64_t panel, row;
};

// A matrix of `k` rows that was copied into panels, one after another.
static inline Right packed(const float* data, int k) { return {data, int64_t(PANEL) * k, PANEL}; }

static inline size_t packed_size(int k, int n) { return size_t(round_up(n, PANEL)) * k; }

// Where element (i, column) of a packed matrix of `k` rows lies.
static inline size_t packed_at(int k, int i, int column) {
    return size_t(column / PANEL) * PANEL * k + size_t(i) * PANEL + column % PANEL;
}

// ROWS rows of c at VECTORS vectors of one panel: every sum in a register.
template <int ROWS, int VECTORS>
static inline void panel_tile(int k, Left a, const float* b, int64_t ldb, bool add, float* c,
                              int64_t ldc) {
    Lanes sums[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++)
            sums[r][v] = add ? lanes(c + r * ldc + v * LANES) : Lanes{};
    for (int i = 0; i < k; i++, a.data += a.column, b += ldb) {
        Lanes columns[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) columns[v] = lanes(b + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            const float value = a.data[r * a.row];
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) sums[r][v] += value * columns[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) lanes(c + r * ldc + v * LANES) = sums[r][v];
}

template <int VECTORS>
static void panel_rows(int m, int k, Left a, const float* b, int64_t ldb, bool add, float* c,
                       int64_t ldc) {
    const auto from = [&](int r) { return Left{a.data + r * a.row, a.row, a.column}; };
    int r = 0;
    for (; r + TILE_ROWS <= m; r += TILE_ROWS)
        panel_tile<TILE_ROWS, VECTORS>(k, from(r), b, ldb, add, c + r * ldc, ldc);
    for (; r + 2 <= m; r += 2) panel_tile<2, VECTORS>(k, from(r), b, ldb, add, c + r * ldc, ldc);
    if (r < m) panel_tile<1, VECTORS>(k, from(r), b, ldb, add, c + r * ldc, ldc);
}

template <int VECTORS>
static void panel_chunks(int m, int k, Left a, Right b, bool add, float* c, int64_t ldc) {
    const int most = 8192 / PANEL;  // rows of b that stay in the first cache
    for (int k0 = 0; k0 < k; k0 += most)
        panel_rows<VECTORS>(m, std::min(k - k0, most),
                            {a.data + k0 * a.column, a.row, a.column}, b.data + k0 * b.row, b.row,
                            add || k0 > 0, c, ldc);
}

// c (m, n), rows ldc apart, = or += a (m, k) b. The last vector of a row of c is written whole, and
// that of b read whole.
static void panel_product(int m, int n, int k, Left a, Right b, bool add, float* c, int64_t ldc) {
    for (; n > 0; n -= PANEL, b.data += b.panel, c += PANEL) {
        const int vectors = std::min(int(TILE_VECTORS), (n + LANES - 1) / LANES);
        if (vectors == TILE_VECTORS)
            panel_chunks<TILE_VECTORS>(m, k, a, b, add, c, ldc);
        else if (vectors == 1)
            panel_chunks<1>(m, k, a, b, add, c, ldc);
        else if (vectors == 2)
            panel_chunks<2>(m, k, a, b, add, c, ldc);
        else
            panel_chunks<3>(m, k, a, b, add, c, ldc);
    }
}

}  // namespace kernels
