// All-pole recursions y[t] = x[t] + sign * sum over i of c[i] y[t - i], their transposes, and the gradients to
// coefficients. The sign is 1 or -1.
#include "core/elements.h"
#include "cpu/recursion/lags.h"
#include "cpu/recursion/series.h"
#include "cpu/recursion/varying.h"

namespace aigc::AIGC_LEVEL::recursion {
namespace {

template <class T>
Matrix<const T> input(const void* data, int64_t row) {
    return {static_cast<const T*>(data), row};
}

template <class T>
void recur_series(const void* in, int64_t in_row, const void* coeffs, int64_t coeffs_row, const void* state,
                  int64_t state_row, void* out, int64_t count, int64_t length, int64_t order, int64_t sign,
                  bool reversed) {
    const Series<T> series{input<T>(in, in_row),
                           input<T>(coeffs, coeffs_row),
                           input<T>(state, state_row),
                           {static_cast<T*>(out), length},
                           count,
                           length,
                           order,
                           static_cast<T>(sign)};
    if (reversed)
        SeriesRecursion<T, true>(series).run();
    else
        SeriesRecursion<T, false>(series).run();
}

// `out` is contiguous; of `in` and `state` the rows are. `coeffs_row` 0 shares the coefficients. Reversed, the series
// run from the last step to the first.
void recursion(const void* in, int64_t in_row, const void* coeffs, int64_t coeffs_row, const void* state,
               int64_t state_row, void* out, int64_t dtype, int64_t count, int64_t length, int64_t order, int64_t sign,
               int64_t reversed) {
    (dtype == FLOAT64 ? &recur_series<double> : &recur_series<float>)(in, in_row, coeffs, coeffs_row, state, state_row,
                                                                      out, count, length, order, sign, reversed != 0);
}

template <class T, int SIGN>
void run(const VaryingSeries<T>& series, bool transposed) {
    if (transposed)
        VaryingRecursion<T, SIGN>(series).run_transposed();
    else
        VaryingRecursion<T, SIGN>(series).run();
}

template <class T>
void recur_varying(const void* in, int64_t in_row, const void* coeffs, int64_t coeffs_series, int64_t coeffs_step,
                   const void* state, int64_t state_row, void* out, int64_t count, int64_t length, int64_t order,
                   int64_t sign, bool transposed) {
    const VaryingSeries<T> series{input<T>(in, in_row),
                                  input<T>(state, state_row),
                                  {static_cast<const T*>(coeffs), coeffs_series, coeffs_step},
                                  {static_cast<T*>(out), length},
                                  count,
                                  length,
                                  order};
    (sign < 0 ? &run<T, -1> : &run<T, 1>)(series, transposed);
}

void recursion_varying(const void* in, int64_t in_row, const void* coeffs, int64_t coeffs_series, int64_t coeffs_step,
                       const void* state, int64_t state_row, void* out, int64_t dtype, int64_t count, int64_t length,
                       int64_t order, int64_t sign, int64_t transposed) {
    (dtype == FLOAT64 ? &recur_varying<double> : &recur_varying<float>)(in, in_row, coeffs, coeffs_series, coeffs_step,
                                                                        state, state_row, out, count, length, order,
                                                                        sign, transposed != 0);
}

template <class T>
void find_lags(const void* u, int64_t u_row, const void* y, int64_t y_row, const void* state, int64_t state_row,
               void* out, int64_t count, int64_t length, int64_t order, int64_t sign, bool varying) {
    const auto of_u = input<T>(u, u_row), of_y = input<T>(y, y_row), of_state = input<T>(state, state_row);
    const Lags<T> lags(of_u, of_y, of_state, static_cast<T*>(out), count, length, order, static_cast<T>(sign));
    if (varying)
        lags.multiply();
    else
        lags.sum();
}

void recursion_lags(const void* u, int64_t u_row, const void* y, int64_t y_row, const void* state, int64_t state_row,
                    void* out, int64_t dtype, int64_t count, int64_t length, int64_t order, int64_t sign,
                    int64_t varying) {
    (dtype == FLOAT64 ? &find_lags<double> : &find_lags<float>)(u, u_row, y, y_row, state, state_row, out, count,
                                                                length, order, sign, varying != 0);
}

}

AIGC_EXPORT(AIGC_KERNEL(recursion), AIGC_KERNEL(recursion_varying), AIGC_KERNEL(recursion_lags))

}
