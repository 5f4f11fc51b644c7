// The hypotheses of a beam search, which lie in tensors: of each prompt those that are followed, and those that ended.
#pragma once

#include "cpu/decode/candidates.h"

namespace aigc::AIGC_LEVEL::decode {

// Below any sum of logarithms of probabilities.
constexpr float WORST = -1.0e9f;

struct Hypotheses {
    int64_t prompts, beams, longest;
    int64_t *running, *ended; // (prompts, beams, longest), ids
    int64_t* lengths;         // (prompts, beams), as are the next ones: new ids of those that ended
    float *running_scores, *scores;
    bool *is_ended, *may_improve; // the last one (prompts,): whether running ones may become better than ended ones
};

// One more id for all of them.
struct Continuations {
    int64_t kept; // of each prompt, the best first
    const float* sums;
    const int64_t* places; // among those of all beams
    int64_t vocabulary, ends_count;
    const int64_t* ends;
    int64_t count, length; // ids that the hypotheses have, and new ones that they will have
    bool stops_when_full;
    float divisor, bound_divisor; // of sums: what the length makes them comparable by, now and where they may improve

    bool is_end(int64_t token) const {
        for (int64_t i = 0; i < ends_count; ++i)
            if (ends[i] == token)
                return true;
        return false;
    }
};

// Takes a prompt's continuations; tells whether all of them end. `parents` and `tokens` (beams,): where the running
// ones come from, and their last ids.
static inline bool advance(const Hypotheses& all, const Continuations& by, int64_t prompt, int64_t* parents,
                           int64_t* tokens) {
    const int64_t beams = all.beams, count = by.count, first = prompt * beams,
                  ids = (count + 1) * int64_t(sizeof(int64_t));
    const float* const sums = by.sums + prompt * by.kept;
    const int64_t* const places = by.places + prompt * by.kept;
    Scope scope;
    auto* const running = scope.take<int64_t>(beams * (count + 1));
    auto* const ended = scope.take<int64_t>(beams * (count + 1));
    auto* const before = scope.take<float>(beams);
    auto* const lengths = scope.take<int64_t>(beams);
    auto* const was_ended = scope.take<bool>(beams);
    auto* const hits = scope.take<bool>(by.kept);
    auto* const memory = scope.take<Candidate>(2 * beams);
    const auto row = [&](int64_t* of, int64_t beam) { return of + (first + beam) * all.longest; };
    const auto old = [&](int64_t* of, int64_t beam) { return of + beam * (count + 1); };
    const auto copy = [&](int64_t* to, const int64_t* from) { __builtin_memcpy(to, from, static_cast<size_t>(ids)); };
    bool is_full = by.stops_when_full, all_hit = true;
    for (int64_t beam = 0; beam < beams; ++beam) {
        copy(old(running, beam), row(all.running, beam));
        copy(old(ended, beam), row(all.ended, beam));
        lengths[beam] = all.lengths[first + beam];
        was_ended[beam] = all.is_ended[first + beam];
        before[beam] = all.scores[first + beam];
        is_full &= was_ended[beam];
    }
    Candidates followed(memory, beams), finished(memory + beams, beams);
    for (int64_t beam = 0; beam < beams; ++beam)
        finished.take({before[beam], beam});
    for (int64_t i = 0; i < by.kept; ++i) {
        hits[i] = count + 1 >= all.longest || by.is_end(places[i] % by.vocabulary);
        all_hit &= hits[i];
        followed.take({hits[i] ? sums[i] + WORST : sums[i], i});
        finished.take({sums[i] / by.divisor + (is_full ? WORST : 0.0f) + (all.may_improve[prompt] ? 0.0f : WORST) +
                           (hits[i] && i < beams ? 0.0f : WORST),
                       beams + i});
    }
    followed.sort();
    finished.sort();
    const auto continued = [&](int64_t* to, int64_t i) {
        copy(to, old(running, places[i] / by.vocabulary));
        to[count] = places[i] % by.vocabulary;
    };
    for (int64_t beam = 0; beam < beams; ++beam) {
        const int64_t i = followed[beam].place, from = finished[beam].place;
        continued(row(all.running, beam), i);
        all.running_scores[first + beam] = followed[beam].sum;
        parents[beam] = first + places[i] / by.vocabulary;
        tokens[beam] = places[i] % by.vocabulary;
        if (from < beams)
            copy(row(all.ended, beam), old(ended, from));
        else
            continued(row(all.ended, beam), from - beams);
        all.scores[first + beam] = finished[beam].sum;
        all.lengths[first + beam] = from < beams ? lengths[from] : by.length;
        all.is_ended[first + beam] = from < beams ? was_ended[from] : hits[from - beams] && from < 2 * beams;
    }
    const float bound = all.running_scores[first] / by.bound_divisor, worst = finished[beams - 1].sum;
    bool may_improve = false;
    for (int64_t beam = 0; beam < beams; ++beam)
        may_improve |= bound > (all.is_ended[first + beam] ? worst : WORST);
    all.may_improve[prompt] &= may_improve;
    return all_hit;
}

}
