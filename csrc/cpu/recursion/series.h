// Recursions with coefficients that stay: many series side by side, few ones cut into parts.
//
// A part needs the values before it. They come from the input just before, as far back as the filter remembers; where
// that is farther than a whole part, from the parts' own responses and a scan over the parts in double, with the powers
// of the companion matrix (Blelloch, "Prefix sums and their applications", 1990, on linear recurrences).
#pragma once

#include "core/parallel.h"
#include "cpu/recursion/companion.h"
#include "cpu/recursion/lanes.h"

namespace aigc::AIGC_LEVEL::recursion {

template <class T>
struct Matrix {
    T* data;
    int64_t row; // stride
    T* at(int64_t r) const { return data + r * row; }
};

template <class T>
struct Series {
    Matrix<const T> in, coeffs, state; // coeffs of row stride 0 are shared; the state's data may be nullptr
    Matrix<T> out;
    int64_t count, length, order;
    T sign; // of the coefficients
};

template <class T>
constexpr double FORGOTTEN = 0x1p-34;
template <>
constexpr double FORGOTTEN<double> = 0x1p-62;

template <class T, bool REVERSED>
class SeriesRecursion {
  public:
    explicit SeriesRecursion(const Series<T>& s) : s_(s) {}

    void run() {
        cut();
        if (parts_ > 1)
            find_states();
        run_lanes(s_.count * parts_, whole_, true);
        if (parts_ > 1)
            repair();
    }

  private:
    static constexpr int N = WIDTH<T>;
    static constexpr int64_t LEAST_PART = 256, MOST_ORDER = 64, LEAST_WORK = 1 << 15;
    struct Range {
        int64_t begin, end;
    };

    // Steps from `begin` to `end` of series b.
    Lane<T> lane(int64_t b, Range steps) const {
        const int64_t at = REVERSED ? s_.length - 1 - steps.begin : steps.begin;
        return {s_.in.at(b) + at, s_.out.at(b) + at, steps.end - steps.begin};
    }
    Range part(int64_t index) const { return {index * whole_, least(s_.length, (index + 1) * whole_)}; }

    // Into as many parts as fill the lanes of all threads, unless a series grows.
    void cut() {
        parts_ = 1;
        whole_ = s_.length;
        const int64_t lanes = thread_count() * N, shortest = most(LEAST_PART, 8 * s_.order);
        const int64_t parts = least(lanes / s_.count, s_.length / shortest);
        if (parts < 2 || s_.order > MOST_ORDER || s_.order == 0)
            return;
        // Not a multiple of the first-level cache's reach: all parts' lines would share few of its sets.
        int64_t whole = round_up(ceil_div(s_.length, parts), 16);
        if (whole * int64_t(sizeof(T)) % 1024 == 0)
            whole += 16;
        powers_ = CompanionPowers(scope_.take<double>(CompanionPowers::doubles(s_.order)), s_.order);
        memory_ = 0;
        for (int64_t b = 0; b < (s_.coeffs.row == 0 ? 1 : s_.count); ++b) {
            powers_.set(s_.coeffs.at(b), s_.sign);
            const int64_t memory = powers_.memory(FORGOTTEN<T>, whole);
            if (memory == 0)
                return;
            memory_ = most(memory_, memory);
        }
        whole_ = whole;
        parts_ = ceil_div(s_.length, whole);
        states_ = scope_.take<double>((s_.count * parts_ + 1) * s_.order);
    }

    double* state_of(int64_t lane) const { return states_ + lane * s_.order; }

    // What stands before every part, from the last steps of the part before it.
    void find_states() {
        for (int64_t b = 0; b < s_.count; ++b)
            for (int64_t i = 0; i < s_.order; ++i)
                state_of(b * parts_)[i] = s_.state.data ? static_cast<double>(s_.state.at(b)[i]) : 0.0;
        run_lanes(s_.count * parts_, memory_, false);
        if (memory_ < whole_)
            return;
        for (int64_t b = 0; b < s_.count; ++b) {
            if (b == 0 || s_.coeffs.row != 0) {
                powers_.set(s_.coeffs.at(b), s_.sign);
                powers_.power(whole_);
            }
            for (int64_t p = 1; p < parts_; ++p)
                powers_.add_carried(state_of(b * parts_ + p - 1), state_of(b * parts_ + p));
        }
    }

    // Lanes are parts, those of a series in succession. When they write, each goes through its part from its state;
    // else through the last `steps` of it from zeros, to the next part's state.
    void run_lanes(int64_t end, int64_t steps, bool writes) {
        const int64_t work = steps * N * (s_.order + 4);
        parallel_for(0, ceil_div(end, N), LEAST_WORK / most<int64_t>(1, work) + 1, [&](int64_t begin, int64_t stop) {
            Group<T, REVERSED> group(s_.order);
            for (int64_t g = begin; g < stop; ++g)
                run_group(group, g * N, end, steps, writes, g == begin);
        });
    }

    void run_group(Group<T, REVERSED>& group, int64_t first, int64_t end, int64_t steps, bool writes, bool fresh) {
        Lane<T> lanes[N] = {};
        for (int i = 0; i < N; ++i) {
            const int64_t index = least(first + i, end - 1), b = index / parts_, p = index % parts_;
            if (fresh || s_.coeffs.row != 0)
                group.set_coeffs(i, s_.coeffs.at(b), s_.sign);
            Range range = part(p);
            if (!writes) {
                range.begin = most(range.begin, range.end - steps);
                group.set_state(i, static_cast<const double*>(nullptr));
            } else if (parts_ > 1) {
                group.set_state(i, state_of(index));
            } else {
                group.set_state(i, s_.state.data ? s_.state.at(b) : nullptr);
            }
            if (first + i < end && (writes || p + 1 < parts_))
                lanes[i] = lane(b, range);
        }
        group.run(lanes, steps, writes);
        for (int i = 0; !writes && i < N && first + i < end; ++i)
            if ((first + i) % parts_ + 1 < parts_)
                group.get_state(i, state_of(first + i + 1));
    }

    // Infinity and NaN last for ever: behind them a series runs in one piece.
    void repair() {
        for (int64_t b = 0; b < s_.count; ++b)
            for (int64_t p = 1; p < parts_; ++p) {
                double* const state = state_of(b * parts_ + p);
                bool finite = all_finite(state);
                const int64_t end = part(p).begin;
                for (int64_t i = 0; i < s_.order; ++i)
                    state[i] = static_cast<double>(*lane(b, {end - 1 - i, end}).out);
                finite &= all_finite(state);
                if (finite)
                    continue;
                Group<T, REVERSED> group(s_.order);
                Lane<T> lanes[N] = {lane(b, {end, s_.length})};
                for (int i = 0; i < N; ++i) {
                    group.set_coeffs(i, s_.coeffs.at(b), s_.sign);
                    group.set_state(i, i == 0 ? state : nullptr);
                }
                group.run(lanes, s_.length - end, true);
                break;
            }
    }
    bool all_finite(const double* state) const {
        for (int64_t i = 0; i < s_.order; ++i)
            if (!__builtin_isfinite(state[i]))
                return false;
        return true;
    }

    const Series<T>& s_;
    int64_t parts_ = 1, whole_ = 0, memory_ = 0;
    Scope scope_;
    CompanionPowers powers_{nullptr, 0};
    double* states_ = nullptr;
};

}
