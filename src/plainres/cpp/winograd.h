// 3x3 convolutions of stride 1 by Winograd's F(2x2, 3x3) (Lavin and Gray 2015): a tile of 2x2 outputs takes 16
// multiplications of channels by channels in place of 36, and additions. In float32 it is about as exact as the sum.
//
//     output = A' [(G w G') * (B' input B)] A        per tile of 2x2 outputs, 4x4 inputs; * by element
//     gradient of w = G' [(A delta A') * (B' input B)] G
#pragma once
#include "tiles.h"

// Floats from one of the 16 planes of tiles to the next: never a multiple of 4 KiB, or all would fall on the same few
// lines of the cache.
static int64_t plane_of(int64_t tiles, int64_t channels) { return tiles * channels + 16; }

// B' d B of rows of tiles: `copy` (rows + 2 of them, columns + 2, channels) to `out` (16, tiles, channels).
static void tiles_of_input(const float* copy, int64_t columns, int64_t rows, int64_t channels, float* out) {
    int64_t line = (columns + 2) * channels, across = columns / 2, plane = plane_of(rows / 2 * across, channels);
    for (int64_t t = 0; t < rows / 2 * across; ++t)
        for (int64_t c = 0; c < channels; c += LANES) {
            const float* in = copy + t / across * 2 * line + t % across * 2 * channels + c;
            Vec v[4][4];
            for (int x = 0; x < 4; ++x) {  // down the columns
                Vec a = load(in + x * channels), b = load(in + line + x * channels);
                Vec d = load(in + 2 * line + x * channels), e = load(in + 3 * line + x * channels);
                v[0][x] = a - d;
                v[1][x] = b + d;
                v[2][x] = d - b;
                v[3][x] = b - e;
            }
            float* to = out + t * channels + c;
            for (int y = 0; y < 4; ++y, to += 4 * plane) {  // along the rows
                store(to, v[y][0] - v[y][2]);
                store(to + plane, v[y][1] + v[y][2]);
                store(to + 2 * plane, v[y][2] - v[y][1]);
                store(to + 3 * plane, v[y][1] - v[y][3]);
            }
        }
}

// A delta A' of rows of tiles: `delta` (rows, lines `line` apart, columns, channels) to `out` (16, tiles, channels).
static void tiles_of_delta(const float* delta, int64_t line, int64_t columns, int64_t rows, int64_t channels,
                           float* out) {
    int64_t across = columns / 2, plane = plane_of(rows / 2 * across, channels);
    for (int64_t t = 0; t < rows / 2 * across; ++t)
        for (int64_t c = 0; c < channels; c += LANES) {
            const float* in = delta + t / across * 2 * line + t % across * 2 * channels + c;
            Vec v[4][2];
            for (int x = 0; x < 2; ++x) {
                Vec a = load(in + x * channels), b = load(in + line + x * channels);
                v[0][x] = a;
                v[1][x] = a + b;
                v[2][x] = a - b;
                v[3][x] = -b;
            }
            float* to = out + t * channels + c;
            for (int y = 0; y < 4; ++y, to += 4 * plane) {
                store(to, v[y][0]);
                store(to + plane, v[y][0] + v[y][1]);
                store(to + 2 * plane, v[y][0] - v[y][1]);
                store(to + 3 * plane, -v[y][1]);
            }
        }
}

// A' m A of rows of tiles: `products` (16, tiles, channels) to `out` (rows, columns, channels).
static void output_of_tiles(const float* products, int64_t columns, int64_t rows, int64_t channels, float* out) {
    int64_t line = columns * channels, across = columns / 2, plane = plane_of(rows / 2 * across, channels);
    for (int64_t t = 0; t < rows / 2 * across; ++t)
        for (int64_t c = 0; c < channels; c += LANES) {
            const float* in = products + t * channels + c;
            Vec v[2][4];
            for (int x = 0; x < 4; ++x) {
                Vec a = load(in + x * plane), b = load(in + (4 + x) * plane);
                Vec d = load(in + (8 + x) * plane), e = load(in + (12 + x) * plane);
                v[0][x] = a + b + d;
                v[1][x] = b - d - e;
            }
            float* to = out + t / across * 2 * line + t % across * 2 * channels + c;
            for (int y = 0; y < 2; ++y, to += line) {
                store(to, v[y][0] + v[y][1] + v[y][2]);
                store(to + channels, v[y][1] - v[y][2] - v[y][3]);
            }
        }
}

// `rows` rows of a convolution's output from its padded input and the 16 transformed weights (16, in, out).
static void convolve_tiles(const float* copy, int64_t columns, int64_t rows, int64_t in, int64_t out,
                           const float* weights, float* work, float* to) {
    int64_t tiles = rows / 2 * (columns / 2);
    int64_t from = plane_of(tiles, in), into = plane_of(tiles, out);
    float* products = work + 16 * from;
    tiles_of_input(copy, columns, rows, in, work);
    for (int k = 0; k < 16; ++k) product(work + k * from, in, weights + k * in * out, out, tiles, products + k * into);
    output_of_tiles(products, columns, rows, out, to);
}

// Adds to the 16 planes of a weight's gradient (16, in, out) what `rows` rows of output contribute.
static void grad_tiles(const float* copy, const float* delta, int64_t delta_line, int64_t columns, int64_t rows,
                       int64_t in, int64_t out, float* work, float* gradient) {
    int64_t tiles = rows / 2 * (columns / 2);
    int64_t from = plane_of(tiles, in), into = plane_of(tiles, out);
    float* other = work + 16 * from;
    tiles_of_input(copy, columns, rows, in, work);
    tiles_of_delta(delta, delta_line, columns, rows, out, other);
    for (int k = 0; k < 16; ++k)
        grad_tap(in, work + k * from, in, 0, other + k * into, out, 0, 1, tiles, gradient + k * in * out);
}

// G w G' of one kernel, its taps `stride` apart in the result.
static void tiles_of_kernel(const float w[3][3], float* out, int64_t stride) {
    float v[4][3];
    for (int x = 0; x < 3; ++x) {
        v[0][x] = w[0][x];
        v[1][x] = 0.5f * (w[0][x] + w[1][x] + w[2][x]);
        v[2][x] = 0.5f * (w[0][x] - w[1][x] + w[2][x]);
        v[3][x] = w[2][x];
    }
    for (int y = 0; y < 4; ++y) {
        out[(4 * y) * stride] = v[y][0];
        out[(4 * y + 1) * stride] = 0.5f * (v[y][0] + v[y][1] + v[y][2]);
        out[(4 * y + 2) * stride] = 0.5f * (v[y][0] - v[y][1] + v[y][2]);
        out[(4 * y + 3) * stride] = v[y][2];
    }
}

// G' p G: the gradient of one kernel, for LANES kernels at once.
static void kernel_of_tiles(const Vec p[16], Vec w[9]) {
    Vec v[3][4];
    for (int x = 0; x < 4; ++x) {
        Vec sum = 0.5f * (p[4 + x] + p[8 + x]);
        v[0][x] = p[x] + sum;
        v[1][x] = 0.5f * (p[4 + x] - p[8 + x]);
        v[2][x] = sum + p[12 + x];
    }
    for (int y = 0; y < 3; ++y) {
        Vec sum = 0.5f * (v[y][1] + v[y][2]);
        w[3 * y] = v[y][0] + sum;
        w[3 * y + 1] = 0.5f * (v[y][1] - v[y][2]);
        w[3 * y + 2] = sum + v[y][3];
    }
}
