// The GEMM heart: a batch-reduce product whose operands need not be matrices.
//
//   C[r][:] (+)= sum over t < batch, k < depth of  rows[r][a_offsets[t] + k * a_step] * B[b_offsets[t] + k * b_step +
//   :]
//
// `rows` holds one pointer per row of C, so that the rows of A may be pixels of an image, rows of a matrix or channels
// at a tap; a list of offsets walks the taps of a kernel, the lines of a picture or the blocks of a long sum. B is read
// in vectors: a packed panel of weights (b_step = panel_width) or any tensor whose last dimension is contiguous.
#pragma once

#include "core/simd.h"

namespace aigc::AIGC_LEVEL {

// Rows and vectors of a register tile: 6 x 2 fills the 16 registers of AVX2, 6 x 4 the 32 of AVX-512.
constexpr int TILE_ROWS = 6;
constexpr int TILE_VECTORS = AIGC_VECTOR_BYTES == 64 ? 4 : 2;

// Floats in a packed panel of weights. A narrower level splits a panel into several tiles.
constexpr int PANEL_WIDTH = TILE_VECTORS * VF;

// A: float, or a pair of bfloat16 that are multiplied and added together; C is float.
template <class A>
struct ProductOf {
    const A* const* rows; // one per row of C
    int64_t a_step;
    const int64_t* a_offsets; // one per term of the batch
    const A* b;
    int64_t b_step;
    const int64_t* b_offsets;
    int64_t batch;
    int64_t depth;
    float* const* c; // one per row of C
    bool accumulate; // C += instead of C =
    // Steps of B fetched into L2 ahead of use: packed panels come from L3 or memory once per block of rows. 0 where B
    // does not go on in the same direction.
    int64_t steps_ahead = 64;
};
using Product = ProductOf<float>;

template <int ROWS, int VECTORS, class A>
__attribute__((noinline)) static void multiply_tile(const ProductOf<A>& p, int64_t row, int64_t column) {
    vf sum[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v)
            sum[r][v] = p.accumulate ? load(p.c[row + r] + column + v * VF) : vf{};
    const A* a[ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
        a[r] = p.rows[row + r];
    const A* const b_start = p.b + column;
    const int64_t a_step = p.a_step, b_step = p.b_step, ahead = p.steps_ahead * b_step;
    for (int64_t t = 0; t < p.batch; ++t) {
        const A* b = b_start + p.b_offsets[t];
        int64_t at = p.a_offsets[t];
        for (int64_t k = p.depth; k > 0; --k, at += a_step, b += b_step) {
            // Keeps one index for all rows: the compiler would rather advance a pointer for each.
            asm("" : "+r"(at));
            __builtin_prefetch(b + ahead, 0, 2);
            decltype(load(b)) wide[VECTORS];
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v)
                wide[v] = load(b + v * VF);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                const A scalar = a[r][at];
#pragma GCC unroll 8
                for (int v = 0; v < VECTORS; ++v)
                    sum[r][v] = multiply_add(sum[r][v], scalar, wide[v]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
        float* const c = p.c[row + r] + column;
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v)
            store(c + v * VF, sum[r][v]);
    }
}

// A tile of fewer vectors takes more rows: enough sums to hide the latency of a multiply-add, and few enough that each
// vector of B is still used often.
template <int VECTORS>
constexpr int MOST_ROWS = VECTORS == TILE_VECTORS ? TILE_ROWS : 8;

// Tiles of equal height, or one row less: a last tile of 1 or 2 rows would wait for its own sums.
template <int VECTORS, class A>
static void multiply_rows(const ProductOf<A>& p, int64_t rows, int64_t column) {
    for (int64_t tiles = (rows + MOST_ROWS<VECTORS> - 1) / MOST_ROWS<VECTORS>, row = 0; tiles > 0; --tiles) {
        const int64_t height = (rows - row + tiles - 1) / tiles;
        switch (height) {
        case 8:
            if constexpr (MOST_ROWS<VECTORS> == 8)
                multiply_tile<8, VECTORS>(p, row, column);
            break;
        case 7:
            if constexpr (MOST_ROWS<VECTORS> == 8)
                multiply_tile<7, VECTORS>(p, row, column);
            break;
        case 6:
            multiply_tile<6, VECTORS>(p, row, column);
            break;
        case 5:
            multiply_tile<5, VECTORS>(p, row, column);
            break;
        case 4:
            multiply_tile<4, VECTORS>(p, row, column);
            break;
        case 3:
            multiply_tile<3, VECTORS>(p, row, column);
            break;
        case 2:
            multiply_tile<2, VECTORS>(p, row, column);
            break;
        case 1:
            multiply_tile<1, VECTORS>(p, row, column);
            break;
        }
        row += height;
    }
}

// The whole product: `rows` rows, `vectors` vectors of columns; C and B reach to a full vector.
template <class A>
static void multiply(const ProductOf<A>& p, int64_t rows, int64_t vectors) {
    int64_t v = 0;
    for (; v + TILE_VECTORS <= vectors; v += TILE_VECTORS)
        multiply_rows<TILE_VECTORS>(p, rows, v * VF);
    switch (vectors - v) {
    case 3:
        if constexpr (TILE_VECTORS > 3)
            return multiply_rows<3>(p, rows, v * VF);
        break;
    case 2:
        if constexpr (TILE_VECTORS > 2)
            return multiply_rows<2>(p, rows, v * VF);
        break;
    case 1:
        return multiply_rows<1>(p, rows, v * VF);
    }
}

template <int ROWS, int VECTORS>
static void multiply_columns(const Product& p, int64_t row, int64_t vectors) {
    int64_t v = 0;
    for (; v + VECTORS <= vectors; v += VECTORS)
        multiply_tile<ROWS, VECTORS>(p, row, v * VF);
    for (; v < vectors; ++v)
        multiply_tile<ROWS, 1>(p, row, v * VF);
}

// The same for few rows and many columns: tiles as wide as the registers allow.
constexpr int MAX_VECTORS = 8;
static inline int64_t wide_vectors(int64_t rows) {
    const int64_t most_vectors[] = {MAX_VECTORS, MAX_VECTORS, 6, 4, 3};
    return rows <= 4 ? most_vectors[rows] : 4;
}

static void multiply_wide(const Product& p, int64_t rows, int64_t vectors) {
    switch (rows) {
    case 4:
        return multiply_columns<4, 3>(p, 0, vectors);
    case 3:
        return multiply_columns<3, 4>(p, 0, vectors);
    case 2:
        return multiply_columns<2, 6>(p, 0, vectors);
    case 1:
        return multiply_columns<1, MAX_VECTORS>(p, 0, vectors);
    default:
        return multiply(p, rows, vectors);
    }
}

}
