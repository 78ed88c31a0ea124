// Vectors of the widest registers that the processor has, and what is computed on them.
namespace kernels {

#ifdef __AVX512F__
enum { LANES = 16 };
#elif defined(__AVX__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif

typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t IntLanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline Lanes& lanes(float* x) { return *(Lanes*)x; }
static inline const Lanes& lanes(const float* x) { return *(const Lanes*)x; }
static inline Lanes larger(Lanes a, Lanes b) { return a > b ? a : b; }
static inline int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

static inline float sum_of(Lanes x) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

static inline float larger(float a, float b) { return a > b ? a : b; }
static inline int32_t whole_part(float x) { return int32_t(x); }
static inline IntLanes whole_part(Lanes x) { return __builtin_convertvector(x, IntLanes); }
static inline float as_float(int32_t n) { return float(n); }
static inline Lanes as_float(IntLanes n) { return __builtin_convertvector(n, Lanes); }
static inline Lanes of_bits(IntLanes bits) { return (Lanes)bits; }
static inline float of_bits(int32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// exp(x) of a float or of lanes, for x <= 0, to about 2 ulp: 2^n by the exponent bits times a
// polynomial on [-ln2/2, ln2/2].
template <class T>
static inline T exp_not_positive(T x) {
    x = larger(x, T{} - 87.0f);
    const auto whole = whole_part(x * 1.44269504f - 0.5f);
    const T n = as_float(whole);
    const T r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    T p = r * (1.0f / 5040) + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * of_bits((whole + 127) << 23);
}

// Exact GELU, x * Phi(x), of a float or of lanes; erf by formula 7.1.26 of Abramowitz and Stegun
// (absolute error 1.5e-7).
template <class T>
static inline T gelu(T x) {
    const T z = larger(x, -x) * 0.70710678f;
    const T t = 1.0f / (1.0f + 0.3275911f * z);
    const T poly =
        t * (0.254829592f +
             t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    const T tail = 0.5f * poly * exp_not_positive(-z * z);  // Phi(-|x|)
    return x * (x < 0.0f ? tail : 1.0f - tail);
}

// Largest of n floats, n in whole vectors.
static inline float max_of(const float* x, int n) {
    Lanes top = lanes(x);
    for (int i = LANES; i < n; i += LANES) top = larger(top, lanes(x + i));
    float result = top[0];
    for (int i = 1; i < LANES; i++) result = std::max(result, top[i]);
    return result;
}

// x = exp(x - top), top >= all of them; returns the sum. n in whole vectors.
static inline float exp_below(float* x, int n, float top) {
    Lanes sum = {};
    for (int i = 0; i < n; i += LANES) sum += lanes(x + i) = exp_not_positive(lanes(x + i) - top);
    return sum_of(sum);
}

}  // namespace kernels
