// SAM's output upscaling and hyper-network product in one pass over the image places: two 2 x 2
// stride 2 transposed convolutions (layer norm and GELU after the first, GELU after the second),
// then the dot product with each mask's vector. The (batch, 32, 4h, 4w) map between them never
// exists.
namespace kernels {

struct Upscale {
    int batch, height, width, channels, middle, last, masks;
};

// (inputs, outputs, 2, 2) -> (inputs, dy, dx, outputs): the outputs of one place lie together.
static Buffer outputs_last(const float* w, int inputs, int outputs) {
    Buffer sorted(size_t(inputs) * outputs * 4);
    for (int i = 0; i < inputs; i++)
        for (int o = 0; o < outputs; o++)
            for (int d = 0; d < 4; d++)
                sorted[(int64_t(i) * 4 + d) * outputs + o] = w[(int64_t(i) * outputs + o) * 4 + d];
    return sorted;
}

// x (batch, h*w, channels); w1 (channels, middle, 2, 2); w2 (middle, last, 2, 2); hyper (batch,
// masks, last); out (batch, masks, 4h, 4w).
static void upscale_masks(const Upscale& s, const float* x, const float* w1, const float* b1,
                          const float* norm_weight, const float* norm_bias, float eps,
                          const float* w2, const float* b2, const float* hyper, float* out) {
    const int W = s.width, full = 4 * W;
    const Buffer first_w = outputs_last(w1, s.channels, s.middle),
                 second_w = outputs_last(w2, s.middle, s.last);
#pragma omp parallel for schedule(dynamic)
    for (int task = 0; task < s.batch * s.height; task++) {
        const int b = task / s.height, y = task % s.height;
        float* first = scratch(0, size_t(W) * 4 * s.middle);
        float* second = scratch(1, size_t(W) * 16 * s.last);
        float* values = scratch(2, size_t(W) * 16 * s.masks);
        matmul(W, 4 * s.middle, s.channels, 1, x + (int64_t(b) * s.height + y) * W * s.channels,
               s.channels, first_w.data(), 4 * s.middle, 0, first, 4 * s.middle);
        for (int i = 0; i < 4 * W; i++) {
            float* row = first + i * s.middle;
            for (int c = 0; c < s.middle; c++) row[c] += b1[c];
            layer_norm_row(row, row, s.middle, norm_weight, norm_bias, eps);
        }
        gelu_row(first, 4 * W * s.middle);
        matmul(4 * W, 4 * s.last, s.middle, 1, first, s.middle, second_w.data(), 4 * s.last, 0,
               second, 4 * s.last);
        for (int i = 0; i < 16 * W; i++)
            for (int c = 0; c < s.last; c++) second[i * s.last + c] += b2[c];
        gelu_row(second, 16 * W * s.last);
        matmul_t(s.masks, 16 * W, s.last, 1, hyper + int64_t(b) * s.masks * s.last, s.last, second,
                 s.last, 0, values, 16 * W);
        for (int m = 0; m < s.masks; m++)
            for (int i = 0; i < 16 * W; i++) {
                const int dx = i % 2, dy = i / 2 % 2, cx = i / 4 % 2, cy = i / 8 % 2, px = i / 16;
                out[((int64_t(b) * s.masks + m) * 4 * s.height + 4 * y + 2 * cy + dy) * full +
                    4 * px + 2 * cx + dx] = values[int64_t(m) * 16 * W + i];
            }
    }
}

}  // namespace kernels
