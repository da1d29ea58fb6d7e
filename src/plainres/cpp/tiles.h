// Register tiles: the three loops that nearly all multiply-adds of a step run in.
//
// Pixels lie as in channels-last, (row, column, channel). For a pixel, the inputs of one kernel row are then
// contiguous: K = 3 * channels floats, from the pixel's left neighbour on. So a 3x3 convolution is three taps, one a
// kernel row, each a product of K inputs with a (K, outputs) matrix; a 1x1 convolution is one tap.
#pragma once
#include <cstddef>

#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int LANES = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int LANES = 4, REGISTERS = 32;
#else
constexpr int LANES = 4, REGISTERS = 16;
#endif

typedef float Vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline Vec load(const float* p) { return *(const Vec*)p; }
static inline void store(float* p, Vec v) { *(Vec*)p = v; }

struct Tap {
    const float* in;  // of the first pixel
    const float* w;   // (K, outputs)
};

// `P` neighbouring pixels times `B` vectors of outputs, held in registers over all taps. With `S` above 0 it is the
// channels of a pixel, which saves the short product of one tap much of its overhead.
template <int P, int B, int S>
static inline void conv_tile(const Tap* taps, int count, int K, int in_stride, int outputs, int first, float* out,
                             int out_stride, bool add) {
    if (S) in_stride = K = S, count = 1;
    Vec sum[P][B];
    for (int p = 0; p < P; ++p)
        for (int b = 0; b < B; ++b) sum[p][b] = add ? load(out + p * out_stride + b * LANES) : Vec{};
    for (int t = 0; t < count; ++t) {
        const float* in = taps[t].in + (ptrdiff_t)first * in_stride;
        const float* w = taps[t].w;
        for (int k = 0; k < K; ++k) {
            Vec weight[B];
            for (int b = 0; b < B; ++b) weight[b] = load(w + b * LANES);
            for (int p = 0; p < P; ++p)
                for (int b = 0; b < B; ++b) sum[p][b] += weight[b] * in[(ptrdiff_t)p * in_stride + k];
            w += outputs;
        }
    }
    for (int p = 0; p < P; ++p)
        for (int b = 0; b < B; ++b) store(out + p * out_stride + b * LANES, sum[p][b]);
}

template <int P, int B, int S>
static void conv_columns(const Tap* taps, int count, int K, int in_stride, int outputs, int pixels, float* out,
                         int out_stride, bool add) {
    int x = 0;
    for (; x + P <= pixels; x += P)
        conv_tile<P, B, S>(taps, count, K, in_stride, outputs, x, out + (ptrdiff_t)x * out_stride, out_stride, add);
    for (; x < pixels; ++x)
        conv_tile<1, B, S>(taps, count, K, in_stride, outputs, x, out + (ptrdiff_t)x * out_stride, out_stride, add);
}

// One row of `pixels` outputs; pixel p reads from in + p * in_stride, writes to out + p * out_stride.
template <int S = 0>
static void conv_row(const Tap* taps, int count, int K, int in_stride, int outputs, int pixels, float* out,
                     int out_stride, bool add = false) {
    constexpr bool wide = REGISTERS == 32;
    for (int c = 0; c < outputs;) {
        Tap at[4];
        for (int t = 0; t < count; ++t) at[t] = {taps[t].in, taps[t].w + c};
        if (c + 2 * LANES <= outputs) {
            conv_columns<wide ? 8 : 4, 2, S>(at, count, K, in_stride, outputs, pixels, out + c, out_stride, add);
            c += 2 * LANES;
        } else {
            conv_columns<wide ? 16 : 8, 1, S>(at, count, K, in_stride, outputs, pixels, out + c, out_stride, add);
            c += LANES;
        }
    }
}

// Pixels times one matrix: (pixels, in) by (in, outputs).
static void product(const float* in, int K, const float* w, int outputs, int pixels, float* out) {
    Tap tap = {in, w};
    auto row = K == 16 ? conv_row<16> : K == 32 ? conv_row<32> : K == 64 ? conv_row<64> : conv_row<0>;
    row(&tap, 1, K, K, outputs, pixels, out, outputs, false);
}

// grad(k, output) += sum over pixels of in(pixel, k) * delta(pixel, output), for `R` of the K and `B` vectors.
template <int R, int B>
static inline void grad_tile(const float* in, int in_stride, int in_row, const float* delta, int outputs,
                             int delta_row, int rows, int pixels, float* grad) {
    Vec sum[R][B];
    for (int r = 0; r < R; ++r)
        for (int b = 0; b < B; ++b) sum[r][b] = load(grad + (ptrdiff_t)r * outputs + b * LANES);
    for (int y = 0; y < rows; ++y) {
        const float* i = in + (ptrdiff_t)y * in_row;
        const float* d = delta + (ptrdiff_t)y * delta_row;
        for (int x = 0; x < pixels; ++x) {
            Vec v[B];
            for (int b = 0; b < B; ++b) v[b] = load(d + b * LANES);
            for (int r = 0; r < R; ++r)
                for (int b = 0; b < B; ++b) sum[r][b] += v[b] * i[r];
            i += in_stride;
            d += outputs;
        }
    }
    for (int r = 0; r < R; ++r)
        for (int b = 0; b < B; ++b) store(grad + (ptrdiff_t)r * outputs + b * LANES, sum[r][b]);
}

template <int R, int B>
static int grad_rows(int k, int K, int c, const float* in, int in_stride, int in_row, const float* delta, int outputs,
                     int delta_row, int rows, int pixels, float* grad) {
    for (; k + R <= K; k += R)
        grad_tile<R, B>(in + k, in_stride, in_row, delta + c, outputs, delta_row, rows, pixels,
                        grad + (ptrdiff_t)k * outputs + c);
    return k;
}

// The (K, outputs) gradient of one tap over `rows` rows of pixels.
static void grad_tap(int K, const float* in, int in_stride, int in_row, const float* delta, int outputs,
                     int delta_row, int rows, int pixels, float* grad) {
#define GRAD(R, B) k = grad_rows<R, B>(k, K, c, in, in_stride, in_row, delta, outputs, delta_row, rows, pixels, grad)
    constexpr bool wide = REGISTERS == 32;
    for (int c = 0; c < outputs;) {
        int k = 0;
        if (c + 2 * LANES <= outputs) {
            if (wide && K % 12) GRAD(8, 2);  // of 16, 32 and 64: no remainder
            GRAD((wide ? 12 : 6), 2);
            GRAD(3, 2);
            GRAD(1, 2);
            c += 2 * LANES;
        } else {
            GRAD((wide ? 16 : 8), 1);  // 24 rows of the widest machine were half as fast: their sums spilled
            GRAD(9, 1);
            GRAD(1, 1);
            c += LANES;
        }
    }
#undef GRAD
}
