// Vectors of float and of double alike, and squares of them that are turned over.
#pragma once

#include "core/kernel.h"
#include "core/simd.h"

namespace aigc::AIGC_LEVEL::recursion {

template <class T>
struct VectorOf {
    using type = vf;
};
template <>
struct VectorOf<double> {
    using type = vd;
};
template <class T>
using Vec = typename VectorOf<T>::type;
template <class T>
constexpr int WIDTH = AIGC_VECTOR_BYTES / sizeof(T);

// The first `count` elements at p, zeros after them; nothing beyond them is read.
static inline vf load_first_of(const float* p, int64_t count) { return load_part(p, count); }
static inline vd load_first_of(const double* p, int64_t count) {
    if (count >= WIDTH<double>)
        return load(p);
    vd x{};
    for (int64_t i = 0; i < count; ++i)
        x[i] = p[i];
    return x;
}

template <class V, int N, int D>
struct Folded {
    template <int... I>
    static V step(V x, Indices<I...>) {
        return x + __builtin_shufflevector(x, x, (I ^ D)...);
    }
    static V run(V x) {
        x = step(x, typename IndicesUpTo<N>::type());
        if constexpr (D > 1)
            return Folded<V, N, D / 2>::run(x);
        else
            return x;
    }
};
// The sum of a vector's elements.
template <class T, class V>
static inline T sum_of(V x) {
    return Folded<V, WIDTH<T>, WIDTH<T> / 2>::run(x)[0];
}

// Swaps the bit of weight D between an element's vector and its place in it, for all of a square's vectors.
template <int N, int D, class V, int... I>
static inline void swap_bit(V* rows, Indices<I...>) {
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
        if (i & D)
            continue;
        const V a = rows[i], b = rows[i + D];
        rows[i] = __builtin_shufflevector(a, b, ((I & D) ? N + I - D : I)...);
        rows[i + D] = __builtin_shufflevector(a, b, ((I & D) ? N + I : I + D)...);
    }
}
template <int N, int D, class V>
static inline void turn_over(V* rows) {
    swap_bit<N, D>(rows, typename IndicesUpTo<N>::type());
    if constexpr (D > 1)
        turn_over<N, D / 2>(rows);
}

}
