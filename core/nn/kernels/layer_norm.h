// Layer norm of the last axis: in0 x (M,C), in1 weight (C), in2 bias (C).
namespace kernels {

static void layer_norm(const float* x, const float* weight, const float* bias, float* y, int64_t m,
                       int c, float eps, int activation) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < m; r++) {
        layer_norm_row(x + r * c, y + r * c, c, weight, bias, eps);
        activate_row(y + r * c, c, activation);
    }
}

}  // namespace kernels
