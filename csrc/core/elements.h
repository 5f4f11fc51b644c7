// Vectors of float from tensors of any supported element type, and back.
#pragma once

#include <cstddef>

#include "core/dtypes.h"

namespace aigc::AIGC_LEVEL {

typedef uint16_t vh __attribute__((vector_size(AIGC_VECTOR_BYTES / 2)));
typedef uint16_t unaligned_vh __attribute__((vector_size(AIGC_VECTOR_BYTES / 2), aligned(2), may_alias));

// GCC splits these two conversions in halves where AVX2 has one instruction.
static inline vu widen(const bfloat16* p) {
#if defined(__AVX2__) && AIGC_VECTOR_BYTES == 32
    return vu(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
    return __builtin_convertvector(vh(*reinterpret_cast<const unaligned_vh*>(p)), vu);
#endif
}
// The low halves of values below 2^16.
static inline vh narrow(vu wide) {
#if defined(__AVX2__) && AIGC_VECTOR_BYTES == 32
    const __m256i packed = _mm256_packus_epi32(__m256i(wide), __m256i(wide));
    return vh(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
#else
    return __builtin_convertvector(wide, vh);
#endif
}

static inline vf load(const bfloat16* p) { return vf(widen(p) << 16); }
static inline void store(bfloat16* p, vf v) { *reinterpret_cast<unaligned_vh*>(p) = narrow(to_upper_half(v) >> 16); }

#if defined(__AVX512F__) && AIGC_VECTOR_BYTES == 64
static inline vf load(const float16* p) {
    return vf(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
static inline void store(float16* p, vf v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(__m512(v), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__) && AIGC_VECTOR_BYTES == 32
static inline vf load(const float16* p) {
    return vf(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
static inline void store(float16* p, vf v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(__m256(v), _MM_FROUND_TO_NEAREST_INT));
}
#else
// In C++ GCC has _Float16 on aarch64 since version 13, and this name always.
#if defined(__ARM_FP16_FORMAT_IEEE)
using half_number = __fp16;
#else
using half_number = _Float16;
#endif
static inline vf load(const float16* p) {
    vf v;
    for (int i = 0; i < VF; ++i) {
        half_number x;
        __builtin_memcpy(&x, p + i, 2);
        v[i] = float(x);
    }
    return v;
}
static inline void store(float16* p, vf v) {
    for (int i = 0; i < VF; ++i) {
        const half_number x = static_cast<half_number>(v[i]);
        __builtin_memcpy(p + i, &x, 2);
    }
}
#endif

// The first `count` elements, at most a vector of them, zeros after them. Nothing beyond them is read or written.
static inline vf load_up_to(const float* p, int64_t count) { return load_part(p, count); }
template <class T>
static inline vf load_up_to(const T* p, int64_t count) {
    if (count >= VF)
        return load(p);
    T padded[VF] = {};
#if defined(__AVX512BW__) && defined(__AVX512VL__) && AIGC_VECTOR_BYTES == 64
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(padded), _mm256_maskz_loadu_epi16(first_lanes(count), p));
#else
    __builtin_memcpy(padded, p, static_cast<size_t>(count) * sizeof(T));
#endif
    return load(padded);
}
static inline void store_up_to(float* p, vf v, int64_t count) { store_part(p, v, count); }
template <class T>
static inline void store_up_to(T* p, vf v, int64_t count) {
    if (count >= VF)
        return store(p, v);
    T padded[VF];
    store(padded, v);
#if defined(__AVX512BW__) && defined(__AVX512VL__) && AIGC_VECTOR_BYTES == 64
    const __m256i whole = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(padded));
    _mm256_mask_storeu_epi16(p, first_lanes(count), whole);
#else
    __builtin_memcpy(p, padded, static_cast<size_t>(count) * sizeof(T));
#endif
}

// Calls f(first, count) for every whole vector of n elements, then for the rest. Only an inlined f knows that the
// whole ones are whole: declare it AIGC_INLINE.
#define AIGC_INLINE __attribute__((always_inline))
template <class F>
static inline void for_each_vector(int64_t n, const F& f) {
    int64_t i = 0;
    for (; i + VF <= n; i += VF)
        f(i, int64_t(VF));
    if (i < n)
        f(i, n - i);
}

// Calls f.operator()<T>() for the type of a dtype.
template <class F>
static inline void of_type(int64_t dtype, const F& f) {
    if (dtype == FLOAT32)
        f.template operator()<float>();
    else if (dtype == BFLOAT16)
        f.template operator()<bfloat16>();
    else
        f.template operator()<float16>();
}

}
