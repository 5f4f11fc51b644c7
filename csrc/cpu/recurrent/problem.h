// What a recurrent network is asked for: its cell, its sizes and the rows of a sequence, which lie in the order of the
// steps: row b of step t is the sequence b of the batch, and sequences of fewer steps come last.
#pragma once

#include <cstddef>

#include "core/arena.h"
#include "core/cpu.h"
#include "core/elements.h"
#include "core/gemm.h"
#include "core/integers.h"
#include "core/kernel.h"
#include "core/parallel.h"
#include "core/recurrent_cells.h"
#include "core/simd_math.h"

namespace aigc::AIGC_LEVEL::recurrent {
namespace {

// What is added to the sums of a unit; of a normalized LSTM the gains besides.
template <int64_t MODE>
constexpr int BIASES = MODE == LAYER_NORM_LSTM ? 14 : KEPT<MODE>;

// Times that members wait for each other in a step.
template <int64_t MODE>
constexpr int64_t STEP_WAITS = MODE == LAYER_NORM_LSTM ? 3 : 1;

// The hidden units of a block, whose gates lie side by side in a row of the packed weights, are so many vectors: three
// or four of a row, enough sums at a time for a single row not to wait for each of them.
template <int64_t MODE>
constexpr int UNIT_VECTORS = GATES<MODE> == 1 ? 4 : 1;
template <int64_t MODE>
constexpr int64_t UNITS = UNIT_VECTORS<MODE> * VF;
template <int64_t MODE>
constexpr int64_t BLOCK_WIDTH = GATES<MODE> * UNITS<MODE>;
template <int64_t MODE>
constexpr int64_t BIAS_WIDTH = BIASES<MODE> * UNITS<MODE>;

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

// Where the members of a team are divided into groups, that of a member, and the members it goes with.
struct Division {
    int64_t group, first, last;
    Division(int64_t member, int64_t members, int64_t groups)
        : group(((member + 1) * groups - 1) / members), first(members * group / groups),
          last(members * (group + 1) / groups) {}
};

// Both directions at the same time where there are members enough, otherwise one after the other.
struct Teamwork {
    int64_t directions, least_step_work;
    Barrier* barriers; // one for each direction, and one for all
    int64_t rows;      // of every step; 0 where steps have different numbers of them

    // Rows by which a member uses the weights as often as it must.
    static constexpr int64_t LEAST_ROWS = 12;

    // Members for a step of one direction. `step_work`: its multiply-adds; `parts`: what these can be divided into.
    int64_t wanted_each(int64_t step_work, int64_t parts, int64_t available) const {
        const int64_t each = step_work < least_step_work ? 1 : available;
        return each < 1 ? 1 : each > parts ? parts : each;
    }

    int64_t wanted(int64_t step_work, int64_t steps, int64_t parts) const {
        const int64_t available = thread_count();
        const int64_t each = wanted_each(step_work, parts, available / directions);
        const bool together = step_work * steps >= least_step_work;
        return available < directions || !together ? each : each * directions;
    }

    bool by_rows(int64_t members) const { return rows >= LEAST_ROWS * members; }

    // Calls f(direction, group) for the directions of this member.
    template <class F>
    void each_direction(int64_t member, int64_t members, const F& f) const {
        if (members < directions) {
            for (int64_t d = 0; d < directions; ++d)
                f(d, Group{member, members, barriers + directions});
            return;
        }
        const Division own(member, members, directions);
        const int64_t count = own.last - own.first;
        f(own.group, Group{member - own.first, count, barriers + own.group, by_rows(count)});
    }
};

// What was measured of waiting for each other.
struct WorkLimits {
    int64_t least_step_work; // multiply-adds of a step of one direction below which its units are not divided
    int64_t wait_work;       // what a wait costs, in multiply-adds
    int64_t wave_steps;      // of a chunk in which layers follow each other
    double wave_share;       // of a second-level cache that a member's part of a layer's hidden weights may fill then
};

// Layers of one direction at the same time: a chunk of steps goes from one group of members to the next, each of which
// has some of the layers, whose weights stay in its caches. A group of one never waits within a chunk.
struct Wave {
    static constexpr int64_t MOST_GROUPS = 16;

    int64_t layers, chunk; // chunk: of so many steps
    Barrier barriers[MOST_GROUPS]{};
    Progress done[MOST_GROUPS]{}; // steps that a group's last layer has made

    int64_t groups(int64_t members) const { return least(least(layers, members), MOST_GROUPS); }

    // Of the members that are there, how many groups of them take; 0 where one layer after the other takes no longer.
    // `bytes`: of a layer's hidden weights; `waits`: of a divided step.
    int64_t wanted(const Teamwork& work, int64_t step_work, int64_t steps, int64_t parts, int64_t bytes, int64_t waits,
                   const WorkLimits& limits) const {
        const int64_t available = thread_count(), count = groups(available);
        if (work.directions > 1 || count < 2 || step_work * steps < work.least_step_work)
            return 0;
        const int64_t apart = work.wanted_each(step_work, parts, available);
        const int64_t together = work.wanted_each(step_work, parts, available / count);
        if (double(bytes) / double(together) > limits.wave_share * double(second_level_cache()))
            return 0;
        const auto step_time = [&](int64_t members, bool by_units) {
            return step_work / members + (members > 1 && by_units ? waits * limits.wait_work : 0);
        };
        const int64_t one_by_one = layers * steps * step_time(apart, !work.by_rows(apart));
        const int64_t in_turn = blocks_of(layers, count) * (steps + (count - 1) * chunk) * step_time(together, true);
        return in_turn < one_by_one ? together * count : 0;
    }

    // Calls run(layer, group, step), which makes a chunk from a step on and gives the step after it, for the layers of
    // this member, then end(layer, group).
    template <class Run, class End>
    void each_chunk(int64_t member, int64_t members, int64_t steps, const Run& run, const End& end) {
        const Division own(member, members, groups(members));
        const Share of_layers(layers, own.group, groups(members));
        const Group group{member - own.first, own.last - own.first, barriers + own.group};
        for (int64_t step = 0, after = 0; step < steps; step = after) {
            for (int64_t layer = of_layers.first; layer < of_layers.last; ++layer) {
                if (layer == of_layers.first && layer > 0)
                    done[own.group - 1].wait_for(least(step + chunk, steps));
                after = run(layer, group, step);
            }
            if (group.member == 0)
                done[own.group].reach(after);
        }
        for (int64_t layer = of_layers.first; layer < of_layers.last; ++layer)
            end(layer, group);
    }
};

template <class E>
E* elements(const Tensor* tensor) {
    return tensor ? static_cast<E*>(tensor->data()) : nullptr;
}

}
}
