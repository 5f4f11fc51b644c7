// Uniform and standard normal numbers, and dropout: one thread per group of elements.
#include "cuda/launch.cuh"
#include "cuda/philox.cuh"

namespace aigc::cuda::random {
namespace {

// Calls f for every group of elements that is this thread's.
template <int N, class F>
__device__ void for_each_group(int64_t n, const F& f) {
    for (int64_t first = N * thread_of_grid(); first < n; first += N * threads_of_grid())
        f(Span{first, 0, n});
}

// Rounding must not reach 1.
template <class T>
constexpr double LARGEST_UNIFORM = 1;
template <>
constexpr double LARGEST_UNIFORM<__nv_bfloat16> = 1 - 0x1p-8;
template <>
constexpr double LARGEST_UNIFORM<__half> = 1 - 0x1p-11;

template <class T>
__global__ void uniform_kernel(T* out, int64_t n, const uint64_t* key) {
    for_each_group<GROUP<T>>(n, [=](const Span& span) {
        compute_t<T> values[GROUP<T>];
        uniforms(key, span.first, values);
        constexpr auto LARGEST = static_cast<compute_t<T>>(LARGEST_UNIFORM<T>);
        for (auto& value : values)
            value = value < LARGEST ? value : LARGEST;
        store(out, span, values);
    });
}

template <class T>
__global__ void normal_kernel(T* out, int64_t n, const uint64_t* key) {
    for_each_group<GROUP<T>>(n, [=](const Span& span) {
        compute_t<T> values[GROUP<T>];
        normals(key, span.first, values);
        store(out, span, values);
    });
}

// Multiplies by the mask, as PyTorch does, so that a dropped infinity or NaN becomes NaN.
template <class T>
__global__ void dropout_kernel(T* out, const T* in, int64_t n, const uint64_t* key, uint32_t keep_below,
                               compute_t<T> scale) {
    for_each_group<GROUP<T>>(n, [=](const Span& span) {
        compute_t<T> values[GROUP<T>];
        load(in, span, values);
        for_each_four<GROUP<T>>(key, span.first, [&](const Words& words, int i) {
#pragma unroll
            for (int j = 0; j < 4; ++j)
                values[i + j] *= words.at[j] < keep_below ? scale : compute_t<T>(0);
        });
        store(out, span, values);
    });
}

template <class T>
Grid grid_of(int64_t n) {
    return {blocks_for(ceil_div(n, GROUP<T>)), THREADS};
}

void uniform(void* out, int64_t n, int64_t dtype, const uint64_t* key, int64_t device, void* stream) {
    with_type(dtype, [=](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        launch("uniform", &uniform_kernel<T>, {device, stream}, grid_of<T>(n), static_cast<T*>(out), n, key);
    });
}

void normal(void* out, int64_t n, int64_t dtype, const uint64_t* key, int64_t device, void* stream) {
    with_type(dtype, [=](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        launch("normal", &normal_kernel<T>, {device, stream}, grid_of<T>(n), static_cast<T*>(out), n, key);
    });
}

void dropout(void* out, const void* in, int64_t n, int64_t dtype, const uint64_t* key, int64_t keep_below, double scale,
             int64_t device, void* stream) {
    with_type(dtype, [=](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        launch("dropout", &dropout_kernel<T>, {device, stream}, grid_of<T>(n), static_cast<T*>(out),
               static_cast<const T*>(in), n, key, static_cast<uint32_t>(keep_below), scale);
    });
}

}

AIGC_EXPORT(AIGC_KERNEL(uniform), AIGC_KERNEL(normal), AIGC_KERNEL(dropout))

}
