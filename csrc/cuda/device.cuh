// The device as kernels see it: launches, shared memory, and all that CUDA C++ has inline assembly for.
//
// nvcc compiles it for cards, any C++ compiler with AIGC_CUDA_HOST over cuda/emulate, where tests run the same kernels.
#pragma once

#ifdef AIGC_CUDA_HOST
#include "cuda/emulate/device.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace aigc::cuda {

// Where a kernel's work goes: the device's ordinal and a cudaStream_t.
struct Queue {
    int64_t device;
    void* stream;
};

struct Grid {
    int64_t blocks;
    unsigned threads = 256;
    size_t shared = 0;     // bytes
    bool together = false; // whether all blocks are under way at once, as those must be that wait for each other
};

// What a device has: multiprocessors, and bytes of shared memory for a block.
struct Device {
    int64_t processors;
    size_t shared;
};

constexpr int64_t MOST_BLOCKS = (int64_t(1) << 31) - 1;
constexpr unsigned ALL_LANES = 0xffffffffu;

#ifdef AIGC_CUDA_HOST

// The dynamic shared memory of this block.
template <class Layout>
inline Layout& shared_memory() {
    return *static_cast<Layout*>(emulate::shared_memory());
}

template <class... P>
void start(const char* name, void (*kernel)(P...), const Queue& queue, const Grid& grid, P... arguments) {
    if (grid.together && grid.blocks > emulate::resident_blocks())
        throw std::runtime_error(std::string("CUDA kernel ") + name + ": more blocks than can be under way at once");
    const auto thread = [&] { kernel(arguments...); };
    emulate::launch(
        {name, grid.blocks, grid.threads, grid.shared, queue.device, queue.stream},
        [](const void* of) { (*static_cast<decltype(&thread)>(of))(); }, &thread);
}

inline void probe_device(const void*, const Queue&) {}

// As many multiprocessors as blocks are under way at a time, with as much shared memory as a card of 9.0 has.
inline Device device_of(const Queue&) { return {emulate::resident_blocks(), 227 << 10}; }

// In a loop that waits for another block.
inline void wait_a_moment() { emulate::let_others_run(); }

// Words by which blocks tell each other that what they wrote before may be read.
inline uint32_t load_acquire(const uint32_t* p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
inline void store_release(uint32_t* p, uint32_t value) { __atomic_store_n(p, value, __ATOMIC_RELEASE); }

// Copies 16 bytes to shared memory; they are there for this thread once it has waited for their group.
inline void copy_async(void* to, const void* from) { emulate::copy_async(to, from); }
inline void commit_copies() { emulate::commit_copies(); }
// Until at most N groups of this thread are under way.
template <int N>
inline void wait_for_copies() {
    emulate::wait_for_copies(N);
}

// D = A B + C of 16x16 and 16x8 by a warp, each lane with its fragments as PTX's mma.m16n8k16 lays them out.
inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const __nv_bfloat16*) {
    emulate::multiply_add(d, a, b, [](uint16_t bits) { return float(__nv_bfloat16::of(bits)); });
}
inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const __half*) {
    emulate::multiply_add(d, a, b, [](uint16_t bits) { return float(__half::of(bits)); });
}

#else

template <class Layout>
__device__ inline Layout& shared_memory() {
    extern __shared__ __align__(16) unsigned char memory[];
    return *reinterpret_cast<Layout*>(memory);
}

inline void check(cudaError_t error, const char* kernel) {
    if (error == cudaSuccess)
        return;
    cudaGetLastError(); // or the next launch would report it again
    throw std::runtime_error(std::string("CUDA kernel ") + kernel + ": " + cudaGetErrorString(error));
}

// Makes a device the current one, and the one before it again.
class OnDevice {
  public:
    explicit OnDevice(const Queue& queue) {
        check(cudaGetDevice(&before_), "on its device");
        if (before_ != queue.device)
            check(cudaSetDevice(static_cast<int>(queue.device)), "on its device");
        else
            before_ = -1;
    }
    ~OnDevice() {
        if (before_ >= 0)
            cudaSetDevice(before_);
    }
    OnDevice(const OnDevice&) = delete;

  private:
    int before_ = -1;
};

template <class... P>
void start(const char* name, void (*kernel)(P...), const Queue& queue, const Grid& grid, P... arguments) {
    constexpr size_t WITHOUT_ASKING = 48 << 10;
    const OnDevice current(queue);
    if (grid.shared > WITHOUT_ASKING)
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(grid.shared)),
              name);
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
    config.blockDim = dim3(grid.threads);
    config.dynamicSmemBytes = grid.shared;
    config.stream = static_cast<cudaStream_t>(queue.stream);
    cudaLaunchAttribute cooperative{};
    cooperative.id = cudaLaunchAttributeCooperative;
    cooperative.val.cooperative = 1;
    config.attrs = &cooperative;
    config.numAttrs = grid.together ? 1 : 0;
    check(cudaLaunchKernelEx(&config, kernel, arguments...), name);
}

inline void probe_device(const void* kernel, const Queue& queue) {
    const OnDevice current(queue);
    cudaFuncAttributes found;
    check(cudaFuncGetAttributes(&found, kernel), "probe");
}

inline Device device_of(const Queue& queue) {
    const auto ask = [&](cudaDeviceAttr attribute) {
        int found = 0;
        check(cudaDeviceGetAttribute(&found, attribute, static_cast<int>(queue.device)), "on its device");
        return found;
    };
    return {ask(cudaDevAttrMultiProcessorCount), static_cast<size_t>(ask(cudaDevAttrMaxSharedMemoryPerBlockOptin))};
}

__device__ inline void wait_a_moment() { __nanosleep(20); }

__device__ inline uint32_t load_acquire(const uint32_t* p) {
    uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
    return value;
}
__device__ inline void store_release(uint32_t* p, uint32_t value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}

__device__ inline void copy_async(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to))),
                 "l"(from)
                 : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ inline void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#define AIGC_MULTIPLY_ADD(type, suffix)                                                                                \
    __device__ inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const type*) {  \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." suffix "." suffix ".f32 "                                         \
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                          \
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                           \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                       \
    }
AIGC_MULTIPLY_ADD(__nv_bfloat16, "bf16")
AIGC_MULTIPLY_ADD(__half, "f16")
#undef AIGC_MULTIPLY_ADD

#endif

// Runs a kernel, or throws with its name.
template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), const Queue& queue, const Grid& grid, A... arguments) {
    if (grid.blocks > MOST_BLOCKS)
        throw std::invalid_argument(std::string("CUDA kernel ") + name + ": " + std::to_string(grid.blocks) +
                                    " blocks, expected at most " + std::to_string(MOST_BLOCKS));
    if (grid.blocks > 0)
        start(name, kernel, queue, grid, static_cast<P>(arguments)...);
}

}
