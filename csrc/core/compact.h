// Weights for products with few rows, which cost what it costs to read the weights once: float, bfloat16, int8 with one
// scale per column, or int4 with one scale per column and 32 elements of the depth. Rows that are multiplied by the
// last two are int8 with one scale per 32 elements: a few large values are common, and so cost the others no precision.
// The columns of a matrix are stored in panels, in the order in which they are read. Every sum is computed in one
// order, whatever the number of rows.
#pragma once

#include "core/compact_packing.h"
#include "core/compact_rows.h"

namespace aigc::AIGC_LEVEL {

// Rows by a panel: c[r][0 to COMPACT_WIDTH) of each row.
struct CompactProduct {
    int64_t weights, depth;
    const char* panel;
    const char* const* rows;
    float* const* c;
};

// What is read so many bytes later comes from memory by then; a panel follows the other.
constexpr int64_t BYTES_AHEAD = 4096, LINE_BYTES = 64;
template <int VECTORS>
static inline void fetch_ahead(const void* words) {
    const char* const at = static_cast<const char*>(words) + BYTES_AHEAD;
#pragma GCC unroll 8
    for (int64_t i = 0; i < VECTORS * AIGC_VECTOR_BYTES; i += LINE_BYTES)
        __builtin_prefetch(at + i, 0, 2);
}

static inline int32_t four_bytes(const char* at) {
    int32_t word;
    __builtin_memcpy(&word, at, sizeof(word));
    return word;
}

template <int ROWS, int VECTORS>
static inline void add_sums(const CompactProduct& p, int64_t row, int64_t column, const vf (&sum)[ROWS][VECTORS],
                            bool adds) {
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
        float* const c = p.c[row + r] + column;
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v)
            store(c + v * VF, adds ? load(c + v * VF) + sum[r][v] : sum[r][v]);
    }
}

// The sums are those of gemm.h, in the same order; that has a product of many rows.
template <int ROWS, int VECTORS>
__attribute__((noinline)) static void multiply_floats_tile(const CompactProduct& p, int64_t row, int64_t column) {
    const float *b = reinterpret_cast<const float*>(p.panel) + column, *a[ROWS];
    for (int r = 0; r < ROWS; ++r)
        a[r] = reinterpret_cast<const float*>(p.rows[row + r]);
    for (int64_t first = 0; first < p.depth; first += SUM_DEPTH) {
        vf sum[ROWS][VECTORS]{};
        for (int64_t k = first; k < least(first + SUM_DEPTH, p.depth); ++k, b += COMPACT_WIDTH) {
            fetch_ahead<VECTORS>(b);
            vf w[VECTORS];
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v)
                w[v] = load(b + v * VF);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
                for (int v = 0; v < VECTORS; ++v)
                    sum[r][v] = multiply_add(sum[r][v], a[r][k], w[v]);
        }
        add_sums<ROWS, VECTORS>(p, row, column, sum, first > 0);
    }
}

template <int ROWS, int VECTORS>
__attribute__((noinline)) static void multiply_pairs_tile(const CompactProduct& p, int64_t row, int64_t column) {
    const int64_t pairs = compact_depth(BF16, p.depth) / 2;
    const Pair* b = reinterpret_cast<const Pair*>(p.panel) + column;
    const float* a[ROWS];
    for (int r = 0; r < ROWS; ++r)
        a[r] = reinterpret_cast<const float*>(p.rows[row + r]);
    for (int64_t first = 0; first < pairs; first += SUM_DEPTH / 2) {
        vf sum[ROWS][VECTORS]{};
        for (int64_t j = first; j < least(first + SUM_DEPTH / 2, pairs); ++j, b += COMPACT_WIDTH) {
            fetch_ahead<VECTORS>(b);
            vf lower[VECTORS], upper[VECTORS];
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) {
                const vu pair = load(b + v * VF);
                lower[v] = vf(pair << 16), upper[v] = vf(pair & 0xffff0000u);
            }
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                const float even = a[r][2 * j], odd = a[r][2 * j + 1];
#pragma GCC unroll 8
                for (int v = 0; v < VECTORS; ++v) {
                    sum[r][v] = multiply_add(sum[r][v], even, lower[v]);
                    sum[r][v] = multiply_add(sum[r][v], odd, upper[v]);
                }
            }
        }
        add_sums<ROWS, VECTORS>(p, row, column, sum, first > 0);
    }
}

// The products of a group of a row's bytes with those of one vector of columns.
static inline vi sum_of_products(const vu (&words)[GROUP_WORDS<INT8>], const char* a, const char* magnitudes,
                                 int32_t start) {
    vi sum = vi{} + start;
#pragma GCC unroll 8
    for (int j = 0; j < GROUP_WORDS<INT8>; ++j)
        sum = multiply_add_bytes(sum, words[j], four_bytes(a + 4 * j),
                                 WANTS_MAGNITUDES ? four_bytes(magnitudes + 4 * j) : 0);
    return sum;
}
static inline vi sum_of_products(const vu (&words)[GROUP_WORDS<INT4>], const char* a, const char*, int32_t start) {
    NibbleSum lower, upper;
#pragma GCC unroll 4
    for (int j = 0; j < GROUP_WORDS<INT4>; ++j) {
        lower.add(words[j] & 0x0f0f0f0fu, four_bytes(a + 8 * j));
        upper.add(words[j] >> 4 & 0x0f0f0f0fu, four_bytes(a + 8 * j + 4));
    }
    return lower.total() + upper.total() + start;
}

// By int8 or int4.
template <int ROWS, int64_t WEIGHTS>
__attribute__((noinline)) static void multiply_groups_tile(const CompactProduct& p, int64_t row) {
    constexpr int WORDS = GROUP_WORDS<WEIGHTS>;
    const ByteRow places(p.depth);
    const char *panel = p.panel, *a[ROWS];
    vf sum[ROWS][COMPACT_VECTORS]{};
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
        a[r] = p.rows[row + r];
    if (WEIGHTS == INT8)
        panel += COMPACT_WIDTH * sizeof(float);
    for (int64_t g = 0; g < places.groups; ++g) {
        const auto* const scales = reinterpret_cast<const float16*>(panel);
        const auto* words = reinterpret_cast<const uint32_t*>(WEIGHTS == INT4 ? scales + COMPACT_WIDTH : scales);
#pragma GCC unroll 4
        for (int v = 0; v < COMPACT_VECTORS; ++v, words += WORDS * VF) {
            vu w[WORDS];
#pragma GCC unroll 8
            for (int j = 0; j < WORDS; ++j) {
                fetch_ahead<1>(words + j * VF);
                w[j] = load(words + j * VF);
            }
            vf scale;
            if constexpr (WEIGHTS == INT4)
                scale = load(scales + v * VF);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                const char* const bytes = a[r] + g * SCALED_GROUP;
                const vf products =
                    as_float(sum_of_products(w, bytes, places.magnitudes(bytes), places.starts(a[r])[g]));
                const float of_row = places.scales(a[r])[g];
                if constexpr (WEIGHTS == INT4)
                    sum[r][v] += products * (scale * of_row);
                else
                    sum[r][v] += products * of_row;
            }
        }
        panel = reinterpret_cast<const char*>(words);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < COMPACT_VECTORS; ++v) {
            const auto* const scales = reinterpret_cast<const float*>(p.panel);
            store(p.c[row + r] + v * VF, WEIGHTS == INT8 ? sum[r][v] * load(scales + v * VF) : sum[r][v]);
        }
}

// Rows of a tile at most, and the vectors that it takes at a time: the sums fill no more than the registers, of which
// the weights of a vector take `each`.
constexpr int REGISTERS = AIGC_VECTOR_BYTES == 64 ? 32 : 16;
constexpr int COMPACT_ROWS = REGISTERS == 32 ? 8 : 6;
template <int ROWS, int EACH>
constexpr int TILE_OF_VECTORS = (ROWS + EACH) * COMPACT_VECTORS < REGISTERS ? COMPACT_VECTORS : 2;

// Calls f.operator()<ROWS>(first row) for tiles of equal height, or one row less.
template <class F>
static inline void for_row_tiles(int64_t rows, const F& f) {
    for (int64_t tiles = ceil_div(rows, COMPACT_ROWS), row = 0; tiles > 0; --tiles) {
        const int64_t height = ceil_div(rows - row, tiles);
        switch (height) {
        case 8:
            if constexpr (COMPACT_ROWS == 8)
                f.template operator()<8>(row);
            break;
        case 7:
            if constexpr (COMPACT_ROWS == 8)
                f.template operator()<7>(row);
            break;
        case 6:
            f.template operator()<6>(row);
            break;
        case 5:
            f.template operator()<5>(row);
            break;
        case 4:
            f.template operator()<4>(row);
            break;
        case 3:
            f.template operator()<3>(row);
            break;
        case 2:
            f.template operator()<2>(row);
            break;
        default:
            f.template operator()<1>(row);
        }
        row += height;
    }
}

// Blocks of the depth stay in the first-level cache for all rows.
static inline void multiply_many_floats(const CompactProduct& p, int64_t count) {
    constexpr int64_t NOWHERE = 0;
    auto* const panel = reinterpret_cast<const float*>(p.panel);
    auto* const rows = reinterpret_cast<const float* const*>(p.rows);
    for (int64_t first = 0; first < p.depth; first += SUM_DEPTH) {
        const int64_t depth = least(SUM_DEPTH, p.depth - first);
        const Product product{rows,  1,   &first,   panel + first * COMPACT_WIDTH, COMPACT_WIDTH, &NOWHERE, 1,
                              depth, p.c, first > 0};
        multiply(product, count, COMPACT_VECTORS);
    }
}

static inline void multiply_compact(const CompactProduct& p, int64_t count) {
    if (p.weights == FP32 && count > COMPACT_ROWS)
        return multiply_many_floats(p, count);
    for_row_tiles(count, [&]<int ROWS>(int64_t row) {
        if (p.weights == INT4)
            return multiply_groups_tile<ROWS, INT4>(p, row);
        if (p.weights == INT8)
            return multiply_groups_tile<ROWS, INT8>(p, row);
        constexpr int VECTORS = TILE_OF_VECTORS<ROWS, 1>, OF_PAIRS = TILE_OF_VECTORS<ROWS, 2>;
        if (p.weights == FP32)
            for (int64_t v = 0; v < COMPACT_VECTORS; v += VECTORS)
                multiply_floats_tile<ROWS, VECTORS>(p, row, v * VF);
        else
            for (int64_t v = 0; v < COMPACT_VECTORS; v += OF_PAIRS)
                multiply_pairs_tile<ROWS, OF_PAIRS>(p, row, v * VF);
    });
}

}
