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

// A head's numbers, filled up to whole vectors.
static inline void copy_head(float* to, const float* from, int64_t size, int64_t width) {
    __builtin_memcpy(to, from, static_cast<size_t>(size) * sizeof(float));
    __builtin_memset(to + size, 0, static_cast<size_t>(width - size) * sizeof(float));
}

// The same of a query, so that its scores are in units of log2.
static inline void copy_query(float* to, const float* from, int64_t size, int64_t width, float scale) {
    copy_head(to, from, size, width);
    for (int64_t c = 0; c < width; c += VF)
        store(to + c, load(to + c) * (scale * attention::LOG2_E));
}

// Queries, each `width` after the other, and what they make of the first `seen` keys and values: at(0, j) and at(1, j).
template <class At>
static inline void attend(int64_t seen, int64_t size, int64_t width, const At& at, const float* queries, int64_t rows,
                          float* const* out) {
    constexpr int64_t KEYS = 128, SCORE_ROW = KEYS + VF;
    Scope scope;
    float *const scores = scope.take<float>(rows * SCORE_ROW), *const sums = scope.take<float>(rows * width);
    auto* const states = scope.take<attention::RowState>(rows);
    const float **const score_rows = scope.take<const float*>(rows), *keys[KEYS];
    float** const sum_rows = scope.take<float*>(rows);
    int64_t value_offsets[KEYS], score_offsets[KEYS];
    for (int64_t r = 0; r < rows; ++r) {
        states[r] = {attention::MINUS_INFINITY, 0.0f};
        score_rows[r] = scores + r * SCORE_ROW;
        sum_rows[r] = sums + r * width;
    }
    __builtin_memset(sums, 0, static_cast<size_t>(rows * width) * sizeof(float));
    for (int64_t first = 0; first < seen; first += KEYS) {
        const int64_t count = least(KEYS, seen - first);
        const float* const base = at(1, first);
        for (int64_t j = 0; j < count; ++j) {
            keys[j] = at(0, first + j);
            value_offsets[j] = at(1, first + j) - base;
            score_offsets[j] = j;
        }
        attention::multiply_by_keys<float>(
            queries, width, rows, [&](int64_t j) AIGC_INLINE { return keys[j]; }, count, width, scores, SCORE_ROW);
        for (int64_t r = 0; r < rows; ++r) {
            for (int64_t j = count; j < round_up(count, VF); ++j)
                scores[r * SCORE_ROW + j] = attention::MINUS_INFINITY;
            attention::softmax_row(scores + r * SCORE_ROW, count, states[r], sum_rows[r], width);
        }
        const Product product{score_rows, 1, score_offsets, base, 0, value_offsets, count, 1, sum_rows, true, 0};
        multiply_wide(product, rows, width / VF);
    }
    for (int64_t r = 0; r < rows; ++r) {
        const float factor = seen == 0 ? 0.0f : 1.0f / states[r].total;
        for_each_vector(size, [&](int64_t i, int64_t part)
                                  AIGC_INLINE { store_up_to(out[r] + i, load(sum_rows[r] + i) * factor, part); });
    }
}

}
