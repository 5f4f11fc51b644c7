// Weights of few rows' products, which are read once and are what such a product costs: float, bfloat16, int8 with a
// scale for each column, int4 with a scale for each column of every 32 numbers of the depth. The columns of a matrix
// lie in panels, in the order in which they are read. Every sum is made in one order, whatever the number of rows.
#pragma once

#include "core/arena.h"
#include "core/packed.h"
#include "core/simd_math.h"

namespace aigc {

// How weights are kept.
AIGC_CODES(Weights, FP32, BF16, INT8, INT4)

}

namespace aigc::AIGC_LEVEL {

constexpr int64_t COMPACT_VECTORS = 4, COMPACT_WIDTH = COMPACT_VECTORS * VF;
constexpr int64_t SCALED_GROUP = 32; // numbers of the depth that share a scale of int4
// Numbers of the depth that lie together: the depth is filled up with zeros to a multiple of them.
constexpr int64_t TOGETHER[] = {1, 2, 4, SCALED_GROUP};
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

static inline void pack_bytes(const float* lines, int64_t depth, char* panel) {
    auto* const scales = reinterpret_cast<float*>(panel);
    auto* const words = reinterpret_cast<uint32_t*>(scales + COMPACT_WIDTH);
    for (int64_t v = 0; v < COMPACT_WIDTH; v += VF) {
        vf greatest{};
        for (int64_t k = 0; k < depth; ++k)
            greatest = greater(magnitude(load(lines + k * COMPACT_WIDTH + v)), greatest);
        const vf scale = greatest / 127.0f, inverse = greatest > 0.0f ? 127.0f / greatest : vf{};
        store(scales + v, scale);
        for (int64_t k = 0; k < depth; k += 4) {
            vu word{};
            for (int64_t j = 0; j < 4; ++j) {
                const vi found = within(nearest(load(lines + (k + j) * COMPACT_WIDTH + v) * inverse), -127, 127);
                word |= (vu(found + BYTE_OFFSET) & 0xff) << uint32_t(8 * j);
            }
            store(words + k / 4 * COMPACT_WIDTH + v, word);
        }
    }
}

// The nibbles of a group of one vector of columns: 0 to 15 for -8 to 7 steps of a scale.
static inline vf pack_group(const float* lines, vf scale, uint32_t* words) {
    const vf inverse = scale != 0.0f ? 1.0f / scale : vf{};
    vf error{};
    for (int64_t j = 0; j < SCALED_GROUP / 8; ++j) {
        vu word{};
        for (int64_t p = 0; p < 8; ++p) {
            const vf x = load(lines + (8 * j + p) * COMPACT_WIDTH);
            const vi found = within(nearest(x * inverse), -NIBBLE_OFFSET, 15 - NIBBLE_OFFSET);
            const vf off = x - as_float(found) * scale;
            error += off * off;
            // Four numbers in the lower halves of the bytes, the next four in the upper ones.
            word |= vu(found + NIBBLE_OFFSET) << uint32_t(8 * (p % 4) + 4 * (p / 4));
        }
        store(words + j * VF, word);
    }
    return error;
}

// What is farthest from zero becomes -8 steps, or fewer where all of the group comes nearer to itself by that.
static inline void pack_nibbles(const float* lines, int64_t depth, char* panel) {
    constexpr int64_t WORDS = SCALED_GROUP / 8 * VF;
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
            vf best{}, least_error{};
            for (const float steps : STEPS) {
                store(scales + v, farthest / steps);
                const vf scale = load(scales + v), error = pack_group(lines + v, scale, out);
                const vi better = steps == STEPS[0] ? vi{} == 0 : error < least_error;
                best = better ? scale : best;
                least_error = better ? error : least_error;
            }
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

// ---- rows

// Where the parts of a row lie that is multiplied by int8 or int4: its bytes, their magnitudes where the level wants
// them, and of each group, of int8 of the whole row, its scale and what its sum begins with.
struct ByteRow {
    int64_t depth, groups;

    ByteRow(int64_t weights, int64_t of_depth)
        : depth(compact_depth(weights, of_depth)), groups(weights == INT4 ? depth / SCALED_GROUP : 1) {}
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
    return weights == INT8 || weights == INT4 ? ByteRow(weights, depth).size()
                                              : round_up(depth, COMPACT_WIDTH) * int64_t(sizeof(float));
}

// Some numbers as bytes and a scale. What is not finite makes the scale NaN.
static inline void quantize(const float* x, int64_t count, int64_t padded, int32_t offset, char* bytes,
                            char* magnitudes, float& scale, int32_t& start) {
    vf top{}, bad{};
    for_each_vector(count, [&](int64_t i, int64_t part) AIGC_INLINE {
        const vf number = load_up_to(x + i, part);
        top = greater(magnitude(number), top);
        bad += number - number;
    });
    float greatest = 0, worst = 0;
    for (int i = 0; i < VF; ++i) {
        greatest = most(greatest, top[i]);
        worst += bad[i];
    }
    scale = greatest / 127.0f + worst;
    const float inverse = greatest > 0.0f ? 127.0f / greatest : 0.0f;
    int32_t total = 0;
    for (int64_t i = 0; i < count; i += VF) {
        const int64_t part = least<int64_t>(VF, count - i);
        const vi found = within(nearest(load_up_to(x + i, part) * inverse), -127, 127);
        for (int64_t j = 0; j < part; ++j) {
            bytes[i + j] = static_cast<char>(found[j]);
            total += found[j];
            if (WANTS_MAGNITUDES)
                magnitudes[i + j] = static_cast<char>(found[j] < 0 ? -found[j] : found[j]);
        }
    }
    for (int64_t i = count; i < padded; ++i) {
        bytes[i] = 0;
        if (WANTS_MAGNITUDES)
            magnitudes[i] = 0;
    }
    start = -offset * total;
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
    const ByteRow places(weights, depth);
    auto* const scales = const_cast<float*>(places.scales(row));
    auto* const starts = const_cast<int32_t*>(places.starts(row));
    if (weights == INT8)
        return quantize(x, depth, places.depth, BYTE_OFFSET, row, places.magnitudes(row), *scales, *starts);
    for (int64_t g = 0; g < places.groups; ++g) {
        const int64_t first = g * SCALED_GROUP;
        quantize(x + first, least(SCALED_GROUP, depth - first), SCALED_GROUP, NIBBLE_OFFSET, row + first,
                 places.magnitudes(row) + first, scales[g], starts[g]);
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

static inline int32_t four_bytes(const char* at) {
    int32_t word;
    __builtin_memcpy(&word, at, sizeof(word));
    return word;
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
            __builtin_prefetch(b + 16 * COMPACT_WIDTH, 0, 2);
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
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            float* const c = p.c[row + r] + column;
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v)
                store(c + v * VF, first == 0 ? sum[r][v] : load(c + v * VF) + sum[r][v]);
        }
    }
}

template <int ROWS, int VECTORS>
__attribute__((noinline)) static void multiply_bytes_tile(const CompactProduct& p, int64_t row, int64_t column) {
    const ByteRow places(INT8, p.depth);
    const auto* const scales = reinterpret_cast<const float*>(p.panel) + column;
    const auto* words = reinterpret_cast<const uint32_t*>(p.panel) + COMPACT_WIDTH + column;
    const char *a[ROWS], *magnitudes[ROWS];
    vi sum[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
        a[r] = p.rows[row + r];
        magnitudes[r] = places.magnitudes(a[r]);
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v)
            sum[r][v] = vi{} + *places.starts(a[r]);
    }
    for (int64_t k = 0; k < places.depth; k += 4, words += COMPACT_WIDTH) {
        __builtin_prefetch(words + 16 * COMPACT_WIDTH, 0, 2);
        vu w[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v)
            w[v] = load(words + v * VF);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const int32_t four = four_bytes(a[r] + k);
            const int32_t sizes = WANTS_MAGNITUDES ? four_bytes(magnitudes[r] + k) : 0;
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v)
                sum[r][v] = multiply_add_bytes(sum[r][v], w[v], four, sizes);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v)
            store(p.c[row + r] + column + v * VF, as_float(sum[r][v]) * (load(scales + v * VF) * *places.scales(a[r])));
}

template <int ROWS>
__attribute__((noinline)) static void multiply_nibbles_tile(const CompactProduct& p, int64_t row) {
    constexpr int WORDS = SCALED_GROUP / 8;
    const ByteRow places(INT4, p.depth);
    const char *panel = p.panel, *a[ROWS];
    const float* row_scales[ROWS];
    const int32_t* starts[ROWS];
    vf sum[ROWS][COMPACT_VECTORS]{};
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
        a[r] = p.rows[row + r];
        row_scales[r] = places.scales(a[r]);
        starts[r] = places.starts(a[r]);
    }
    for (int64_t g = 0; g < places.groups; ++g) {
        const auto* const scales = reinterpret_cast<const float16*>(panel);
        const auto* words = reinterpret_cast<const uint32_t*>(scales + COMPACT_WIDTH);
#pragma GCC unroll 4
        for (int v = 0; v < COMPACT_VECTORS; ++v, words += WORDS * VF) {
            const vf scale = load(scales + v * VF);
            vu lower[WORDS], upper[WORDS];
#pragma GCC unroll 4
            for (int j = 0; j < WORDS; ++j) {
                __builtin_prefetch(words + j * VF + 16 * COMPACT_WIDTH, 0, 2);
                const vu word = load(words + j * VF);
                lower[j] = word & 0x0f0f0f0fu, upper[j] = word >> 4 & 0x0f0f0f0fu;
            }
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                NibbleSum first, second;
#pragma GCC unroll 4
                for (int j = 0; j < WORDS; ++j) {
                    first.add(lower[j], four_bytes(a[r] + g * SCALED_GROUP + 8 * j));
                    second.add(upper[j], four_bytes(a[r] + g * SCALED_GROUP + 8 * j + 4));
                }
                const vf products = as_float(first.total() + second.total() + starts[r][g]);
                sum[r][v] += products * (scale * row_scales[r][g]);
            }
        }
        panel = reinterpret_cast<const char*>(words);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < COMPACT_VECTORS; ++v)
            store(p.c[row + r] + v * VF, sum[r][v]);
}

constexpr int REGISTERS = AIGC_VECTOR_BYTES == 64 ? 32 : 16;

// Calls f.operator()<ROWS>(first row) for tiles of equal height, or one row less.
template <int MOST, class F>
static inline void for_row_tiles(int64_t rows, const F& f) {
    for (int64_t tiles = ceil_div(rows, MOST), row = 0; tiles > 0; --tiles) {
        const int64_t height = ceil_div(rows - row, tiles);
        switch (height) {
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

static inline void multiply_floats(const CompactProduct& p, int64_t count) {
    constexpr int64_t NOWHERE = 0;
    auto* const panel = reinterpret_cast<const float*>(p.panel);
    auto* const rows = reinterpret_cast<const float* const*>(p.rows);
    for (int64_t first = 0; first < p.depth; first += SUM_DEPTH) {
        const Product product{rows,          1,        &first, panel + first * COMPACT_WIDTH,
                              COMPACT_WIDTH, &NOWHERE, 1,      least(SUM_DEPTH, p.depth - first),
                              p.c,           first > 0};
        if (count <= 2)
            multiply_wide(product, count, COMPACT_VECTORS);
        else
            multiply(product, count, COMPACT_VECTORS);
    }
}

static inline void multiply_compact(const CompactProduct& p, int64_t count) {
    switch (p.weights) {
    case FP32:
        return multiply_floats(p, count);
    case BF16:
        return for_row_tiles<6>(count, [&]<int ROWS>(int64_t row) {
            // The weights of a vector take two registers.
            constexpr int VECTORS = ROWS * 4 + 8 < REGISTERS ? 4 : 2;
            for (int64_t v = 0; v < COMPACT_VECTORS; v += VECTORS)
                multiply_pairs_tile<ROWS, VECTORS>(p, row, v * VF);
        });
    case INT8:
        return for_row_tiles<6>(count, [&]<int ROWS>(int64_t row) {
            constexpr int VECTORS = ROWS * 4 + 5 < REGISTERS ? 4 : 2;
            for (int64_t v = 0; v < COMPACT_VECTORS; v += VECTORS)
                multiply_bytes_tile<ROWS, VECTORS>(p, row, v * VF);
        });
    default:
        return for_row_tiles<5>(count, [&]<int ROWS>(int64_t row) { multiply_nibbles_tile<ROWS>(p, row); });
    }
}

}
