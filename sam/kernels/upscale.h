// SAM's output upscaling and hyper-network product in one pass over the image places: two 2 x 2
// stride 2 transposed convolutions (layer norm and GELU after the first, GELU after the second),
// then the dot product with each mask's vector. The (batch, 32, 4h, 4w) map between them never
// exists.
#include "panels.h"
namespace kernels {

struct Upscale {
    int batch, height, width, channels, middle, last, masks;
};

// (inputs, outputs, 2, 2) -> (inputs, 4 * outputs) in panels: the outputs of one place lie together.
static Buffer outputs_last(const float* w, int inputs, int outputs) {
    Buffer sorted(packed_size(inputs, 4 * outputs));
    for (int i = 0; i < inputs; i++)
        for (int o = 0; o < outputs; o++)
            for (int d = 0; d < 4; d++)
                sorted[packed_at(inputs, i, d * outputs + o)] =
                    w[(int64_t(i) * outputs + o) * 4 + d];
    return sorted;
}

// x + bias, bias (n), for `count` rows of n floats.
static inline void add_bias(float* x, int count, int n, const float* bias) {
    for (int i = 0; i < count; i++)
        for (int c = 0; c < n; c++) x[i * n + c] += bias[c];
}

enum { UPSCALED = 24 };  // places of a block: whole tiles of the product

// x (batch, h*w, channels); w1 (channels, middle, 2, 2); w2 (middle, last, 2, 2); hyper (batch,
// masks, last); out (batch, masks, 4h, 4w).
static void upscale_masks(const Upscale& s, const float* x, const float* w1, const float* b1,
                          const float* norm_weight, const float* norm_bias, float eps,
                          const float* w2, const float* b2, const float* hyper, float* out) {
    const int full = 4 * s.width, blocks = (s.width + UPSCALED - 1) / UPSCALED;
    const int of_place = round_up(s.masks, LANES);
    const Buffer first_w = outputs_last(w1, s.channels, s.middle),
                 second_w = outputs_last(w2, s.middle, s.last);
    const size_t of_prompt = packed_size(s.last, s.masks);
    Buffer vectors(of_prompt * s.batch);  // hyper as (last, masks) in panels
    for (int b = 0; b < s.batch; b++)
        for (int m = 0; m < s.masks; m++)
            for (int c = 0; c < s.last; c++)
                vectors[b * of_prompt + packed_at(s.last, c, m)] =
                    hyper[(int64_t(b) * s.masks + m) * s.last + c];
#pragma omp parallel for schedule(dynamic)
    for (int task = 0; task < s.batch * s.height * blocks; task++) {
        const int x0 = task % blocks * UPSCALED, y = task / blocks % s.height,
                  b = task / blocks / s.height, n = std::min(int(UPSCALED), s.width - x0);
        float* first = scratch(0, size_t(UPSCALED) * 4 * s.middle);
        float* second = scratch(1, size_t(UPSCALED) * 16 * s.last);
        float* values = scratch(2, size_t(UPSCALED) * 16 * of_place);
        const float* from = x + ((int64_t(b) * s.height + y) * s.width + x0) * s.channels;
        panel_product(n, 4 * s.middle, s.channels, {from, s.channels, 1},
                      packed(first_w.data(), s.channels), false, first, 4 * s.middle);
        add_bias(first, 4 * n, s.middle, b1);
        for (int i = 0; i < 4 * n; i++)
            layer_norm_row(first + i * s.middle, first + i * s.middle, s.middle, norm_weight,
                             norm_bias, eps);
        gelu_row(first, 4 * n * s.middle);
        panel_product(4 * n, 4 * s.last, s.middle, {first, s.middle, 1},
                      packed(second_w.data(), s.middle), false, second, 4 * s.last);
        add_bias(second, 16 * n, s.last, b2);
        gelu_row(second, 16 * n * s.last);
        panel_product(16 * n, s.masks, s.last, {second, s.last, 1},
                      packed(vectors.data() + b * of_prompt, s.last), false, values, of_place);
        for (int m = 0; m < s.masks; m++) {
            float* map = out + (int64_t(b) * s.masks + m) * 4 * s.height * full;
            for (int i = 0; i < 16 * n; i++) {
                const int dx = i % 2, dy = i / 2 % 2, cx = i / 4 % 2, cy = i / 8 % 2;
                map[(4 * y + 2 * cy + dy) * full + 4 * (x0 + i / 16) + 2 * cx + dx] =
                    values[i * of_place + m];
            }
        }
    }
}

}  // namespace kernels
