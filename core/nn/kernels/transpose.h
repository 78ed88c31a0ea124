// (B,M,N) -> (B,N,M) in tiles that fit the first-level cache.
namespace kernels {

static void transpose(const float* x, float* y, int64_t batch, int64_t m, int64_t n) {
    const int64_t tile = 32, across = (n + tile - 1) / tile;
#pragma omp parallel for schedule(static)
    for (int64_t task = 0; task < batch * across; task++) {
        const int64_t j0 = task % across * tile, j1 = std::min(n, j0 + tile);
        const float* from = x + task / across * m * n;
        float* to = y + task / across * m * n;
        for (int64_t i0 = 0; i0 < m; i0 += tile)
            for (int64_t j = j0; j < j1; j++)
                for (int64_t i = i0; i < std::min(m, i0 + tile); i++)
                    to[j * m + i] = from[i * n + j];
    }
}

}  // namespace kernels
