// Convolutions of one image, from and to padded copies, and their weights.
#pragma once
#include <algorithm>

#include "batch.h"
#include "tiles.h"
#include "winograd.h"

namespace {

// A copy of an image with a border of zeros one pixel wide; `fill(y, row)` writes its rows.
template <class Fill>
float* padded(int which, int64_t width, int64_t channels, Fill fill) {
    int64_t line = (width + 2) * channels;
    float* copy = scratch.get(which, (width + 2) * line);
    memset(copy, 0, sizeof(float) * line);
    memset(copy + (width + 1) * line, 0, sizeof(float) * line);
    for (int64_t y = 0; y < width; ++y) {
        float* row = copy + (y + 1) * line;
        memset(row, 0, sizeof(float) * channels);
        fill(y, row + channels);
        memset(row + line - channels, 0, sizeof(float) * channels);
    }
    return copy;
}

// The same of an image as it is.
float* padded_image(int which, const Conv& c, const float* image) {
    int64_t line = c.width * c.in;
    auto copy = [&](int64_t y, float* row) { memcpy(row, image + y * line, sizeof(float) * line); };
    return padded(which, c.width, c.in, copy);
}

// The first pixel that a tap of a 3x3 kernel (or the one of a 1x1 kernel) reads for row `y` of the output.
const float* tap_input(const Conv& c, const float* copy, int64_t y, int64_t ky) {
    int64_t line = (c.width + 2) * c.in;
    return c.size == 3 ? copy + (y * c.stride + ky) * line : copy + (y * c.stride + 1) * line + c.in;
}

// Rows that are computed at once: tiles are two rows high, and a product of few tiles is a slow one.
int64_t rows_at_once(const Conv& c) { return c.taps == 16 ? std::min(c.width, std::max<int64_t>(2, 32 / c.width)) : 1; }

float* tile_memory(const Conv& c, int64_t rows) {
    int64_t tiles = rows / 2 * (c.width / 2);
    return scratch.get(4, 16 * (plane_of(tiles, c.in) + plane_of(tiles, c.out)));
}

void convolve(const Conv& c, const float* copy, float* u, ImageSums* sums, int slot, Ticks& ticks) {
    int64_t width = c.width / c.stride, K = c.size * c.in, step = rows_at_once(c), floats = width * c.out;
    for (int64_t y = 0; y < width; y += step) {
        float* row = u + y * floats;
        if (c.taps == 16) {
            const float* first = copy + y * (width + 2) * c.in;
            convolve_tiles(first, width, step, c.in, c.out, c.forward, tile_memory(c, step), row);
        } else {
            Tap taps[3];
            for (int64_t k = 0; k < c.size; ++k) taps[k] = {tap_input(c, copy, y, k), c.forward + k * K * c.out};
            conv_row(taps, c.size, K, c.stride * c.in, c.out, width, row, c.out);
        }
        ticks.spent(FORWARD);
        if (sums) add_products(row, row, step * width, c.out, sums->sum(slot), sums->product(slot));
        ticks.spent(POINTWISE);
    }
}

void weight_gradient(const Conv& c, const float* copy, const float* delta, float* partial) {
    int64_t width = c.width / c.stride, K = c.size * c.in;
    int64_t line = (c.width + 2) * c.in, delta_line = (width + 2) * c.out;
    if (c.taps == 16) {
        int64_t rows = width >= 32 ? 16 : width;  // what a pass reads stays in the second cache
        for (int64_t y = 0; y < width; y += rows)
            grad_tiles(copy + y * line, delta + (y + 1) * delta_line + c.out, delta_line, width, rows, c.in, c.out,
                       tile_memory(c, rows), partial);
        return;
    }
    int64_t rows = width >= 16 ? 4 : 8;  // what a pass reads stays in the first cache
    for (int64_t y = 0; y < width; y += rows)
        for (int64_t k = 0; k < c.size; ++k)
            grad_tap(K, tap_input(c, copy, y, k), c.stride * c.in, c.stride * line,
                     delta + (y + 1) * delta_line + c.out, c.out, delta_line, std::min(rows, width - y), width,
                     partial + k * K * c.out);
}

// Row `y` of the gradient of a convolution's input, from the padded gradient `delta` of its output.
void direct_gradient_row(const Conv& c, const float* delta, int64_t y, float* row, bool add) {
    int64_t width = c.width / c.stride, line = (width + 2) * c.out, matrix = c.out * c.in;
    Tap taps[4];
    if (c.size == 1) {
        if (y % c.stride) return;
        taps[0] = {delta + (y / c.stride + 1) * line + c.out, c.backward};
        conv_row(taps, 1, c.out, c.out, c.in, width, row, c.stride * c.in, add);
    } else if (c.stride == 1) {
        for (int64_t k = 0; k < 3; ++k) taps[k] = {delta + (y + k) * line, c.backward + k * 3 * matrix};
        conv_row(taps, 3, 3 * c.out, c.out, c.in, width, row, c.in, add);
    } else {  // input pixel 2o + k - 1 meets tap k of output o: even ones the middle tap, odd ones the two others
        for (int64_t parity = 0; parity < 2; ++parity) {
            int count = 0;
            for (int64_t ky = y % 2 ? 0 : 1; ky < 3; ky += 2)
                for (int64_t kx = parity ? 0 : 1; kx < 3; kx += 2) {
                    int64_t oy = (y + 1 - ky) / 2, ox = (parity + 1 - kx) / 2;
                    taps[count++] = {delta + (oy + 1) * line + (ox + 1) * c.out, c.backward + (ky * 3 + kx) * matrix};
                }
            conv_row(taps, count, c.out, c.out, c.in, width, row + parity * c.in, 2 * c.in, add);
        }
    }
}

// The gradient of a convolution's input, image `row`; `after(y, row)` is called for each row in turn.
template <class After>
void input_gradient_rows(const Conv& c, const float* delta, float* row, Ticks& ticks, After after) {
    int64_t step = rows_at_once(c), line = c.width * c.in;
    for (int64_t y = 0; y < c.width; y += step) {
        float* first = row + y * line;
        if (c.taps == 16) {
            const float* from = delta + y * (c.width + 2) * c.out;
            convolve_tiles(from, c.width, step, c.out, c.in, c.backward, tile_memory(c, step), first);
        } else {
            direct_gradient_row(c, delta, y, first, false);
        }
        ticks.spent(INPUT_GRADIENT);
        for (int64_t k = 0; k < step; ++k) after(y + k, first + k * line);
        ticks.spent(POINTWISE);
    }
}

// -- weights

void pack_tiles(const Conv& c) {
    for (int64_t o = 0; o < c.out; ++o)
        for (int64_t i = 0; i < c.in; ++i) {
            float w[3][3], turned[3][3];
            for (int y = 0; y < 3; ++y)
                for (int x = 0; x < 3; ++x)
                    w[y][x] = turned[2 - y][2 - x] = c.weight[o * c.s_out + i * c.s_in + y * c.s_y + x * c.s_x];
            tiles_of_kernel(w, c.forward + i * c.out + o, c.in * c.out);
            tiles_of_kernel(turned, c.backward + o * c.in + i, c.in * c.out);
        }
}

void pack(const Conv& c) {
    if (c.taps == 16) {
        pack_tiles(c);
        return;
    }
    bool turn = c.size == 3 && c.stride == 1;
    for (int64_t y = 0; y < c.size; ++y)
        for (int64_t x = 0; x < c.size; ++x) {
            int64_t tap = y * c.size + x, turned = turn ? c.size * c.size - 1 - tap : tap;
            float *f = c.forward + tap * c.in * c.out, *b = c.backward + turned * c.in * c.out;
            for (int64_t o = 0; o < c.out; ++o)
                for (int64_t i = 0; i < c.in; ++i) {
                    float w = c.weight[o * c.s_out + i * c.s_in + y * c.s_y + x * c.s_x];
                    f[i * c.out + o] = w;
                    b[o * c.in + i] = w;
                }
        }
}

void pack_all(Net& net) {
    pack(net.stem);
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t i = 0; i < net.blocks; ++i) {
        Block& b = net.block[i];
        pack(b.conv1);
        pack(b.conv2);
        if (b.shortcut == PROJECTED) pack(b.projection);
    }
}

// The gradient of a weight: the groups' partial sums, in their order.
void gather(const Net& net, const Conv& c, int64_t offset) {
    int64_t plane = c.in * c.out;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < c.in; ++i)
        for (int64_t o = 0; o < c.out; o += LANES) {
            Vec total[16] = {}, kernel[9];
            for (int64_t g = 0; g < net.groups; ++g)
                for (int64_t t = 0; t < c.taps; ++t)
                    total[t] += load(net.partial + g * net.partial_size + offset + t * plane + i * c.out + o);
            if (c.taps == 16) kernel_of_tiles(total, kernel);
            const Vec* found = c.taps == 16 ? kernel : total;
            for (int64_t y = 0; y < c.size; ++y)
                for (int64_t x = 0; x < c.size; ++x)
                    for (int64_t k = 0; k < LANES; ++k)
                        c.gradient[(o + k) * c.s_out + i * c.s_in + y * c.s_y + x * c.s_x] = found[y * c.size + x][k];
        }
}

int64_t weights_of(const Conv& c) { return c.taps * c.in * c.out; }

}  // namespace
