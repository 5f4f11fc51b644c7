// Packed operands of products. The columns of a matrix lie in panels as wide as a tile of registers, [panel][plane]
// [element of the depth][PANEL_WIDTH], so that a product reads them in the order in which they lie. An element is a
// float or a pair of bfloat16, two numbers along the depth: rounded or, in two planes, split into what rounding gives
// and the rest.
#pragma once

#include "core/elements.h"
#include "core/gemm.h"
#include "core/integers.h"

namespace aigc::AIGC_LEVEL {

constexpr int PANEL_WIDTH = TILE_VECTORS * VF;

template <class A>
constexpr bool IS_PAIR = false;
template <>
constexpr bool IS_PAIR<Pair> = true;

// Without AMX three products of pairs cost more than one of floats.
static inline bool uses_pairs(int64_t planes) { return planes == 1 ? HAS_PAIRS : planes == SPLIT_PLANES && HAS_TILES; }

static inline int64_t panels_of(int64_t columns) { return ceil_div(columns, PANEL_WIDTH); }
static inline int64_t padded_columns(int64_t columns) { return panels_of(columns) * PANEL_WIDTH; }
static inline int64_t panel_columns(int64_t columns, int64_t panel) {
    return least<int64_t>(PANEL_WIDTH, columns - panel * PANEL_WIDTH);
}
// Vectors of a panel that hold columns.
static inline int64_t panel_vectors(int64_t columns, int64_t panel) {
    return ceil_div(panel_columns(columns, panel), VF);
}

// Elements that hold so many numbers of the depth.
template <class A>
constexpr int64_t NUMBERS_IN = IS_PAIR<A> ? 2 : 1;
template <class A>
static inline int64_t elements_of(int64_t numbers) {
    return ceil_div(numbers, NUMBERS_IN<A>);
}
// Elements of a packed matrix.
template <class A>
static inline int64_t packed_size(int64_t depth, int64_t columns, int64_t planes = 1) {
    return planes * elements_of<A>(depth) * padded_columns(columns);
}

static inline int64_t terms_of(int64_t planes) { return planes == SPLIT_PLANES ? SPLIT_TERMS : 1; }
// Calls f(plane of one operand, plane of the other) for each of a product's terms, the greatest last.
template <class F>
static inline void for_each_term(int64_t planes, const F& f) {
    if (planes == SPLIT_PLANES) {
        f(1, 0);
        f(0, 1);
    }
    f(0, 0);
}

// FLOAT32 or BFLOAT16.
static inline float read_number(const char* at, int64_t dtype) {
    return dtype == BFLOAT16 ? to_float(*reinterpret_cast<const bfloat16*>(at)) : *reinterpret_cast<const float*>(at);
}

// A panel of floats, [depth][PANEL_WIDTH]: column i begins at columns[i] and has its numbers `step` bytes apart. Zeros
// where there are fewer columns.
static inline void pack_panel(const char* const* columns, int64_t count, int64_t step, int64_t depth, int64_t dtype,
                              float* packed) {
    for (int64_t k = 0; k < depth; ++k, packed += PANEL_WIDTH)
        for (int64_t i = 0; i < PANEL_WIDTH; ++i)
            packed[i] = i < count ? read_number(columns[i] + k * step, dtype) : 0;
}

// Lines of `width` floats, whole vectors, as [plane][depth][width]: line 2 j and line 2 j + 1 become the pairs j, zeros
// from line `count` on. Tells in which lanes a number that was split is not finite.
static inline vi pack_pairs(const float* lines, int64_t count, int64_t depth, int64_t width, int64_t planes,
                            Pair* packed) {
    const auto line = [&](int64_t i, int64_t v) AIGC_INLINE { return i < count ? load(lines + i * width + v) : vf{}; };
    vi bad{};
    for (int64_t j = 0; j < depth; ++j)
        for (int64_t v = 0; v < width; v += VF) {
            const vf first = line(2 * j, v), second = line(2 * j + 1, v);
            store(packed + j * width + v, pair_of(first, second));
            if (planes == SPLIT_PLANES) {
                const vf rest = without_rounded(first), next_rest = without_rounded(second);
                store(packed + (depth + j) * width + v, pair_of(rest, next_rest));
                bad |= not_finite(rest) | not_finite(next_rest);
            }
        }
    return bad;
}

// A row of numbers as `depth` pairs, with zeros at the end; the rests lie `plane` pairs further on. Tells the same.
template <class T>
static inline vi pack_row(const T* row, int64_t count, int64_t depth, int64_t planes, Pair* packed, int64_t plane) {
    auto* const near = reinterpret_cast<bfloat16*>(packed);
    bfloat16* const rests = near + 2 * plane;
    vi bad{};
    for_each_vector(count, [&](int64_t i, int64_t width) AIGC_INLINE {
        const vf x = load_up_to(row + i, width);
        store_up_to(near + i, x, width);
        if (planes == SPLIT_PLANES) {
            const vf rest = without_rounded(x);
            store_up_to(rests + i, rest, width);
            bad |= not_finite(rest);
        }
    });
    const size_t padding = sizeof(bfloat16) * static_cast<size_t>(2 * depth - count);
    __builtin_memset(near + count, 0, padding);
    if (planes == SPLIT_PLANES)
        __builtin_memset(rests + count, 0, padding);
    return bad;
}

}
