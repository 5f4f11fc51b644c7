// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, SC 2011) and the transform of Box and Muller: the numbers of
// csrc/core/philox.h, to the rounding of the elementary functions.
#pragma once

#include <cstdint>

#include "cuda/launch.cuh"

namespace aigc::cuda {

struct Words {
    uint32_t at[4];
};

// The words of elements 4 * block .. 4 * block + 3. `stream` names an independent set for the same key.
__device__ inline Words philox(const uint64_t* key, uint64_t block, uint32_t stream = 0) {
    const uint64_t counter = key[1] + block;
    uint32_t c0 = uint32_t(counter), c1 = uint32_t(counter >> 32), c2 = stream, c3 = 0;
    uint32_t key0 = uint32_t(key[0]), key1 = uint32_t(key[0] >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint32_t high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        const uint32_t high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ key0;
        c1 = low1;
        c2 = high0 ^ c3 ^ key1;
        c3 = low0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

__device__ inline float logarithm(float x) { return logf(x); }
__device__ inline double logarithm(double x) { return log(x); }
__device__ inline float exponential(float x) { return expf(x); }
__device__ inline double exponential(double x) { return exp(x); }
__device__ inline float root(float x) { return sqrtf(x); }
__device__ inline double root(double x) { return sqrt(x); }
__device__ inline void sine_cosine(float x, float* sine, float* cosine) { sincosf(x, sine, cosine); }
__device__ inline void sine_cosine(double x, double* sine, double* cosine) { sincos(x, sine, cosine); }

template <class C>
__device__ inline void box_muller(uint32_t radius_word, uint32_t angle_word, C& first, C& second) {
    const float uniform = static_cast<float>(radius_word >> 1) * 0x1p-31f + 0x1p-32f;
    const C radius = root(C(-2) * logarithm(C(uniform)));
    // The angle's quadrant comes from the word's bits, so that only the rest is rounded.
    const uint32_t turned = angle_word + 0x20000000u;
    const float rest = static_cast<float>(static_cast<int32_t>(angle_word << 2) >> 2);
    C sine, cosine;
    sine_cosine(C(rest) * C(1.46291807926715968105e-9), &sine, &cosine);
    const bool swapped = turned >> 30 & 1;
    first = radius * (swapped ? sine : cosine);
    second = radius * (swapped ? cosine : sine);
    if ((turned + 0x40000000u) >> 31)
        first = -first;
    if (turned >> 31)
        second = -second;
}

template <class C>
__device__ inline void four_normals(const uint64_t* key, uint64_t block, C (&out)[4]) {
    const Words words = philox(key, block);
    box_muller(words.at[0], words.at[1], out[0], out[1]);
    box_muller(words.at[2], words.at[3], out[2], out[3]);
}

__device__ inline void four_uniforms(const uint64_t* key, uint64_t block, float (&out)[4]) {
    const Words words = philox(key, block);
    for (int i = 0; i < 4; ++i)
        out[i] = static_cast<float>(words.at[i] >> 8) * 0x1p-24f;
}
__device__ inline void four_uniforms(const uint64_t* key, uint64_t block, double (&out)[4]) {
    const Words high = philox(key, block), low = philox(key, block, 1);
    for (int i = 0; i < 4; ++i)
        out[i] = static_cast<double>(uint64_t(high.at[i]) << 21 | low.at[i] >> 11) * 0x1p-53;
}

}
