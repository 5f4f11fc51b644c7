// The rows of products with compact weights (core/compact.h): floats, or bytes with one scale per group.
#pragma once

#include "core/compact_bytes.h"
#include "core/compact_layout.h"

namespace aigc::AIGC_LEVEL {

// Where the parts of a row lie that is multiplied by int8 or int4: its bytes, their magnitudes where the level wants
// them, and of each group its scale and what its sum begins with.
struct ByteRow {
    int64_t depth, groups;

    explicit ByteRow(int64_t of_depth) : depth(compact_depth(INT8, of_depth)), groups(depth / SCALED_GROUP) {}
    int64_t size() const {
        return round_up(depth * (1 + WANTS_MAGNITUDES) + groups * int64_t(sizeof(float) + sizeof(int32_t)), 64);
    }
    template <class Byte>
    Byte* bytes(Byte* row) const {
        return row;
    }
    template <class Byte>
    Byte* magnitudes(Byte* row) const {
        return row + depth * WANTS_MAGNITUDES;
    }
    const float* scales(const char* row) const {
        return reinterpret_cast<const float*>(row + depth * (1 + WANTS_MAGNITUDES));
    }
    const int32_t* starts(const char* row) const { return reinterpret_cast<const int32_t*>(scales(row) + groups); }
};

// Bytes of a row as products take it.
static inline int64_t compact_row_bytes(int64_t weights, int64_t depth) {
    return weights == INT8 || weights == INT4 ? ByteRow(depth).size()
                                              : round_up(depth, COMPACT_WIDTH) * int64_t(sizeof(float));
}

typedef int8_t vbyte __attribute__((vector_size(VF)));
static inline void store_bytes(char* p, vi x, int64_t count) {
    const vbyte bytes = __builtin_convertvector(x, vbyte);
    __builtin_memcpy(p, &bytes, static_cast<size_t>(count));
}
static inline int32_t greatest_of(vi x) {
#if defined(__AVX512F__) && AIGC_VECTOR_BYTES == 64
    return _mm512_reduce_max_epi32(__m512i(x));
#else
    int32_t found = x[0];
    for (int i = 1; i < VF; ++i)
        found = most(found, x[i]);
    return found;
#endif
}
static inline int32_t sum_of(vi x) {
#if defined(__AVX512F__) && AIGC_VECTOR_BYTES == 64
    return _mm512_reduce_add_epi32(__m512i(x));
#else
    int32_t found = 0;
    for (int i = 0; i < VF; ++i)
        found += x[i];
    return found;
#endif
}

// The numbers of a group as bytes and a scale, which is NaN where not all are finite.
static inline void quantize(const float* x, int64_t count, int32_t offset, char* bytes, char* magnitudes, float& scale,
                            int32_t& start) {
    constexpr int32_t INFINITE = 0x7f800000;
    vi top{}, total{};
    // Magnitudes are in the order of their bits, and what is not finite is above all else.
    for_each_vector(count, [&](int64_t i, int64_t part) AIGC_INLINE {
        const vi bits = vi(magnitude(load_up_to(x + i, part)));
        top = bits > top ? bits : top;
    });
    const int32_t bits = greatest_of(top);
    float greatest;
    __builtin_memcpy(&greatest, &bits, sizeof(greatest));
    scale = bits < INFINITE ? greatest / 127.0f : __builtin_nanf("");
    const float inverse = greatest > LEAST_SCALED && bits < INFINITE ? 127.0f / greatest : 0.0f;
    for_each_vector(count, [&](int64_t i, int64_t part) AIGC_INLINE {
        const vi found = within(nearest(load_up_to(x + i, part) * inverse), -127, 127);
        total += found;
        store_bytes(bytes + i, found, part);
        if (WANTS_MAGNITUDES)
            store_bytes(magnitudes + i, found < 0 ? -found : found, part);
    });
    __builtin_memset(bytes + count, 0, static_cast<size_t>(SCALED_GROUP - count));
    if (WANTS_MAGNITUDES)
        __builtin_memset(magnitudes + count, 0, static_cast<size_t>(SCALED_GROUP - count));
    start = -offset * sum_of(total);
}

// A row of floats as products take it.
static inline void prepare_row(int64_t weights, const float* x, int64_t depth, char* row) {
    if (weights == FP32 || weights == BF16) {
        const auto count = static_cast<size_t>(depth) * sizeof(float);
        if (x != reinterpret_cast<float*>(row))
            __builtin_memcpy(row, x, count);
        __builtin_memset(row + count, 0, static_cast<size_t>(compact_row_bytes(weights, depth)) - count);
        return;
    }
    const ByteRow places(depth);
    auto* const scales = const_cast<float*>(places.scales(row));
    auto* const starts = const_cast<int32_t*>(places.starts(row));
    const int32_t offset = weights == INT4 ? NIBBLE_OFFSET : BYTE_OFFSET;
    for (int64_t g = 0; g < places.groups; ++g) {
        const int64_t first = g * SCALED_GROUP;
        quantize(x + first, least(SCALED_GROUP, depth - first), offset, row + first, places.magnitudes(row) + first,
                 scales[g], starts[g]);
    }
}

}
