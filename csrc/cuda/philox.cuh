// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, SC 2011) and the transform of Box and Muller: the numbers of
// csrc/core/philox.h, to the rounding of the elementary functions.
#pragma once

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

// Of x in [-pi/4, pi/4]; the library's functions bring any angle there first, by way of local memory.
__device__ inline void sine_cosine(float x, float& sine, float& cosine) {
    const float square = x * x;
    const float s = (square * -1.9515295891e-4f + 8.3321608736e-3f) * square - 1.6666654611e-1f;
    const float c = (square * 2.443315711809948e-5f - 1.388731625493765e-3f) * square + 4.166664568298827e-2f;
    sine = s * (square * x) + x;
    cosine = c * (square * square) + (1.0f - square * 0.5f);
}
__device__ inline void sine_cosine(double x, double& sine, double& cosine) {
    const double square = x * x;
    double s = square * 1.58969099521155010221e-10 - 2.50507602534068634195e-8;
    s = s * square + 2.75573137070700676789e-6;
    s = s * square - 1.98412698298579493134e-4;
    s = s * square + 8.33333333332248946124e-3;
    s = s * square - 1.66666666666666324348e-1;
    double c = square * -1.13596475577881948265e-11 + 2.08757232129817482790e-9;
    c = c * square - 2.75573143513906633035e-7;
    c = c * square + 2.48015872894767294178e-5;
    c = c * square - 1.38888888888741095749e-3;
    c = c * square + 4.16666666666666019037e-2;
    sine = s * (square * x) + x;
    cosine = c * (square * square) + (1.0 - square * 0.5);
}

template <class C>
__device__ inline void box_muller(uint32_t radius_word, uint32_t angle_word, C& first, C& second) {
    const float uniform = static_cast<float>(radius_word >> 1) * 0x1p-31f + 0x1p-32f;
    const C radius = root(C(-2) * logarithm(C(uniform)));
    // The angle's quadrant comes from the word's bits, so that only the rest is rounded.
    const uint32_t turned = angle_word + 0x20000000u;
    const float rest = static_cast<float>(static_cast<int32_t>(angle_word << 2) >> 2);
    C sine, cosine;
    sine_cosine(C(rest) * C(1.46291807926715968105e-9), sine, cosine);
    const bool swapped = turned >> 30 & 1;
    first = radius * (swapped ? sine : cosine);
    second = radius * (swapped ? cosine : sine);
    if ((turned + 0x40000000u) >> 31)
        first = -first;
    if (turned >> 31)
        second = -second;
}

// Calls f(words, i) for every four elements i, i + 1, ... of the group at `first`.
template <int N, class F>
__device__ inline void for_each_four(const uint64_t* key, int64_t first, const F& f) {
#pragma unroll
    for (int i = 0; i < N; i += 4)
        f(philox(key, static_cast<uint64_t>(first + i) / 4), i);
}

template <class C, int N>
__device__ inline void normals(const uint64_t* key, int64_t first, C (&out)[N]) {
    for_each_four<N>(key, first, [&](const Words& words, int i) {
        box_muller(words.at[0], words.at[1], out[i], out[i + 1]);
        box_muller(words.at[2], words.at[3], out[i + 2], out[i + 3]);
    });
}

template <int N>
__device__ inline void uniforms(const uint64_t* key, int64_t first, float (&out)[N]) {
    for_each_four<N>(key, first, [&](const Words& words, int i) {
#pragma unroll
        for (int j = 0; j < 4; ++j)
            out[i + j] = static_cast<float>(words.at[j] >> 8) * 0x1p-24f;
    });
}
template <int N>
__device__ inline void uniforms(const uint64_t* key, int64_t first, double (&out)[N]) {
    for_each_four<N>(key, first, [&](const Words& high, int i) {
        const Words low = philox(key, static_cast<uint64_t>(first + i) / 4, 1);
#pragma unroll
        for (int j = 0; j < 4; ++j)
            out[i + j] = static_cast<double>(uint64_t(high.at[j]) << 21 | low.at[j] >> 11) * 0x1p-53;
    });
}

}
