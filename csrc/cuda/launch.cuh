// What every kernel's launch shares: element types, the size of the grid, and the check of its error.
//
// A kernel takes device pointers, enqueues on `stream` (a cudaStream_t) and returns. `key` points to two integers on
// the device: a captured CUDA graph reads a new key at every replay.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "core/dtypes.h"
#include "core/kernel.h"

namespace aigc::cuda {

constexpr int THREADS = 256;

inline unsigned blocks_for(int64_t threads) {
    // More threads than this walk the rest in strides of the grid.
    constexpr int64_t MOST = 1 << 16;
    const int64_t blocks = (threads + THREADS - 1) / THREADS;
    return static_cast<unsigned>(blocks < MOST ? blocks : MOST);
}

inline void check_launch(const char* kernel) {
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess)
        throw std::runtime_error(std::string("CUDA kernel ") + kernel + ": " + cudaGetErrorString(error));
}

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

// Four neighbours, moved at once where the address allows it.
template <class T>
struct alignas(4 * sizeof(T)) Four {
    T at[4];
};

template <class T>
__device__ inline bool is_aligned(const T* p) {
    return reinterpret_cast<uintptr_t>(p) % sizeof(Four<T>) == 0;
}

template <class T>
__device__ inline void load_four(const T* p, int64_t left, compute_t<T> (&out)[4]) {
    if (left >= 4 && is_aligned(p)) {
        const Four<T> four = *reinterpret_cast<const Four<T>*>(p);
        for (int i = 0; i < 4; ++i)
            out[i] = static_cast<compute_t<T>>(four.at[i]);
        return;
    }
    for (int i = 0; i < 4; ++i)
        out[i] = i < left ? static_cast<compute_t<T>>(p[i]) : compute_t<T>(0);
}

template <class T>
__device__ inline void store_four(T* p, int64_t left, const compute_t<T> (&in)[4]) {
    if (left >= 4 && is_aligned(p)) {
        Four<T> four;
        for (int i = 0; i < 4; ++i)
            four.at[i] = static_cast<T>(in[i]);
        *reinterpret_cast<Four<T>*>(p) = four;
        return;
    }
    for (int i = 0; i < 4 && i < left; ++i)
        p[i] = static_cast<T>(in[i]);
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
