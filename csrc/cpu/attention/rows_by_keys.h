// Rows of queries, padded to `width`, by keys that lie anywhere, and the softmax of a row over one block of keys after
// another.
#pragma once

#include "cpu/attention/scores.h"

namespace aigc::AIGC_LEVEL::attention {

constexpr int SUMS = 8;

// out[i] = the sum of the lanes of sums[i].
static inline void sum_lanes(const vf (&sums)[SUMS], float* out) {
#if defined(__AVX2__)
    __m256 s[SUMS];
    for (int i = 0; i < SUMS; ++i)
#if AIGC_VECTOR_BYTES == 64
    {
        float lanes[VF];
        store(lanes, sums[i]);
        s[i] = _mm256_add_ps(_mm256_loadu_ps(lanes), _mm256_loadu_ps(lanes + 8));
    }
#else
        s[i] = __m256(sums[i]);
#endif
    const __m256 first = _mm256_hadd_ps(_mm256_hadd_ps(s[0], s[1]), _mm256_hadd_ps(s[2], s[3]));
    const __m256 second = _mm256_hadd_ps(_mm256_hadd_ps(s[4], s[5]), _mm256_hadd_ps(s[6], s[7]));
    _mm256_storeu_ps(
        out, _mm256_add_ps(_mm256_permute2f128_ps(first, second, 0x20), _mm256_permute2f128_ps(first, second, 0x31)));
#else
    for (int i = 0; i < SUMS; ++i) {
        out[i] = 0;
        for (int lane = 0; lane < VF; ++lane)
            out[i] += sums[i][lane];
    }
#endif
}

// scores[r][j] = query row r times key row j.
template <int ROWS, int KEYS, class T, class KeyAt>
static void multiply_rows_by_keys(const float* queries, int64_t width, const KeyAt& key_at, int64_t count, int64_t size,
                                  float* scores, int64_t score_row) {
    for (int64_t j = 0; j < count; j += KEYS) {
        const T* key[KEYS];
        for (int k = 0; k < KEYS; ++k)
            key[k] = key_at(least(j + k, count - 1));
        vf sums[SUMS]{};
        const auto add = [&](int64_t i, const vf(&k)[KEYS]) AIGC_INLINE {
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                const vf q = load(queries + r * width + i);
#pragma GCC unroll 8
                for (int at = 0; at < KEYS; ++at)
                    sums[r * KEYS + at] += q * k[at];
            }
        };
        vf k[KEYS];
        int64_t i = 0;
        for (; i + VF <= size; i += VF) {
#pragma GCC unroll 8
            for (int at = 0; at < KEYS; ++at)
                k[at] = load(key[at] + i);
            add(i, k);
        }
        if (i < size) {
            for (int at = 0; at < KEYS; ++at)
                k[at] = load_up_to(key[at] + i, size - i);
            add(i, k);
        }
        float found[SUMS];
        sum_lanes(sums, found);
        const int64_t left = least<int64_t>(KEYS, count - j);
        for (int r = 0; r < ROWS; ++r)
            if (left == KEYS)
                __builtin_memcpy(scores + r * score_row + j, found + r * KEYS, sizeof(float) * KEYS);
            else
                __builtin_memcpy(scores + r * score_row + j, found + r * KEYS,
                                 sizeof(float) * static_cast<size_t>(left));
    }
}

static inline float greatest_of(vf x) {
#if defined(__AVX512F__) && AIGC_VECTOR_BYTES == 64
    return _mm512_reduce_max_ps(__m512(x));
#else
    float found = x[0];
    for (int i = 1; i < VF; ++i)
        found = most(found, x[i]);
    return found;
#endif
}

// The running softmax of one row.
struct RowState {
    float greatest, total;
};

// The same for any number of rows.
template <class T, class KeyAt>
static void multiply_by_keys(const float* queries, int64_t width, int64_t rows, const KeyAt& key_at, int64_t count,
                             int64_t size, float* scores, int64_t score_row) {
    for (int64_t r = 0; r < rows; r += 4, queries += 4 * width, scores += 4 * score_row)
        switch (least<int64_t>(4, rows - r)) {
        case 1:
            multiply_rows_by_keys<1, 8, T>(queries, width, key_at, count, size, scores, score_row);
            break;
        case 2:
            multiply_rows_by_keys<2, 4, T>(queries, width, key_at, count, size, scores, score_row);
            break;
        case 3:
            multiply_rows_by_keys<3, 2, T>(queries, width, key_at, count, size, scores, score_row);
            break;
        default:
            multiply_rows_by_keys<4, 2, T>(queries, width, key_at, count, size, scores, score_row);
        }
}

static inline void scale_row(float* sums, int64_t width, float factor) {
    for (int64_t i = 0; i < width; i += VF)
        store(sums + i, load(sums + i) * factor);
}

// Scores of `count` keys, in units of log2 and minus infinity up to a whole vector, become probabilities; what was
// summed of `width` values by those before them is scaled.
static inline void softmax_row(float* scores, int64_t count, RowState& state, float* sums, int64_t width) {
    vf top = broadcast(state.greatest);
    for (int64_t j = 0; j < count; j += VF)
        top = greater(load(scores + j), top);
    const float greatest = greatest_of(top);
    const float safe = greatest == MINUS_INFINITY ? 0.0f : greatest;
    vf sum{};
    for (int64_t j = 0; j < count; j += VF) {
        const vf probability = exp2_of_negative(load(scores + j) - safe);
        sum += probability;
        store(scores + j, probability);
    }
    const float factor = exp2_of_negative(broadcast(state.greatest - safe))[0];
    float of_block = 0;
    for (int i = 0; i < VF; ++i)
        of_block += sum[i];
    state.total = state.total * factor + of_block;
    if (greatest != state.greatest)
        scale_row(sums, width, factor);
    state.greatest = greatest;
}

}
