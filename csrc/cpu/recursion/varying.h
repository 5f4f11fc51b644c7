// Recursions with coefficients of their own at every step: y[t] = x[t] + SIGN * sum over i of c[t][i] y[t - i]. They
// are read once and bound by memory, so each series runs by itself, eight steps at a time.
#pragma once

#include "core/arena.h"
#include "core/integers.h"
#include "core/parallel.h"
#include "cpu/recursion/lanes.h"
#include "cpu/recursion/series.h"

namespace aigc::AIGC_LEVEL::recursion {

// (series, step, lag); the lags are contiguous.
template <class T>
struct Coefficients {
    T* data;
    int64_t series, step; // strides
    T* at(int64_t b, int64_t t) const { return data + b * series + t * step; }
};

template <class T>
struct VaryingSeries {
    Matrix<const T> in, state;
    Coefficients<const T> coeffs;
    Matrix<T> out;
    int64_t count, length, order;
};

constexpr int ROWS = 8; // steps at a time

// A window of at least `size` elements that moves through memory, ROWS at a time, with its contents. One that moves
// up is entered by zeros at its end.
template <class T>
class Window {
  public:
    static constexpr int64_t MOVES = 64, ROOM = MOVES * ROWS;
    explicit Window(int64_t size)
        : size_(round_up(size + ROWS, WIDTH<T>) + ROWS), memory_(scope_.take<T>(size_ + ROOM)) {}

    void clear(bool moves_up) {
        at_ = moves_up ? memory_ : memory_ + ROOM;
        __builtin_memset(memory_, 0, bytes(size_ + ROOM));
    }
    T* elements() const { return at_; }
    void move_down() {
        if (at_ == memory_) {
            at_ = memory_ + ROOM;
            __builtin_memmove(at_, memory_, bytes(size_));
        }
        at_ -= ROWS;
    }
    void move_up() {
        at_ += ROWS;
        if (at_ == memory_ + ROOM) {
            __builtin_memmove(memory_, at_, bytes(size_));
            __builtin_memset(memory_ + size_, 0, bytes(ROOM));
            at_ = memory_;
        }
    }

  private:
    static size_t bytes(int64_t elements) { return static_cast<size_t>(elements) * sizeof(T); }
    Scope scope_;
    const int64_t size_;
    T* const memory_;
    T* at_ = nullptr;
};

// The product of `count` elements at a with as many at b, of which whole vectors may be read.
template <class T>
static inline T dot(const T* a, const T* b, int64_t count) {
    constexpr int N = WIDTH<T>;
    Vec<T> sum{};
    int64_t i = 0;
    for (; i + N <= count; i += N)
        sum += load(a + i) * load(b + i);
    T rest = 0;
    for (; i < count; ++i)
        rest += a[i] * b[i];
    return sum_of<T>(sum) + rest;
}

// to[i] += factor * a[i]
template <class T>
static inline void add_scaled(T* to, const T* a, T factor, int64_t count) {
    constexpr int N = WIDTH<T>;
    int64_t i = 0;
    for (; i + N <= count; i += N)
        store(to + i, load(to + i) + load(a + i) * factor);
    for (; i < count; ++i)
        to[i] += a[i] * factor;
}

template <class T, int SIGN>
class VaryingRecursion {
  public:
    explicit VaryingRecursion(const VaryingSeries<T>& s) : s_(s) {}

    void run() const {
        parallel_for(0, s_.count, grain(), [&](int64_t begin, int64_t end) {
            Window<T> window(s_.order);
            for (int64_t b = begin; b < end; ++b)
                recur(b, window);
        });
    }

    // The transpose: u[t] = x[t] + SIGN * sum over i of c[t + i][i] u[t + i], from the last step to the first.
    void run_transposed() const {
        parallel_for(0, s_.count, grain(), [&](int64_t begin, int64_t end) {
            Window<T> window(s_.order + ROWS);
            for (int64_t b = begin; b < end; ++b)
                recur_transposed(b, window);
        });
    }

  private:
    static constexpr int64_t LEAST_WORK = 1 << 15;
    int64_t grain() const { return LEAST_WORK / most<int64_t>(1, s_.length * (s_.order + 4)) + 1; }

    // The window holds y[t - 1], y[t - 2] and so on.
    void recur(int64_t b, Window<T>& window) const {
        window.clear(false);
        for (int64_t i = 0; s_.state.data && i < s_.order; ++i)
            window.elements()[i] = s_.state.at(b)[i];
        const T* const in = s_.in.at(b);
        T* const out = s_.out.at(b);
        for (int64_t t = 0; t < s_.length; t += ROWS) {
            const int steps = static_cast<int>(least<int64_t>(ROWS, s_.length - t));
            const T* const before = window.elements();
            T y[ROWS] = {};
            for (int j = 0; j < steps; ++j)
                y[j] = in[t + j] + SIGN * dot(s_.coeffs.at(b, t + j) + j, before, s_.order - j);
            for (int j = 0; j < steps; ++j) {
                const T* const coeffs = s_.coeffs.at(b, t + j);
                for (int lag = j; lag > 0; --lag)
                    if (lag <= s_.order)
                        y[j] += SIGN * coeffs[lag - 1] * y[j - lag];
            }
            for (int j = 0; j < steps; ++j)
                out[t + j] = y[j];
            window.move_down();
            for (int j = 0; j < ROWS; ++j)
                window.elements()[ROWS - 1 - j] = y[j];
        }
    }

    // The window holds what later steps add to u[t], u[t - 1] and so on.
    void recur_transposed(int64_t b, Window<T>& window) const {
        window.clear(true);
        const T* const in = s_.in.at(b);
        T* const out = s_.out.at(b);
        for (int64_t t = s_.length - 1; t >= 0; t -= ROWS) {
            const int steps = static_cast<int>(least<int64_t>(ROWS, t + 1));
            T* const added = window.elements();
            T u[ROWS];
            for (int j = 0; j < steps; ++j) {
                u[j] = in[t - j] + added[j];
                for (int lag = j; lag > 0; --lag)
                    if (lag <= s_.order)
                        u[j] += SIGN * s_.coeffs.at(b, t - j + lag)[lag - 1] * u[j - lag];
            }
            for (int j = 0; j < steps; ++j) {
                const int done = ROWS - 1 - j;
                out[t - j] = u[j];
                if (s_.order > done)
                    add_scaled(added + ROWS, s_.coeffs.at(b, t - j) + done, SIGN * u[j], s_.order - done);
            }
            window.move_up();
        }
    }

    const VaryingSeries<T>& s_;
};

}
