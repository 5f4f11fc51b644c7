// What kernels share: element types, groups of elements that move at once, and the size of the grid.
//
// A kernel's function takes device pointers, enqueues on a device's stream and returns. `key` points to two integers on
// the device: a captured CUDA graph reads a new key at every replay.
#pragma once

#include "core/dtypes.h"
#include "core/kernel.h"
#include "cuda/device.cuh"

namespace aigc::cuda {

constexpr int THREADS = 256, WARP = 32;

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t blocks_for(int64_t threads) {
    // More threads than this walk the rest in strides of the grid.
    constexpr int64_t MOST = 1 << 16;
    const int64_t blocks = ceil_div(threads, THREADS);
    return blocks < MOST ? blocks : MOST;
}

__device__ inline int64_t thread_of_grid() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t threads_of_grid() { return int64_t(gridDim.x) * blockDim.x; }

// The type that elements are computed in.
template <class T>
struct Compute {
    using type = float;
};
template <>
struct Compute<double> {
    using type = double;
};
template <class T>
using compute_t = typename Compute<T>::type;

// Elements that move by accesses of 16 bytes: whole blocks of Philox.
template <class T>
constexpr int GROUP = sizeof(T) < 4 ? 8 : 4;

// The group at `first`, of which the elements from `from` to `to` are meant.
struct Span {
    int64_t first, from, to;
};

template <class T>
__device__ inline bool moves_at_once(const T* base, const Span& span) {
    return span.first >= span.from && span.first + GROUP<T> <= span.to &&
           reinterpret_cast<uintptr_t>(base + span.first) % sizeof(uint4) == 0;
}

// Zeros where none are meant.
template <class T>
__device__ inline void load(const T* base, const Span& span, compute_t<T> (&out)[GROUP<T>]) {
    constexpr int EACH = sizeof(uint4) / sizeof(T);
    if (moves_at_once(base, span)) {
        const auto* const at = reinterpret_cast<const uint4*>(base + span.first);
#pragma unroll
        for (int part = 0; part < GROUP<T> / EACH; ++part) {
            const uint4 bits = at[part];
            T elements[EACH];
            memcpy(elements, &bits, sizeof bits);
#pragma unroll
            for (int i = 0; i < EACH; ++i)
                out[part * EACH + i] = static_cast<compute_t<T>>(elements[i]);
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < GROUP<T>; ++i) {
        const int64_t at = span.first + i;
        out[i] = at >= span.from && at < span.to ? static_cast<compute_t<T>>(base[at]) : compute_t<T>(0);
    }
}

template <class T>
__device__ inline void store(T* base, const Span& span, const compute_t<T> (&in)[GROUP<T>]) {
    constexpr int EACH = sizeof(uint4) / sizeof(T);
    if (moves_at_once(base, span)) {
        auto* const at = reinterpret_cast<uint4*>(base + span.first);
#pragma unroll
        for (int part = 0; part < GROUP<T> / EACH; ++part) {
            T elements[EACH];
#pragma unroll
            for (int i = 0; i < EACH; ++i)
                elements[i] = static_cast<T>(in[part * EACH + i]);
            uint4 bits;
            memcpy(&bits, elements, sizeof bits);
            at[part] = bits;
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < GROUP<T>; ++i) {
        const int64_t at = span.first + i;
        if (at >= span.from && at < span.to)
            base[at] = static_cast<T>(in[i]);
    }
}

// Calls f with a null pointer of the element type that `dtype` names.
template <class F>
void with_type(int64_t dtype, const F& f) {
    switch (dtype) {
    case FLOAT32:
        return f(static_cast<float*>(nullptr));
    case BFLOAT16:
        return f(static_cast<__nv_bfloat16*>(nullptr));
    case FLOAT16:
        return f(static_cast<__half*>(nullptr));
    case FLOAT64:
        return f(static_cast<double*>(nullptr));
    default:
        throw std::invalid_argument("unknown dtype code " + std::to_string(dtype));
    }
}

}
