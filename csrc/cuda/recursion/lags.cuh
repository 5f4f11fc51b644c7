// Products of a series with the past of another: the gradient to a recursion's coefficients, of either sign.
#pragma once

#include "cuda/recursion/series.cuh"

namespace aigc::cuda::recursion {

// out[b][i] or out[b][t][i] from sign * u[b][t] y[b][t - 1 - i]; y[-1], y[-2] and so on are the state, zeros without
// one.
template <class T>
struct Lags {
    Rows<const T> u, y, state;
    T* out;
    int64_t count, length;
    int order;
    T sign;

    __device__ T past(int64_t b, int64_t t) const {
        if (t >= 0)
            return y.at(b)[t];
        return state.data && -t <= order ? state.at(b)[-1 - t] : T(0);
    }
};

constexpr int64_t SEGMENT = 4096; // steps that one block sums
constexpr int AT_ONCE = 8;        // lags of one block

struct Sums {
    double of_warp[THREADS / WARP][AT_ONCE];
};

// A block per series, segment and some lags: in T within a thread, in double between them.
template <class T>
__global__ void sum_kernel(Lags<T> lags, double* parts) {
    auto& sums = shared_memory<Sums>();
    const int64_t segments = ceil_div(lags.length, SEGMENT), groups = ceil_div(lags.order, AT_ONCE);
    const int lane = static_cast<int>(threadIdx.x) % WARP, warp = static_cast<int>(threadIdx.x) / WARP;
    for (int64_t unit = blockIdx.x; unit < lags.count * segments * groups; unit += gridDim.x) {
        const int64_t b = unit / (segments * groups), segment = unit / groups % segments;
        const int first = static_cast<int>(unit % groups) * AT_ONCE;
        const int64_t from = segment * SEGMENT, to = from + SEGMENT < lags.length ? from + SEGMENT : lags.length;
        T sum[AT_ONCE] = {};
        for (int64_t t = from + threadIdx.x; t < to; t += THREADS) {
            const T u = lags.u.at(b)[t];
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i)
                sum[i] += u * lags.past(b, t - 1 - first - i);
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            double total = sum[i];
            for (int offset = WARP / 2; offset > 0; offset /= 2)
                total += __shfl_down_sync(ALL_LANES, total, offset);
            if (lane == 0)
                sums.of_warp[warp][i] = total;
        }
        __syncthreads();
        const int i = static_cast<int>(threadIdx.x);
        if (i < AT_ONCE && first + i < lags.order) {
            double total = 0;
            for (int w = 0; w < THREADS / WARP; ++w)
                total += sums.of_warp[w][i];
            parts[(b * segments + segment) * lags.order + first + i] = total;
        }
    }
}

template <class T>
__global__ void sum_segments_kernel(Lags<T> lags, const double* parts) {
    const int64_t segments = ceil_div(lags.length, SEGMENT);
    for (int64_t index = thread_of_grid(); index < lags.count * lags.order; index += threads_of_grid()) {
        const int64_t b = index / lags.order, i = index % lags.order;
        double sum = 0;
        for (int64_t segment = 0; segment < segments; ++segment)
            sum += parts[(b * segments + segment) * lags.order + i];
        lags.out[index] = lags.sign * static_cast<T>(sum);
    }
}

// At every step; a block per series and some steps.
template <class T>
__global__ void multiply_kernel(Lags<T> lags) {
    constexpr int64_t STEPS = 64;
    const int64_t blocks = ceil_div(lags.length, STEPS);
    for (int64_t unit = blockIdx.x; unit < lags.count * blocks; unit += gridDim.x) {
        const int64_t b = unit / blocks, from = unit % blocks * STEPS;
        const int64_t steps = from + STEPS < lags.length ? STEPS : lags.length - from;
        const auto order = static_cast<unsigned>(lags.order), elements = static_cast<unsigned>(steps) * order;
        T* const out = lags.out + (b * lags.length + from) * order;
        for (unsigned at = threadIdx.x; at < elements; at += THREADS) {
            const unsigned step = at / order, lag = at - step * order;
            out[at] = lags.sign * lags.u.at(b)[from + step] * lags.past(b, from + step - 1 - lag);
        }
    }
}

}
