// BN, ReLU and shortcuts, on rows of one image that are in the cache.
#pragma once
#include "batch.h"

namespace {

void relu(float* row, int64_t floats) {  // NaN stays NaN, so that a run that diverges is seen to
    for (int64_t i = 0; i < floats; i += LANES) {
        Vec v = load(row + i);
        store(row + i, v < 0 ? Vec{} : v);
    }
}

// out (+)= scale * in + shift; without BN, out (+)= in.
template <bool ADD>
void normalize(const Norm& n, const float* in, int64_t pixels, int64_t channels, float* out) {
    for (int64_t c = 0; c < channels; c += LANES) {
        Vec scale = n.channels ? load(n.scale + c) : Vec{} + 1.0f, shift = n.channels ? load(n.shift + c) : Vec{};
        for (int64_t i = c; i < pixels * channels; i += channels) {
            Vec v = scale * load(in + i) + shift;
            store(out + i, ADD ? load(out + i) + v : v);
        }
    }
}

// The gradient of a BN's input: a * g + b * u + c; without BN, g.
void input_gradient(const Norm& n, const float* g, const float* u, int64_t pixels, int64_t channels, float* out) {
    if (!n.channels) {
        memcpy(out, g, sizeof(float) * pixels * channels);
        return;
    }
    for (int64_t k = 0; k < channels; k += LANES) {
        Vec a = load(n.a + k), b = load(n.b + k), c = load(n.c + k);
        for (int64_t i = k; i < pixels * channels; i += channels)
            store(out + i, a * load(g + i) + (b * load(u + i) + c));
    }
}

void mask(const float* activation, float* gradient, int64_t floats) {
    for (int64_t i = 0; i < floats; i += LANES)
        store(gradient + i, load(activation + i) <= 0 ? Vec{} : load(gradient + i));
}

// Option A: row `y` of the output gets the subsampled input `x` of this image.
void add_padded(const Block& b, const float* x, int64_t y, float* row) {
    const Conv& c = b.conv1;
    int64_t s = c.stride, line = c.width * c.in, outputs = b.conv2.out;
    for (int64_t p = 0; p < c.width / s; ++p) {
        const float* in = x + y * s * line + p * s * c.in;
        float* out = row + p * outputs + b.before;
        for (int64_t i = 0; i < c.in; ++i) {
            bool mean = b.average && s == 2;
            out[i] += mean ? (in[i] + in[c.in + i] + in[line + i] + in[line + c.in + i]) * 0.25f : in[i];
        }
    }
}

// The gradient of option A for row `y` of the input, from the gradient `g` of this image's output.
void add_padded_gradient(const Block& b, const float* g, int64_t y, float* row) {
    const Conv& c = b.conv1;
    int64_t s = c.stride, outputs = b.conv2.out, width = c.width / s;
    bool mean = b.average && s == 2;
    if (!mean && y % s) return;
    for (int64_t p = 0; p < c.width; p += mean ? 1 : s) {
        const float* in = g + ((y / s) * width + p / s) * outputs + b.before;
        for (int64_t i = 0; i < c.in; ++i) row[p * c.in + i] += mean ? 0.25f * in[i] : in[i];
    }
}

int64_t area(const Conv& c) { return (c.width / c.stride) * (c.width / c.stride); }
int64_t output_size(const Conv& c) { return area(c) * c.out; }
int64_t input_size(const Conv& c) { return c.width * c.width * c.in; }

// Row `y` of a block's output for one image.
void output_row(const Block& b, int64_t image, int64_t y, float* row) {
    const Conv& c = b.conv2;
    int64_t floats = c.width * c.out, at = image * output_size(c) + y * floats;
    normalize<false>(b.norm2, b.u2 + at, c.width, c.out, row);
    if (b.shortcut == PROJECTED) normalize<true>(b.norm3, b.v + at, c.width, c.out, row);
    if (b.shortcut == PADDED) add_padded(b, b.x + image * input_size(b.conv1), y, row);
    if (b.shortcut == IDENTITY)
        for (int64_t i = 0; i < floats; i += LANES) store(row + i, load(row + i) + load(b.x + at + i));
    relu(row, floats);
}

}  // namespace
