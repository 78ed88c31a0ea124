// y = act(x w^T + bias + residual): in0 x (M,K), in1 w (N,K), in2 bias (N), in3 residual (M,N).
namespace kernels {

static void linear(const float* x, const float* w, const float* bias, const float* residual,
                   float* y, int m, int n, int k, int activation) {
    const int threads = omp_get_max_threads();
    const int rows = std::max(1, std::min(256, (m + threads - 1) / threads));
    const int row_blocks = (m + rows - 1) / rows;
    // Few rows (tokens of a prompt): share the columns out as well.
    const int columns = row_blocks >= threads ? n : std::max(64, (n + threads - 1) / threads);
    const int column_blocks = (n + columns - 1) / columns;
#pragma omp parallel for schedule(dynamic)
    for (int task = 0; task < row_blocks * column_blocks; task++) {
        const int r0 = task / column_blocks * rows, r1 = std::min(m, r0 + rows);
        const int c0 = task % column_blocks * columns, width = std::min(columns, n - c0);
        float* block = y + int64_t(r0) * n + c0;
        matmul_t(r1 - r0, width, k, 1, x + int64_t(r0) * k, k, w + int64_t(c0) * k, k, 0, block, n);
        for (int r = r0; r < r1; r++) {
            float* row = y + int64_t(r) * n + c0;
            if (bias)
                for (int c = 0; c < width; c++) row[c] += bias[c0 + c];
            if (residual) {
                const float* other = residual + int64_t(r) * n + c0;
                for (int c = 0; c < width; c++) row[c] += other[c];
            }
            activate_row(row, width, activation);
        }
    }
}

}  // namespace kernels
