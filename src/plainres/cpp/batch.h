// What all layers of a pass share: a thread's memory and time, the walk over a batch's images, sums over the batch, BN.
#pragma once
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "tiles.h"
#include "trunk.h"

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

// Calls `work(image, ticks, sums, partial)` for each image, group by group, both zero at a group's start.
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

}  // namespace
