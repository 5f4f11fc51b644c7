// The best continuations of beams, from logits that are read while they are in the cache: neither their logarithms of
// probabilities nor these and the beams' scores are written down.
#pragma once

#include "core/arena.h"
#include "core/integers.h"
#include "core/parallel.h"
#include "core/simd_math.h"

namespace aigc::AIGC_LEVEL::decode {

struct Candidate {
    float sum;
    int64_t place;

    bool beats(const Candidate& other) const { return sum > other.sum || (sum == other.sum && place < other.place); }
};

// The best of those that it was given, the worst of them first: every one is beaten by the two behind twice its place.
class Candidates {
  public:
    Candidates(Candidate* memory, int64_t room) : items_(memory), room_(room) {}

    int64_t count() const { return count_; }
    const Candidate& operator[](int64_t i) const { return items_[i]; }
    bool is_full() const { return count_ == room_; }

    void take(const Candidate& candidate) {
        if (count_ < room_) {
            int64_t at = count_++;
            for (; at > 0 && items_[(at - 1) / 2].beats(candidate); at = (at - 1) / 2)
                items_[at] = items_[(at - 1) / 2];
            items_[at] = candidate;
        } else if (candidate.beats(items_[0])) {
            settle(candidate, count_);
        }
    }
    // The best first; nothing can be taken any more.
    void sort() {
        for (int64_t left = count_; left > 1;) {
            const Candidate worst = items_[0], last = items_[--left];
            settle(last, left);
            items_[left] = worst;
        }
    }

  private:
    // Puts a candidate in the first one's place, and from there to where it belongs.
    void settle(const Candidate& candidate, int64_t count) {
        int64_t at = 0;
        for (int64_t next; (next = 2 * at + 1) < count; at = next) {
            next += next + 1 < count && items_[next].beats(items_[next + 1]);
            if (!candidate.beats(items_[next]))
                break;
            items_[at] = items_[next];
        }
        items_[at] = candidate;
    }

    Candidate* items_;
    int64_t room_, count_ = 0;
};

// The greatest logit, and the logarithm of the sum of all exponentials by it; not finite where logits are not.
struct Normalizer {
    float greatest, logarithm;

    Normalizer(const float* logits, int64_t count) {
        constexpr int64_t BLOCK = 64 * VF;
        vf top = broadcast(-__builtin_inff());
        const int64_t in_vectors = count / VF * VF;
        for (int64_t i = 0; i < in_vectors; i += VF)
            top = greater(load(logits + i), top);
        for (int64_t i = in_vectors; i < count; ++i)
            top[0] = logits[i] > top[0] ? logits[i] : top[0];
        greatest = top[0];
        for (int64_t i = 1; i < VF; ++i)
            greatest = top[i] > greatest ? top[i] : greatest;
        double total = 0;
        for (int64_t first = 0; first < count; first += BLOCK) {
            vf sum{};
            const int64_t part = least(BLOCK, count - first), whole = part / VF * VF;
            for (int64_t i = first; i < first + whole; i += VF)
                sum += exp(load(logits + i) - greatest);
            for (int64_t i = first + whole; i < first + part; ++i)
                total += double(exp(broadcast(logits[i] - greatest))[0]);
            for (int64_t i = 0; i < VF; ++i)
                total += double(sum[i]);
        }
        logarithm = static_cast<float>(__builtin_log(total));
    }
    bool is_finite() const { return __builtin_isfinite(greatest) && __builtin_isfinite(logarithm); }
};

// Takes those of a beam's continuations that are among the best; the first of them is at `place`.
static inline void take_from(const float* logits, int64_t count, const Normalizer& by, float score, int64_t place,
                             Candidates& best) {
    constexpr int64_t BLOCK = 8 * VF;
    const auto sums_of = [&](auto logit) { return logit - by.greatest - by.logarithm + score; };
    for (int64_t first = 0; first < count; first += BLOCK) {
        const int64_t part = least(BLOCK, count - first);
        if (part == BLOCK && best.is_full()) {
            vf top = sums_of(load(logits + first));
            for (int64_t i = VF; i < BLOCK; i += VF)
                top = greater(sums_of(load(logits + first + i)), top);
            bool has_better = false;
            for (int64_t i = 0; i < VF; ++i)
                has_better |= top[i] > best[0].sum;
            if (!has_better)
                continue;
        }
        for (int64_t i = first; i < first + part; ++i)
            best.take({sums_of(logits[i]), place + i});
    }
}

}
