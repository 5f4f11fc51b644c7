// The next token of logits: divided by a temperature, cut to the likeliest, and drawn by a uniform number.
#pragma once

#include "core/elements.h"
#include "core/simd_math.h"

namespace aigc::AIGC_LEVEL {

// `temperature` 0 takes the greatest logit, the first of equals; `top_k` 0 and `top_p` 1 cut nothing off. What equals
// the least of the `top_k` stays too; of what equals the least that `top_p` needs, as many of the first as it needs.
struct Sampling {
    double temperature, top_p;
    int64_t top_k;
};

// In the order of the numbers, as integers; NaN aside.
static inline int32_t ordered(float x) {
    int32_t bits;
    __builtin_memcpy(&bits, &x, sizeof(bits));
    return bits ^ (bits >> 31 & 0x7fffffff);
}

// The greatest number, in `ordered` form, so that what is at least as great measures enough: found bit by bit, without
// sorting.
template <class F>
static inline int32_t threshold(const F& measures_enough) {
    int64_t low = INT32_MIN, high = INT32_MAX;
    while (low < high) {
        const int64_t middle = low + (high - low + 1) / 2;
        if (measures_enough(static_cast<int32_t>(middle)))
            low = middle;
        else
            high = middle - 1;
    }
    return static_cast<int32_t>(low);
}

// The token, or -1 where no probability is defined. `scratch`: as many floats as logits, in whole vectors.
static inline int64_t sample_token(const float* logits, int64_t count, float uniform, const Sampling& how,
                                   float* scratch) {
    int64_t best = 0;
    bool is_number = true;
    for (int64_t i = 0; i < count; ++i) {
        is_number &= logits[i] == logits[i];
        best = logits[i] > logits[best] ? i : best;
    }
    // The difference of an infinite one to itself is no number.
    if (!is_number || !(logits[best] - logits[best] == 0.0f))
        return -1;
    if (how.temperature == 0)
        return best;
    int32_t least = INT32_MIN;
    if (how.top_k && how.top_k < count)
        least = threshold([&](int32_t at) {
            int64_t above = 0;
            for (int64_t i = 0; i < count; ++i)
                above += ordered(logits[i]) >= at;
            return above >= how.top_k;
        });
    const auto divisor = static_cast<float>(how.temperature);
    for (int64_t i = 0; i < count; ++i)
        scratch[i] = ordered(logits[i]) >= least ? (logits[i] - logits[best]) / divisor : -__builtin_inff();
    for (int64_t i = 0; i < count; i += VF)
        store_up_to(scratch + i, exp(load_up_to(scratch + i, count - i)), count - i);
    // In double, lane by lane: any thread finds the same.
    const auto mass = [&](int32_t at) {
        constexpr int64_t LANES = 8;
        double sums[LANES] = {};
        const auto add = [&](int64_t i, int64_t lane) {
            sums[lane] += ordered(scratch[i]) >= at ? double(scratch[i]) : 0.0;
        };
        int64_t i = 0;
        for (; i + LANES <= count; i += LANES)
            for (int64_t lane = 0; lane < LANES; ++lane)
                add(i + lane, lane);
        for (int64_t lane = 0; i < count; ++i, ++lane)
            add(i, lane);
        double sum = 0;
        for (const double of_lane : sums)
            sum += of_lane;
        return sum;
    };
    int32_t least_probable = 0;
    int64_t equals = count;
    double whole = mass(0);
    if (how.top_p < 1) {
        const double wanted = how.top_p * whole;
        least_probable = threshold([&](int32_t at) { return mass(at) >= wanted; });
        whole = mass(least_probable + 1);
        float least_kept;
        __builtin_memcpy(&least_kept, &least_probable, sizeof(least_kept));
        for (equals = 0; whole < wanted && equals < count; ++equals)
            whole += double(least_kept);
    }
    const double drawn = double(uniform) * whole;
    double sum = 0;
    int64_t token = best;
    for (int64_t i = 0; i < count; ++i) {
        const int32_t place = ordered(scratch[i]);
        if (place < least_probable || scratch[i] == 0.0f || (place == least_probable && --equals < 0))
            continue;
        token = i;
        sum += double(scratch[i]);
        if (sum > drawn)
            break;
    }
    return token;
}

}
