// The gradient that the activation after a convolution lets through, and its sum for each channel: the bias's. In one
// pass over memory.
#pragma once

#include "core/activation_codes.h"
#include "core/arena.h"
#include "core/elements.h"
#include "core/integers.h"
#include "core/parallel.h"
#include "core/simd_math.h"

namespace aigc::AIGC_LEVEL::conv_transpose {
namespace {

// Added up in floats, at most; and worth another thread.
constexpr int64_t SUMMED_TOGETHER = 4096, LEAST_MASKED = 1 << 14;

// Calls run(f), whose f takes vectors of the gradient to the activation's output and of that output.
template <class Run>
void with_gradient_at_output(int64_t activation, float slope, const Run& run) {
    switch (activation) {
    case RELU:
        return run([](vf g, vf y) AIGC_INLINE { return y <= 0 ? vf{} : g; });
    case LEAKY_RELU:
        return run([=](vf g, vf y) AIGC_INLINE { return y > 0 ? g : g * slope; });
    case TANH:
        return run([](vf g, vf y) AIGC_INLINE { return g * (1.0f - y * y); });
    default:
        return run([](vf g, vf y) AIGC_INLINE { return g * ((1.0f - y) * y); });
    }
}

// n neighbours of one channel; returns their sum.
template <class T, class F>
double mask_line(T* inner, const T* gradient, const T* output, int64_t n, const F& f) {
    double sum = 0;
    for (int64_t first = 0; first < n; first += SUMMED_TOGETHER) {
        vf lanes{};
        for_each_vector(least(SUMMED_TOGETHER, n - first), [&](int64_t i, int64_t width) AIGC_INLINE {
            const int64_t at = first + i;
            // Past the end the gradient is 0, and so is what is added.
            const vf masked = f(load_up_to(gradient + at, width), load_up_to(output + at, width));
            store_up_to(inner + at, masked, width);
            lanes += masked;
        });
        sum += total(lanes);
    }
    return sum;
}

// Channels that are planes. sums: of each channel of each image.
template <class T, class F>
void mask_planes(T* inner, const T* gradient, const T* output, double* sums, int64_t planes, int64_t pixels,
                 const F& f) {
    parallel_for(0, planes, ceil_div(LEAST_MASKED, pixels), [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p)
            sums[p] = mask_line(inner + p * pixels, gradient + p * pixels, output + p * pixels, pixels, f);
    });
}

// Pixels whose channels are neighbours. sums: of each channel of every part of `together` pixels.
template <class T, class F>
void mask_pixels(T* inner, const T* gradient, const T* output, double* sums, int64_t pixels, int64_t together,
                 int64_t channels, const F& f) {
    const int64_t parts = ceil_div(pixels, together);
    parallel_for(0, parts, ceil_div(LEAST_MASKED, together * channels), [&](int64_t begin, int64_t end) {
        Scope scope;
        auto* const lanes = scope.take<float>(channels);
        for (int64_t part = begin; part < end; ++part) {
            for (int64_t c = 0; c < channels; ++c)
                lanes[c] = 0;
            for (int64_t pixel = part * together; pixel < least(pixels, (part + 1) * together); ++pixel)
                for_each_vector(channels, [&](int64_t i, int64_t width) AIGC_INLINE {
                    const int64_t at = pixel * channels + i;
                    const vf masked = f(load_up_to(gradient + at, width), load_up_to(output + at, width));
                    store_up_to(inner + at, masked, width);
                    store_up_to(lanes + i, load_up_to(lanes + i, width) + masked, width);
                });
            for (int64_t c = 0; c < channels; ++c)
                sums[part * channels + c] = lanes[c];
        }
    });
}

// The sums of a channel's parts, into elements of the bias's type.
template <class T>
void add_parts(T* of_bias, const double* sums, int64_t parts, int64_t channels) {
    for (int64_t c = 0; c < channels; ++c) {
        double sum = 0;
        for (int64_t part = 0; part < parts; ++part)
            sum += sums[part * channels + c];
        store_up_to(of_bias + c, broadcast(static_cast<float>(sum)), 1);
    }
}

}
}
