// Powers of the companion matrix: how a state of past values carries over many steps without input.
#pragma once

#include "core/integers.h"

namespace aigc::AIGC_LEVEL::recursion {

// A state that grows beyond this keeps a recursion in one piece: what overflows there is to be infinite, not the
// difference of two infinities.
constexpr double MOST_GROWTH = 1e6;

// In double. Row i of the power n gives y[n - 1 - i] from (y[-1], y[-2], ...).
class CompanionPowers {
  public:
    static int64_t doubles(int64_t order) { return 4 * order * order; }

    CompanionPowers(double* memory, int64_t order)
        : order_(order), matrix_(memory), result_(matrix_ + order * order), square_(result_ + order * order),
          product_(square_ + order * order) {}

    template <class T>
    void set(const T* coeffs, T sign) {
        for (int64_t i = 0; i < order_; ++i)
            for (int64_t j = 0; j < order_; ++j)
                matrix_[i * order_ + j] = i == 0 ? static_cast<double>(sign * coeffs[j]) : double(j == i - 1);
    }

    // The least power of two of steps, up to `most`, after which a state is forgotten to within `tolerance`; `most`
    // where there is none; 0 where it grows.
    int64_t memory(double tolerance, int64_t most) {
        copy(matrix_, square_);
        for (int64_t n = 1;; n *= 2) {
            const double size = norm(square_);
            if (!(size < MOST_GROWTH))
                return 0;
            if (size < tolerance || n >= most)
                return least(n, most);
            multiply(square_, square_);
        }
    }

    // Computes the power n for add_carried.
    void power(int64_t n) {
        for (int64_t i = 0; i < order_ * order_; ++i)
            result_[i] = double(i % (order_ + 1) == 0);
        copy(matrix_, square_);
        for (; n > 0; n /= 2) {
            if (n % 2)
                multiply(result_, square_);
            if (n > 1)
                multiply(square_, square_);
        }
    }

    // next += the power times state.
    void add_carried(const double* state, double* next) const {
        for (int64_t i = 0; i < order_; ++i)
            for (int64_t j = 0; j < order_; ++j)
                next[i] += result_[i * order_ + j] * state[j];
    }

  private:
    void copy(const double* from, double* to) const {
        __builtin_memcpy(to, from, static_cast<size_t>(order_ * order_) * sizeof(double));
    }

    double norm(const double* a) const {
        double greatest = 0.0;
        for (int64_t i = 0; i < order_; ++i) {
            double sum = 0.0;
            for (int64_t j = 0; j < order_; ++j)
                sum += __builtin_fabs(a[i * order_ + j]);
            if (!(sum <= greatest))
                greatest = sum;
        }
        return greatest;
    }

    // a = a b
    void multiply(double* a, const double* b) {
        __builtin_memset(product_, 0, static_cast<size_t>(order_ * order_) * sizeof(double));
        for (int64_t i = 0; i < order_; ++i)
            for (int64_t k = 0; k < order_; ++k)
                for (int64_t j = 0; j < order_; ++j)
                    product_[i * order_ + j] += a[i * order_ + k] * b[k * order_ + j];
        copy(product_, a);
    }

    int64_t order_;
    double *matrix_, *result_, *square_, *product_;
};

}
