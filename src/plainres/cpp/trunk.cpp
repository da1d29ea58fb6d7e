// Forward and backward pass of a plain or residual trunk in float32, fused by hand.
//
// A convolution's raw output `u` is written once; BN, shortcut and ReLU are applied where it is read, image by image,
// into a padded copy that stays in the cache. Batch statistics are summed as the rows leave a convolution. The images
// are divided into `groups` that do not depend on the number of threads, and every sum over the batch is taken in the
// groups' order: the results are the same bits on any number of threads.
#include "trunk.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "tiles.h"
#include "winograd.h"

namespace {

constexpr int SLOTS = 3;  // sums of one layer: of the gradient or output; times the output; times the projection's

struct Scratch {
    float* memory[5] = {};
    size_t size[5] = {};
    ~Scratch() {
        for (float* m : memory) free(m);
    }
    float* get(int which, size_t floats) {
        if (size[which] < floats) {
            free(memory[which]);
            size[which] = (floats + 63) / 16 * 16;
            memory[which] = static_cast<float*>(aligned_alloc(64, size[which] * sizeof(float)));
            if (!memory[which]) abort();
        }
        return memory[which];
    }
};
thread_local Scratch scratch;

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Where a thread's time goes, if anyone asks.
struct Ticks {
    Net& net;
    double last, seconds[CATEGORIES] = {};
    explicit Ticks(Net& n) : net(n), last(n.profile ? now() : 0) {}
    void spent(int category) {
        if (!net.profile) return;
        double t = now();
        seconds[category] += t - last;
        last = t;
    }
    ~Ticks() {
        if (!net.profile) return;
#pragma omp critical
        for (int i = 0; i < CATEGORIES; ++i) net.seconds[i] += seconds[i];
    }
};

// Calls `work(image, ticks, sums, partial)` for each image, group by group; sums and partial are zero at a group's start.
template <class Work>
void for_images(Net& net, int64_t partial_used, Work work) {
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t group = 0; group < net.groups; ++group) {
        Ticks ticks(net);
        double* sums = net.sums + group * SLOTS * 2 * net.channels;
        float* partial = net.partial + group * net.partial_size;
        memset(sums, 0, sizeof(double) * SLOTS * 2 * net.channels);
        memset(partial, 0, sizeof(float) * partial_used);
        int64_t first = group * net.images / net.groups, end = (group + 1) * net.images / net.groups;
        for (int64_t image = first; image < end; ++image) work(image, ticks, sums, partial);
    }
}

// -- sums over the batch

// Adds, channel by channel, a row of `pixels` of u and of u * t, to float sums of one image; two sums side by side, as
// each addition waits for the one before.
void add_products(const float* u, const float* t, int64_t pixels, int64_t channels, float* sum, float* product) {
    for (int64_t c = 0; c < channels; c += LANES) {
        Vec s[2] = {load(sum + c), {}}, p[2] = {load(product + c), {}};
        for (int64_t i = c; i < pixels * channels; i += 2 * channels)
            for (int k = 0; k < 2; ++k) {
                Vec v = load(u + i + k * channels);
                s[k] += v;
                p[k] += v * load(t + i + k * channels);
            }
        store(sum + c, s[0] + s[1]);
        store(product + c, p[0] + p[1]);
    }
}

// An image's float sums, taken over into the group's in double.
struct ImageSums {
    float* values;
    int64_t channels;
    ImageSums(int slots, int64_t c) : values(scratch.get(3, 2 * SLOTS * c)), channels(c) {
        memset(values, 0, sizeof(float) * 2 * slots * c);
    }
    float* sum(int slot) { return values + 2 * slot * channels; }
    float* product(int slot) { return sum(slot) + channels; }
    void into(double* sums, int slots, int64_t most) {
        for (int slot = 0; slot < slots; ++slot)
            for (int64_t c = 0; c < channels; ++c) {
                sums[(2 * slot) * most + c] += sum(slot)[c];
                sums[(2 * slot + 1) * most + c] += product(slot)[c];
            }
    }
};

double over_groups(const Net& net, int slot, int product, int64_t channel) {
    double total = 0;
    for (int64_t g = 0; g < net.groups; ++g)
        total += net.sums[((g * SLOTS + slot) * 2 + product) * net.channels + channel];
    return total;
}

// Scale and shift of a BN from the batch, and its running statistics.
void measure(const Net& net, Norm& n, int slot, int64_t pixels) {
    double count = double(net.images) * pixels;
    for (int64_t c = 0; c < n.channels; ++c) {
        double mean = over_groups(net, slot, 0, c) / count;
        double variance = over_groups(net, slot, 1, c) / count - mean * mean;
        if (variance < 0) variance = 0;  // a NaN stays one
        n.mean[c] = mean;
        n.rstd[c] = 1 / std::sqrt(variance + n.eps);
        n.scale[c] = float(n.gamma[c] * n.rstd[c]);
        n.shift[c] = float(n.beta[c] - mean * n.gamma[c] * n.rstd[c]);
        double output_mean = mean + (n.bias ? n.bias[c] : 0), unbiased = variance * count / (count - 1);
        n.running_mean[c] = float((1 - n.momentum) * n.running_mean[c] + n.momentum * output_mean);
        n.running_var[c] = float((1 - n.momentum) * n.running_var[c] + n.momentum * unbiased);
    }
    if (n.channels) ++*n.batches;
}

// Scale and shift of a BN from its running statistics.
void recall(Norm& n) {
    for (int64_t c = 0; c < n.channels; ++c) {
        double scale = n.gamma[c] / std::sqrt(double(n.running_var[c]) + n.eps);
        n.scale[c] = float(scale);
        n.shift[c] = float(n.beta[c] + ((n.bias ? n.bias[c] : 0) - n.running_mean[c]) * scale);
    }
}

// Gradients of a BN's parameters, and the coefficients of its input's gradient, from sums of g and of g * u.
void differentiate(const Net& net, Norm& n, int slot_sum, int slot_product, int64_t pixels) {
    double count = double(net.images) * pixels;
    for (int64_t c = 0; c < n.channels; ++c) {
        double sum = over_groups(net, slot_sum, 0, c);
        double product = n.rstd[c] * (over_groups(net, slot_product, 1, c) - n.mean[c] * sum);
        double a = n.gamma[c] * n.rstd[c], b = -a * n.rstd[c] * product / count;
        n.gamma_gradient[c] = float(product);
        n.beta_gradient[c] = float(sum);
        if (n.bias_gradient) n.bias_gradient[c] = 0;  // BN takes every constant away again
        n.a[c] = float(a);
        n.b[c] = float(b);
        n.c[c] = float(-a * sum / count - b * n.mean[c]);
    }
}

// -- rows of one image

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
        for (int64_t i = k; i < pixels * channels; i += channels) store(out + i, a * load(g + i) + (b * load(u + i) + c));
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

// -- convolutions of one image, from and to padded copies

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

// The first pixel that a tap of a 3x3 kernel (or the one of a 1x1 kernel) reads for row `y` of the output.
const float* tap_input(const Conv& c, const float* copy, int64_t y, int64_t ky) {
    int64_t line = (c.width + 2) * c.in;
    return c.size == 3 ? copy + (y * c.stride + ky) * line : copy + (y * c.stride + 1) * line + c.in;
}

// Rows that are computed at once: tiles are two rows high, and a product of few tiles is a slow one.
int64_t rows_at_once(const Conv& c) { return c.taps == 16 ? std::min(c.width, std::max<int64_t>(2, 32 / c.width)) : 1; }

float* tile_memory(const Conv& c, int64_t rows) { return scratch.get(4, 4 * rows * c.width * (c.in + c.out) + 2 * 16 * 16); }

void convolve(const Conv& c, const float* copy, float* u, ImageSums* sums, int slot, Ticks& ticks) {
    int64_t width = c.width / c.stride, K = c.size * c.in, step = rows_at_once(c), floats = width * c.out;
    for (int64_t y = 0; y < width; y += step) {
        float* row = u + y * floats;
        if (c.taps == 16) {
            convolve_tiles(copy + y * (width + 2) * c.in, width, step, c.in, c.out, c.forward, tile_memory(c, step), row);
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
    int64_t width = c.width / c.stride, K = c.size * c.in, line = (c.width + 2) * c.in, delta_line = (width + 2) * c.out;
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
            grad_tap(K, tap_input(c, copy, y, k), c.stride * c.in, c.stride * line, delta + (y + 1) * delta_line + c.out,
                     c.out, delta_line, y + rows <= width ? rows : width - y, width, partial + k * K * c.out);
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
        if (c.taps == 16)
            convolve_tiles(delta + y * (c.width + 2) * c.out, c.width, step, c.out, c.in, c.backward, tile_memory(c, step), first);
        else
            direct_gradient_row(c, delta, y, first, false);
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

// -- forward

enum Mode { TRAIN, EVALUATE, AGAIN };  // AGAIN: from a stored input, under statistics already known

void stem_forward(Net& net, Mode mode) {
    const Conv& c = net.stem;
    for_images(net, 0, [&](int64_t n, Ticks& ticks, double* sums, float*) {
        const float* in = net.input + n * input_size(c);
        int64_t line = c.width * c.in;
        float* copy = padded(0, c.width, c.in, [&](int64_t y, float* row) { memcpy(row, in + y * line, sizeof(float) * line); });
        ImageSums image(1, c.out);
        ticks.spent(POINTWISE);
        convolve(c, copy, net.u0 + n * output_size(c), mode == TRAIN ? &image : nullptr, 0, ticks);
        image.into(sums, 1, net.channels);
    });
    mode == TRAIN ? measure(net, net.stem_norm, 0, area(c)) : recall(net.stem_norm);
}

// The row of a block's input: the output of what comes before it, kept in `x` on the way.
void input_row(const Net& net, int64_t i, int64_t image, int64_t y, float* row, bool stored) {
    const Conv& c = net.block[i].conv1;
    int64_t floats = c.width * c.in, at = image * input_size(c) + y * floats;
    if (stored) {
        memcpy(row, net.block[i].x + at, sizeof(float) * floats);
        return;
    }
    if (i) {
        output_row(net.block[i - 1], image, y, row);
    } else {
        normalize<false>(net.stem_norm, net.u0 + at, c.width, c.in, row);
        relu(row, floats);
    }
    memcpy(net.block[i].x + at, row, sizeof(float) * floats);
}

float* inner_activation(const Block& b, int which, int64_t n) {
    const Conv& c = b.conv2;
    int64_t floats = c.width * c.in;
    const float* u = b.u1 + n * input_size(c);
    return padded(which, c.width, c.in, [&](int64_t y, float* row) {
        normalize<false>(b.norm1, u + y * floats, c.width, c.in, row);
        relu(row, floats);
    });
}

void block_forward(Net& net, int64_t i, Mode mode) {
    Block& b = net.block[i];
    bool stored = mode == AGAIN && b.starts_segment, projected = b.shortcut == PROJECTED;
    for_images(net, 0, [&](int64_t n, Ticks& ticks, double* sums, float*) {
        const Conv& c = b.conv1;
        float* copy = padded(0, c.width, c.in, [&](int64_t y, float* row) { input_row(net, i, n, y, row, stored); });
        ImageSums image(2, c.out);
        ImageSums* wanted = mode == TRAIN ? &image : nullptr;
        ticks.spent(POINTWISE);
        convolve(c, copy, b.u1 + n * output_size(c), wanted, 0, ticks);
        if (projected) convolve(b.projection, copy, b.v + n * output_size(c), wanted, 1, ticks);
        image.into(sums, 2, net.channels);
    });
    if (mode == TRAIN) measure(net, b.norm1, 0, area(b.conv1));
    if (mode == TRAIN && projected) measure(net, b.norm3, 1, area(b.conv1));
    for_images(net, 0, [&](int64_t n, Ticks& ticks, double* sums, float*) {
        float* copy = inner_activation(b, 0, n);
        ImageSums image(1, b.conv2.out);
        ticks.spent(POINTWISE);
        convolve(b.conv2, copy, b.u2 + n * output_size(b.conv2), mode == TRAIN ? &image : nullptr, 0, ticks);
        image.into(sums, 1, net.channels);
    });
    if (mode == TRAIN) measure(net, b.norm2, 0, area(b.conv2));
}

// The mean over the pixels of the last block's output.
void pool(Net& net) {
    const Block& last = net.block[net.blocks - 1];
    const Conv& c = last.conv2;
    for_images(net, 0, [&](int64_t n, Ticks& ticks, double*, float*) {
        float *row = scratch.get(0, c.width * c.out), *out = net.pooled + n * c.out;
        memset(out, 0, sizeof(float) * c.out);
        for (int64_t y = 0; y < c.width; ++y) {
            output_row(last, n, y, row);
            for (int64_t x = 0; x < c.width; ++x)
                for (int64_t k = 0; k < c.out; ++k) out[k] += row[x * c.out + k];
        }
        for (int64_t k = 0; k < c.out; ++k) out[k] /= float(area(c));
        ticks.spent(POINTWISE);
    });
}

// -- backward

// What the BNs before a block's output (or, for i = -1, of the stem) need of a row of its gradient.
void add_sums(const Net& net, int64_t i, int64_t n, int64_t y, const float* g, ImageSums& image) {
    const Conv& c = i < 0 ? net.stem : net.block[i].conv2;
    int64_t width = c.width / c.stride, at = n * output_size(c) + y * width * c.out;
    add_products(g, (i < 0 ? net.u0 : net.block[i].u2) + at, width, c.out, image.sum(0), image.product(0));
    if (i >= 0 && net.block[i].shortcut == PROJECTED && net.block[i].norm3.channels)
        add_products(g, net.block[i].v + at, width, c.out, image.sum(1), image.product(1));
}

// The gradient of the last block's output before its ReLU, from that of the pooled features.
void last_gradient(Net& net, float* g) {
    const Block& last = net.block[net.blocks - 1];
    const Conv& c = last.conv2;
    for_images(net, 0, [&](int64_t n, Ticks& ticks, double* sums, float*) {
        int64_t floats = c.width * c.out;
        float *activation = scratch.get(0, floats), *out = g + n * output_size(c);
        const float* pooled = net.pooled_gradient + n * c.out;
        ImageSums image(2, c.out);
        for (int64_t y = 0; y < c.width; ++y, out += floats) {
            output_row(last, n, y, activation);
            for (int64_t i = 0; i < floats; ++i) out[i] = pooled[i % c.out] / float(area(c));
            mask(activation, out, floats);
            add_sums(net, net.blocks - 1, n, y, out, image);
        }
        image.into(sums, 2, net.channels);
        ticks.spent(POINTWISE);
    });
}

// The sums of a gradient whose own pass could not take them, the block's outputs being computed again only now.
void late_sums(Net& net, int64_t i, const float* g) {
    const Conv& c = net.block[i].conv2;
    for_images(net, 0, [&](int64_t n, Ticks& ticks, double* sums, float*) {
        ImageSums image(2, c.out);
        for (int64_t y = 0; y < c.width; ++y)
            add_sums(net, i, n, y, g + n * output_size(c) + y * c.width * c.out, image);
        image.into(sums, 2, net.channels);
        ticks.spent(POINTWISE);
    });
}

// From the gradient `g` of a block's output before its last ReLU to that of its inner activation before the first.
void second_backward(Net& net, const Block& b, const float* g, float* inner) {
    const Conv& c = b.conv2;
    for_images(net, weights_of(c), [&](int64_t n, Ticks& ticks, double* sums, float* partial) {
        int64_t at = n * output_size(c), floats = c.width * c.out, line = (c.width + 2) * c.in;
        float* copy = inner_activation(b, 0, n);
        float* delta = padded(1, c.width, c.out, [&](int64_t y, float* row) {
            input_gradient(b.norm2, g + at + y * floats, b.u2 + at + y * floats, c.width, c.out, row);
        });
        ImageSums image(1, c.in);
        ticks.spent(POINTWISE);
        weight_gradient(c, copy, delta, partial);
        ticks.spent(WEIGHT_GRADIENT);
        int64_t from = n * input_size(c);
        input_gradient_rows(c, delta, inner + from, ticks, [&](int64_t y, float* row) {
            mask(copy + (y + 1) * line + c.in, row, c.width * c.in);
            add_products(row, b.u1 + from + y * c.width * c.in, c.width, c.in, image.sum(0), image.product(0));
        });
        image.into(sums, 1, net.channels);
    });
}

// From the gradients of a block's inner activation and of its output to that of the output of what comes before it.
void first_backward(Net& net, int64_t i, const float* inner, const float* g, float* before) {
    const Block& b = net.block[i];
    const Conv &c = b.conv1, &p = b.projection;
    bool projected = b.shortcut == PROJECTED;
    int64_t used = weights_of(c) + (projected ? weights_of(p) : 0);
    for_images(net, used, [&](int64_t n, Ticks& ticks, double* sums, float* partial) {
        int64_t width = c.width / c.stride, at = n * output_size(c), floats = width * c.out, line = c.width * c.in;
        const float* x = b.x + n * input_size(c);
        float* copy = padded(0, c.width, c.in, [&](int64_t y, float* row) { memcpy(row, x + y * line, sizeof(float) * line); });
        float* delta = padded(1, width, c.out, [&](int64_t y, float* row) {
            input_gradient(b.norm1, inner + at + y * floats, b.u1 + at + y * floats, width, c.out, row);
        });
        float* other = projected ? padded(2, width, c.out, [&](int64_t y, float* row) {
            input_gradient(b.norm3, g + at + y * floats, b.v + at + y * floats, width, c.out, row);
        }) : nullptr;
        ImageSums image(2, c.in);
        ticks.spent(POINTWISE);
        weight_gradient(c, copy, delta, partial);
        if (projected) weight_gradient(p, copy, other, partial + weights_of(c));
        ticks.spent(WEIGHT_GRADIENT);
        input_gradient_rows(c, delta, before + n * input_size(c), ticks, [&](int64_t y, float* row) {
            if (projected) direct_gradient_row(p, other, y, row, true);
            if (b.shortcut == PADDED) add_padded_gradient(b, g + at, y, row);
            if (b.shortcut == IDENTITY)
                for (int64_t k = 0; k < line; k += LANES) store(row + k, load(row + k) + load(g + at + y * line + k));
            mask(x + y * line, row, line);
            if (!b.starts_segment || i == 0) add_sums(net, i - 1, n, y, row, image);
        });
        image.into(sums, 2, net.channels);
    });
}

void stem_backward(Net& net, const float* g) {
    const Conv& c = net.stem;
    for_images(net, weights_of(c), [&](int64_t n, Ticks& ticks, double*, float* partial) {
        int64_t at = n * output_size(c), floats = c.width * c.out, line = c.width * c.in;
        const float* in = net.input + n * input_size(c);
        float* copy = padded(0, c.width, c.in, [&](int64_t y, float* row) { memcpy(row, in + y * line, sizeof(float) * line); });
        float* delta = padded(1, c.width, c.out, [&](int64_t y, float* row) {
            input_gradient(net.stem_norm, g + at + y * floats, net.u0 + at + y * floats, c.width, c.out, row);
        });
        ticks.spent(POINTWISE);
        weight_gradient(c, copy, delta, partial);
        ticks.spent(WEIGHT_GRADIENT);
    });
    gather(net, c, 0);
}

void block_backward(Net& net, int64_t i, const float* g, float* inner, float* before) {
    Block& b = net.block[i];
    bool projected = b.shortcut == PROJECTED;
    differentiate(net, b.norm2, 0, 0, area(b.conv2));
    if (projected) differentiate(net, b.norm3, 0, 1, area(b.conv2));
    second_backward(net, b, g, inner);
    gather(net, b.conv2, 0);
    differentiate(net, b.norm1, 0, 0, area(b.conv1));
    first_backward(net, i, inner, g, before);
    gather(net, b.conv1, 0);
    if (projected) gather(net, b.projection, weights_of(b.conv1));
}

}  // namespace

// Images to pooled features, in training or evaluation mode.
extern "C" void trunk_forward(Net* net, int64_t training) {
    Mode mode = training ? TRAIN : EVALUATE;
    pack_all(*net);
    stem_forward(*net, mode);
    for (int64_t i = 0; i < net->blocks; ++i) {
        Block& b = net->block[i];
        if (mode == EVALUATE) {
            recall(b.norm1);
            recall(b.norm2);
            recall(b.norm3);
        }
        block_forward(*net, i, mode);
    }
    pool(*net);
}

// The gradient of the pooled features to those of every parameter of the trunk.
extern "C" void trunk_backward(Net* net) {
    float *g = net->g[0], *inner = net->g[1], *before = net->g[2];
    last_gradient(*net, g);
    for (int64_t i = net->blocks - 1; i >= 0; --i) {
        block_backward(*net, i, g, inner, before);
        float* done = g;
        g = before;
        before = done;
        if (i == 0 || !net->block[i].starts_segment) continue;
        int64_t first = i - 1;
        while (!net->block[first].starts_segment) --first;
        for (int64_t k = first; k < i; ++k) block_forward(*net, k, AGAIN);
        late_sums(*net, i - 1, g);
    }
    differentiate(*net, net->stem_norm, 0, 0, area(net->stem));
    stem_backward(*net, g);
}

extern "C" int64_t trunk_size(int64_t which) {
    return which == 0 ? sizeof(Conv) : which == 1 ? sizeof(Norm) : which == 2 ? sizeof(Block) : sizeof(Net);
}
