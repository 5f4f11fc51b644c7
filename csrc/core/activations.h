// Activations at the end of an op, and their derivatives, of float vectors.
#pragma once

#include "core/activation_codes.h"
#include "core/elements.h"
#include "core/simd_math.h"

namespace aigc::AIGC_LEVEL {

// The error function: N. Juffa's polynomials, within 1 unit in the last place.
static inline vf erf(vf x) {
    const vf t = vf(vu(x) & 0x7fffffffu), s = x * x;
    vf r = t * -1.72853470e-5f + 3.83197126e-4f;
    const vf u = t * -3.88396438e-3f + 2.42546219e-2f;
    r = r * s + u;
    r = r * t - 1.06777877e-1f;
    r = r * t - 6.34846687e-1f;
    r = r * t - 1.28717512e-1f;
    const vf far = 1.0f - exp(r * t - t);
    vf p = s * -5.96761703e-4f + 4.99119423e-3f;
    p = p * s - 2.67681349e-2f;
    p = p * s + 1.12819925e-1f;
    p = p * s - 3.76125336e-1f;
    p = p * s + 1.28379166e-1f;
    return t > 0.927734375f ? vf(vu(far) | (vu(x) & 0x80000000u)) : p * x + x;
}

constexpr float SQRT_HALF = 0.70710678118654752f, INVERSE_SQRT_TWO_PI = 0.39894228040143268f;
constexpr float SQRT_TWO_OVER_PI = 0.79788456080286536f, GELU_CUBE = 0.044715f;

// The normal law's distribution function.
static inline vf normal_distribution(vf x) { return 0.5f * (1.0f + erf(x * SQRT_HALF)); }

// What GELU's approximation takes the hyperbolic tangent of.
static inline vf gelu_inner(vf x) { return SQRT_TWO_OVER_PI * (x + GELU_CUBE * (x * x * x)); }

// Calls run(f, derivative), which both take a vector of the activation's input. `slope`: of LEAKY_RELU, and what ELU
// falls to. NaN stays.
template <class Run>
static inline void with_activation(int64_t activation, float slope, const Run& run) {
    switch (activation) {
    case RELU:
        return run([](vf x) AIGC_INLINE { return x < 0 ? vf{} : x; },
                   [](vf x) AIGC_INLINE { return x <= 0 ? vf{} : broadcast(1); });
    case LEAKY_RELU:
        return run([=](vf x) AIGC_INLINE { return x < 0 ? x * slope : x; },
                   [=](vf x) AIGC_INLINE { return x > 0 ? broadcast(1) : broadcast(slope); });
    case TANH:
        return run([](vf x) AIGC_INLINE { return tanh(x); },
                   [](vf x) AIGC_INLINE {
                       const vf y = tanh(x);
                       return 1.0f - y * y;
                   });
    case SIGMOID:
        return run([](vf x) AIGC_INLINE { return sigmoid(x); },
                   [](vf x) AIGC_INLINE {
                       const vf y = sigmoid(x);
                       return y * (1.0f - y);
                   });
    case SILU:
        return run([](vf x) AIGC_INLINE { return x / (1.0f + exp(-x)); },
                   [](vf x) AIGC_INLINE {
                       const vf y = sigmoid(x);
                       return y * (1.0f + x * (1.0f - y));
                   });
    case GELU:
        return run(
            [](vf x) AIGC_INLINE { return x * normal_distribution(x); },
            [](vf x) AIGC_INLINE { return normal_distribution(x) + x * (INVERSE_SQRT_TWO_PI * exp(-0.5f * (x * x))); });
    case GELU_TANH:
        return run([](vf x) AIGC_INLINE { return 0.5f * x * (1.0f + tanh(gelu_inner(x))); },
                   [](vf x) AIGC_INLINE {
                       const vf y = tanh(gelu_inner(x));
                       const vf inner = SQRT_TWO_OVER_PI * (1.0f + 3.0f * GELU_CUBE * (x * x));
                       return 0.5f * ((1.0f + y) + x * ((1.0f - y * y) * inner));
                   });
    case ELU:
        return run([=](vf x) AIGC_INLINE { return x > 0 ? x : slope * expm1(x); },
                   [=](vf x) AIGC_INLINE { return x > 0 ? broadcast(1) : slope * exp(x); });
    default:
        return run([](vf x) AIGC_INLINE { return x; }, [](vf) AIGC_INLINE { return broadcast(1); });
    }
}

// In place, over n floats.
__attribute__((noinline)) static void activate(int64_t activation, float slope, float* x, int64_t n) {
    with_activation(activation, slope, [&](const auto& f, const auto&) {
        for_each_vector(n, [&](int64_t i, int64_t width)
                               AIGC_INLINE { store_up_to(x + i, f(load_up_to(x + i, width)), width); });
    });
}

// The derivatives in the place of what they are taken at.
__attribute__((noinline)) static void differentiate(int64_t activation, float slope, float* x, int64_t n) {
    with_activation(activation, slope, [&](const auto&, const auto& derivative) {
        for_each_vector(n, [&](int64_t i, int64_t width)
                               AIGC_INLINE { store_up_to(x + i, derivative(load_up_to(x + i, width)), width); });
    });
}

}
