// The data of a network's trunk (everything before the classifier), as Python fills it in: trunk.py mirrors these
// structures field by field.
#pragma once
#include <cstdint>

struct Conv {
    int64_t in, out, size, stride, width;  // channels, channels, 3 or 1, 1 or 2, columns (and rows) of the input
    int64_t s_out, s_in, s_y, s_x;         // strides of the weight and of its gradient, in floats
    int64_t taps;                          // 16: by Winograd's tiles; otherwise size * size
    const float* weight;
    float* gradient;
    float* forward;   // work: (taps, in, out)
    float* backward;  // work: (taps, out, in), the kernel turned by half a circle where the stride is 1
};

struct Norm {
    int64_t channels;  // 0: no BN here
    double eps, momentum;
    const float *gamma, *beta, *bias;  // bias: of the convolution before it, or null
    float *gamma_gradient, *beta_gradient, *bias_gradient;
    float *running_mean, *running_var;
    int64_t* batches;    // num_batches_tracked
    float *scale, *shift;  // work: the output is scale * u + shift
    float *a, *b, *c;      // work: the gradient of u is a * g + b * u + c
    double *mean, *rstd;   // work
};

enum : int64_t { NONE, IDENTITY, PADDED, PROJECTED };  // shortcuts

struct Block {
    Conv conv1, conv2, projection;
    Norm norm1, norm2, norm3;  // norm3: of the projection
    int64_t shortcut, before, average;  // channels of zeros before the input's; 1: subsample by the mean of 2x2
    int64_t starts_segment;             // 1: `x` has memory of its own, and what follows can be computed again from it
    float *x, *u1, *u2, *v;             // (images, rows, columns, channels): input, raw outputs of the convolutions
};

enum { FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, POINTWISE, CATEGORIES };

struct Net {
    int64_t images, groups, blocks, profile;
    Conv stem;
    Norm stem_norm;
    float *input, *u0;
    Block* block;
    float *pooled, *pooled_gradient;  // (images, features)
    float* g[3];                      // work: the gradient of one layer's output
    float* partial;                   // work: (groups, partial_size)
    double* sums;                     // work: (groups, SLOTS, 2, channels)
    int64_t partial_size, channels;   // the largest weight, the most channels
    double seconds[CATEGORIES];       // of all threads together, where `profile` is set
};
