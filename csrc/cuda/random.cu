// Uniform and standard normal numbers, and dropout: one thread per Philox block of four elements.
#include "cuda/launch.cuh"
#include "cuda/philox.cuh"

namespace aigc::cuda::random {
namespace {

// Calls f(first, left) for every group of four elements that is this thread's; `left` counts the elements from it on.
template <class F>
__device__ void for_each_group(int64_t n, const F& f) {
    const int64_t stride = int64_t(gridDim.x) * blockDim.x;
    for (int64_t first = 4 * (int64_t(blockIdx.x) * blockDim.x + threadIdx.x); first < n; first += 4 * stride)
        f(first, n - first);
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
    for_each_group(n, [=](int64_t first, int64_t left) {
        compute_t<T> values[4];
        four_uniforms(key, first / 4, values);
        constexpr auto LARGEST = static_cast<compute_t<T>>(LARGEST_UNIFORM<T>);
        for (auto& value : values)
            value = value < LARGEST ? value : LARGEST;
        store_four(out + first, left, values);
    });
}

template <class T>
__global__ void normal_kernel(T* out, int64_t n, const uint64_t* key) {
    for_each_group(n, [=](int64_t first, int64_t left) {
        compute_t<T> values[4];
        four_normals(key, first / 4, values);
        store_four(out + first, left, values);
    });
}

// Multiplies by the mask, as PyTorch does, so that a dropped infinity or NaN becomes NaN.
template <class T>
__global__ void dropout_kernel(T* out, const T* in, int64_t n, const uint64_t* key, uint32_t keep_below,
                               compute_t<T> scale) {
    for_each_group(n, [=](int64_t first, int64_t left) {
        const Words words = philox(key, first / 4);
        compute_t<T> values[4];
        load_four(in + first, left, values);
        for (int i = 0; i < 4; ++i)
            values[i] *= words.at[i] < keep_below ? scale : compute_t<T>(0);
        store_four(out + first, left, values);
    });
}

void uniform(void* out, int64_t n, int64_t dtype, const uint64_t* key, void* stream) {
    with_type(dtype, [=](auto* type) {
        uniform_kernel<<<blocks_for((n + 3) / 4), THREADS, 0, static_cast<cudaStream_t>(stream)>>>(
            static_cast<decltype(type)>(out), n, key);
    });
    check_launch("uniform");
}

void normal(void* out, int64_t n, int64_t dtype, const uint64_t* key, void* stream) {
    with_type(dtype, [=](auto* type) {
        normal_kernel<<<blocks_for((n + 3) / 4), THREADS, 0, static_cast<cudaStream_t>(stream)>>>(
            static_cast<decltype(type)>(out), n, key);
    });
    check_launch("normal");
}

void dropout(void* out, const void* in, int64_t n, int64_t dtype, const uint64_t* key, int64_t keep_below, double scale,
             void* stream) {
    with_type(dtype, [=](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        dropout_kernel<<<blocks_for((n + 3) / 4), THREADS, 0, static_cast<cudaStream_t>(stream)>>>(
            static_cast<T*>(out), static_cast<const T*>(in), n, key, static_cast<uint32_t>(keep_below),
            static_cast<compute_t<T>>(scale));
    });
    check_launch("dropout");
}

}

AIGC_EXPORT(AIGC_KERNEL(uniform), AIGC_KERNEL(normal), AIGC_KERNEL(dropout))

}
