// Convolutions on channels-last maps, with the weights as PyTorch stores them.
namespace kernels {

struct Window {
    int height, width, channels, kernel, stride, padding, out_height, out_width;
    int64_t step_y, step_x, step_c;  // distance in floats between neighbours of the input
};

// Of an input (height, width, channels), or (channels, height, width) where `channels_first`.
static Window window_of(int height, int width, int channels, int kernel, int stride, int padding,
                        int out_height, int out_width, bool channels_first) {
    Window s = {height, width, channels, kernel, stride, padding, out_height, out_width, 0, 0, 0};
    s.step_y = channels_first ? width : int64_t(width) * channels;
    s.step_x = channels_first ? 1 : channels;
    s.step_c = channels_first ? int64_t(height) * width : 1;
    return s;
}

// Row of one output place: the k x k x I inputs under the kernel, zero outside the map.
static void gather_patch(const float* image, const Window& s, int oy, int ox, float* row) {
    for (int ky = 0; ky < s.kernel; ky++)
        for (int kx = 0; kx < s.kernel; kx++, row += s.channels) {
            const int y = oy * s.stride - s.padding + ky, x = ox * s.stride - s.padding + kx;
            if (y < 0 || y >= s.height || x < 0 || x >= s.width) {
                std::memset(row, 0, sizeof(float) * s.channels);
                continue;
            }
            const float* from = image + y * s.step_y + x * s.step_x;
            if (s.step_c == 1)
                std::memcpy(row, from, sizeof(float) * s.channels);
            else
                for (int c = 0; c < s.channels; c++) row[c] = from[c * s.step_c];
        }
}

// x (B,H,W,I) or, by its steps, (B,I,H,W); w (O,I,k,k); bias (O) or null; y (B,h,w,O).
static void conv2d(const float* x, const float* w, const float* bias, float* y, int batch,
                   const Window& s, int out_channels, int activation) {
    const int taps = s.kernel * s.kernel, places = s.out_height * s.out_width,
              depth = taps * s.channels;
    Buffer by_tap(size_t(out_channels) * depth);  // (O,k,k,I), the order of a gathered patch
#pragma omp parallel for schedule(static)
    for (int o = 0; o < out_channels; o++)
        for (int c = 0; c < s.channels; c++)
            for (int t = 0; t < taps; t++)
                by_tap[(int64_t(o) * taps + t) * s.channels + c] =
                    w[(int64_t(o) * s.channels + c) * taps + t];
    const int rows = std::max(32, std::min(256, 65536 / depth)),
              blocks = (places + rows - 1) / rows;
#pragma omp parallel for schedule(dynamic)
    for (int task = 0; task < batch * blocks; task++) {
        const int image = task / blocks, p0 = task % blocks * rows,
                  p1 = std::min(places, p0 + rows);
        const float* from = x + int64_t(image) * s.height * s.width * s.channels;
        float* patches = scratch(0, size_t(rows) * depth);
        for (int p = p0; p < p1; p++)
            gather_patch(from, s, p / s.out_width, p % s.out_width,
                         patches + int64_t(p - p0) * depth);
        float* block = y + (int64_t(image) * places + p0) * out_channels;
        matmul_t(p1 - p0, out_channels, depth, 1, patches, depth, by_tap.data(), depth, 0, block,
                 out_channels);
        for (int p = p0; p < p1; p++, block += out_channels) {
            if (bias)
                for (int c = 0; c < out_channels; c++) block[c] += bias[c];
            activate_row(block, out_channels, activation);
        }
    }
}

// Depthwise 3 x 3, padding 1: in0 x (B,H,W,C), in1 w (C,9), in2 bias (C) -> (B,h,w,C).
static void depthwise3x3(const float* x, const float* w, const float* bias, float* y, int batch,
                         int height, int width, int channels, int stride, int out_height,
                         int out_width, int activation) {
    Buffer taps(
        size_t(9) *
        channels);  // tap by tap, so that the loop over channels runs through memory in order
    for (int c = 0; c < channels; c++)
        for (int t = 0; t < 9; t++) taps[size_t(t) * channels + c] = w[c * 9 + t];
#pragma omp parallel for schedule(static)
    for (int line = 0; line < batch * out_height; line++) {
        const float* image = x + int64_t(line / out_height) * height * width * channels;
        const int oy = line % out_height;
        for (int ox = 0; ox < out_width; ox++) {
            float* to = y + (int64_t(line) * out_width + ox) * channels;
            const float *from[9], *tap[9];  // those inside the map
            int count = 0;
            for (int t = 0; t < 9; t++) {
                const int iy = oy * stride - 1 + t / 3, ix = ox * stride - 1 + t % 3;
                if (iy < 0 || iy >= height || ix < 0 || ix >= width) continue;
                from[count] = image + (int64_t(iy) * width + ix) * channels;
                tap[count++] = taps.data() + int64_t(t) * channels;
            }
            int c = 0;
            for (; c + LANES <= channels; c += LANES) {
                Lanes sum = lanes(bias + c);
                for (int t = 0; t < count; t++) sum += lanes(from[t] + c) * lanes(tap[t] + c);
                lanes(to + c) = sum;
            }
            for (; c < channels; c++) {
                to[c] = bias[c];
                for (int t = 0; t < count; t++) to[c] += from[t][c] * tap[t][c];
            }
            activate_row(to, channels, activation);
        }
    }
}

}  // namespace kernels
