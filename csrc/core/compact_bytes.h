// Sums of products of bytes, four in each 32-bit lane, by what each level has for them.
#pragma once

#include "core/simd_math.h"

namespace aigc::AIGC_LEVEL {

#if defined(__AVX512VNNI__) && AIGC_VECTOR_BYTES == 64
// Weights are unsigned, and sums begin with what their offset adds.
constexpr int32_t BYTE_OFFSET = 128;
constexpr bool WANTS_MAGNITUDES = false;
static inline vi multiply_add_bytes(vi sum, vu weights, int32_t a, int32_t) {
    return vi(_mm512_dpbusd_epi32(__m512i(sum), __m512i(weights), _mm512_set1_epi32(a)));
}
// Of a group's nibbles, which are unsigned.
struct NibbleSum {
    vi sum{};
    void add(vu nibbles, int32_t a) {
        sum = vi(_mm512_dpbusd_epi32(__m512i(sum), __m512i(nibbles), _mm512_set1_epi32(a)));
    }
    vi total() const { return sum; }
};
#elif defined(__AVX512BW__) && AIGC_VECTOR_BYTES == 64
constexpr int32_t BYTE_OFFSET = 0;
constexpr bool WANTS_MAGNITUDES = true;
// Unsigned magnitudes times weights with the signs of the others: two products of at most 127 fit 16 bits.
static inline vi multiply_add_bytes(vi sum, vu weights, int32_t a, int32_t magnitudes) {
    const __mmask64 negative = _mm512_movepi8_mask(_mm512_set1_epi32(a));
    const __m512i w = _mm512_mask_sub_epi8(__m512i(weights), negative, _mm512_setzero_si512(), __m512i(weights));
    const __m512i pairs = _mm512_maddubs_epi16(_mm512_set1_epi32(magnitudes), w);
    return vi(_mm512_add_epi32(__m512i(sum), _mm512_madd_epi16(pairs, _mm512_set1_epi16(1))));
}
struct NibbleSum {
    __m512i sum = _mm512_setzero_si512(); // of 16 products of at most 15 * 127 in 16 bits
    void add(vu nibbles, int32_t a) {
        sum = _mm512_add_epi16(sum, _mm512_maddubs_epi16(__m512i(nibbles), _mm512_set1_epi32(a)));
    }
    vi total() const { return vi(_mm512_madd_epi16(sum, _mm512_set1_epi16(1))); }
};
#elif defined(__AVX2__) && AIGC_VECTOR_BYTES == 32
constexpr int32_t BYTE_OFFSET = 0;
constexpr bool WANTS_MAGNITUDES = true;
static inline vi multiply_add_bytes(vi sum, vu weights, int32_t a, int32_t magnitudes) {
    const __m256i w = _mm256_sign_epi8(__m256i(weights), _mm256_set1_epi32(a));
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi32(magnitudes), w);
    return vi(_mm256_add_epi32(__m256i(sum), _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
}
struct NibbleSum {
    __m256i sum = _mm256_setzero_si256(); // as above
    void add(vu nibbles, int32_t a) {
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(__m256i(nibbles), _mm256_set1_epi32(a)));
    }
    vi total() const { return vi(_mm256_madd_epi16(sum, _mm256_set1_epi16(1))); }
};
#else
constexpr int32_t BYTE_OFFSET = 0;
constexpr bool WANTS_MAGNITUDES = false;
static inline vi multiply_add_bytes(vi sum, vu weights, int32_t a, int32_t) {
    for (int j = 0; j < 4; ++j)
        sum += (vi(weights << (24 - 8 * j)) >> 24) * int32_t(int8_t(a >> (8 * j)));
    return sum;
}
struct NibbleSum {
    vi sum{};
    void add(vu nibbles, int32_t a) {
        for (int j = 0; j < 4; ++j)
            sum += vi(nibbles >> (8 * j) & 0xff) * int32_t(int8_t(a >> (8 * j)));
    }
    vi total() const { return sum; }
};
#endif
constexpr int32_t NIBBLE_OFFSET = 8;

static inline vf as_float(vi x) { return __builtin_convertvector(x, vf); }
// The nearest integers of floats below 2^22.
static inline vi nearest(vf x) {
    constexpr float ROUNDER = 0x1.8p23f;
    return vi(x + ROUNDER) - vi(broadcast(ROUNDER));
}
static inline vf magnitude(vf x) { return vf(vu(x) & 0x7fffffffu); }
static inline vi within(vi x, int32_t least, int32_t most) {
    x = x < least ? vi{} + least : x;
    return x > most ? vi{} + most : x;
}

}
