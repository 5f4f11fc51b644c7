// Weights of few rows' products, which are read once and are what such a product costs: float, bfloat16, int8 with a
// scale for each column, int4 with a scale for each column of every 32 numbers of the depth. Rows that are multiplied
// by the last two are int8 with a scale for every 32 numbers: a few great ones are common, and cost the others nothing
// then. The columns of a matrix lie in panels, in the order in which they are read. Every sum is made in one order,
// whatever the number of rows.
#pragma once

#include "core/arena.h"
#include "core/packed.h"
#include "core/parallel.h"
#include "core/simd_math.h"
#include "core/weight_codes.h"

namespace aigc {

// Numbers of which none is greater become zeros in int8: their scale's inverse is no finite float.
constexpr float LEAST_SCALED = 1e-36f;

}

namespace aigc::AIGC_LEVEL {

// Narrow enough that few columns make panels for several threads.
constexpr int64_t COMPACT_VECTORS = AIGC_VECTOR_BYTES == 64 ? 2 : 4, COMPACT_WIDTH = COMPACT_VECTORS * VF;
constexpr int64_t SCALED_GROUP = 32; // numbers of the depth that share a scale
// Numbers of the depth that lie together: the depth is filled up with zeros to a multiple of them.
constexpr int64_t TOGETHER[] = {1, 2, SCALED_GROUP, SCALED_GROUP};
// Sums of so many products are added to each other: that rounds less than one long sum, and a panel's block stays near.
constexpr int64_t SUM_DEPTH = 256;

static inline int64_t compact_depth(int64_t weights, int64_t depth) { return round_up(depth, TOGETHER[weights]); }

static inline int64_t compact_panels(int64_t columns) { return ceil_div(columns, COMPACT_WIDTH); }

static inline int64_t compact_panel_bytes(int64_t weights, int64_t depth) {
    constexpr int64_t WORD = sizeof(float);
    const int64_t padded = compact_depth(weights, depth);
    switch (weights) {
    case INT4: // scales in float16, then nibbles
        return padded / SCALED_GROUP * COMPACT_WIDTH * (2 + SCALED_GROUP / 2);
    case INT8: // scales, then bytes
        return COMPACT_WIDTH * (WORD + padded);
    case BF16:
        return padded / NUMBERS_IN<Pair> * COMPACT_WIDTH * WORD;
    default:
        return padded * COMPACT_WIDTH * WORD;
    }
}

static inline int64_t compact_bytes(int64_t weights, int64_t depth, int64_t columns) {
    return compact_panels(columns) * compact_panel_bytes(weights, depth);
}

// ---- instructions: sums of products of four bytes

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

// ---- packing

// A panel of floats, (depth, COMPACT_WIDTH), zeros where there are fewer columns or numbers.
static inline void gather_columns(const char* const* columns, int64_t count, int64_t step, int64_t depth,
                                  int64_t padded, int64_t dtype, float* lines) {
    constexpr int64_t BLOCK = 16; // a cache line of each column
    __builtin_memset(lines, 0, static_cast<size_t>(padded * COMPACT_WIDTH) * sizeof(float));
    for (int64_t first = 0; first < depth; first += BLOCK)
        for (int64_t i = 0; i < count; ++i)
            for (int64_t k = first; k < least(first + BLOCK, depth); ++k)
                lines[k * COMPACT_WIDTH + i] = read_number(columns[i] + k * step, dtype);
}

// Vectors of words of a group and one vector of columns.
template <int64_t WEIGHTS>
constexpr int GROUP_WORDS = SCALED_GROUP / (WEIGHTS == INT4 ? 8 : 4);

static inline void pack_bytes(const float* lines, int64_t depth, char* panel) {
    auto* const scales = reinterpret_cast<float*>(panel);
    auto* words = reinterpret_cast<uint32_t*>(scales + COMPACT_WIDTH);
    vf inverses[COMPACT_VECTORS];
    for (int64_t v = 0; v < COMPACT_VECTORS; ++v) {
        vf greatest{};
        for (int64_t k = 0; k < depth; ++k)
            greatest = greater(magnitude(load(lines + k * COMPACT_WIDTH + v * VF)), greatest);
        store(scales + v * VF, greatest / 127.0f);
        inverses[v] = greatest > LEAST_SCALED ? 127.0f / greatest : vf{};
    }
    for (int64_t k = 0; k < depth; k += SCALED_GROUP)
        for (int64_t v = 0; v < COMPACT_VECTORS; ++v)
            for (int64_t j = 0; j < SCALED_GROUP; j += 4, words += VF) {
                vu word{};
                for (int64_t i = 0; i < 4; ++i) {
                    const vf x = load(lines + (k + j + i) * COMPACT_WIDTH + v * VF);
                    const vi found = within(nearest(x * inverses[v]), -127, 127);
                    word |= (vu(found + BYTE_OFFSET) & 0xff) << uint32_t(8 * i);
                }
                store(words, word);
            }
}

// What a scale makes of a group of each column: the sum of squares of what it leaves out, and the scale at which the
// same nibbles leave out the least.
struct GroupFit {
    vf error, better;
};

// The nibbles of a group of one vector of columns: 0 to 15 for -8 to 7 steps of a scale.
static inline GroupFit pack_group(const float* lines, vf scale, uint32_t* words) {
    const vf inverse = scale != 0.0f ? 1.0f / scale : vf{};
    vf error{}, along{}, square{};
    for (int64_t j = 0; j < GROUP_WORDS<INT4>; ++j) {
        vu word{};
        for (int64_t p = 0; p < 8; ++p) {
            const vf x = load(lines + (8 * j + p) * COMPACT_WIDTH);
            const vi found = within(nearest(x * inverse), -NIBBLE_OFFSET, 15 - NIBBLE_OFFSET);
            const vf steps = as_float(found), off = x - steps * scale;
            error += off * off;
            along += steps * x;
            square += steps * steps;
            // Four numbers in the lower halves of the bytes, the next four in the upper ones.
            word |= vu(found + NIBBLE_OFFSET) << uint32_t(8 * (p % 4) + 4 * (p / 4));
        }
        store(words + j * VF, word);
    }
    return {error, square != 0.0f ? along / square : vf{}};
}

// What is farthest from zero becomes -8 steps, or fewer where all of the group comes nearer to itself by that; of the
// best scale's nibbles the least squares give a last one.
static inline void pack_nibbles(const float* lines, int64_t depth, char* panel) {
    constexpr int64_t WORDS = GROUP_WORDS<INT4> * VF;
    constexpr float STEPS[] = {-8.0f, -8.5f, -7.5f, -7.0f, 7.0f, 7.5f};
    for (int64_t k = 0; k < depth; k += SCALED_GROUP, lines += SCALED_GROUP * COMPACT_WIDTH) {
        auto* const scales = reinterpret_cast<float16*>(panel);
        auto* const words = reinterpret_cast<uint32_t*>(scales + COMPACT_WIDTH);
        for (int64_t v = 0; v < COMPACT_WIDTH; v += VF) {
            vf farthest{};
            for (int64_t i = 0; i < SCALED_GROUP; ++i) {
                const vf x = load(lines + i * COMPACT_WIDTH + v);
                farthest = magnitude(x) > magnitude(farthest) ? x : farthest;
            }
            uint32_t* const out = words + v / VF * WORDS;
            vf best{};
            GroupFit least{vf{} + __builtin_inff(), {}};
            const auto weigh = [&](vf wanted) {
                store(scales + v, wanted);
                const vf scale = load(scales + v);
                const GroupFit fit = pack_group(lines + v, scale, out);
                const vi is_better = fit.error < least.error;
                best = is_better ? scale : best;
                least = {is_better ? fit.error : least.error, is_better ? fit.better : least.better};
            };
            for (const float steps : STEPS)
                weigh(farthest / steps);
            weigh(least.better);
            store(scales + v, best);
            pack_group(lines + v, best, out);
        }
        panel = reinterpret_cast<char*>(words + COMPACT_VECTORS * WORDS);
    }
}

// Column i begins at columns[i] and has its numbers `step` bytes apart; at most COMPACT_WIDTH of them.
static inline void pack_compact(int64_t weights, const char* const* columns, int64_t count, int64_t step, int64_t depth,
                                int64_t dtype, char* panel) {
    const int64_t padded = compact_depth(weights, depth);
    if (weights == FP32)
        return gather_columns(columns, count, step, depth, padded, dtype, reinterpret_cast<float*>(panel));
    Scope scope;
    float* const lines = scope.take<float>(padded * COMPACT_WIDTH);
    gather_columns(columns, count, step, depth, padded, dtype, lines);
    if (weights == BF16)
        pack_pairs(lines, padded, padded / 2, COMPACT_WIDTH, 1, reinterpret_cast<Pair*>(panel));
    else if (weights == INT8)
        pack_bytes(lines, padded, panel);
    else
        pack_nibbles(lines, padded, panel);
}

// All panels of a matrix: column i begins at column_at(i), and all have their numbers `step` bytes apart.
template <class F>
static inline void pack_columns(int64_t weights, int64_t columns, int64_t step, int64_t depth, int64_t dtype,
                                const F& column_at, char* packed) {
    const int64_t bytes = compact_panel_bytes(weights, depth);
    parallel_for(0, compact_panels(columns), 1, [&](int64_t begin, int64_t end) {
        for (int64_t panel = begin; panel < end; ++panel) {
            const char* starts[COMPACT_WIDTH];
            const int64_t first = panel * COMPACT_WIDTH, count = least(COMPACT_WIDTH, columns - first);
            for (int64_t i = 0; i < count; ++i)
                starts[i] = column_at(first + i);
            pack_compact(weights, starts, count, step, depth, dtype, packed + panel * bytes);
        }
    });
}

// ---- rows

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

// ---- products

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
