// l_p distances y[b,o] = ||x[b,:] - w[o,:]||_p, their gradients and interval bounds at p = inf, on the CPU.
//
// One source for 16, 8 and 4 float lanes (AVX-512, AVX2 + FMA, anything else through GCC vector extensions). Plain C
// ABI: pointers and integers, float32, row-major contiguous, no aliasing; the caller checks shapes. Every entry point
// returns 0, or one of the Status codes below.
//
// Structure. Lanes are batch rows: a tile of V vectors of rows is transposed once to [I][V * L], and one output runs
// over its features with V accumulators, its weight broadcast. Only the features of a candidate list are visited: for
// the tile, c_i = max(xmax_i - w_i, w_i - xmin_i) bounds |x_bi - w_i| over all rows, so a feature with
// c_i < tau * min_b max_i |d_i| cannot matter to any row (p = inf: tau = 1, exact; finite p: the dropped terms are
// together below 2^-24 of the sum). Where lists do not pay, the list is simply 0, 1, 2, ..., I - 1.
// Each output (forward) and each feature panel (backward) is computed whole by one task in a fixed order, so that
// results do not depend on the number of threads.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

constexpr int ABI_VERSION = 1;

enum Status { OK = 0, NO_MEMORY = 1, NON_FINITE = 2, UNSUPPORTED = 3 };

// ------------------------------------------------------------------------------------------------------------------
// Vectors

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define WITH_AVX512 1
constexpr int L = 16;
const char *const ISA = "avx512";
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int L = 8;
const char *const ISA = "avx2";
#else
constexpr int L = 4;
const char *const ISA = "baseline";
#endif

typedef float vf __attribute__((vector_size(4 * L), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * L)));
typedef float vfu __attribute__((vector_size(4 * L), aligned(4), may_alias));

#define INLINE inline __attribute__((always_inline))
#define KERNEL __attribute__((noinline)) void // inlined into its caller, the inner loop runs out of registers

INLINE vf load(const float *p) { return *reinterpret_cast<const vf *>(p); }
INLINE vf loadu(const float *p) { return *reinterpret_cast<const vfu *>(p); }
INLINE void store(float *p, vf v) { *reinterpret_cast<vf *>(p) = v; }
INLINE void storeu(float *p, vf v) { *reinterpret_cast<vfu *>(p) = v; }
INLINE vf splat(float a) { return a - vf{}; }
INLINE vi splati(int32_t a) { return a - vi{}; }

template <int... K> INLINE vi iota_of(std::integer_sequence<int, K...>) { return vi{K...}; }
INLINE vi iota() { return iota_of(std::make_integer_sequence<int, L>{}); }

#ifdef WITH_AVX512
INLINE vf vmax(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vf vmin(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vf vabs(vf a) { return (vf)_mm512_abs_ps((__m512)a); }
INLINE vf fma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE vf fms(vf a, vf b, vf c) { return (vf)_mm512_fmsub_ps((__m512)a, (__m512)b, (__m512)c); }
// max(|a|, |b|) in one instruction: 0x0B = larger magnitude, sign cleared
INLINE vf absmax(vf a, vf b) { return (vf)_mm512_range_ps((__m512)a, (__m512)b, 0x0B); }
#elif defined(__AVX2__) && defined(__FMA__)
INLINE vf vmax(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vf vmin(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE vf vabs(vf a) { return (vf)((vi)a & 0x7fffffff); }
INLINE vf fma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE vf fms(vf a, vf b, vf c) { return (vf)_mm256_fmsub_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE vf absmax(vf a, vf b) { return vmax(a, vabs(b)); }
#else
INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }
INLINE vf vmin(vf a, vf b) { return a < b ? a : b; }
INLINE vf vabs(vf a) { return (vf)((vi)a & 0x7fffffff); }
INLINE vf fma(vf a, vf b, vf c) { return a * b + c; }
INLINE vf fms(vf a, vf b, vf c) { return a * b - c; }
INLINE vf absmax(vf a, vf b) { return vmax(a, vabs(b)); }
#endif

using Lanes = std::make_integer_sequence<int, L>;

// lane k <- lane pick[k] of a, or pick[k] - L of b
template <int... PICK> INLINE vf shuffle(vf a, vf b, std::integer_sequence<int, PICK...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, PICK...);
#else
    return __builtin_shuffle(a, b, vi{PICK...});
#endif
}

// The masks of butterflies of width HALF: exchange lanes; take the lower, the higher halves of a and b.
template <int HALF, int... K> constexpr auto turn_mask(std::integer_sequence<int, K...>) {
    return std::integer_sequence<int, (K ^ HALF)...>{};
}
template <int HALF, int... K> constexpr auto low_mask(std::integer_sequence<int, K...>) {
    return std::integer_sequence<int, ((K & HALF) ? L + K - HALF : K)...>{};
}
template <int HALF, int... K> constexpr auto high_mask(std::integer_sequence<int, K...>) {
    return std::integer_sequence<int, ((K & HALF) ? L + K : K + HALF)...>{};
}

template <int HALF> INLINE vf turn(vf v) { return shuffle(v, v, turn_mask<HALF>(Lanes{})); }
template <int HALF = L / 2> INLINE float min_lanes(vf v) {
    if constexpr (HALF == 0) return v[0];
    else return min_lanes<HALF / 2>(vmin(v, turn<HALF>(v)));
}
template <int HALF = L / 2> INLINE float max_lanes(vf v) {
    if constexpr (HALF == 0) return v[0];
    else return max_lanes<HALF / 2>(vmax(v, turn<HALF>(v)));
}

template <int HALF> INLINE void transpose_step(vf (&r)[L]) {
    if constexpr (HALF > 0) {
#pragma GCC unroll 16
        for (int i = 0; i < L; i++)
            if ((i & HALF) == 0) {
                vf a = r[i], b = r[i + HALF];
                r[i] = shuffle(a, b, low_mask<HALF>(Lanes{}));
                r[i + HALF] = shuffle(a, b, high_mask<HALF>(Lanes{}));
            }
        transpose_step<HALF / 2>(r);
    }
}
INLINE void transpose(vf (&r)[L]) { transpose_step<L / 2>(r); }

// r[0] <- the L horizontal sums of r[0], ..., r[L-1], lane k = sum of r[k]
template <int HALF> INLINE void reduce_step(vf (&r)[L]) {
    if constexpr (HALF > 0) {
#pragma GCC unroll 16
        for (int i = 0; i < HALF; i++) {
            vf a = r[i], b = r[i + HALF];
            r[i] = shuffle(a, b, low_mask<HALF>(Lanes{})) + shuffle(a, b, high_mask<HALF>(Lanes{}));
        }
        reduce_step<HALF / 2>(r);
    }
}

// ------------------------------------------------------------------------------------------------------------------
// Floating-point mode, memory, threads

#if defined(__SSE__) || defined(__x86_64__)
INLINE unsigned get_mode() { return _mm_getcsr(); }
INLINE void set_mode(unsigned m) { _mm_setcsr(m); }
constexpr unsigned FLUSH = 0x8040; // FTZ and DAZ
#else
INLINE unsigned get_mode() { return 0; }
INLINE void set_mode(unsigned) {}
constexpr unsigned FLUSH = 0;
#endif

// High powers underflow, and subnormal operands cost a microcode trap each (15x slower): flush them. p = inf takes the
// caller's mode instead, so that it has the bits of the same formula in torch. The thread's own mode comes back.
struct Mode {
    unsigned saved;
    explicit Mode(unsigned mode) : saved(get_mode()) { set_mode(mode); }
    ~Mode() { set_mode(saved); }
};

struct Buffer {
    char *base = nullptr;
    Buffer() = default;
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;
    ~Buffer() { std::free(base); }
    template <class T> T *take(int64_t n) { // 64-byte aligned; nullptr when there is no memory
        const size_t bytes = (static_cast<size_t>(n > 0 ? n : 1) * sizeof(T) + 63) / 64 * 64;
        base = static_cast<char *>(std::aligned_alloc(64, bytes));
        return reinterpret_cast<T *>(base);
    }
};

INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// ------------------------------------------------------------------------------------------------------------------
// Tiles of rows

constexpr int VMAX = 8;         // vectors of a full tile: 128, 64 or 32 rows
constexpr int OB = 16;          // outputs of one task: a multiple of every L, one transposed store block
constexpr int PAD = 16;         // arrays over features are padded to this many
static_assert(OB % L == 0, "transposed stores take whole vectors");

// Rows of a call cut into tiles; the last one may use fewer vectors.
struct Tiling {
    int64_t rows, count;
    explicit Tiling(int64_t b) : rows(b), count(ceil_div(b, VMAX * L)) {}
    int64_t first(int64_t t) const { return t * VMAX * L; }
    int64_t used(int64_t t) const { return std::min<int64_t>(VMAX * L, rows - first(t)); }
    int vectors(int64_t t) const {
        const int64_t v = ceil_div(used(t), L);
        return v <= 1 ? 1 : v <= 4 ? 4 : 8;
    }
};

INLINE vf load_part(const float *p, int64_t n) { // first n < L lanes, the rest 0
    vf v{};
    std::memcpy(&v, p, static_cast<size_t>(n) * 4);
    return v;
}
INLINE vf load_upto(const float *p, int64_t n) { return n >= L ? loadu(p) : load_part(p, n); }

// rows [first, first + used) x columns [i0, i1) of a row-major [*, stride] -> out[i - i0][v * L + lane]; missing rows
// repeat the last one. lo and hi [i1 - i0, padded to L] receive each column's range. Returns false on inf or NaN.
bool pack(const float *x, int64_t stride, int64_t first, int64_t used, int vectors, int64_t i0, int64_t i1,
          float *out, float *lo, float *hi) {
    const int64_t width = vectors * L;
    vf bad{};
    for (int64_t i = i0; i < i1; i += L) {
        const int64_t n = std::min<int64_t>(L, i1 - i);
        vf mn = splat(INFINITY), mx = splat(-INFINITY);
        for (int v = 0; v < vectors; v++) {
            vf r[L];
#pragma GCC unroll 16
            for (int l = 0; l < L; l++) {
                const int64_t row = first + std::min<int64_t>(v * L + l, used - 1);
                r[l] = load_upto(x + row * stride + i, n);
                mn = vmin(mn, r[l]);
                mx = vmax(mx, r[l]);
                bad += r[l] * 0.0f;
            }
            transpose(r);
            float *to = out + (i - i0) * width + v * L;
            if (n == L) {
#pragma GCC unroll 16
                for (int l = 0; l < L; l++) store(to + l * width, r[l]);
            } else {
                for (int l = 0; l < n; l++) store(to + l * width, r[l]);
            }
        }
        store(lo + (i - i0), mn);
        store(hi + (i - i0), mx);
    }
    float sum = 0;
    for (int l = 0; l < L; l++) sum += bad[l];
    return sum == 0.0f; // inf * 0 and NaN * 0 are NaN
}

// in[k][v * L + lane], k < n -> rows [first, first + used) of a row-major [*, stride], columns [c0, c0 + n)
void unpack(const float *in, int vectors, int64_t n, float *out, int64_t stride, int64_t first, int64_t used,
            int64_t c0) {
    const int64_t width = vectors * L;
    for (int64_t k = 0; k < n; k += L) {
        const int64_t m = std::min<int64_t>(L, n - k);
        for (int v = 0; v < vectors; v++) {
            const int64_t rows = std::min<int64_t>(L, used - v * L);
            if (rows <= 0) break;
            vf r[L];
            for (int l = 0; l < L; l++) r[l] = l < m ? load(in + (k + l) * width + v * L) : vf{};
            transpose(r);
            for (int64_t l = 0; l < rows; l++) {
                float *to = out + (first + v * L + l) * stride + c0 + k;
                if (m == L) storeu(to, r[l]);
                else std::memcpy(to, &r[l], static_cast<size_t>(m) * 4);
            }
        }
    }
}

// ------------------------------------------------------------------------------------------------------------------
// Powers

// u ** e on [0, 1] as u ** m * P(u), m a whole number below e with a short chain of squarings, P a polynomial; m = e
// and no polynomial for whole e.
constexpr int MAX_DEGREE = 8;
constexpr int MAX_SHIFT = 8; // how far below e to look for a cheap m
// Relative errors allowed to a term of the power sum, which y inherits divided by p and the gradient, as a (p - 1)th
// power of y, as it is; and to a term of the gradient.
constexpr double VALUE_TOLERANCE = 4e-6, SLOPE_TOLERANCE = 6e-6;
constexpr float SLACK = 0.999999f; // float32 roundings of thresholds
constexpr double DROP = 1.0 / (1 << 24); // what all dropped terms of a sum may amount to, relative

struct Factor {
    unsigned m;
    int degree; // 0: no polynomial
    float coef[MAX_DEGREE + 1];
};

struct Power {
    double p;
    int64_t n_in;
    bool even;            // whole and even: (d * d) ** half, no absolute value
    int half;             // p / 2 if even
    Factor value, slope;  // u ** p, u ** (p - 1)
    float inv_hi, inv_lo; // 1 / p in two floats
    float tau_forward, tau_backward;
};

INLINE int top_bit(unsigned n) { return 31 - __builtin_clz(n); }
INLINE int chain(unsigned m) { return top_bit(m) + __builtin_popcount(m) - 1; }

// Least squares for u ** f on [lo, 1] at Chebyshev nodes, by normal equations in the Chebyshev basis (well conditioned).
struct Fit {
    static constexpr int NODES = 64;
    double mid, half, z[NODES], u[NODES], want[NODES], weight[NODES], f;

    // A relative error at u counts by the share that such terms can have in the sum: if all n_in coordinates were u.
    Fit(double e, double n_in, double lo) : mid(0.5 * (1 + lo)), half(0.5 * (1 - lo)), f(-1) {
        for (int q = 0; q < NODES; q++) {
            z[q] = std::cos(M_PI * (q + 0.5) / NODES);
            u[q] = mid + half * z[q];
            weight[q] = 1.0 / (1.0 + 1.0 / (n_in * std::pow(u[q], e)));
        }
    }

    // Largest weighted relative error at the nodes of the best polynomial of this degree, rounded to float32.
    double solve(double exponent, int degree, float *coef) {
        if (exponent != f) {
            f = exponent;
            for (int q = 0; q < NODES; q++) want[q] = std::pow(u[q], f);
        }
        const int k = degree + 1;
        double a[MAX_DEGREE + 1][MAX_DEGREE + 2] = {};
        for (int q = 0; q < NODES; q++) {
            const double s = weight[q] / want[q];
            double t[MAX_DEGREE + 2] = {s, s * z[q]};
            for (int j = 2; j < k; j++) t[j] = 2 * z[q] * t[j - 1] - t[j - 2];
            t[k] = s * want[q];
            for (int i = 0; i < k; i++)
                for (int j = i; j <= k; j++) a[i][j] += t[i] * t[j];
        }
        for (int i = 0; i < k; i++) // symmetric, positive definite: Gauss without pivoting on the upper half
            for (int r = i + 1; r < k; r++) {
                const double m = a[i][r] / a[i][i];
                for (int j = r; j <= k; j++) a[r][j] -= m * a[i][j];
            }
        double cheb[MAX_DEGREE + 1];
        for (int i = k; i-- > 0;) {
            cheb[i] = a[i][k];
            for (int j = i + 1; j < k; j++) cheb[i] -= a[i][j] * cheb[j];
            cheb[i] /= a[i][i];
        }
        // T_j((u - mid) / half) in powers of u
        double before[MAX_DEGREE + 1] = {1}, now[MAX_DEGREE + 1] = {-mid / half, 1 / half};
        double mono[MAX_DEGREE + 1] = {cheb[0]};
        for (int j = 1; j < k; j++) {
            double next[MAX_DEGREE + 1];
            for (int i = 0; i < k; i++) {
                mono[i] += cheb[j] * now[i];
                next[i] = 2 * ((i ? now[i - 1] / half : 0) - now[i] * mid / half) - before[i];
            }
            std::memcpy(before, now, sizeof now);
            std::memcpy(now, next, sizeof now);
        }
        for (int i = 0; i < k; i++) coef[i] = static_cast<float>(mono[i]);
        double worst = 0;
        for (int q = 0; q < NODES; q++) {
            double v = coef[degree];
            for (int i = degree; i-- > 0;) v = v * u[q] + coef[i];
            worst = std::max(worst, weight[q] * std::fabs(v / want[q] - 1));
        }
        return worst;
    }
};

// The cheapest m and P for exponent e > 1; false if no polynomial of at most MAX_DEGREE will do.
bool factor(double e, double n_in, double lo, double tolerance, Factor &out) {
    const double whole = std::floor(e);
    if (whole == e) {
        out.m = static_cast<unsigned>(whole);
        out.degree = 0;
        return true;
    }
    Fit fit(e, n_in, lo);
    int best = 1 << 20;
    const unsigned top = static_cast<unsigned>(whole);
    for (unsigned m = top; m >= 1 && m + MAX_SHIFT > top; m--) {
        Factor now;
        now.m = m;
        for (int degree = 1; degree <= MAX_DEGREE && chain(m) + degree < best; degree++) {
            if (fit.solve(e - m, degree, now.coef) > tolerance) continue;
            now.degree = degree;
            best = chain(m) + degree;
            out = now;
            break;
        }
    }
    return best < 1 << 20;
}

bool make_power(double p, int64_t n_in, Power &out) {
    constexpr int KEPT = 8; // a net's layers, forward and backward, share a step's exponent
    static thread_local Power cache[KEPT];
    static thread_local unsigned next;
    if (!(p >= 2) || p > 1e6) return false;
    for (const Power &old : cache)
        if (old.p == p && old.n_in == n_in) {
            out = old;
            return true;
        }
    out.p = p;
    out.n_in = n_in;
    out.even = std::fmod(p, 2.0) == 0;
    out.half = static_cast<int>(p / 2);
    out.inv_hi = static_cast<float>(1.0 / p);
    out.inv_lo = static_cast<float>(1.0 / p - out.inv_hi);
    const double n = static_cast<double>(n_in), log_drop = std::log(DROP) - std::log(n);
    const double tau_forward = std::exp(log_drop / p), tau_backward = std::exp(log_drop / (p - 1));
    out.tau_forward = static_cast<float>(tau_forward) * SLACK;
    out.tau_backward = static_cast<float>(tau_backward) * SLACK;
    // small real p: no short polynomial; the caller takes its reference
    if (!factor(p, n, tau_forward, VALUE_TOLERANCE, out.value)
        || !factor(p - 1, n, tau_backward, SLOPE_TOLERANCE, out.slope))
        return false;
    cache[next++ % KEPT] = out;
    return true;
}

// r <- s ** n for G vectors at once, n >= 1: squarings from the top bit down. The branches repeat, hence predict well.
template <int G> INLINE void power(vf (&r)[G], const vf (&s)[G], unsigned n) {
#pragma GCC unroll 8
    for (int g = 0; g < G; g++) r[g] = s[g];
    for (int k = top_bit(n); k-- > 0;) {
#pragma GCC unroll 8
        for (int g = 0; g < G; g++) r[g] *= r[g];
        if (n >> k & 1) {
#pragma GCC unroll 8
            for (int g = 0; g < G; g++) r[g] *= s[g];
        }
    }
}

template <int N> INLINE vf small_power(vf s) { // s ** N for N = 0 ... 6
    if constexpr (N == 0) return splat(1.0f);
    else if constexpr (N == 1) return s;
    else if constexpr (N % 2 == 0) { const vf h = small_power<N / 2>(s); return h * h; }
    else return small_power<N - 1>(s) * s;
}

template <int G> INLINE void polynomial(vf (&q)[G], const vf (&u)[G], const Factor &pw) {
    const vf top = splat(pw.coef[pw.degree]);
#pragma GCC unroll 8
    for (int g = 0; g < G; g++) q[g] = top;
    for (int k = pw.degree; k-- > 0;) {
        const vf c = splat(pw.coef[k]);
#pragma GCC unroll 8
        for (int g = 0; g < G; g++) q[g] = fma(q[g], u[g], c);
    }
}

// Least-squares (Lawson) fits, rounded to float32: log2(1 + f) / f on [1/sqrt 2 - 1, sqrt 2 - 1] to 1.8e-8 absolute in
// log2, and 2 ** r on [-1/2, 1/2] to 1.6e-8 relative.
constexpr int LOG2_DEGREE = 8, EXP2_DEGREE = 6;
constexpr float LOG2_COEF[LOG2_DEGREE + 1] = {1.4426949f, -0.721347153f, 0.480922431f, -0.360721141f, 0.287658751f,
                                              -0.238521203f, 0.217365772f, -0.210289672f, 0.125427678f};
constexpr float EXP2_COEF[EXP2_DEGREE + 1] = {1.0f, 0.693147182f, 0.240226462f, 0.0555032864f, 0.00961848907f,
                                              0.00133999309f, 0.000153458124f};

// s ** (1 / p) for s > 0. log2 by exponent and a polynomial on [1/sqrt 2, sqrt 2] (absolute error 5e-8); the exponent's
// share of log2(s) / p is split exactly into whole and fraction, so the result has about one rounding.
INLINE vf root(vf s, const Power &pw) {
    const vi bits = (vi)s;
    const vi e = (bits - 0x3f3504f3) >> 23;
    const vf f = (vf)(bits - (e << 23)) - 1.0f;
    vf l = splat(LOG2_COEF[LOG2_DEGREE]);
#pragma GCC unroll 16
    for (int k = LOG2_DEGREE; k-- > 0;) l = fma(l, f, splat(LOG2_COEF[k]));
    l *= f;
    const vf ef = __builtin_convertvector(e, vf);
    const vf hi = splat(pw.inv_hi);
    const vf magic = splat(12582912.0f); // 1.5 * 2^23: adding it rounds to the nearest whole number
    const vf whole = (ef * hi + magic) - magic;
    vf r = fms(ef, hi, whole);
    r = fma(ef, splat(pw.inv_lo), r);
    r = fma(l, hi, r);
    vf q = splat(EXP2_COEF[EXP2_DEGREE]);
#pragma GCC unroll 16
    for (int k = EXP2_DEGREE; k-- > 0;) q = fma(q, r, splat(EXP2_COEF[k]));
    return q * (vf)((__builtin_convertvector(whole, vi) + 127) << 23);
}

// ------------------------------------------------------------------------------------------------------------------
// Forward: kernels of one output on one run of its feature list. xt [I][V * L], w [I], state in memory between runs.

template <int V> using Vecs = vf[V];

template <int V>
KERNEL run_inf(const float *xt, const float *w, const int32_t *list, int n, vf *state) {
    vf m[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) m[v] = state[v];
    for (int k = 0; k < n; k++) {
        const int64_t i = list[k];
        const float *x = xt + i * (V * L);
        const vf wi = splat(w[i]);
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) m[v] = absmax(m[v], load(x + v * L) - wi);
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) state[v] = m[v];
}

// state[V ...]: the feature at which the maximum last grew. The list ascends, so it is the first that attains it.
template <int V>
KERNEL run_inf_code(const float *xt, const float *w, const int32_t *list, int n, vf *state) {
    vf m[V];
    vi at[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) m[v] = state[v], at[v] = (vi)state[V + v];
    for (int k = 0; k < n; k++) {
        const int32_t i = list[k];
        const float *x = xt + static_cast<int64_t>(i) * (V * L);
        const vf wi = splat(w[i]);
        const vi ii = splati(i);
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            const vf grown = absmax(m[v], load(x + v * L) - wi);
            at[v] = grown != m[v] ? ii : at[v];
            m[v] = grown;
        }
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) state[v] = m[v], state[V + v] = (vf)at[v];
}

// state: max(|l-w|, |u-w|); state[V ...]: max(l - w); state[2V ...]: min(u - w)
template <int V>
KERNEL run_box(const float *lt, const float *ut, const float *w, const int32_t *list, int n, vf *state) {
    vf hi[V], lo[V], mn[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) hi[v] = state[v], lo[v] = state[V + v], mn[v] = state[2 * V + v];
    for (int k = 0; k < n; k++) {
        const int64_t i = list[k];
        const vf wi = splat(w[i]);
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            const vf a = load(lt + i * (V * L) + v * L) - wi, c = load(ut + i * (V * L) + v * L) - wi;
            hi[v] = absmax(absmax(hi[v], a), c);
            lo[v] = vmax(lo[v], a);
            mn[v] = vmin(mn[v], c);
        }
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) state[v] = hi[v], state[V + v] = lo[v], state[2 * V + v] = mn[v];
}

// max |d| * unit, unit a power of two: x * unit - w * unit has exactly the rounding of x - w
template <int V>
KERNEL run_max(const float *xt, const float *w, const int32_t *list, int n, float unit, vf *state) {
    vf m[V];
    const vf un = splat(unit);
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) m[v] = state[v];
    for (int k = 0; k < n; k++) {
        const int64_t i = list[k];
        const float *x = xt + i * (V * L);
        const vf wi = splat(w[i] * unit);
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) m[v] = absmax(m[v], fms(load(x + v * L), un, wi));
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) state[v] = m[v];
}

// sum (d * unit) ** (2 N)
template <int V, int N>
KERNEL run_small(const float *xt, const float *w, const int32_t *list, int n, float unit, vf *state) {
    vf sum[V];
    const vf un = splat(unit);
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sum[v] = vf{};
    for (int k = 0; k < n; k++) {
        const int64_t i = list[k];
        const float *x = xt + i * (V * L);
        const vf wi = splat(w[i] * unit);
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            const vf t = fms(load(x + v * L), un, wi), s = t * t;
            if constexpr (N == 1) sum[v] = fma(t, t, sum[v]);
            else if constexpr (N % 2 == 0) { const vf h = small_power<N / 2>(s); sum[v] = fma(h, h, sum[v]); }
            else sum[v] = fma(small_power<N - 1>(s), s, sum[v]);
        }
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) state[v] += sum[v];
}

// sum (d * unit [* scale, per row]) ** (2 n)
template <int V, bool NORMAL>
KERNEL run_even(const float *xt, const float *w, const int32_t *list, int count, float unit, const vf *scale, int n,
              vf *state) {
    constexpr int G = L == 16 ? V : (V < 4 ? V : 4); // 16 registers hold two groups of 4 at a time
    vf sum[V];
    const vf un = splat(unit);
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sum[v] = vf{};
    const unsigned half = static_cast<unsigned>(n) / 2;
    const bool odd = n & 1;
    for (int k = 0; k < count; k++) {
        const int64_t i = list[k];
        const float *x = xt + i * (V * L);
        const vf wi = splat(w[i] * unit);
#pragma GCC unroll 8
        for (int v0 = 0; v0 < V; v0 += G) {
            vf s[G], r[G];
#pragma GCC unroll 8
            for (int g = 0; g < G; g++) {
                vf t = fms(load(x + (v0 + g) * L), un, wi);
                if constexpr (NORMAL) t *= scale[v0 + g];
                s[g] = t * t;
            }
            power<G>(r, s, half);
            if (odd) {
#pragma GCC unroll 8
                for (int g = 0; g < G; g++) sum[v0 + g] = fma(r[g] * r[g], s[g], sum[v0 + g]);
            } else {
#pragma GCC unroll 8
                for (int g = 0; g < G; g++) sum[v0 + g] = fma(r[g], r[g], sum[v0 + g]);
            }
        }
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) state[v] += sum[v];
}

// sum u ** m * P(u), u = |d| * unit * scale <= 1. The sums stay in memory: with 16 lanes the registers are needed for
// 8 chains at a time (u, power, polynomial), and fewer would wait for each other.
template <int V>
KERNEL run_real(const float *xt, const float *w, const int32_t *list, int n, float unit, const vf *scale,
              const Factor &pw, vf *state) {
    constexpr int G = V < 4 ? V : (L == 16 ? V : 4);
    const vf un = splat(unit);
    for (int k = 0; k < n; k++) {
        const int64_t i = list[k];
        const float *x = xt + i * (V * L);
        const vf wi = splat(w[i] * unit);
#pragma GCC unroll 8
        for (int v0 = 0; v0 < V; v0 += G) {
            vf u[G], r[G];
#pragma GCC unroll 8
            for (int g = 0; g < G; g++) u[g] = vabs(fms(load(x + (v0 + g) * L), un, wi)) * scale[v0 + g];
            power<G>(r, u, pw.m);
            if (pw.degree) {
                vf q[G];
                polynomial<G>(q, u, pw);
#pragma GCC unroll 8
                for (int g = 0; g < G; g++) state[v0 + g] = fma(r[g], q[g], state[v0 + g]);
            } else {
#pragma GCC unroll 8
                for (int g = 0; g < G; g++) state[v0 + g] += r[g];
            }
        }
    }
}

// ------------------------------------------------------------------------------------------------------------------
// Candidate lists

constexpr int SEGMENT = 64;        // features whose tile rows (32 KB) stay in the first-level cache
constexpr float SPARSE = 0.25f;    // below this kept share segments are too short to pay
// A list that keeps more than this is not worth building: where a feature costs 8 instructions or more, where 2 to 6.
constexpr float USELESS = 0.9f, USELESS_CHEAP = 0.7f;
constexpr int SAMPLES = 2;         // outputs of a block that are asked first
constexpr int MANY_SEEDS = 64;     // features evaluated for a second, sharper threshold

// What the rows of a tile span in each feature: [I padded to L] each. For a box `lo`, `hi` hold lower's minimum and
// upper's maximum, `lo2`, `hi2` upper's minimum and lower's maximum.
struct Range {
    const float *lo, *hi, *lo2, *hi2;
};

struct Thread { // one worker's scratch
    int32_t *list;  // [OB][ipad + L]
    int32_t *seg;   // [OB][nseg + 1]
    int32_t *all;   // 0, 1, 2, ...
    int32_t *all_seg;
    float *c, *c2;  // [ipad], I rounded up to PAD
    vf *state;      // [OB][3 * VMAX]
    float *out;     // [3][OB][VMAX * L]
    Buffer memory;
    bool make(int64_t n_in) {
        const int64_t ipad = round_up(n_in, PAD), nseg = ceil_div(n_in, SEGMENT) + 1;
        const int64_t ints = round_up(OB * (ipad + L), 16) + round_up(OB * nseg, 16) + round_up(ipad + L, 16)
            + round_up(nseg, 16);
        const int64_t floats = 2 * round_up(ipad, 16) + 3 * OB * VMAX * L;
        const int64_t states = static_cast<int64_t>(OB) * 3 * VMAX;
        char *p = memory.take<char>((ints + floats) * 4 + states * static_cast<int64_t>(sizeof(vf)) + 512);
        if (!p) return false;
        auto cut = [&p](int64_t bytes) { char *q = p; p += round_up(bytes, 64); return q; };
        state = reinterpret_cast<vf *>(cut(states * static_cast<int64_t>(sizeof(vf))));
        out = reinterpret_cast<float *>(cut(3 * OB * VMAX * L * 4));
        c = reinterpret_cast<float *>(cut(ipad * 4));
        c2 = reinterpret_cast<float *>(cut(ipad * 4));
        list = reinterpret_cast<int32_t *>(cut(OB * (ipad + L) * 4));
        seg = reinterpret_cast<int32_t *>(cut(OB * nseg * 4));
        all = reinterpret_cast<int32_t *>(cut((ipad + L) * 4));
        all_seg = reinterpret_cast<int32_t *>(cut(nseg * 4));
        for (int64_t i = 0; i < ipad + L; i++) all[i] = static_cast<int32_t>(i);
        for (int64_t s = 0; s < nseg; s++) all_seg[s] = static_cast<int32_t>(std::min<int64_t>(s * SEGMENT, n_in));
        return true;
    }
};

// c_i = max(hi_i - w_i, w_i - lo_i) for i < n into c. Per lane class (i mod L) the maximum and where it is: the seeds.
// `bad` collects w * 0 so that a non-finite weight shows.
INLINE vf bound_pass(const float *w, const float *lo, const float *hi, int64_t n, float *c, int32_t *seeds, vf &bad) {
    vf best = splat(-1.0f); // c >= 0 for real features: a padding lane never wins
    vi at = iota(), now = iota();
    int64_t i = 0;
    for (; i + L <= n; i += L) {
        __builtin_prefetch(w + n + i); // the next output's row: rows of a page each defeat the hardware's prefetcher
        const vf wi = loadu(w + i), ci = vmax(load(hi + i) - wi, wi - load(lo + i));
        bad += wi * 0.0f;
        store(c + i, ci);
        at = ci > best ? now : at;
        best = vmax(best, ci);
        now += L;
    }
    if (i < n) {
        const vf wi = load_part(w + i, n - i);
        vf ci = vmax(load(hi + i) - wi, wi - load(lo + i));
        bad += wi * 0.0f;
        ci = iota() < static_cast<int32_t>(n - i) ? ci : splat(-INFINITY);
        store(c + i, ci);
        at = ci > best ? now : at;
        best = vmax(best, ci);
    }
    if (n < L) at = iota() < static_cast<int32_t>(n) ? at : vi{};
    std::memcpy(seeds, &at, sizeof at);
    return best;
}

// indices i with c_i >= threshold, ascending; seg[s] = number of them below s * SEGMENT. list has L spare entries.
INLINE int keep(const float *c, int64_t n, float threshold, int32_t *list, int32_t *seg) {
    int count = 0;
    int64_t s = 0;
    for (int64_t i0 = 0; i0 < n; i0 += SEGMENT) {
        seg[s++] = count;
        const int64_t i1 = std::min<int64_t>(i0 + SEGMENT, n);
#ifdef WITH_AVX512
        const __m512 thr = _mm512_set1_ps(threshold);
        for (int64_t i = i0; i < i1; i += 16) { // padding of the last vector is -inf
            const __mmask16 m = _mm512_cmp_ps_mask(_mm512_load_ps(c + i), thr, _CMP_GE_OQ);
            const __m512i index = _mm512_add_epi32((__m512i)iota(), _mm512_set1_epi32(static_cast<int>(i)));
            _mm512_storeu_si512(list + count, _mm512_maskz_compress_epi32(m, index));
            count += __builtin_popcount(m);
        }
#else
        for (int64_t i = i0; i < i1; i++) {
            list[count] = static_cast<int32_t>(i);
            count += c[i] >= threshold;
        }
#endif
    }
    seg[s] = count;
    return count;
}

// A lower bound, over all rows of the tile, of max_i |d_i|: some features evaluated everywhere.
template <int V> float seed_bound(const float *xt, const float *w, const int32_t *seeds, int count) {
    vf m[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) m[v] = vf{};
    run_inf<V>(xt, w, seeds, count, m);
    vf least = m[0];
#pragma GCC unroll 8
    for (int v = 1; v < V; v++) least = vmin(least, m[v]);
    return min_lanes(least);
}

// ------------------------------------------------------------------------------------------------------------------
// Forward: one block of up to OB outputs on one tile

enum Kind { INF, INF_CODE, BOX, FINITE };
enum ListMode { AUTO = 0, NEVER = 1, ALWAYS = 2 };

struct Forward {
    const float *x, *x2, *w; // BOX: x = lower, x2 = upper
    float *y, *y2;
    int32_t *code;
    int64_t n_rows, n_in, n_out;
    Power pw;
    Kind kind;
    ListMode mode;
    float *xt, *xt2, *range; // tiles' transposes; range [tiles][4][ipad], I rounded up to PAD
    int64_t ipad;
    bool use_lists;
    std::atomic<bool> non_finite{false};
};

struct Output { // one output's list and scale on this tile
    const int32_t *list, *seg;
    int n;
    float unit, threshold;
    const float *w;
};

// the power of two that brings `bound` into [1, 2); the ends of the range keep it and its inverse normal numbers
INLINE float unit_for(float bound) {
    int32_t bits;
    std::memcpy(&bits, &bound, 4);
    const int32_t e = std::max(2, std::min(252, (bits >> 23) & 255));
    bits = (254 - e) << 23;
    float unit;
    std::memcpy(&unit, &bits, 4);
    return unit;
}

constexpr double SCALED_MAX_P = 66;      // above, sums of un-normalised powers leave float32
constexpr float SCALED_MIN_SUM = 0x1p-80f; // terms lost to flushing (< 2^-126) stay below 2^-46 of the sum
constexpr double LIST_MIN_P = 14;        // below, more than 3/4 of the features are kept

template <class Run> INLINE void sweep(const Output *out, int count, int64_t n_in, bool segments, Run run) {
    if (!segments) {
        for (int j = 0; j < count; j++) run(j, out[j].list, out[j].n);
        return;
    }
    const int64_t nseg = ceil_div(n_in, SEGMENT);
    for (int64_t s = 0; s < nseg; s++)
        for (int j = 0; j < count; j++) {
            const int32_t *seg = out[j].seg;
            if (seg[s + 1] > seg[s]) run(j, out[j].list + seg[s], seg[s + 1] - seg[s]);
        }
}

template <int V> struct Block {
    static constexpr int STATE = 3 * VMAX;
    Forward &job;
    Thread &me;
    int64_t tile, o0;
    int count;
    const float *xt, *xt2;
    Range range;
    Output out[OB];
    bool segments;
    vf bad{}; // sum of w * 0: not 0 if a weight is infinite or NaN

    Block(Forward &job_, Thread &me_, int64_t tile_, int64_t o0_) : job(job_), me(me_), tile(tile_), o0(o0_) {
        count = static_cast<int>(std::min<int64_t>(OB, job.n_out - o0));
        const int64_t base = tile * (VMAX * L) * job.n_in;
        xt = job.xt + base;
        xt2 = job.kind == BOX ? job.xt2 + base : nullptr;
        const float *r = job.range + tile * 4 * job.ipad;
        range = {r, r + job.ipad, r + 2 * job.ipad, r + 3 * job.ipad};
    }

    vf *state(int j) { return me.state + j * STATE; }

    void make_lists() {
        bool lists = job.use_lists;
        const float useless = job.kind == FINITE ? USELESS : USELESS_CHEAP;
        int64_t kept = 0;
        for (int j = 0; j < count; j++) {
            Output &q = out[j];
            q.w = job.w + (o0 + j) * job.n_in;
            if (j == SAMPLES && job.mode == AUTO && lists && kept > useless * SAMPLES * job.n_in) lists = false;
            if (lists) make_list(j);
            else everything(j);
            kept += q.n;
        }
        segments = job.n_in * V * L * 4 > SEGMENT * VMAX * 64 && kept > SPARSE * count * job.n_in;
    }

    void everything(int j) {
        Output &q = out[j];
        q.list = me.all;
        q.seg = me.all_seg;
        q.n = static_cast<int>(job.n_in);
        q.threshold = 0;
        float bound = 0;
        vf most{};
        int64_t i = 0;
        if (tile == 0 || job.kind == FINITE) {
            for (; i < job.n_in; i += L) {
                const vf wi = load_upto(q.w + i, job.n_in - i);
                bad += wi * 0.0f;
                if (job.kind == FINITE) most = vmax(most, vmax(load(range.hi + i) - wi, wi - load(range.lo + i)));
            }
            bound = max_lanes(most); // with padding lanes: range and w are 0 there
        }
        q.unit = unit_for(bound);
    }

    void make_list(int j) {
        Output &q = out[j];
        int32_t seeds[L];
        const vf best = bound_pass(q.w, range.lo, range.hi, job.n_in, me.c, seeds, bad);
        int32_t *list = me.list + j * (job.ipad + L), *seg = me.seg + j * (ceil_div(job.n_in, SEGMENT) + 1);
        q.list = list;
        q.seg = seg;
        q.unit = unit_for(max_lanes(best));
        if (job.kind == BOX) {
            make_box_threshold(q, seeds);
            q.n = keep(me.c, job.n_in, q.threshold, list, seg);
            return;
        }
        const float tau = job.kind == FINITE ? job.pw.tau_forward : 1.0f;
        q.threshold = tau * seed_bound<V>(xt, q.w, seeds, L);
        q.n = keep(me.c, job.n_in, q.threshold, list, seg);
        if (q.n < MANY_SEEDS * 2) return;
        // Many are left: the threshold is loose. Evaluate the features above the least lane maximum, the largest
        // L (1 + 1/2 + ... + 1/L) or so.
        const int n = keep(me.c, job.n_in, min_lanes(best), list, seg);
        q.threshold = std::max(q.threshold, tau * seed_bound<V>(xt, q.w, list, std::min(n, MANY_SEEDS)));
        q.n = keep(me.c, job.n_in, q.threshold, list, seg);
    }

    // Two maxima, one list: marks in me.c the features that can matter to either.
    void make_box_threshold(Output &q, const int32_t *seeds) {
        int32_t low_seeds[L];
        bound_pass(q.w, range.lo2, range.hi2, job.n_in, me.c2, low_seeds, bad); // max(l - w, w - u) over the tile
        vf s[3 * V];
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) s[v] = vf{}, s[V + v] = splat(-INFINITY), s[2 * V + v] = splat(INFINITY);
        run_box<V>(xt, xt2, q.w, seeds, L, s);
        run_box<V>(xt, xt2, q.w, low_seeds, L, s);
        vf high = s[0], low = vmax(s[V], -s[2 * V]);
#pragma GCC unroll 8
        for (int v = 1; v < V; v++) high = vmin(high, s[v]), low = vmin(low, vmax(s[V + v], -s[2 * V + v]));
        const vf h = splat(min_lanes(high)), l = splat(min_lanes(low));
        for (int64_t i = 0; i < job.n_in; i += L) {
            const vf c = load(me.c + i), c2 = load(me.c2 + i);
            vf hit = c >= h ? splat(1.0f) : vf{};
            hit = (c2 >= l) & (c2 > 0.0f) ? splat(1.0f) : hit;
            store(me.c + i, hit);
        }
        q.threshold = 1.0f;
    }

    void go() {
        make_lists();
        float sum = 0;
        for (int l = 0; l < L; l++) sum += bad[l];
        if (sum != 0.0f) { // the caller's reference handles inf and NaN
            job.non_finite.store(true, std::memory_order_relaxed);
            return;
        }
        if (job.kind == INF) go_inf();
        else if (job.kind == INF_CODE) go_inf_code();
        else if (job.kind == BOX) go_box();
        else go_finite();
    }

    float *staged(int plane) { return me.out + plane * OB * VMAX * L; }
    void write(const float *from, float *to) {
        unpack(from, V, count, to, job.n_out, tile * VMAX * L,
               std::min<int64_t>(VMAX * L, job.n_rows - tile * VMAX * L), o0);
    }

    void go_inf() {
        for (int j = 0; j < count; j++)
            for (int v = 0; v < V; v++) state(j)[v] = vf{};
        sweep(out, count, job.n_in, segments,
              [&](int j, const int32_t *list, int n) { run_inf<V>(xt, out[j].w, list, n, state(j)); });
        for (int j = 0; j < count; j++)
            for (int v = 0; v < V; v++) store(staged(0) + (j * V + v) * L, state(j)[v]);
        write(staged(0), job.y);
    }

    void go_inf_code() {
        for (int j = 0; j < count; j++)
            for (int v = 0; v < V; v++) state(j)[v] = vf{}, state(j)[V + v] = (vf)splati(-1);
        sweep(out, count, job.n_in, segments,
              [&](int j, const int32_t *list, int n) { run_inf_code<V>(xt, out[j].w, list, n, state(j)); });
        for (int j = 0; j < count; j++) {
            const float *w = out[j].w;
            for (int v = 0; v < V; v++) {
                const vf m = state(j)[v];
                alignas(64) int32_t index[L]; // -1, nothing above 0: distance 0, no gradient
                vi at = (vi)state(j)[V + v];
                std::memcpy(index, &at, sizeof at);
                store(staged(0) + (j * V + v) * L, m);
                for (int l = 0; l < L; l++) {
                    const int64_t i = std::max(index[l], 0);
                    const float d = xt[(i * V + v) * L + l] - w[i];
                    int32_t bits;
                    std::memcpy(&bits, &d, 4);
                    index[l] |= bits & INT32_MIN; // no branch: signs are random; -1 stays -1
                }
                std::memcpy(&at, index, sizeof at);
                at = m == INFINITY ? splati(-1) : at;
                store(staged(1) + (j * V + v) * L, (vf)at);
            }
        }
        write(staged(0), job.y);
        write(staged(1), reinterpret_cast<float *>(job.code));
    }

    void go_box() {
        for (int j = 0; j < count; j++)
            for (int v = 0; v < V; v++)
                state(j)[v] = vf{}, state(j)[V + v] = splat(-INFINITY), state(j)[2 * V + v] = splat(INFINITY);
        sweep(out, count, job.n_in, segments,
              [&](int j, const int32_t *list, int n) { run_box<V>(xt, xt2, out[j].w, list, n, state(j)); });
        for (int j = 0; j < count; j++)
            for (int v = 0; v < V; v++) {
                const vf *s = state(j);
                // + 0: the largest of -0 and 0 must be +0 whatever the order of the maxima
                store(staged(0) + (j * V + v) * L, vmax(vmax(s[V + v], -s[2 * V + v]), vf{}) + 0.0f);
                store(staged(1) + (j * V + v) * L, s[v]);
            }
        write(staged(0), job.y);
        write(staged(1), job.y2);
    }

    void go_finite() {
        const Power &pw = job.pw;
        const bool scaled = pw.even && pw.p <= SCALED_MAX_P;
        for (int j = 0; j < count; j++)
            for (int v = 0; v < V; v++) state(j)[v] = vf{};
        if (scaled) {
            sum_scaled();
            for (int j = 0; j < count; j++) {
                vf least = state(j)[0];
                for (int v = 1; v < V; v++) least = vmin(least, state(j)[v]);
                if (min_lanes(least) >= SCALED_MIN_SUM) finish(j, nullptr);
                else normalised(j, 1, false); // distances that differ by orders of magnitude within one tile, or zero
            }
        } else {
            normalised(0, count, segments);
        }
        write(staged(0), job.y);
    }

    void sum_scaled() {
        const int n = job.pw.half;
        auto small = [&](auto tag) {
            sweep(out, count, job.n_in, segments, [&](int j, const int32_t *list, int len) {
                run_small<V, decltype(tag)::value>(xt, out[j].w, list, len, out[j].unit, state(j));
            });
        };
        switch (n) {
        case 1: return small(std::integral_constant<int, 1>{});
        case 2: return small(std::integral_constant<int, 2>{});
        case 3: return small(std::integral_constant<int, 3>{});
        case 4: return small(std::integral_constant<int, 4>{});
        case 5: return small(std::integral_constant<int, 5>{});
        case 6: return small(std::integral_constant<int, 6>{});
        default:
            sweep(out, count, job.n_in, segments, [&](int j, const int32_t *list, int len) {
                run_even<V, false>(xt, out[j].w, list, len, out[j].unit, nullptr, n, state(j));
            });
        }
    }

    // outputs [j0, j0 + m): maximum, a list tightened with it, the sum of (|d| / maximum) ** p
    void normalised(int j0, int m, bool seg) {
        Output *q = out + j0;
        vf *first = state(j0);
        auto at = [&](int j) { return first + j * STATE; }; // [V] maximum, [V] its inverse, [V] sum
        for (int j = 0; j < m; j++)
            for (int v = 0; v < V; v++) at(j)[v] = vf{};
        sweep(q, m, job.n_in, seg, [&](int j, const int32_t *list, int n) {
            run_max<V>(xt, q[j].w, list, n, q[j].unit, at(j));
        });
        for (int j = 0; j < m; j++) {
            vf least = at(j)[0];
            for (int v = 0; v < V; v++) {
                const vf top = at(j)[v];
                least = vmin(least, top);
                at(j)[V + v] = top > 0.0f ? 1.0f / top : vf{};
                at(j)[2 * V + v] = vf{};
            }
            if (job.use_lists) tighten(j0 + j, min_lanes(least) / q[j].unit);
        }
        const Power &pw = job.pw;
        sweep(q, m, job.n_in, seg, [&](int j, const int32_t *list, int n) {
            vf *s = at(j);
            if (pw.even && pw.half >= 2)
                run_even<V, true>(xt, q[j].w, list, n, q[j].unit, s + V, pw.half, s + 2 * V);
            else run_real<V>(xt, q[j].w, list, n, q[j].unit, s + V, pw.value, s + 2 * V);
        });
        for (int j = 0; j < m; j++) {
            vf *s = at(j);
            vf top[V];
            for (int v = 0; v < V; v++) top[v] = s[v], s[v] = s[2 * V + v];
            finish(j0 + j, top);
        }
    }

    // The list was made from a lower bound of the smallest maximum; now that is known.
    void tighten(int j, float least) {
        Output &q = out[j];
        const float threshold = least * job.pw.tau_forward;
        if (q.list == me.all || threshold <= q.threshold * 1.01f) return;
        int32_t *list = const_cast<int32_t *>(q.list), *seg = const_cast<int32_t *>(q.seg);
        const int64_t nseg = ceil_div(job.n_in, SEGMENT);
        int n = 0;
        for (int64_t s = 0, k = 0; s < nseg; s++) {
            const int end = q.seg[s + 1];
            seg[s] = n;
            for (; k < end; k++) {
                const int32_t i = q.list[k];
                const float wi = q.w[i];
                list[n] = i;
                n += std::max(range.hi[i] - wi, wi - range.lo[i]) >= threshold;
            }
        }
        seg[nseg] = n;
        q.n = n;
    }

    // y = maximum * sum ** (1 / p) / unit; zero where the maximum is zero
    void finish(int j, const vf *top) {
        const float back = 1.0f / out[j].unit;
        for (int v = 0; v < V; v++) {
            const vf sum = state(j)[v];
            vf y = root(sum, job.pw);
            if (top) y = top[v] > 0.0f ? y * top[v] : vf{};
            store(staged(0) + (j * V + v) * L, y * back);
        }
    }
};

int forward(Forward &job, int threads) {
    const Tiling tiles(job.n_rows);
    job.ipad = round_up(job.n_in, PAD);
    // few features: the L seeds alone cost as much as what a list saves
    const bool pays = job.kind == FINITE ? job.pw.p >= LIST_MIN_P && job.n_in >= 4 * L : job.n_in >= 8 * L;
    job.use_lists = job.mode == ALWAYS || (job.mode == AUTO && pays);
    Buffer m1, m2, m3;
    const int64_t area = tiles.count * VMAX * L * job.n_in;
    job.xt = m1.take<float>(area);
    job.xt2 = job.kind == BOX ? m2.take<float>(area) : nullptr;
    job.range = m3.take<float>(tiles.count * 4 * job.ipad);
    if (!job.xt || !job.range || (job.kind == BOX && !job.xt2)) return NO_MEMORY;
    constexpr int64_t STRIP = 64; // features of one packing task
    const int64_t strips = ceil_div(job.n_in, STRIP), blocks = ceil_div(job.n_out, OB);
    const unsigned mode = job.kind == FINITE ? (get_mode() | FLUSH) : get_mode();
    std::atomic<int> status{OK};
#pragma omp parallel num_threads(threads)
    {
        const Mode scope(mode);
        Thread me;
        if (!me.make(job.n_in)) status = NO_MEMORY;
#pragma omp for schedule(static)
        for (int64_t k = 0; k < tiles.count * strips; k++) {
            const int64_t t = k / strips, i0 = k % strips * STRIP, i1 = std::min(i0 + STRIP, job.n_in);
            const int64_t at = t * VMAX * L * job.n_in + i0 * tiles.vectors(t) * L;
            float *r = job.range + t * 4 * job.ipad + i0;
            const float *const src[2] = {job.x, job.x2};
            float *const dst[2] = {job.xt, job.xt2};
            // range: [lower's min, upper's max, upper's min, lower's max]; one matrix: [min, max]
            float *const lo[2] = {r, r + 2 * job.ipad};
            float *const hi[2] = {job.kind == BOX ? r + 3 * job.ipad : r + job.ipad, r + job.ipad};
            for (int q = 0; q < (job.kind == BOX ? 2 : 1); q++)
                if (!pack(src[q], job.n_in, tiles.first(t), tiles.used(t), tiles.vectors(t), i0, i1, dst[q] + at,
                          lo[q], hi[q]))
                    job.non_finite = true;
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t k = 0; k < tiles.count * blocks; k++) {
            if (status.load(std::memory_order_relaxed) != OK || job.non_finite.load(std::memory_order_relaxed)) continue;
            const int64_t t = k / blocks, o0 = k % blocks * OB;
            switch (tiles.vectors(t)) {
            case 1: Block<1>(job, me, t, o0).go(); break;
            case 4: Block<4>(job, me, t, o0).go(); break;
            default: Block<8>(job, me, t, o0).go();
            }
        }
    }
    if (status != OK) return status;
    return job.non_finite ? NON_FINITE : OK;
}

// ------------------------------------------------------------------------------------------------------------------
// Backward at finite p: v(b, o, i) = g * sign(d) * (|d| / y) ** (p - 1), dx = sum over o, dw = - sum over b.
// Kernels of one output on one run of its list, on a panel of features: xt, dxt [panel][V * L], w [panel]. part[k]
// receives v summed over the vectors, lane by lane, for the k-th feature of the list.

constexpr int SUB = 32; // features whose tile rows, values and gradients (32 KB) stay in the first-level cache

struct Rows { // one output on one tile: what multiplies the power, and the inverse distance where it is not folded in
    const float *coef, *inv;
    float unit, threshold;
    bool scaled;
};

template <int V, int N, bool DX>
KERNEL back_small(const float *xt, float *dxt, const float *w, const int32_t *list, int n, const Rows &q, vf *part) {
    const vf un = splat(q.unit);
    vf c[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) c[v] = load(q.coef + v * L);
    for (int k = 0; k < n; k++) {
        const int64_t i = list[k];
        const float *x = xt + i * (V * L);
        float *dx = dxt + i * (V * L);
        const vf wi = splat(w[i] * q.unit);
        vf sum[2] = {vf{}, vf{}}; // two chains: one fma after another would wait 4 cycles each
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            const vf t = fms(load(x + v * L), un, wi);
            vf a = t * c[v];
            if constexpr (N == 1) {
                sum[v & 1] += a;
                if constexpr (DX) store(dx + v * L, load(dx + v * L) + a);
            } else {
                const vf s = t * t;
                if constexpr (N % 2 == 0) a *= s;
                const vf b = small_power<(N - 1) / 2>(s * s);
                sum[v & 1] = fma(a, b, sum[v & 1]);
                if constexpr (DX) store(dx + v * L, fma(a, b, load(dx + v * L)));
            }
        }
        part[k] = sum[0] + sum[1];
    }
}

template <int V, bool NORMAL, bool DX>
KERNEL back_even(const float *xt, float *dxt, const float *w, const int32_t *list, int n, const Rows &q, int half,
               vf *part) {
    constexpr int G = L == 16 ? V : (V < 4 ? V : 4);
    const vf un = splat(q.unit);
    for (int k = 0; k < n; k++) {
        const int64_t i = list[k];
        const float *x = xt + i * (V * L);
        float *dx = dxt + i * (V * L);
        const vf wi = splat(w[i] * q.unit);
        vf sum[2] = {vf{}, vf{}};
#pragma GCC unroll 8
        for (int v0 = 0; v0 < V; v0 += G) {
            vf s[G], r[G], a[G];
#pragma GCC unroll 8
            for (int g = 0; g < G; g++) {
                vf t = fms(load(x + (v0 + g) * L), un, wi);
                if constexpr (NORMAL) t *= load(q.inv + (v0 + g) * L);
                s[g] = t * t;
                a[g] = t * load(q.coef + (v0 + g) * L);
            }
            power<G>(r, s, static_cast<unsigned>(half - 1));
#pragma GCC unroll 8
            for (int g = 0; g < G; g++) {
                sum[g & 1] = fma(a[g], r[g], sum[g & 1]);
                if constexpr (DX) store(dx + (v0 + g) * L, fma(a[g], r[g], load(dx + (v0 + g) * L)));
            }
        }
        part[k] = sum[0] + sum[1];
    }
}

template <int V, bool DX>
KERNEL back_real(const float *xt, float *dxt, const float *w, const int32_t *list, int n, const Rows &q,
               const Factor &pw, vf *part) {
    constexpr int G = V < 4 ? V : (L == 16 ? V : 4);
    const vf un = splat(q.unit);
    const vi sign = splati(INT32_MIN);
    for (int k = 0; k < n; k++) {
        const int64_t i = list[k];
        const float *x = xt + i * (V * L);
        float *dx = dxt + i * (V * L);
        const vf wi = splat(w[i] * q.unit);
        vf sum[2] = {vf{}, vf{}};
#pragma GCC unroll 8
        for (int v0 = 0; v0 < V; v0 += G) {
            vf u[G], r[G], a[G];
#pragma GCC unroll 8
            for (int g = 0; g < G; g++) {
                const vf t = fms(load(x + (v0 + g) * L), un, wi) * load(q.inv + (v0 + g) * L);
                u[g] = vabs(t);
                a[g] = (vf)((vi)load(q.coef + (v0 + g) * L) ^ ((vi)t & sign));
            }
            power<G>(r, u, pw.m);
            if (pw.degree) {
#pragma GCC unroll 8
                for (int g = 0; g < G; g++) a[g] *= r[g];
                polynomial<G>(r, u, pw);
            }
#pragma GCC unroll 8
            for (int g = 0; g < G; g++) {
                sum[g & 1] = fma(a[g], r[g], sum[g & 1]);
                if constexpr (DX) store(dx + (v0 + g) * L, fma(a[g], r[g], load(dx + (v0 + g) * L)));
            }
        }
        part[k] = sum[0] + sum[1];
    }
}

struct Backward {
    const float *grad, *x, *w, *y;
    float *dx, *dw;
    int64_t n_rows, n_in, n_out;
    Power pw;
    ListMode mode;
    bool use_lists;
    float *coef, *inv; // [tiles][O][VMAX * L]
    Rows *rows;        // [tiles][O]
    std::atomic<bool> non_finite{false};
};

// Coefficients of up to OB outputs on one tile.
template <int V> void coefficients(Backward &job, const Tiling &tiles, int64_t tile, int64_t o0) {
    const int64_t o1 = std::min(o0 + OB, job.n_out), at = (tile * job.n_out + o0) * VMAX * L;
    const int64_t used = tiles.used(tile), first = tiles.first(tile);
    alignas(64) float g[OB * V * L], y[OB * V * L], unused[2][OB];
    if (!pack(job.grad, job.n_out, first, used, V, o0, o1, g, unused[0], unused[1])
        || !pack(job.y, job.n_out, first, used, V, o0, o1, y, unused[0], unused[1]))
        job.non_finite = true;
    const Power &pw = job.pw;
    for (int64_t o = o0; o < o1; o++) {
        const float *go = g + (o - o0) * V * L, *yo = y + (o - o0) * V * L;
        vf least = splat(INFINITY), most{};
        for (int v = 0; v < V; v++) {
            const vf yv = load(yo + v * L);
            least = vmin(least, yv > 0.0f ? yv : splat(INFINITY)); // a zero distance has no gradient, whatever is kept
            most = vmax(most, yv);
        }
        const float lo = min_lanes(least), hi = max_lanes(most);
        Rows &q = job.rows[tile * job.n_out + o];
        float *coef = job.coef + at + (o - o0) * VMAX * L, *inv = job.inv + at + (o - o0) * VMAX * L;
        q.coef = coef;
        q.inv = inv;
        q.threshold = lo * job.pw.tau_backward;
        // un-normalised powers: all of (y * unit) ** (p - 1) must stay well inside float32
        const double middle = 0.5 * (std::log2(static_cast<double>(lo)) + std::log2(static_cast<double>(hi)));
        const double shift = hi > 0 ? std::max(-126.0, std::min(126.0, std::round(-middle))) : 0;
        q.scaled = pw.even && pw.p <= SCALED_MAX_P && hi > 0
            && (pw.p - 1) * (std::fabs(middle + shift) + std::log2(static_cast<double>(hi) / lo) / 2) <= 80;
        q.unit = static_cast<float>(std::ldexp(1.0, static_cast<int>(shift)));
        for (int v = 0; v < V; v++) {
            const vf yv = load(yo + v * L);
            vf c = yv > 0.0f ? load(go + v * L) : vf{};
            const vi lane = iota() + v * L;
            c = lane < static_cast<int32_t>(used) ? c : vf{}; // rows that only fill the tile
            vf r[1] = {yv > 0.0f ? 1.0f / (yv * q.unit) : vf{}}, s[1];
            store(inv + v * L, r[0]);
            if (q.scaled) {
                power<1>(s, r, pw.slope.m);
                c *= s[0];
            }
            store(coef + v * L, c);
        }
    }
}

struct Panel { // one worker's scratch for a panel of features
    float *xt, *dxt, *lo, *hi;
    int32_t *list, *all;
    vf *part;
    Buffer memory;
    bool make(int64_t width) {
        const int64_t area = width * VMAX * L * 4, ints = OB * (width + L) * 4;
        char *p = memory.take<char>(2 * area + 2 * (width * 4 + 64) + ints + (width + L) * 4
                                    + width * static_cast<int64_t>(sizeof(vf)) + 512);
        if (!p) return false;
        auto cut = [&p](int64_t bytes) { char *q = p; p += round_up(bytes, 64); return q; };
        xt = reinterpret_cast<float *>(cut(area));
        dxt = reinterpret_cast<float *>(cut(area));
        part = reinterpret_cast<vf *>(cut(width * static_cast<int64_t>(sizeof(vf))));
        lo = reinterpret_cast<float *>(cut(width * 4));
        hi = reinterpret_cast<float *>(cut(width * 4));
        list = reinterpret_cast<int32_t *>(cut(ints));
        all = reinterpret_cast<int32_t *>(cut((width + L) * 4));
        for (int64_t i = 0; i < width + L; i++) all[i] = static_cast<int32_t>(i);
        return true;
    }
};

// indices i < n with max(hi_i - w_i, w_i - lo_i) >= threshold, ascending
INLINE int keep_bounds(const float *w, const float *lo, const float *hi, int64_t n, float threshold, int32_t *list) {
    int count = 0;
#ifdef WITH_AVX512
    const __m512 thr = _mm512_set1_ps(threshold);
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 real = n - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (n - i)) - 1);
        const __m512 wi = _mm512_maskz_loadu_ps(real, w + i);
        const __m512 c = _mm512_max_ps(_mm512_sub_ps(_mm512_load_ps(hi + i), wi),
                                       _mm512_sub_ps(wi, _mm512_load_ps(lo + i)));
        const __mmask16 m = _mm512_mask_cmp_ps_mask(real, c, thr, _CMP_GE_OQ);
        const __m512i index = _mm512_add_epi32((__m512i)iota(), _mm512_set1_epi32(static_cast<int>(i)));
        _mm512_storeu_si512(list + count, _mm512_maskz_compress_epi32(m, index));
        count += __builtin_popcount(m);
    }
#else
    for (int64_t i = 0; i < n; i++) {
        list[count] = static_cast<int32_t>(i);
        count += std::max(hi[i] - w[i], w[i] - lo[i]) >= threshold;
    }
#endif
    return count;
}

template <int V, bool DX>
INLINE void back_run(const Backward &job, Panel &me, const float *w, const int32_t *list, int n, const Rows &q) {
    const Power &pw = job.pw;
#define SMALL(N) case N: return back_small<V, N, DX>(me.xt, me.dxt, w, list, n, q, me.part)
    if (q.scaled)
        switch (pw.half) {
            SMALL(1); SMALL(2); SMALL(3); SMALL(4); SMALL(5); SMALL(6);
        default: return back_even<V, false, DX>(me.xt, me.dxt, w, list, n, q, pw.half, me.part);
        }
#undef SMALL
    if (pw.even && pw.half >= 2) return back_even<V, true, DX>(me.xt, me.dxt, w, list, n, q, pw.half, me.part);
    return back_real<V, DX>(me.xt, me.dxt, w, list, n, q, pw.slope, me.part);
}

// dw[list[k]] -= sum of the lanes of part[k]
INLINE void subtract_sums(const vf *part, const int32_t *list, int n, float *dw) {
    for (int k = 0; k < n; k += L) {
        const int m = std::min(L, n - k);
        vf r[L];
#pragma GCC unroll 16
        for (int l = 0; l < L; l++) r[l] = l < m ? part[k + l] : vf{};
        reduce_step<L / 2>(r);
        if (m == L && list[k + L - 1] - list[k] == L - 1) storeu(dw + list[k], loadu(dw + list[k]) - r[0]);
        else for (int l = 0; l < m; l++) dw[list[k + l]] -= r[0][l];
    }
}

// One tile's share of the gradients of features [i0, i0 + width).
template <int V, bool DX>
void back_tile(Backward &job, const Tiling &tiles, Panel &me, int64_t tile, int64_t i0, int64_t width) {
    if (!pack(job.x, job.n_in, tiles.first(tile), tiles.used(tile), V, i0, i0 + width, me.xt, me.lo, me.hi))
        job.non_finite = true;
    if (DX) std::memset(me.dxt, 0, static_cast<size_t>(width * V * L * 4));
    for (int64_t o0 = 0; o0 < job.n_out; o0 += OB) {
        const int count = static_cast<int>(std::min<int64_t>(OB, job.n_out - o0));
        const int32_t *list[OB];
        int n[OB], kept = 0;
        const Rows *q = job.rows + tile * job.n_out + o0;
        bool lists = job.use_lists;
        for (int j = 0; j < count; j++) {
            if (j == SAMPLES && job.mode == AUTO && kept > USELESS * SAMPLES * width) lists = false;
            // rows lie a whole row of the matrix apart: the hardware foresees none of them
            if (o0 + OB + j < job.n_out)
                for (int64_t i = 0; i < width; i += 16)
                    __builtin_prefetch(job.w + (o0 + OB + j) * job.n_in + i0 + i);
            if (job.dw)
                for (int64_t i = 0; i < width; i += 16)
                    __builtin_prefetch(job.dw + (o0 + j) * job.n_in + i0 + i, 1);
            if (lists) {
                int32_t *mine = me.list + j * (width + L);
                n[j] = keep_bounds(job.w + (o0 + j) * job.n_in + i0, me.lo, me.hi, width, q[j].threshold, mine);
                list[j] = mine;
            } else {
                list[j] = me.all;
                n[j] = static_cast<int>(width);
            }
            kept += n[j];
        }
        const bool segments = width > SUB && kept > SPARSE * count * width;
        int done[OB] = {};
        for (int64_t end = segments ? SUB : width; ; end += SUB) {
            for (int j = 0; j < count; j++) {
                int m = n[j] - done[j];
                if (segments && end < width) {
                    const int32_t *from = list[j] + done[j];
                    m = list[j] == me.all ? SUB : static_cast<int>(std::lower_bound(from, from + std::min(m, SUB), end) - from);
                }
                if (m == 0) continue;
                const float *w = job.w + (o0 + j) * job.n_in + i0;
                back_run<V, DX>(job, me, w, list[j] + done[j], m, q[j]);
                if (job.dw) subtract_sums(me.part, list[j] + done[j], m, job.dw + (o0 + j) * job.n_in + i0);
                done[j] += m;
            }
            if (end >= width) break;
        }
    }
    if (DX) unpack(me.dxt, V, width, job.dx, job.n_in, tiles.first(tile), tiles.used(tile), i0);
}

int backward(Backward &job, int threads) {
    const Tiling tiles(job.n_rows);
    job.use_lists = job.mode == ALWAYS || (job.mode == AUTO && job.n_in >= 4 * L && job.pw.p >= LIST_MIN_P);
    Buffer m1, m2, m3;
    const int64_t area = tiles.count * job.n_out * VMAX * L, blocks = ceil_div(job.n_out, OB);
    job.coef = m1.take<float>(area);
    job.inv = m2.take<float>(area);
    job.rows = m3.take<Rows>(tiles.count * job.n_out);
    if (!job.coef || !job.inv || !job.rows) return NO_MEMORY;
    // Wide panels for the lists' sake, narrow ones for balance. From the shape alone, never from the threads: whether
    // a list is used is decided per panel and shows in the last bits.
    constexpr int64_t PANELS = 9, WIDEST = 256;
    const int64_t width = std::max<int64_t>(SUB, std::min(WIDEST, round_up(ceil_div(job.n_in, PANELS), SUB)));
    const int64_t panels = ceil_div(job.n_in, width);
    std::atomic<int> status{OK};
    const unsigned mode = get_mode() | FLUSH;
#pragma omp parallel num_threads(threads)
    {
        const Mode scope(mode);
        Panel me;
        if (!me.make(width)) status = NO_MEMORY;
#pragma omp for schedule(dynamic, 1)
        for (int64_t k = 0; k < tiles.count * blocks; k++) {
            const int64_t t = k / blocks, o0 = k % blocks * OB;
            switch (tiles.vectors(t)) {
            case 1: coefficients<1>(job, tiles, t, o0); break;
            case 4: coefficients<4>(job, tiles, t, o0); break;
            default: coefficients<8>(job, tiles, t, o0);
            }
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t k = 0; k < panels; k++) {
            const int64_t i0 = k * width, n = std::min(width, job.n_in - i0);
            if (status.load(std::memory_order_relaxed) != OK || job.non_finite.load(std::memory_order_relaxed)) continue;
            if (job.dw)
                for (int64_t o = 0; o < job.n_out; o++)
                    std::memset(job.dw + o * job.n_in + i0, 0, static_cast<size_t>(n) * 4);
            for (int64_t t = 0; t < tiles.count; t++)
                if (job.dx) switch (tiles.vectors(t)) {
                    case 1: back_tile<1, true>(job, tiles, me, t, i0, n); break;
                    case 4: back_tile<4, true>(job, tiles, me, t, i0, n); break;
                    default: back_tile<8, true>(job, tiles, me, t, i0, n);
                    }
                else switch (tiles.vectors(t)) {
                    case 1: back_tile<1, false>(job, tiles, me, t, i0, n); break;
                    case 4: back_tile<4, false>(job, tiles, me, t, i0, n); break;
                    default: back_tile<8, false>(job, tiles, me, t, i0, n);
                    }
        }
    }
    if (status != OK) return status;
    return job.non_finite ? NON_FINITE : OK;
}

// p = inf: one coordinate per pair. code: index, top bit set for d < 0; -1 no gradient; -2 a NaN pair, which is left
// to the caller. Every task owns its rows of dx or dw and adds in a fixed order.
constexpr int32_t NO_GRADIENT = -1, NAN_PAIR = -2;

INLINE float with_sign(float g, int32_t c) { // g * sign(c), without a branch that would be mispredicted half the time
    int32_t bits;
    std::memcpy(&bits, &g, 4);
    bits ^= c & INT32_MIN;
    std::memcpy(&g, &bits, 4);
    return g;
}

int inf_backward(const float *grad, const int32_t *code, float *dx, float *dw, int64_t n_rows, int64_t n_in,
                 int64_t n_out, int threads) {
    const unsigned mode = get_mode();
    constexpr int ROWS = 8, OUT = 16; // rows and outputs of one task
    std::atomic<bool> nan{false};
#pragma omp parallel num_threads(threads)
    {
        const Mode scope(mode);
        if (dx) {
#pragma omp for schedule(dynamic, ROWS) nowait
            for (int64_t b = 0; b < n_rows; b++) {
                float *to = dx + b * n_in;
                std::memset(to, 0, static_cast<size_t>(n_in) * 4);
                for (int64_t k = b * n_out; k < (b + 1) * n_out; k++) {
                    const int32_t c = code[k];
                    if (c == NO_GRADIENT) continue;
                    if (c == NAN_PAIR) nan.store(true, std::memory_order_relaxed);
                    else to[c & 0x7fffffff] += with_sign(grad[k], c);
                }
            }
        }
        if (dw) {
#pragma omp for schedule(dynamic, 1)
            for (int64_t o0 = 0; o0 < n_out; o0 += OUT) {
                const int64_t o1 = std::min(o0 + OUT, n_out);
                std::memset(dw + o0 * n_in, 0, static_cast<size_t>((o1 - o0) * n_in) * 4);
                for (int64_t b = 0; b < n_rows; b++)
                    for (int64_t o = o0; o < o1; o++) {
                        const int64_t k = b * n_out + o;
                        const int32_t c = code[k];
                        if (c == NO_GRADIENT) continue;
                        if (c == NAN_PAIR) nan.store(true, std::memory_order_relaxed);
                        else dw[o * n_in + (c & 0x7fffffff)] -= with_sign(grad[k], c);
                    }
            }
        }
    }
    return nan ? NON_FINITE : OK;
}

} // namespace

extern "C" {

int cb_abi_version() { return ABI_VERSION; }

// What the vector units can do at best: per round and thread 2048 times subtract and maximum, all in registers and the
// first-level cache. Benchmarks divide by it.
double cb_probe(int64_t rounds, int threads) {
    double sum = 0;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
    {
        alignas(64) float x[2048];
        for (int i = 0; i < 2048; i++) x[i] = static_cast<float>(i) * 0.37f;
        vf m[VMAX] = {};
        for (int64_t k = 0; k < rounds; k++)
            for (int i = 0; i < 2048; i += VMAX * L) {
                const vf w = splat(static_cast<float>(i + k));
#pragma GCC unroll 8
                for (int v = 0; v < VMAX; v++) m[v] = absmax(m[v], load(x + i + v * L) - w);
            }
        for (int v = 0; v < VMAX; v++) sum += static_cast<double>(max_lanes(m[v]));
    }
    return sum;
}

const char *cb_isa() { return ISA; }

// y [B, O]; code [B, O] or null, only for p = inf. list_mode: ListMode, for tests.
int cb_dist(const float *x, const float *w, float *y, int32_t *code, int64_t b, int64_t i, int64_t o, double p,
            int list_mode, int threads) {
    Forward job;
    job.x = x, job.x2 = nullptr, job.w = w, job.y = y, job.y2 = nullptr, job.code = code;
    job.n_rows = b, job.n_in = i, job.n_out = o;
    job.kind = std::isinf(p) ? (code ? INF_CODE : INF) : FINITE;
    job.mode = static_cast<ListMode>(list_mode);
    if (job.kind == FINITE && !make_power(p, i, job.pw)) return UNSUPPORTED;
    return forward(job, threads);
}

int cb_interval(const float *lower, const float *upper, const float *w, float *lo, float *hi, int64_t b, int64_t i,
                int64_t o, int list_mode, int threads) {
    Forward job;
    job.x = lower, job.x2 = upper, job.w = w, job.y = lo, job.y2 = hi, job.code = nullptr;
    job.n_rows = b, job.n_in = i, job.n_out = o;
    job.kind = BOX;
    job.mode = static_cast<ListMode>(list_mode);
    return forward(job, threads);
}

// dx [B, I] or null, dw [O, I] or null. Finite p.
int cb_dist_backward(const float *grad, const float *x, const float *w, const float *y, float *dx, float *dw,
                     int64_t b, int64_t i, int64_t o, double p, int list_mode, int threads) {
    Backward job;
    job.grad = grad, job.x = x, job.w = w, job.y = y, job.dx = dx, job.dw = dw;
    job.n_rows = b, job.n_in = i, job.n_out = o;
    job.mode = static_cast<ListMode>(list_mode);
    if (!make_power(p, i, job.pw)) return UNSUPPORTED;
    return backward(job, threads);
}

// p = inf, from the forward's code
int cb_inf_backward(const float *grad, const int32_t *code, float *dx, float *dw, int64_t b, int64_t i, int64_t o,
                    int threads) {
    return inf_backward(grad, code, dx, dw, b, i, o, threads);
}

} // extern "C"
