// Means and variances: of blocks that stay in the first-level cache by two passes in float, put together in double.
#pragma once

#include "core/activations.h"
#include "core/arena.h"
#include "core/integers.h"
#include "core/parallel.h"

namespace aigc::AIGC_LEVEL::norm {
namespace {

constexpr int64_t BLOCK = 4096;             // elements
constexpr int64_t LEAST_ELEMENTS = 1 << 15; // worth another thread
constexpr int CHAINS = 4;                   // sums at a time, which hide an addition's latency

// Zeros beyond the first `count` lanes.
inline vf first_lanes(vf x, int64_t count) {
    vi lanes;
    for (int i = 0; i < VF; ++i)
        lanes[i] = i;
    return count >= VF ? x : vf(vi(x) & (lanes < vi{} + static_cast<int32_t>(count)));
}

// Sums of N kinds over n elements: add(first element, count, sums).
template <int N>
struct Sums {
    vf of[N] = {};
};
template <int N, class F>
inline void sum_over(int64_t n, double* totals, const F& add) {
    Sums<N> chains[CHAINS];
    int64_t i = 0;
    for (; i + CHAINS * VF <= n; i += CHAINS * VF)
#pragma GCC unroll 4
        for (int c = 0; c < CHAINS; ++c)
            add(i + c * VF, int64_t(VF), chains[c]);
    for (; i < n; i += VF)
        add(i, least<int64_t>(VF, n - i), chains[0]);
    for (int k = 0; k < N; ++k)
        totals[k] += total((chains[0].of[k] + chains[1].of[k]) + (chains[2].of[k] + chains[3].of[k]));
}

struct Moments {
    double count = 0, mean = 0, squares = 0; // of what lies off the mean

    void add(const Moments& other) {
        const double both = count + other.count, apart = other.mean - mean;
        mean += apart * (other.count / both);
        squares += other.squares + apart * apart * (count * other.count / both);
        count = both;
    }
};

// Of a block: off a mean in float, which need not be exact.
template <class T>
inline Moments moments_of_block(const T* x, int64_t n) {
    double sum = 0, off[2] = {};
    sum_over<1>(n, &sum,
                [&](int64_t i, int64_t width, Sums<1>& sums) AIGC_INLINE { sums.of[0] += load_up_to(x + i, width); });
    const auto count = static_cast<double>(n);
    const auto pivot = static_cast<float>(sum / count);
    sum_over<2>(n, off, [&](int64_t i, int64_t width, Sums<2>& sums) AIGC_INLINE {
        vf d = load_up_to(x + i, width) - pivot;
        if (width < VF)
            d = first_lanes(d, width);
        sums.of[0] += d;
        sums.of[1] += d * d;
    });
    return {count, pivot + off[0] / count, off[1] - off[0] * off[0] / count};
}

// Of neighbouring elements, on more threads where there are many; the same on any number of them.
template <class T>
Moments moments_of(const T* x, int64_t n) {
    if (n <= BLOCK)
        return moments_of_block(x, n);
    Scope scope;
    const int64_t blocks = ceil_div(n, BLOCK);
    auto* const of_blocks = scope.take<Moments>(blocks);
    parallel_for(0, blocks, LEAST_ELEMENTS / BLOCK, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b)
            of_blocks[b] = moments_of_block(x + b * BLOCK, least(BLOCK, n - b * BLOCK));
    });
    Moments found;
    for (int64_t b = 0; b < blocks; ++b)
        found.add(of_blocks[b]);
    return found;
}

// What normalizes.
struct Scale {
    float mean, inverse; // one over the standard deviation

    Scale(const Moments& moments, double epsilon)
        : mean(static_cast<float>(moments.mean)),
          inverse(static_cast<float>(1 / __builtin_sqrt(moments.squares / moments.count + epsilon))) {}
    vf operator()(vf x) const { return (x - mean) * inverse; }
};

struct Ending {
    int64_t activation;
    float slope;

    bool is_there() const { return activation != NONE; }
    void apply(float* x, int64_t n) const {
        if (is_there())
            activate(activation, slope, x, n);
    }
    void derive(float* x, int64_t n) const { differentiate(activation, slope, x, n); }
};

template <class T>
void round_to(T* out, const float* in, int64_t n) {
    for_each_vector(n, [&](int64_t i, int64_t width)
                           AIGC_INLINE { store_up_to(out + i, load_up_to(in + i, width), width); });
}

// Floats that stand for `count` results until they are rounded to them: the results themselves where they are floats.
inline float* staged(Scope&, float* out, int64_t) { return out; }
template <class T>
float* staged(Scope& scope, T*, int64_t count) {
    return scope.take<float>(count);
}

// Writes some results, ended: write(results, which may be floats).
inline void write_block(float* out, int64_t n, const Ending& ending, const auto& write) {
    write(out);
    ending.apply(out, n);
}
template <class T>
void write_block(T* out, int64_t n, const Ending& ending, const auto& write) {
    if (!ending.is_there())
        return write(out);
    Scope scope;
    alignas(64) float block[BLOCK];
    float* const z = n <= BLOCK ? block : scope.take<float>(n);
    write(z);
    ending.apply(z, n);
    round_to(out, z, n);
}

// Calls run(i) for parts that are computed apart: a thread each where they are many, else one after the other, each on
// all threads.
template <class F>
void for_each_apart(int64_t count, int64_t elements, const F& run) {
    constexpr int64_t SMALL = 1 << 16;
    if (elements > SMALL && count < 2 * thread_count()) {
        for (int64_t i = 0; i < count; ++i)
            run(i);
        return;
    }
    parallel_for(0, count, most<int64_t>(1, LEAST_ELEMENTS / elements), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            run(i);
    });
}

// A tensor's numbers as floats; where there is none, so many of one value.
inline const float* floats_of(Scope& scope, const Tensor* tensor, int64_t count, float otherwise) {
    if (tensor && tensor->dtype() == FLOAT32 && tensor->is_contiguous())
        return static_cast<const float*>(tensor->data());
    auto* const floats = scope.take<float>(count);
    if (!tensor)
        for (int64_t i = 0; i < count; ++i)
            floats[i] = otherwise;
    else
        of_type(tensor->dtype(), [&]<class T>() {
            const auto* const numbers = static_cast<const T*>(tensor->data());
            for_each_vector(count, [&](int64_t i, int64_t width)
                                       AIGC_INLINE { store_up_to(floats + i, load_up_to(numbers + i, width), width); });
        });
    return floats;
}

}
}
