// All-pole recursions y[t] = x[t] + sign * sum over i of c[i] y[t - i], their transposes, and the gradients to
// coefficients. The sign is 1 or -1.
#include "cuda/recursion/chain.cuh"
#include "cuda/recursion/lags.cuh"
#include "cuda/recursion/series.cuh"

namespace aigc::cuda::recursion {
namespace {

// How a call is cut, which depends on its sizes alone, and the memory between the parts.
struct Plan {
    int64_t parts, part, matrices, most;

    int64_t elements(int64_t count) const { return parts == 1 ? 0 : count * parts * most + matrices * most * most; }
};

int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

Plan plan_of(int64_t count, int64_t length, int64_t order, bool shared, bool varying, int64_t dtype) {
    // As many threads as keep a card busy; parts as long as the chain of them, where the series are few.
    constexpr int64_t MOST_THREADS = 1 << 16, SHORTEST = 256, STEPS_PER_PART = 16;
    const int64_t largest = dtype == FLOAT64 ? LARGEST_ORDER<double> : LARGEST_ORDER<float>;
    const int64_t most = order <= 4 ? 4 : order <= 16 ? 16 : order <= 32 ? 32 : 64;
    int64_t part = round_up(order * 8 > SHORTEST ? order * 8 : SHORTEST, WARP);
    while (part * part < STEPS_PER_PART * length)
        part += WARP;
    const int64_t parts = ceil_div(length, part), lanes = MOST_THREADS / (count > 0 ? count : 1);
    if (parts < 2 || lanes < 2 || order > largest)
        return {1, length, 0, most};
    if (parts > lanes)
        part = round_up(ceil_div(length, lanes), WARP);
    const int64_t cut = ceil_div(length, part);
    return {cut, part, varying ? count * (cut - 1) : shared ? 1 : count, most};
}

// Whether series that would be cut are chained instead.
bool is_chained(const Plan& plan, int64_t order) { return order == 1 && plan.parts > 1; }

int64_t chain_tiles(int64_t length, int64_t dtype) {
    return ceil_div(length, dtype == FLOAT64 ? CHAIN_TILE<double> : CHAIN_TILE<float>);
}

// Bytes that `recursion` needs as workspace.
int64_t recursion_workspace(int64_t count, int64_t length, int64_t order, int64_t shared, int64_t varying,
                            int64_t dtype) {
    const Plan plan = plan_of(count, length, order, shared != 0, varying != 0, dtype);
    if (is_chained(plan, order)) {
        const int64_t tiles = count * chain_tiles(length, dtype);
        return round_up(tiles * 3 * ELEMENT_BYTES[dtype] + (tiles + 1) * int64_t(sizeof(uint32_t)), sizeof(int64_t));
    }
    return plan.parts == 1 ? 0 : count * int64_t(sizeof(int64_t)) + plan.elements(count) * ELEMENT_BYTES[dtype];
}

template <class T, class F, int MOST>
void run_filter(const Series<T>& s, const Plan& plan, const Between<T>& between, const Queue& queue) {
    const auto lanes = [](int64_t threads) { return Grid{ceil_div(threads, BLOCK), BLOCK, sizeof(Tiles<T>)}; };
    if (plan.parts > 1) {
        launch("recursion's ends", &ends_kernel<T, F, MOST>, queue, lanes(s.count * (s.parts - 1)), s, between);
        launch("recursion's matrices", &matrices_kernel<T, F, MOST>, queue,
               {ceil_div(plan.matrices * s.order, BLOCK), BLOCK}, s, between, plan.matrices);
        launch("recursion's carry", &carry_kernel<T, F, MOST>, queue,
               {s.count, unsigned(MOST), sizeof(Carried<T, MOST>)}, s, between);
    }
    launch("recursion", &run_kernel<T, F, MOST>, queue, lanes(s.count * s.parts), s, between);
}

template <class T, int MOST>
void run_kind(const Series<T>& s, const Plan& plan, const Between<T>& between, const Queue& queue) {
    if (s.coeffs_step == 0)
        run_filter<T, Constant<T, MOST>, MOST>(s, plan, between, queue);
    else if (s.reversed)
        run_filter<T, Transposed<T, MOST>, MOST>(s, plan, between, queue);
    else
        run_filter<T, Varying<T, MOST>, MOST>(s, plan, between, queue);
}

template <class T>
void run_chain(const Series<T>& s, void* workspace, const Queue& queue) {
    const int64_t tiles = s.count * ceil_div(s.length, CHAIN_TILE<T>);
    auto* const steps = static_cast<Steps<T>*>(workspace);
    auto* const ends = reinterpret_cast<T*>(steps + tiles);
    auto* const words = reinterpret_cast<uint32_t*>(ends + tiles);
    launch("recursion's chain, cleared", &clear_kernel, queue, {blocks_for(tiles + 1), THREADS}, words, tiles + 1);
    launch("recursion's chain", s.coeffs_step == 0 ? &chain_kernel<T, false> : &chain_kernel<T, true>, queue,
           {tiles, THREADS, sizeof(ChainShared<T>)}, s, Chain<T>{steps, ends, words + 1, words});
}

template <class T>
void run(const Series<T>& series, const Plan& plan, void* workspace, const Queue& queue) {
    if (is_chained(plan, series.order))
        return run_chain(series, workspace, queue);
    auto* const whole = static_cast<int64_t*>(workspace);
    auto* const memory = reinterpret_cast<T*>(whole + series.count);
    const Between<T> between{memory, memory + series.count * plan.parts * plan.most, whole};
    if (series.order > LARGEST_ORDER<T>)
        launch("recursion of any order", &any_order_kernel<T>, queue, {blocks_for(series.count * WARP), THREADS},
               series);
    else if (plan.most == 4)
        run_kind<T, 4>(series, plan, between, queue);
    else if (plan.most == 16)
        run_kind<T, 16>(series, plan, between, queue);
    else if (plan.most == 32)
        run_kind<T, 32>(series, plan, between, queue);
    else if constexpr (LARGEST_ORDER<T> == 64)
        run_kind<T, 64>(series, plan, between, queue);
}

template <class F>
void with_computing_type(int64_t dtype, const F& f) {
    if (dtype == FLOAT64)
        f(static_cast<double*>(nullptr));
    else
        f(static_cast<float*>(nullptr));
}

// `out` is contiguous; of `in`, `state` and every step's coefficients the rows are. `coeffs_row` 0 shares the
// coefficients, `coeffs_step` 0 says that they are those of all steps. Reversed, the series run from the last step to
// the first.
void recursion(const void* in, int64_t in_row, const void* coeffs, int64_t coeffs_row, int64_t coeffs_step,
               const void* state, int64_t state_row, void* out, int64_t dtype, int64_t count, int64_t length,
               int64_t order, int64_t sign, int64_t reversed, void* workspace, int64_t device, void* stream) {
    const Plan plan = plan_of(count, length, order, coeffs_row == 0, coeffs_step != 0, dtype);
    with_computing_type(dtype, [=](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const Series<T> series{{static_cast<const T*>(in), in_row},
                               {static_cast<const T*>(state), state_row},
                               static_cast<const T*>(coeffs),
                               coeffs_row,
                               coeffs_step,
                               {static_cast<T*>(out), length},
                               count,
                               length,
                               static_cast<int>(order),
                               static_cast<T>(sign),
                               reversed != 0,
                               plan.parts,
                               plan.part};
        run(series, plan, workspace, {device, stream});
    });
}

// Number of doubles that `recursion_lags` needs as workspace for sums.
int64_t recursion_lags_workspace(int64_t count, int64_t length, int64_t order) {
    return count * ceil_div(length, SEGMENT) * order;
}

void recursion_lags(const void* u, int64_t u_row, const void* y, int64_t y_row, const void* state, int64_t state_row,
                    void* out, int64_t dtype, int64_t count, int64_t length, int64_t order, int64_t sign,
                    int64_t varying, double* workspace, int64_t device, void* stream) {
    const Queue queue{device, stream};
    with_computing_type(dtype, [=](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const Lags<T> lags{{static_cast<const T*>(u), u_row},
                           {static_cast<const T*>(y), y_row},
                           {static_cast<const T*>(state), state_row},
                           static_cast<T*>(out),
                           count,
                           length,
                           static_cast<int>(order),
                           static_cast<T>(sign)};
        const auto blocks = [](int64_t units) {
            constexpr int64_t MOST = 1 << 16;
            return units < MOST ? units : MOST;
        };
        if (varying) {
            launch("recursion_lags", &multiply_kernel<T>, queue, {blocks(count * ceil_div(length, 64)), THREADS}, lags);
            return;
        }
        const int64_t units = count * ceil_div(length, SEGMENT) * ceil_div(order, AT_ONCE);
        launch("recursion_lags", &sum_kernel<T>, queue, {blocks(units), THREADS, sizeof(Sums)}, lags, workspace);
        launch("recursion_lags' sum", &sum_segments_kernel<T>, queue, {blocks_for(count * order), THREADS}, lags,
               workspace);
    });
}

}

AIGC_EXPORT(AIGC_KERNEL(recursion_workspace), AIGC_KERNEL(recursion), AIGC_KERNEL(recursion_lags_workspace),
            AIGC_KERNEL(recursion_lags))

}
