// What a recurrent network is asked for: its cell, its sizes and the rows of a sequence, which lie in the order of the
// steps: row b of step t is the sequence b of the batch, and sequences of fewer steps come last.
#pragma once

#include <cstddef>

#include "core/arena.h"
#include "core/codes.h"
#include "core/elements.h"
#include "core/gemm.h"
#include "core/kernel.h"
#include "core/parallel.h"
#include "core/simd_math.h"

namespace aigc::AIGC_LEVEL::recurrent {
namespace {

AIGC_CODES(Mode, RNN_TANH, RNN_RELU, LSTM, GRU)

// Gates in a row of weights, gates that backward reads, and biases that are added apart from each other.
template <int64_t MODE>
constexpr int GATES = MODE == LSTM  ? 4
                      : MODE == GRU ? 3
                                    : 1;
template <int64_t MODE>
constexpr int KEPT = MODE == LSTM || MODE == GRU ? 4 : 1;

// The hidden units of a block, whose gates lie side by side in a row of the packed weights, are so many vectors: three
// or four of a row, enough sums at a time for a single row not to wait for each of them.
template <int64_t MODE>
constexpr int UNIT_VECTORS = GATES<MODE> == 1 ? 4 : 1;
template <int64_t MODE>
constexpr int64_t UNITS = UNIT_VECTORS<MODE> * VF;
template <int64_t MODE>
constexpr int64_t BLOCK_WIDTH = GATES<MODE> * UNITS<MODE>;
template <int64_t MODE>
constexpr int64_t BIAS_WIDTH = KEPT<MODE> * UNITS<MODE>;

// What products take of rows of these elements: floats, or bfloat16 by twos.
template <class E>
struct FactorOf {
    using type = E;
    static constexpr int64_t elements = 1;
};
template <>
struct FactorOf<bfloat16> {
    using type = Pair;
    static constexpr int64_t elements = 2;
};
template <class E>
using Factor = typename FactorOf<E>::type;
template <class E>
constexpr int64_t PER_FACTOR = FactorOf<E>::elements;

template <class A, class B>
constexpr bool IS_SAME = false;
template <class A>
constexpr bool IS_SAME<A, A> = true;

constexpr int64_t blocks_of(int64_t size, int64_t block) { return (size + block - 1) / block; }

// The rows of a sequence by steps.
struct Steps {
    const int64_t* counts;  // rows of each step, which never grow
    const int64_t* offsets; // of each step's first row, and behind the last
    int64_t steps, batch;

    int64_t rows() const { return offsets[steps]; }
    // Of every step; 0 where these differ.
    int64_t equal_rows() const { return counts[steps - 1] == batch ? batch : 0; }
    // Of the step before in the direction of the pass: rows that were there. The others begin.
    int64_t before(int64_t step, bool reversed) const {
        const int64_t other = reversed ? step + 1 : step - 1;
        return other < 0 || other == steps ? 0 : counts[other] < counts[step] ? counts[other] : counts[step];
    }
};

// What a member of a team does of `count` parts.
struct Share {
    int64_t first, last;
    Share(int64_t count, int64_t member, int64_t members)
        : first(count * member / members), last(count * (member + 1) / members) {}
};

// Members of a team that go through one direction together: each with some of the units of every row, where they wait
// for each other at every step, or with all units of some rows, where they do not.
struct Group {
    int64_t member, members;
    Barrier* barrier;
    bool by_rows = false;

    void wait() const {
        if (!by_rows)
            barrier->wait(members);
    }
    Share units(int64_t count) const { return by_rows ? Share(count, 0, 1) : Share(count, member, members); }
    Share rows(int64_t count) const { return by_rows ? Share(count, member, members) : Share(count, 0, 1); }
};

// Both directions at the same time where there are members enough, otherwise one after the other.
struct Teamwork {
    int64_t directions, least_step_work;
    Barrier* barriers; // one for each direction, and one for all
    int64_t rows;      // of every step; 0 where steps have different numbers of them

    // Rows by which a member uses the weights as often as it must.
    static constexpr int64_t LEAST_ROWS = 12;

    // `step_work`: multiply-adds of a step of one direction; `parts`: what these can be divided into.
    int64_t wanted(int64_t step_work, int64_t steps, int64_t parts) const {
        const int64_t available = thread_count();
        int64_t each = step_work < least_step_work ? 1 : available / directions;
        each = each < 1 ? 1 : each > parts ? parts : each;
        const bool together = step_work * steps >= least_step_work;
        return available < directions || !together ? each : each * directions;
    }

    // Calls f(direction, group) for the directions of this member.
    template <class F>
    void each_direction(int64_t member, int64_t members, const F& f) const {
        if (members < directions) {
            for (int64_t d = 0; d < directions; ++d)
                f(d, Group{member, members, barriers + directions});
            return;
        }
        const int64_t d = ((member + 1) * directions - 1) / members;
        const int64_t first = members * d / directions, last = members * (d + 1) / directions;
        f(d, Group{member - first, last - first, barriers + d, rows >= LEAST_ROWS * (last - first)});
    }
};

template <class E>
E* elements(const Tensor* tensor) {
    return tensor ? static_cast<E*>(tensor->data()) : nullptr;
}

}
}
