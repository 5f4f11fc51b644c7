// Packs the columns of a matrix as compact weights (core/compact.h).
#pragma once

#include "core/arena.h"
#include "core/compact_bytes.h"
#include "core/compact_layout.h"
#include "core/parallel.h"

namespace aigc::AIGC_LEVEL {

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

}
