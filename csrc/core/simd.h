// Vectors of float at the width of the level being compiled, and the conversions between float and the 16-bit formats.
#pragma once

#include <cstdint>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if !defined(AIGC_VECTOR_BYTES)
#if defined(__AVX512F__)
#define AIGC_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define AIGC_VECTOR_BYTES 32
#else
#define AIGC_VECTOR_BYTES 16
#endif
#endif

namespace aigc::AIGC_LEVEL {

typedef float vf __attribute__((vector_size(AIGC_VECTOR_BYTES)));
typedef float unaligned_vf __attribute__((vector_size(AIGC_VECTOR_BYTES), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(AIGC_VECTOR_BYTES)));
typedef int32_t vi __attribute__((vector_size(AIGC_VECTOR_BYTES)));

constexpr int VF = AIGC_VECTOR_BYTES / sizeof(float);

static inline vf load(const float* p) { return *reinterpret_cast<const unaligned_vf*>(p); }
static inline void store(float* p, vf v) { *reinterpret_cast<unaligned_vf*>(p) = v; }

// The first `count` floats at p, zeros after them; nothing beyond them is read.
static inline vf load_part(const float* p, int64_t count) {
    if (count >= VF)
        return load(p);
#if defined(__AVX512F__)
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
#else
    vf x{};
    for (int64_t i = 0; i < count; ++i)
        x[i] = p[i];
    return x;
#endif
}

// The element types of tensors, as Python passes them.
enum Dtype : int64_t { FLOAT32 = 0, BFLOAT16 = 1 };

static inline float to_float(float x) { return x; }
static inline float to_float(uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float x;
    __builtin_memcpy(&x, &wide, 4);
    return x;
}

// Rounds to nearest even; a NaN stays one.
static inline uint16_t to_bfloat16(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    if (x != x)
        return uint16_t((bits >> 16) | 0x40);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
static inline void from_float(float x, float* out) { *out = x; }
static inline void from_float(float x, uint16_t* out) { *out = to_bfloat16(x); }

// out[c * out_stride + r] = in[r * in_stride + c] for 8 rows of 8.
#if defined(__AVX2__)
static inline void transpose8(const float* in, int64_t in_stride, float* out, int64_t out_stride) {
    __m256 r[8], t[8];
    for (int i = 0; i < 8; ++i)
        r[i] = _mm256_loadu_ps(in + i * in_stride);
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        _mm256_storeu_ps(out + i * out_stride, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_storeu_ps(out + (i + 4) * out_stride, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
}
#else
static inline void transpose8(const float* in, int64_t in_stride, float* out, int64_t out_stride) {
    for (int c = 0; c < 8; ++c)
        for (int r = 0; r < 8; ++r)
            out[c * out_stride + r] = in[r * in_stride + c];
}
#endif

// A strip of 8 rows; `columns` of any number.
static inline void transpose_rows(const float* in, int64_t in_stride, float* out, int64_t out_stride, int64_t rows,
                                  int64_t columns) {
    int64_t c = 0;
    for (; rows == 8 && c + 8 <= columns; c += 8)
        transpose8(in + c, in_stride, out + c * out_stride, out_stride);
    for (; c < columns; ++c)
        for (int64_t i = 0; i < rows; ++i)
            out[c * out_stride + i] = in[i * in_stride + c];
}

// The side with the wider stride is the outer loop: its few cache lines are finished before the next ones.
static inline void transpose(const float* in, int64_t in_stride, float* out, int64_t out_stride, int64_t rows,
                             int64_t columns) {
    const int64_t strip = out_stride > in_stride ? 8 : columns;
    for (int64_t c = 0; c < columns; c += strip)
        for (int64_t r = 0; r < rows; r += 8)
            transpose_rows(in + r * in_stride + c, in_stride, out + c * out_stride + r, out_stride,
                           rows - r < 8 ? rows - r : 8, columns - c < strip ? columns - c : strip);
}

}
