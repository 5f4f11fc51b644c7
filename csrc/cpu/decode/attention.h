// Attention of a few rows of queries to keys and values that lie anywhere: all rows read them once.
#pragma once

#include "cpu/attention/rows_by_keys.h"
#include "cpu/decode/sequences.h"

namespace aigc::AIGC_LEVEL::decode {

// Turns the first numbers, each against the one `half` behind it.
static inline void rotate(float* x, int64_t half, const float* cosines, const float* sines) {
    for (int64_t i = 0; i < half; ++i) {
        const float a = x[i], b = x[half + i];
        x[i] = a * cosines[i] - b * sines[i];
        x[half + i] = b * cosines[i] + a * sines[i];
    }
}

// A head of a query, so that its scores are in units of log2.
static inline void copy_query(float* to, const float* from, int64_t size, int64_t width, float scale) {
    copy_head(to, from, size, width);
    for (int64_t c = 0; c < width; c += VF)
        store(to + c, load(to + c) * (scale * attention::LOG2_E));
}

// Keys that queries are multiplied by at a time, and the room that scores of them take.
constexpr int64_t KEYS = 128, SCORE_ROW = KEYS + VF;

// Tokens whose queries attend together: each has `group` of them, one after the other.
struct Attending {
    int64_t tokens, group, size, width;
    const float* queries; // (tokens * group, width)
    float* const* out;    // of each query
    const int64_t* seen;  // of each token, the keys that it sees
    int64_t common;       // of these the first ones that are all tokens' own

    int64_t rows() const { return tokens * group; }
};

// A block of values, each behind its key: those that all tokens see, and after them those of each by itself.
struct ValueBlock {
    int64_t common;
    const int64_t* counts;           // of each token, the common ones among them
    const float* const* values;      // common ones
    const float* const (*own)[KEYS]; // of each token, from place `common` on
    const float* scores;             // probabilities, of each query
    float* sums;
};

// Values by probabilities, key after key, for some queries and vectors of the values.
template <int ROWS, int VECTORS>
__attribute__((noinline)) static void add_values(const Attending& a, const ValueBlock& block, int64_t row,
                                                 int64_t column) {
    vf sum[ROWS][VECTORS]{};
    const float* const scores = block.scores + row * SCORE_ROW;
    for (int64_t j = 0; j < block.common; ++j) {
        const float* const value = block.values[j] + column;
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) {
            const vf wide = load(value + v * VF);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r)
                sum[r][v] = multiply_add(sum[r][v], scores[r * SCORE_ROW + j], wide);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
        const int64_t token = (row + r) / a.group;
        for (int64_t j = block.common; j < block.counts[token]; ++j)
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v)
                sum[r][v] =
                    multiply_add(sum[r][v], scores[r * SCORE_ROW + j], load(block.own[token][j] + column + v * VF));
        float* const sums = block.sums + (row + r) * a.width + column;
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v)
            store(sums + v * VF, load(sums + v * VF) + sum[r][v]);
    }
}

// One narrower tile takes the vectors that are left.
template <int ROWS, int VECTORS>
static inline void add_columns(const Attending& a, const ValueBlock& block, int64_t row, int64_t column) {
    for (; column + VECTORS * VF <= a.width; column += VECTORS * VF)
        add_values<ROWS, VECTORS>(a, block, row, column);
    if constexpr (VECTORS > 1)
        if (column < a.width)
            add_columns<ROWS, VECTORS / 2>(a, block, row, column);
}

static inline void add_all_values(const Attending& a, const ValueBlock& block) {
    constexpr int FEW_VECTORS = REGISTERS / 8;
    for (int64_t row = 0; row < a.rows(); row += 4)
        switch (least<int64_t>(4, a.rows() - row)) {
        case 1:
            add_columns<1, 8>(a, block, row, 0);
            break;
        case 2:
            add_columns<2, 4>(a, block, row, 0);
            break;
        case 3:
            add_columns<3, FEW_VECTORS>(a, block, row, 0);
            break;
        default:
            add_columns<4, FEW_VECTORS>(a, block, row, 0);
        }
}

// Scores of queries by keys that lie before their values.
static inline void multiply_by_keys_before(const float* const* values, int64_t count, const float* queries,
                                           int64_t rows, int64_t width, float* scores) {
    attention::multiply_by_keys<float>(
        queries, width, rows, [&](int64_t j) AIGC_INLINE { return values[j] - width; }, count, width, scores,
        SCORE_ROW);
}

// What tokens make of the values that each sees: value_at(token, j). Calls score(first, count, values, scores) for all
// queries and keys that all tokens see; those that not all see lie before their values. Every sum is made in one order,
// whatever tokens have in common.
template <class ValueAt, class Score>
static inline void attend(const Attending& a, const ValueAt& value_at, const Score& score) {
    const int64_t rows = a.rows(), width = a.width;
    Scope scope;
    float *const scores = scope.take<float>(rows * SCORE_ROW), *const sums = scope.take<float>(rows * width);
    auto* const states = scope.take<attention::RowState>(rows);
    auto* const counts = scope.take<int64_t>(a.tokens);
    auto* const own = reinterpret_cast<const float*(*)[KEYS]>(scope.take<const float*>(a.tokens * KEYS));
    const float* values[KEYS];
    int64_t longest = 0;
    for (int64_t t = 0; t < a.tokens; ++t)
        longest = most(longest, a.seen[t]);
    for (int64_t r = 0; r < rows; ++r)
        states[r] = {attention::MINUS_INFINITY, 0.0f};
    __builtin_memset(sums, 0, static_cast<size_t>(rows * width) * sizeof(float));
    for (int64_t first = 0; first < longest; first += KEYS) {
        const int64_t common = most<int64_t>(0, least(KEYS, a.common - first));
        for (int64_t j = 0; j < common; ++j)
            values[j] = value_at(0, first + j);
        score(first, common, values, scores);
        for (int64_t t = 0; t < a.tokens; ++t) {
            const int64_t count = counts[t] = most<int64_t>(0, least(KEYS, a.seen[t] - first)), row = t * a.group;
            for (int64_t j = common; j < count; ++j)
                own[t][j] = value_at(t, first + j);
            multiply_by_keys_before(own[t] + common, count - common, a.queries + row * width, a.group, width,
                                    scores + row * SCORE_ROW + common);
            for (int64_t r = row; r < row + a.group && count > 0; ++r) {
                for (int64_t j = count; j < round_up(count, VF); ++j)
                    scores[r * SCORE_ROW + j] = attention::MINUS_INFINITY;
                attention::softmax_row(scores + r * SCORE_ROW, count, states[r], sums + r * width, width);
            }
        }
        add_all_values(a, {common, counts, values, own, scores, sums});
    }
    for (int64_t r = 0; r < rows; ++r) {
        const float factor = a.seen[r / a.group] == 0 ? 0.0f : 1.0f / states[r].total;
        for_each_vector(a.size, [&](int64_t i, int64_t part) AIGC_INLINE {
            store_up_to(a.out[r] + i, load(sums + r * width + i) * factor, part);
        });
    }
}

}
