// The GEMM heart: a batch-reduce product whose operands need not be matrices.
//
//   C[r][:] (+)= sum over t < batch, k < depth of  rows[r][a_offsets[t] + k * a_step] * B[b_offsets[t] + k * b_step +
//   :]
//
// `rows` holds one pointer per row of C, so that the rows of A may be pixels of an image, rows of a matrix or channels
// at a tap; a list of offsets walks the taps of a kernel, the lines of a picture or the blocks of a long sum. B is read
// in vectors: a packed panel of weights (see packed.h) or any tensor whose last dimension is contiguous.
#pragma once

#include "core/tiles.h"

namespace aigc::AIGC_LEVEL {

// Rows and vectors of a register tile: 6 x 2 fills the 16 registers of AVX2, 6 x 4 the 32 of AVX-512.
constexpr int TILE_ROWS = 6;
constexpr int TILE_VECTORS = AIGC_VECTOR_BYTES == 64 ? 4 : 2;

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
    // Whether tiles of rows in turn fetch the vectors of those steps, or all of them the first alone.
    bool fetches_all = false;
    // So many rows of A, and of C, in succession lie at equal distances: what AMX needs. 0 where that is not known.
    int64_t run = 0;
};
using Product = ProductOf<float>;

template <int ROWS, int VECTORS, class A>
__attribute__((noinline)) static void multiply_tile(const ProductOf<A>& p, int64_t row, int64_t column) {
    vf sum[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v)
            sum[r][v] = vf{};
    const A* a[ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
        a[r] = p.rows[row + r];
    const A* const b_start = p.b + column;
    const int64_t a_step = p.a_step, b_step = p.b_step;
    const int64_t ahead = p.steps_ahead * b_step + (p.fetches_all ? row / ROWS % VECTORS * VF : 0);
    for (int64_t t = 0; t < p.batch; ++t) {
        const A* b = b_start + p.b_offsets[t];
        int64_t at = p.a_offsets[t];
        for (int64_t k = p.depth; k > 0; --k, at += a_step, b += b_step) {
            // Keeps one index for all rows: the compiler would rather advance a pointer for each.
            asm("" : "+r"(at));
            // A single row is read as fast as the caches give it, and they look ahead themselves.
            if constexpr (ROWS > 1)
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
        // Added at the end: sums of sums round less than one long sum.
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v)
            store(c + v * VF, p.accumulate ? load(c + v * VF) + sum[r][v] : sum[r][v]);
    }
}

// A tile of fewer vectors takes more rows: enough sums to hide the latency of a multiply-add, and few enough that each
// vector of B is still used often.
template <int VECTORS>
constexpr int MOST_ROWS = VECTORS == TILE_VECTORS ? TILE_ROWS : 8;

struct NothingFollows {
    void operator()(int64_t, int64_t) const {}
};

// Tiles of equal height, or one row less: a last tile of 1 or 2 rows would wait for its own sums. Calls done(row,
// height) after each.
template <int VECTORS, class A, class Done>
static void multiply_rows(const ProductOf<A>& p, int64_t rows, int64_t column, const Done& done) {
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
        done(row, height);
        row += height;
    }
}

// Pairs that a tile takes at a time: as many as divide the depth. 0 where tiles would be nearly empty.
static inline int64_t amx_depth(int64_t depth, int64_t run) {
    constexpr int64_t LEAST_DEPTH = 4, LEAST_ROWS = 4;
    for (int64_t step = depth < TILE_SIDE ? depth : TILE_SIDE; HAS_TILES && step > 0 && run >= LEAST_ROWS; --step)
        if (depth % step == 0)
            return step == depth || step >= LEAST_DEPTH ? step : 0;
    return 0;
}

#if AIGC_HAS_TILES
template <int TILE>
static inline void begin_sum(bool accumulate, const float* c, int64_t c_bytes) {
    if (accumulate)
        load_tile<TILE>(c, c_bytes);
    else
        clear_tile<TILE>();
}

template <int HEIGHT, int WIDTH>
static void multiply_amx_tile(const ProductOf<Pair>& p, const int64_t* row, int64_t column, int64_t depth_step) {
    float *const c = p.c[row[0]] + column, *const c_next = p.c[row[HEIGHT - 1]] + column;
    const int64_t c_bytes = int64_t(sizeof(float)) * (p.c[row[0] + 1] - p.c[row[0]]);
    begin_sum<SUM_TILE>(p.accumulate, c, c_bytes);
    if constexpr (WIDTH == 2)
        begin_sum<SUM_TILE + 1>(p.accumulate, c + VF, c_bytes);
    if constexpr (HEIGHT == 2)
        begin_sum<SUM_TILE + 2>(p.accumulate, c_next, c_bytes);
    if constexpr (HEIGHT == 2 && WIDTH == 2)
        begin_sum<SUM_TILE + 3>(p.accumulate, c_next + VF, c_bytes);
    const Pair *const a = p.rows[row[0]], *const a_next = p.rows[row[HEIGHT - 1]], *const b = p.b + column;
    const int64_t a_bytes = int64_t(sizeof(Pair)) * (p.rows[row[0] + 1] - a);
    const int64_t b_step = p.b_step, b_bytes = int64_t(sizeof(Pair)) * b_step;
    const int64_t *const a_offsets = p.a_offsets, *const b_offsets = p.b_offsets, batch = p.batch, depth = p.depth;
    for (int64_t t = 0; t < batch; ++t) {
        const int64_t a_at = a_offsets[t];
        const Pair* const b_at = b + b_offsets[t];
        for (int64_t k = 0; k < depth; k += depth_step) {
            load_tile<B_TILE>(b_at + k * b_step, b_bytes);
            load_tile<A_TILE>(a + a_at + k, a_bytes);
            multiply_add_tiles<SUM_TILE, A_TILE, B_TILE>();
            if constexpr (WIDTH == 2) {
                load_tile<B_TILE + 1>(b_at + k * b_step + VF, b_bytes);
                multiply_add_tiles<SUM_TILE + 1, A_TILE, B_TILE + 1>();
            }
            if constexpr (HEIGHT == 2) {
                load_tile<A_TILE + 1>(a_next + a_at + k, a_bytes);
                multiply_add_tiles<SUM_TILE + 2, A_TILE + 1, B_TILE>();
            }
            if constexpr (HEIGHT == 2 && WIDTH == 2)
                multiply_add_tiles<SUM_TILE + 3, A_TILE + 1, B_TILE + 1>();
        }
    }
    store_tile<SUM_TILE>(c, c_bytes);
    if constexpr (WIDTH == 2)
        store_tile<SUM_TILE + 1>(c + VF, c_bytes);
    if constexpr (HEIGHT == 2)
        store_tile<SUM_TILE + 2>(c_next, c_bytes);
    if constexpr (HEIGHT == 2 && WIDTH == 2)
        store_tile<SUM_TILE + 3>(c_next + VF, c_bytes);
}

// Two tiles of rows by two of columns share what they load. The last tile of a run overlaps the one before it, so that
// all have one height: another would need new shapes, and a row that is computed twice comes out the same, unless it is
// added to what was there. False where tiles do not suit the product.
static bool multiply_in_amx_tiles(const ProductOf<Pair>& p, int64_t rows, int64_t vectors) {
    const int64_t depth_step = amx_depth(p.depth, p.run);
    const bool overlap = p.run > TILE_SIDE && p.run % TILE_SIDE != 0;
    if (depth_step == 0 || (p.accumulate && overlap))
        return false;
    const int64_t tiles_in_run = (p.run + TILE_SIDE - 1) / TILE_SIDE,
                  height = (p.run + tiles_in_run - 1) / tiles_in_run;
    const int64_t tiles = rows / p.run * tiles_in_run;
    const auto first_row = [&](int64_t tile) {
        const int64_t in_run = tile % tiles_in_run * height;
        return tile / tiles_in_run * p.run + (in_run + height < p.run ? in_run : p.run - height);
    };
    const Tiles shapes(TileShapes(height, depth_step));
    for (int64_t v = 0; v < vectors; v += 2)
        for (int64_t tile = 0; tile < tiles; tile += 2) {
            const bool two_rows = tile + 1 < tiles, two_columns = v + 1 < vectors;
            const int64_t row[2] = {first_row(tile), two_rows ? first_row(tile + 1) : 0}, column = v * VF;
            if (two_rows)
                two_columns ? multiply_amx_tile<2, 2>(p, row, column, depth_step)
                            : multiply_amx_tile<2, 1>(p, row, column, depth_step);
            else
                two_columns ? multiply_amx_tile<1, 2>(p, row, column, depth_step)
                            : multiply_amx_tile<1, 1>(p, row, column, depth_step);
        }
    return true;
}
#endif

template <class A>
static bool multiply_in_amx_tiles(const ProductOf<A>&, int64_t, int64_t) {
    return false;
}

// Some columns of it: `vectors` from `column` on, as many as a tile has at most.
template <class A, class Done = NothingFollows>
static void multiply_panel(const ProductOf<A>& p, int64_t rows, int64_t column, int64_t vectors,
                           const Done& done = {}) {
    switch (vectors) {
    case 4:
        if constexpr (TILE_VECTORS == 4)
            return multiply_rows<4>(p, rows, column, done);
        break;
    case 3:
        if constexpr (TILE_VECTORS > 3)
            return multiply_rows<3>(p, rows, column, done);
        break;
    case 2:
        return multiply_rows<2>(p, rows, column, done);
    case 1:
        return multiply_rows<1>(p, rows, column, done);
    }
}

// A product of as many vectors as a tile has at most. Calls done(row, height) of some rows as soon as their sums are
// there, still near: what it stores goes out while the next rows are multiplied.
template <class A, class Done>
static void multiply_and_then(const ProductOf<A>& p, int64_t rows, int64_t vectors, const Done& done) {
    if (multiply_in_amx_tiles(p, rows, vectors))
        done(0, rows);
    else
        multiply_panel(p, rows, 0, vectors, done);
}

// The whole product: `rows` rows, `vectors` vectors of columns; C and B reach to a full vector.
template <class A>
static void multiply(const ProductOf<A>& p, int64_t rows, int64_t vectors) {
    if (multiply_in_amx_tiles(p, rows, vectors))
        return;
    for (int64_t v = 0; v < vectors; v += TILE_VECTORS) {
        const int64_t left = vectors - v;
        multiply_panel(p, rows, v * VF, left < TILE_VECTORS ? left : TILE_VECTORS);
    }
}

// One narrower tile takes what is left: vectors by themselves would wait for their own sums.
template <int ROWS, int VECTORS>
static void multiply_columns(const Product& p, int64_t first, int64_t vectors) {
    for (; first + VECTORS <= vectors; first += VECTORS)
        multiply_tile<ROWS, VECTORS>(p, 0, first * VF);
    if constexpr (VECTORS > 1)
        if (first < vectors)
            multiply_columns<ROWS, VECTORS - 1>(p, first, vectors);
}

// The same for few rows and many columns: tiles as wide as the registers allow.
constexpr int MAX_VECTORS = 8;
static inline int64_t wide_vectors(int64_t rows) {
    const int64_t most_vectors[] = {MAX_VECTORS, MAX_VECTORS, 6, 4, 3};
    return rows <= 4 ? most_vectors[rows] : 4;
}

static inline void multiply_wide(const Product& p, int64_t rows, int64_t vectors) {
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
