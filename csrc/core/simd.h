// Vectors at the width of the level being compiled.
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
typedef double vd __attribute__((vector_size(AIGC_VECTOR_BYTES)));
typedef double unaligned_vd __attribute__((vector_size(AIGC_VECTOR_BYTES), aligned(8), may_alias));
typedef uint32_t vu __attribute__((vector_size(AIGC_VECTOR_BYTES)));
typedef int32_t vi __attribute__((vector_size(AIGC_VECTOR_BYTES)));

constexpr int VF = AIGC_VECTOR_BYTES / sizeof(float);

static inline vf load(const float* p) { return *reinterpret_cast<const unaligned_vf*>(p); }
static inline vd load(const double* p) { return *reinterpret_cast<const unaligned_vd*>(p); }
static inline vu load(const uint32_t* p) { return (vu)load(reinterpret_cast<const float*>(p)); }
static inline void store(float* p, vf v) { *reinterpret_cast<unaligned_vf*>(p) = v; }
static inline void store(double* p, vd v) { *reinterpret_cast<unaligned_vd*>(p) = v; }
static inline void store(uint32_t* p, vu v) { store(reinterpret_cast<float*>(p), vf(v)); }

#if defined(__AVX2__)
// The first `count` of 8 floats at p, zeros after them; nothing beyond them is read.
static inline __m256 load_first(const float* p, int64_t count) {
    if (count == 8)
        return _mm256_loadu_ps(p);
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes));
}
#endif

#if defined(__AVX512F__) && AIGC_VECTOR_BYTES == 64
static inline __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }
#endif

// The same for a vector of the level's width.
static inline vf load_part(const float* p, int64_t count) {
    if (count >= VF)
        return load(p);
#if defined(__AVX512F__) && AIGC_VECTOR_BYTES == 64
    return vf(_mm512_maskz_loadu_ps(first_lanes(count), p));
#elif defined(__AVX2__) && AIGC_VECTOR_BYTES == 32
    return vf(load_first(p, count));
#else
    vf x{};
    for (int64_t i = 0; i < count; ++i)
        x[i] = p[i];
    return x;
#endif
}

// The first `count` lanes; nothing beyond them is written.
static inline void store_part(float* p, vf x, int64_t count) {
    if (count >= VF)
        return store(p, x);
#if defined(__AVX512F__) && AIGC_VECTOR_BYTES == 64
    _mm512_mask_storeu_ps(p, first_lanes(count), __m512(x));
#elif defined(__AVX2__) && AIGC_VECTOR_BYTES == 32
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_maskstore_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes), __m256(x));
#else
    for (int64_t i = 0; i < count; ++i)
        p[i] = x[i];
#endif
}

// The greater of each pair of lanes; b where either is NaN.
static inline vf greater(vf a, vf b) {
#if defined(__AVX512F__) && AIGC_VECTOR_BYTES == 64
    return vf(_mm512_max_ps(__m512(a), __m512(b)));
#elif defined(__AVX2__) && AIGC_VECTOR_BYTES == 32
    return vf(_mm256_max_ps(__m256(a), __m256(b)));
#else
    return a > b ? a : b;
#endif
}

static inline bool any(vi lanes) {
    int32_t found = 0;
    for (int i = 0; i < VF; ++i)
        found |= lanes[i];
    return found != 0;
}

// Kept in a register for all that uses it, where the compiler would read memory again for each of them.
static inline vf in_register(vf x) {
#if defined(__AVX512F__)
    asm("" : "+v"(x));
#elif defined(__SSE__)
    asm("" : "+x"(x));
#endif
    return x;
}

static inline vf multiply_add(vf sum, float a, vf b) { return sum + a * b; }

// out[c * out_stride + r] = in[r * in_stride + c] for at most TRANSPOSED rows and columns.
#if defined(__AVX512F__)
constexpr int64_t TRANSPOSED = 16;
static inline void transpose_block(const float* in, int64_t in_stride, float* out, int64_t out_stride, int64_t rows,
                                   int64_t columns) {
    const auto read = static_cast<__mmask16>((1u << columns) - 1), write = static_cast<__mmask16>((1u << rows) - 1);
    __m512 r[16], t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
        r[i] = i < rows ? _mm512_maskz_loadu_ps(read, in + i * in_stride) : _mm512_setzero_ps();
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
        if (i < columns)
            _mm512_mask_storeu_ps(out + i * out_stride, write, r[i]);
}
#else
constexpr int64_t TRANSPOSED = 8;
#if defined(__AVX2__)
// Not by a masked store: some processors take dozens of cycles for it.
static inline void store_first(float* p, __m256 x, int64_t count) {
    if (count == 8)
        return _mm256_storeu_ps(p, x);
    __m128 rest = _mm256_castps256_ps128(x);
    if (count & 4) {
        _mm_storeu_ps(p, rest);
        rest = _mm256_extractf128_ps(x, 1);
        p += 4;
    }
    if (count & 2) {
        _mm_storel_pi(reinterpret_cast<__m64*>(p), rest);
        rest = _mm_movehl_ps(rest, rest);
        p += 2;
    }
    if (count & 1)
        _mm_store_ss(p, rest);
}
static inline void transpose_block(const float* in, int64_t in_stride, float* out, int64_t out_stride, int64_t rows,
                                   int64_t columns) {
    __m256 r[8], t[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
        r[i] = i < rows ? load_first(in + i * in_stride, columns) : _mm256_setzero_ps();
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
        t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
        if (i < columns)
            store_first(out + i * out_stride, t[i], rows);
}
#else
static inline void transpose_block(const float* in, int64_t in_stride, float* out, int64_t out_stride, int64_t rows,
                                   int64_t columns) {
    for (int64_t c = 0; c < columns; ++c)
        for (int64_t i = 0; i < rows; ++i)
            out[c * out_stride + i] = in[i * in_stride + c];
}
#endif
#endif

// The side with the wider stride is the outer loop: its few cache lines are finished before the next ones. The first
// block is cut so that the others write whole cache lines: lines half written would crowd each other out where the
// output's stride is a power of two.
static inline void transpose(const float* in, int64_t in_stride, float* out, int64_t out_stride, int64_t rows,
                             int64_t columns) {
    constexpr int64_t BLOCK = TRANSPOSED;
    const int64_t strip = out_stride > in_stride ? BLOCK : columns;
    const int64_t misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) / sizeof(float) % BLOCK);
    for (int64_t first = 0; first < columns; first += strip)
        for (int64_t r = 0, next; r < rows; r = next) {
            next = r + BLOCK - (r == 0 ? misaligned : 0);
            const int64_t height = (next < rows ? next : rows) - r;
            for (int64_t c = first; c < columns && c < first + strip; c += BLOCK)
                transpose_block(in + r * in_stride + c, in_stride, out + c * out_stride + r, out_stride, height,
                                columns - c < BLOCK ? columns - c : BLOCK);
        }
}

}
