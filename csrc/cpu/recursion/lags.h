// Products of a series with the past of another: the gradient to a recursion's coefficients, of either sign.
#pragma once

#include "cpu/recursion/varying.h"

namespace aigc::AIGC_LEVEL::recursion {

// out[b][i] or out[b][t][i] from sign * u[b][t] y[b][t - 1 - i]; y[-1], y[-2] and so on are the state, zeros without
// one.
template <class T>
class Lags {
  public:
    Lags(const Matrix<const T>& u, const Matrix<const T>& y, const Matrix<const T>& state, T* out, int64_t count,
         int64_t length, int64_t order, T sign)
        : u_(u), y_(y), state_(state), out_(out), count_(count), length_(length), order_(order), sign_(sign) {}

    // Summed over the steps: in T over a block, in double over the blocks.
    void sum() const {
        const int64_t segments = ceil_div(length_, SEGMENT), lags = round_up(order_, LAGS);
        Scope scope;
        double* const sums = scope.take<double>(count_ * segments * lags);
        parallel_for(0, count_ * segments, LEAST_WORK / (SEGMENT * most<int64_t>(1, order_)) + 1,
                     [&](int64_t begin, int64_t end) {
                         Scope scope;
                         T* const past = scope.take<T>(room(lags));
                         for (int64_t i = begin; i < end; ++i)
                             sum_segment(i / segments, i % segments * SEGMENT, past, sums + i * lags, lags);
                     });
        for (int64_t b = 0; b < count_; ++b)
            for (int64_t i = 0; i < order_; ++i) {
                double sum = 0.0;
                for (int64_t s = 0; s < segments; ++s)
                    sum += sums[(b * segments + s) * lags + i];
                out_[b * order_ + i] = sign_ * static_cast<T>(sum);
            }
    }

    // At every step.
    void multiply() const {
        const int64_t blocks = ceil_div(length_, BLOCK_STEPS), lags = round_up(order_, N);
        parallel_for(0, count_ * blocks, LEAST_WORK / (BLOCK_STEPS * most<int64_t>(1, order_)) + 1,
                     [&](int64_t begin, int64_t end) {
                         Scope scope;
                         T* const past = scope.take<T>(room(lags));
                         for (int64_t i = begin; i < end; ++i)
                             multiply_block(i / blocks, i % blocks * BLOCK_STEPS, past, lags);
                     });
    }

  private:
    static constexpr int N = WIDTH<T>, LAGS = 4;
    static constexpr int64_t BLOCK_STEPS = 512, SEGMENT = 16 * BLOCK_STEPS, LEAST_WORK = 1 << 16;

    static int64_t room(int64_t lags) { return BLOCK_STEPS + lags + 2 * N; }
    T past_of(int64_t b, int64_t t) const {
        if (t >= 0)
            return y_.at(b)[t];
        return state_.data && -t <= order_ ? state_.at(b)[-1 - t] : T(0);
    }
    // out[i] = y[first + i], of series b.
    void copy_past(int64_t b, int64_t first, int64_t count, T* out) const {
        int64_t i = 0;
        for (; i < count && first + i < 0; ++i)
            out[i] = past_of(b, first + i);
        if (i < count)
            __builtin_memcpy(out + i, y_.at(b) + first + i, static_cast<size_t>(count - i) * sizeof(T));
    }

    void sum_segment(int64_t b, int64_t first, T* past, double* sums, int64_t lags) const {
        for (int64_t i = 0; i < lags; ++i)
            sums[i] = 0.0;
        const int64_t end = least(length_, first + SEGMENT);
        for (int64_t t = first; t < end; t += BLOCK_STEPS) {
            const int64_t steps = least(BLOCK_STEPS, end - t);
            copy_past(b, t - lags, lags + steps - 1, past);
            for (int64_t i = 0; i < lags; i += LAGS)
                sum_block(u_.at(b) + t, past + lags - 1 - i, steps, sums + i);
        }
    }
    // sums[i] += sum of u[t] past[t - i], for LAGS of them.
    static void sum_block(const T* u, const T* past, int64_t steps, double* sums) {
        Vec<T> even[LAGS] = {}, odd[LAGS] = {};
        int64_t t = 0;
        for (; t + 2 * N <= steps; t += 2 * N) {
            const Vec<T> first = load(u + t), second = load(u + t + N);
#pragma GCC unroll 4
            for (int i = 0; i < LAGS; ++i) {
                even[i] += first * load(past + t - i);
                odd[i] += second * load(past + t + N - i);
            }
        }
        for (int i = 0; i < LAGS; ++i) {
            T rest = sum_of<T>(even[i] + odd[i]);
            for (int64_t s = t; s < steps; ++s)
                rest += u[s] * past[s - i];
            sums[i] += static_cast<double>(rest);
        }
    }

    // The past lies from the latest to the earliest, so that every step's lags are in order.
    void multiply_block(int64_t b, int64_t first, T* past, int64_t lags) const {
        const int64_t steps = least(BLOCK_STEPS, length_ - first), last = first + steps - 1;
        for (int64_t i = 0; i < steps + lags - 1; ++i)
            past[i] = past_of(b, last - 1 - i);
        for (int64_t j = 0; j < steps; ++j) {
            const T factor = sign_ * u_.at(b)[first + j];
            const T* const from = past + steps - 1 - j;
            T* const to = out_ + ((b * length_) + first + j) * order_;
            int64_t i = 0;
            for (; i + N <= order_; i += N)
                store(to + i, load(from + i) * factor);
            for (; i < order_; ++i)
                to[i] = from[i] * factor;
        }
    }

    const Matrix<const T>&u_, &y_, &state_;
    T* const out_;
    const int64_t count_, length_, order_;
    const T sign_;
};

}
