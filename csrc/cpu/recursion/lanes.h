// y[t] = x[t] + sum over i of c[i] y[t - i] with series, or parts of them, side by side in the lanes of vectors.
#pragma once

#include "core/arena.h"
#include "core/elements.h"
#include "core/integers.h"
#include "cpu/recursion/vectors.h"

namespace aigc::AIGC_LEVEL::recursion {

constexpr int STEPS = 8;      // of a tile: as many sums as hide the latency of a multiply-add
constexpr int64_t BLOCK = 64; // steps between two moves of the history; a multiple of STEPS and of every width

// What a lane computes: `count` steps from `in` to `out`, forward in memory or, reversed, backward.
template <class T>
struct Lane {
    const T* in;
    T* out;
    int64_t count;
};

// The next STEPS steps, `tiles` times over, in place. A line holds one step of every lane; the `order` lines before the
// first are the history. LOW: the order, or STEPS - 1 where that is greater. No term is computed that is not asked for:
// zero times an infinity would be NaN.
template <class T, int LOW>
static void recur_tiles(const T* coeffs, int64_t order, T* lines, int64_t tiles) {
    constexpr int N = WIDTH<T>;
    for (; tiles > 0; --tiles, lines += STEPS * N) {
        Vec<T> y[STEPS];
        const auto add_line = [&](int64_t lag, int reach) AIGC_INLINE {
            const Vec<T> before = load(lines - lag * N);
#pragma GCC unroll 8
            for (int j = 0; j < reach; ++j)
                y[j] += load(coeffs + (lag - 1 + j) * N) * before;
        };
#pragma GCC unroll 8
        for (int j = 0; j < STEPS; ++j)
            y[j] = load(lines + j * N);
        // The farthest line reaches one step, the next two.
#pragma GCC unroll 8
        for (int reach = 1; reach <= LOW; ++reach)
            add_line(order - reach + 1, reach);
        for (int64_t lag = order - LOW; lag > 0; --lag)
            add_line(lag, STEPS);
#pragma GCC unroll 8
        for (int j = 1; j < STEPS; ++j)
#pragma GCC unroll 8
            for (int lag = j < LOW ? j : LOW; lag > 0; --lag)
                y[j] += load(coeffs + (lag - 1) * N) * y[j - lag];
#pragma GCC unroll 8
        for (int j = 0; j < STEPS; ++j)
            store(lines + j * N, y[j]);
    }
}

template <class T, int LOW = STEPS - 1>
static void recur(const T* coeffs, int64_t order, T* lines, int64_t tiles) {
    if constexpr (LOW > 0) {
        if (order >= LOW)
            recur_tiles<T, LOW>(coeffs, order, lines, tiles);
        else
            recur<T, LOW - 1>(coeffs, order, lines, tiles);
    }
}

// As many lanes as a vector has, through blocks of lines that stay in the first-level cache.
template <class T, bool REVERSED>
class Group {
  public:
    static constexpr int N = WIDTH<T>;

    explicit Group(int64_t order)
        : order_(order), coeffs_(scope_.take<T>(N * (2 * order + BLOCK))), history_(coeffs_ + order * N),
          lines_(history_ + order * N) {}

    void set_coeffs(int lane, const T* coeffs, T sign) {
        for (int64_t i = 0; i < order_; ++i)
            coeffs_[i * N + lane] = sign * coeffs[i];
    }
    // The values before the first step, the most recent first; nullptr for zeros.
    template <class S>
    void set_state(int lane, const S* state) {
        for (int64_t i = 0; i < order_; ++i)
            lines_[(-1 - i) * N + lane] = state ? static_cast<T>(state[i]) : T(0);
    }
    // The values of the last steps, the most recent first.
    template <class S>
    void get_state(int lane, S* state) const {
        for (int64_t i = 0; i < order_; ++i)
            state[i] = lines_[(last_ - 1 - i) * N + lane];
    }

    void run(const Lane<T>* lanes, int64_t steps, bool writes) {
        int64_t common = steps;
        for (int i = 0; i < N; ++i)
            common = least(common, lanes[i].count);
        for (int64_t t = 0; t < steps; t += BLOCK) {
            if (t > 0)
                __builtin_memmove(history_, history_ + BLOCK * N, static_cast<size_t>(order_ * N) * sizeof(T));
            last_ = least(BLOCK, steps - t);
            const int64_t tiles = ceil_div(last_, STEPS);
            const bool inside = t + BLOCK <= common;
            inside ? read<true>(lanes, t, BLOCK) : read<false>(lanes, t, tiles * STEPS);
            recur<T>(coeffs_, order_, lines_, tiles);
            if (writes)
                inside ? write<true>(lanes, t, BLOCK) : write<false>(lanes, t, last_);
        }
    }

  private:
    // Steps of all lanes to lines, N at a time; zeros beyond a lane's end. INSIDE: no lane ends among them.
    template <bool INSIDE>
    void read(const Lane<T>* lanes, int64_t t, int64_t steps) {
        for (int64_t s = 0; s < steps; s += N) {
            Vec<T> square[N];
#pragma GCC unroll 16
            for (int i = 0; i < N; ++i)
                square[i] = read_lane<INSIDE>(lanes[i], t + s);
            turn_over<N, N / 2>(square);
#pragma GCC unroll 16
            for (int i = 0; i < N; ++i)
                store(lines_ + (s + (REVERSED ? N - 1 - i : i)) * N, square[i]);
        }
    }
    template <bool INSIDE>
    static Vec<T> read_lane(const Lane<T>& lane, int64_t t) {
        const int64_t left = lane.count - t;
        if (INSIDE || left >= N)
            return load(REVERSED ? lane.in - t - (N - 1) : lane.in + t);
        T padded[N] = {};
        for (int64_t e = 0; e < left; ++e)
            padded[REVERSED ? N - 1 - e : e] = lane.in[REVERSED ? -(t + e) : t + e];
        return load(padded);
    }

    template <bool INSIDE>
    void write(const Lane<T>* lanes, int64_t t, int64_t steps) const {
        for (int64_t s = 0; s < steps; s += N) {
            Vec<T> square[N];
#pragma GCC unroll 16
            for (int i = 0; i < N; ++i)
                square[i] = load(lines_ + (s + (REVERSED ? N - 1 - i : i)) * N);
            turn_over<N, N / 2>(square);
#pragma GCC unroll 16
            for (int i = 0; i < N; ++i)
                write_lane<INSIDE>(lanes[i], t + s, square[i]);
        }
    }
    template <bool INSIDE>
    static void write_lane(const Lane<T>& lane, int64_t t, Vec<T> values) {
        const int64_t left = lane.count - t;
        if (INSIDE || left >= N)
            return store(REVERSED ? lane.out - t - (N - 1) : lane.out + t, values);
        T padded[N];
        store(padded, values);
        for (int64_t e = 0; e < left; ++e)
            lane.out[REVERSED ? -(t + e) : t + e] = padded[REVERSED ? N - 1 - e : e];
    }

    Scope scope_;
    const int64_t order_;
    T *const coeffs_, *const history_, *const lines_;
    int64_t last_ = 0;
};

}
