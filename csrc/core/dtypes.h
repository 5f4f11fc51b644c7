// The element types of tensors: codes, sizes, conversions to float and back, and the pairs and sums of bfloat16 that
// stand for floats in products.
#pragma once

#include "core/codes.h"

namespace aigc {

AIGC_CODES(Dtype, FLOAT32, BFLOAT16, FLOAT16, FLOAT64)
constexpr int64_t ELEMENT_BYTES[] = {4, 2, 2, 8};

// What the factors of a product may be rounded to: nothing, bfloat16, or the sum of two bfloat16.
AIGC_CODES(Factors, EXACT, ROUNDED, SPLIT)

}

#if defined(AIGC_LEVEL) && !defined(__CUDACC__) && !defined(AIGC_CUDA_HOST)
#include "core/simd.h"

namespace aigc::AIGC_LEVEL {

using bfloat16 = uint16_t;
struct float16 {
    uint16_t bits;
};

static inline float to_float(float x) { return x; }
static inline float to_float(bfloat16 bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float x;
    __builtin_memcpy(&x, &wide, 4);
    return x;
}

// Rounds to nearest even in the upper half of the bits; what is left in the lower half says nothing.
template <class Bits>
static inline Bits round_to_upper_half(Bits bits) {
    return bits + 0x7fff + ((bits >> 16) & 1);
}
constexpr uint32_t ROUNDED_NAN = 0x7fc00000;

static inline bfloat16 to_bfloat16(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    return bfloat16((x == x ? round_to_upper_half(bits) : ROUNDED_NAN) >> 16);
}
static inline vu to_upper_half(vf x) { return x == x ? round_to_upper_half(vu(x)) : vu{} + ROUNDED_NAN; }

static inline void from_float(float x, float* out) { *out = x; }
static inline void from_float(float x, bfloat16* out) { *out = to_bfloat16(x); }

// Two bfloat16, the first in the lower half: sums of two products each at twice the speed of float.
using Pair = uint32_t;
static inline Pair pair_of(bfloat16 first, bfloat16 second) { return first | uint32_t(second) << 16; }
static inline vu pair_of(vf first, vf second) {
    return to_upper_half(first) >> 16 | (to_upper_half(second) & 0xffff0000u);
}

// A float as the sum of so many bfloat16: what rounding gives and the rest. The product of two such sums has three
// terms that count.
constexpr int64_t SPLIT_PLANES = 2, SPLIT_TERMS = 3;
static inline float without_rounded(float x) { return x - to_float(to_bfloat16(x)); }
static inline vf without_rounded(vf x) { return x - vf(to_upper_half(x) & 0xffff0000u); }
// Infinity and NaN, and what rounds to infinity, have no finite rest.
static inline vi not_finite(vf rest) { return rest - rest != 0.0f; }

#if defined(__AVX512BF16__)
constexpr bool HAS_PAIRS = true;
static inline vf multiply_add(vf sum, Pair a, vu b) {
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(a)), (__m512bh)(__m512i)b);
}
#elif defined(AIGC_EMULATE_BF16)
constexpr bool HAS_PAIRS = true;
static inline vf multiply_add(vf sum, Pair a, vu b) {
    return sum + to_float(bfloat16(a)) * (vf)(b << 16) + to_float(bfloat16(a >> 16)) * (vf)(b & 0xffff0000);
}
#else
constexpr bool HAS_PAIRS = false;
static inline vf multiply_add(vf sum, Pair, vu) { return sum; }
#endif

}
#endif
