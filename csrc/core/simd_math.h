// Elementary functions of float vectors, within 1 to 2 units in the last place.
#pragma once

#include "core/simd.h"

namespace aigc::AIGC_LEVEL {

static inline vf broadcast(float x) { return x - vf{}; }

static inline vf power_of_two(vi n) { return vf((n + 127) << 23); }

// exp(x) = (1 + rest) * 2^exponent, for x within +-104.
struct Exponential {
    vf rest;
    vi exponent;
};

static inline Exponential exponential(vf x) {
    constexpr float LOG2_E = 1.44269504088896341f, LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;
    constexpr float ROUNDER = 0x1.8p23f; // added, it leaves the nearest integer in the low bits
    const vf shifted = x * LOG2_E + ROUNDER;
    const vf n = shifted - ROUNDER;
    const vi exponent = vi(shifted) - vi(broadcast(ROUNDER));
    const vf r = (x - n * LN2_HIGH) - n * LN2_LOW;
    vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return {p * (r * r) + r, exponent};
}

// exp over all of float: subnormal results, 0, infinity and NaN as in the C library.
static inline vf exp(vf x) {
    x = x > 89.0f ? broadcast(89.0f) : x;
    x = x < -104.0f ? broadcast(-104.0f) : x;
    const auto [rest, exponent] = exponential(x);
    // Two steps, since 2^exponent itself may not be a normal float.
    const vi half = exponent >> 1;
    return (rest + 1.0f) * power_of_two(half) * power_of_two(exponent - half);
}

// exp(x) - 1 for x up to 88, near 0 too.
static inline vf expm1(vf x) {
    x = x < -87.0f ? broadcast(-87.0f) : x;
    const auto [rest, exponent] = exponential(x);
    const vf power = power_of_two(exponent);
    return rest * power + (power - 1.0f);
}

// Cephes' tanhf: a polynomial near zero, where 1 - 2 / (exp(2|x|) + 1) would cancel.
static inline vf tanh(vf x) {
    constexpr uint32_t SIGN = 0x80000000u;
    const vf square = x * x, size = vf(vu(x) & ~SIGN);
    vf p = square * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square - 3.33332819422e-1f;
    const vf far = 1.0f - 2.0f / (exp(size + size) + 1.0f);
    return size < 0.625f ? p * square * x + x : vf(vu(far) | (vu(x) & SIGN));
}

static inline vf sigmoid(vf x) { return 1.0f / (1.0f + exp(-x)); }

// Natural logarithm of normal positive floats.
static inline vf log(vf x) {
    constexpr uint32_t SQRT_HALF = 0x3f3504f3;
    constexpr float LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;
    const vi exponent = vi(vu(x) - SQRT_HALF) >> 23;
    const vf f = vf(vi(x) - (exponent << 23)) - 1.0f;
    const vf e = __builtin_convertvector(exponent, vf);
    const vf square = f * f;
    vf p = f * 7.0376836292e-2f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    vf tail = p * f * square + e * LN2_LOW;
    tail = tail - square * 0.5f;
    return (f + tail) + e * LN2_HIGH;
}

// Sine and cosine of x in [-pi/4, pi/4].
static inline void sincos_eighth(vf x, vf& sine, vf& cosine) {
    const vf square = x * x;
    const vf s = (square * -1.9515295891e-4f + 8.3321608736e-3f) * square - 1.6666654611e-1f;
    const vf c = (square * 2.443315711809948e-5f - 1.388731625493765e-3f) * square + 4.166664568298827e-2f;
    sine = s * (square * x) + x;
    cosine = c * (square * square) + (1.0f - square * 0.5f);
}

static inline vf sqrt(vf x) {
#if defined(__AVX512F__) && AIGC_VECTOR_BYTES == 64
    return vf(_mm512_sqrt_ps(__m512(x)));
#elif defined(__AVX2__) && AIGC_VECTOR_BYTES == 32
    return vf(_mm256_sqrt_ps(__m256(x)));
#else
    for (int i = 0; i < VF; ++i)
        x[i] = __builtin_sqrtf(x[i]);
    return x;
#endif
}

// The sum of a vector's lanes, in double.
static inline double total(vf x) {
    typedef float half_vf __attribute__((vector_size(AIGC_VECTOR_BYTES / 2)));
    half_vf halves[2];
    __builtin_memcpy(halves, &x, sizeof(x));
    const vd pairs = __builtin_convertvector(halves[0], vd) + __builtin_convertvector(halves[1], vd);
    double lanes[VF / 2];
    __builtin_memcpy(lanes, &pairs, sizeof(lanes));
    for (int width = VF / 4; width > 0; width /= 2)
        for (int i = 0; i < width; ++i)
            lanes[i] += lanes[i + width];
    return lanes[0];
}

}
