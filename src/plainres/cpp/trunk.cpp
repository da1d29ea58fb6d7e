// Forward and backward pass of a plain or residual trunk in float32, fused by hand.
//
// A convolution's raw output `u` is written once; BN, shortcut and ReLU are applied where it is read, image by image,
// into a padded copy that stays in the cache. Batch statistics are summed as the rows leave a convolution. The images
// are divided into `groups` that do not depend on the number of threads, and every sum over the batch is taken in the
// groups' order: the results are the same bits on any number of threads.
#include "trunk.h"

#include "convolution.h"
#include "rows.h"

namespace {

// -- forward

enum Mode { TRAIN, EVALUATE, AGAIN };  // AGAIN: from a stored input, under statistics already known

void stem_forward(Net& net, Mode mode) {
    const Conv& c = net.stem;
    for_images(net, 0, [&](int64_t n, Ticks& ticks, double* sums, float*) {
        float* copy = padded_image(0, c, net.input + n * input_size(c));
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
        float* copy = padded_image(0, c, x);
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
        int64_t at = n * output_size(c), floats = c.width * c.out;
        float* copy = padded_image(0, c, net.input + n * input_size(c));
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
