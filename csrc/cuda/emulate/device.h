// What CUDA C++ gives a kernel, on the host: threads are fibers of one thread of the process, which the scheduler
// (emulate.cpp) runs in an order drawn from a seed.
//
// Shared memory is NaN until it is written, and as large as the launch says, to the byte; what a thread copies
// asynchronously is NaN until it waits. Barriers and __syncwarp order memory for ThreadSanitizer; shuffles do not.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};

struct __half {
    _Float16 value;
    __half() = default;
    explicit __half(float x) : value(static_cast<_Float16>(x)) {}
    operator float() const { return static_cast<float>(value); }
    static __half of(uint16_t bits) {
        __half x;
        std::memcpy(&x, &bits, 2);
        return x;
    }
};

struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    explicit __nv_bfloat16(float x) {
        uint32_t wide;
        std::memcpy(&wide, &x, 4);
        bits = x == x ? static_cast<uint16_t>((wide + 0x7fff + (wide >> 16 & 1)) >> 16) : uint16_t(0x7fff);
    }
    operator float() const {
        const uint32_t wide = uint32_t(bits) << 16;
        float x;
        std::memcpy(&x, &wide, 4);
        return x;
    }
    static __nv_bfloat16 of(uint16_t bits) {
        __nv_bfloat16 x;
        x.bits = bits;
        return x;
    }
};

namespace aigc::emulate {

struct Index {
    unsigned x, y, z;
};

struct Copy {
    void* to;
    unsigned char bytes[16];
};

// A CUDA thread.
struct Thread {
    Index thread, block, threads, blocks;
    void* shared;
    std::vector<std::vector<Copy>> copies; // in groups, of which the last is open
};

struct Launch {
    const char* name;
    int64_t blocks;
    unsigned threads;
    size_t shared;
    int64_t device;
    void* stream;
};

// The order of all that follows: of blocks, of warps and of lanes, and how many blocks are under way at a time.
void set_order(uint64_t seed, int64_t resident_blocks);
int64_t resident_blocks();

// Runs `body` once per thread. Throws std::runtime_error where threads wait for what never comes.
void launch(const Launch& what, void (*body)(const void*), const void* of);

// The last one's; for tests.
Launch last_launch();

extern Thread* running;
inline void* shared_memory() { return running->shared; }

// Ends the launch with an error; does not return.
[[noreturn]] void fail(const char* why);

void let_others_run();
void wait_for_block();
void wait_for_warp(unsigned mask);
// Of each lane of the mask, its bytes to `out` from those of `source_lane`.
void shuffle(unsigned mask, const void* in, void* out, int bytes, int source_lane);
unsigned vote(unsigned mask, bool predicate);
void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float (*to_float)(uint16_t));

inline void copy_async(void* to, const void* from) {
    if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0)
        fail("an asynchronous copy that is not aligned to 16 bytes");
    if (running->copies.empty())
        running->copies.emplace_back();
    Copy copy{to, {}};
    std::memcpy(copy.bytes, from, sizeof copy.bytes);
    running->copies.back().push_back(copy);
    std::memset(to, 0xff, sizeof copy.bytes);
}
inline void commit_copies() {
    if (running->copies.empty())
        running->copies.emplace_back();
    running->copies.emplace_back();
}
inline void wait_for_copies(size_t groups) {
    auto& copies = running->copies;
    while (copies.size() > groups + 1) {
        for (const Copy& copy : copies.front())
            std::memcpy(copy.to, copy.bytes, sizeof copy.bytes);
        copies.erase(copies.begin());
    }
}

template <class T>
T from_lane(unsigned mask, T value, int lane) {
    T found;
    shuffle(mask, &value, &found, sizeof value, lane);
    return found;
}
inline int lane() { return static_cast<int>(running->thread.x % 32); }

}

#define threadIdx (::aigc::emulate::running->thread)
#define blockIdx (::aigc::emulate::running->block)
#define blockDim (::aigc::emulate::running->threads)
#define gridDim (::aigc::emulate::running->blocks)

inline void __syncthreads() { aigc::emulate::wait_for_block(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { aigc::emulate::wait_for_warp(mask); }
inline unsigned __ballot_sync(unsigned mask, int predicate) { return aigc::emulate::vote(mask, predicate != 0); }
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

// Lanes beyond the ends of a section of `width` lanes keep their own.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    const int lane = aigc::emulate::lane();
    return aigc::emulate::from_lane(mask, value, lane / width * width + source % width);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
    const int lane = aigc::emulate::lane(), from = lane + static_cast<int>(by);
    return aigc::emulate::from_lane(mask, value, from / width == lane / width ? from : lane);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
    const int lane = aigc::emulate::lane(), from = lane - static_cast<int>(by);
    return aigc::emulate::from_lane(mask, value, from >= lane / width * width ? from : lane);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32) {
    const int lane = aigc::emulate::lane(), from = lane ^ with;
    return aigc::emulate::from_lane(mask, value, from / width <= lane / width ? from : lane);
}

template <class T>
T atomicAdd(T* p, T value) {
    T before, after;
    __atomic_load(p, &before, __ATOMIC_RELAXED);
    do
        after = before + value;
    while (!__atomic_compare_exchange(p, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return before;
}
template <class T>
T atomicExch(T* p, T value) {
    return __atomic_exchange_n(p, value, __ATOMIC_RELAXED);
}
template <class T>
T atomicCAS(T* p, T expected, T value) {
    __atomic_compare_exchange_n(p, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}

inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t(a) * b >> 32); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
