// Updates of one parameter of any shape, n floats: two passes over memory and all cores, where
// composed operations take a dozen passes on one core.
namespace kernels {

// Fewer floats than these are not worth waking other threads for.
static const int64_t FEW = 16384;

// LARC's factor of a gradient, weight decay included. Where the value or the gradient is zero, the
// factor is 1 and the decay becomes 0.
static float larc_scale(const float* value, const float* gradient, int64_t n, float& decay,
                        double trust, double epsilon) {
    // Sums of blocks, added in order: the same to the last bit for any number of threads.
    const int64_t blocks = (n + 1023) / 1024;
    std::vector<float> sums(2 * blocks);
#pragma omp parallel for schedule(static) if (n > FEW)
    for (int64_t block = 0; block < blocks; block++) {
        float a = 0, b = 0;
        for (int64_t i = block * 1024; i < std::min(block * 1024 + 1024, n); i++) {
            a += value[i] * value[i];
            b += gradient[i] * gradient[i];
        }
        sums[2 * block] = a;
        sums[2 * block + 1] = b;
    }
    double values = 0, gradients = 0;
    for (int64_t block = 0; block < blocks; block++) {
        values += sums[2 * block];
        gradients += sums[2 * block + 1];
    }
    values = std::sqrt(values);
    gradients = std::sqrt(gradients);
    if (values != 0 && gradients != 0)
        return trust * values / (gradients + decay * values + epsilon);
    decay = 0;
    return 1;
}

// SGD with momentum: the new value and the new velocity.
static void sgd(const float* value, const float* gradient, const float* velocity, float* new_value,
                float* new_velocity, int64_t n, float rate, float momentum, float decay,
                float scale) {
#pragma omp parallel for schedule(static) if (n > FEW)
    for (int64_t i = 0; i < n; i++) {
        const float moved = momentum * velocity[i] + scale * (gradient[i] + decay * value[i]);
        new_velocity[i] = moved;
        new_value[i] = value[i] - rate * moved;
    }
}

// AdamW: the new value and both new moments. `pace` is the rate over the first moment's correction,
// `root` the square root of the second's, `keep` the share of the value that the decay leaves.
static void adamw(const float* value, const float* gradient, const float* first,
                  const float* second, float* new_value, float* new_first, float* new_second,
                  int64_t n, float pace, float root, float keep, float beta1, float beta2,
                  float epsilon) {
    const float share1 = 1 - beta1, share2 = 1 - beta2;
#pragma omp parallel for schedule(static) if (n > FEW)
    for (int64_t i = 0; i < n; i++) {
        const float g = gradient[i];
        const float mean = beta1 * first[i] + share1 * g;
        const float square = beta2 * second[i] + share2 * g * g;
        new_first[i] = mean;
        new_second[i] = square;
        new_value[i] = keep * value[i] - pace * mean / (std::sqrt(square) / root + epsilon);
    }
}

// Sum of the squares of n floats, the same to the last bit for any number of threads.
static float square_sum(const float* x, int64_t n) {
    const int64_t blocks = (n + 1023) / 1024;
    std::vector<float> sums(blocks);
#pragma omp parallel for schedule(static) if (n > FEW)
    for (int64_t block = 0; block < blocks; block++) {
        float sum = 0;
        for (int64_t i = block * 1024; i < std::min(block * 1024 + 1024, n); i++)
            sum += x[i] * x[i];
        sums[block] = sum;
    }
    double total = 0;
    for (int64_t block = 0; block < blocks; block++) total += sums[block];
    return total;
}

}  // namespace kernels
