// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) as a pure
// function of (key, position): element i of a draw is word i % 4 of the block whose counter is offset + i / 4.
#pragma once

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "core/kernel.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "core/simd_math.h"

namespace aigc::AIGC_LEVEL {

typedef uint64_t vq __attribute__((vector_size(AIGC_VECTOR_BYTES)));
constexpr int VQ = AIGC_VECTOR_BYTES / 8;

struct Key {
    uint64_t seed, offset;
};
static inline Key read_key(const uint64_t* key) { return {key[0], key[1]}; }

// Two vectors of blocks make a part, four vectors of elements; one step makes several, whose rounds fill each other's
// latencies.
constexpr int CHAINS = 4;
constexpr int64_t PART = 8 * VQ, RANDOM_STEP = CHAINS / 2 * PART;

// One of the block's four words in the low half of each lane; the high halves hold nothing of use.
struct Blocks {
    vq word[4];
};

// The product of the low halves.
static inline vq multiply_low(vq a, uint32_t m) {
#if defined(__AVX512F__) && AIGC_VECTOR_BYTES == 64
    return vq(_mm512_mul_epu32(__m512i(a), _mm512_set1_epi64(m)));
#elif defined(__AVX2__) && AIGC_VECTOR_BYTES == 32
    return vq(_mm256_mul_epu32(__m256i(a), _mm256_set1_epi64x(m)));
#elif defined(__SSE2__) && AIGC_VECTOR_BYTES == 16
    return vq(_mm_mul_epu32(__m128i(a), _mm_set1_epi64x(m)));
#else
    return (a & 0xffffffffu) * m;
#endif
}

static inline void philox_round(Blocks& b, uint32_t key0, uint32_t key1) {
    const vq product0 = multiply_low(b.word[0], 0xD2511F53u), product1 = multiply_low(b.word[2], 0xCD9E8D57u);
    b.word[0] = (product1 >> 32) ^ b.word[1] ^ key0;
    b.word[1] = product1;
    b.word[2] = (product0 >> 32) ^ b.word[3] ^ key1;
    b.word[3] = product0;
}

static inline Blocks first_state(vq counter) { return {{counter, counter >> 32, vq{}, vq{}}}; }

static inline void philox(Blocks (&b)[CHAINS], uint64_t seed) {
    uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 4
        for (int c = 0; c < CHAINS; ++c)
            philox_round(b[c], key0, key1);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

// Even lanes take the first half of a vector's counters and odd lanes the second, so that interleaving within 128 bits
// brings the elements into memory order.
template <int... I>
static inline vq lane_counters(Indices<I...>) {
    return vq{uint64_t(I % 2 * (VQ / 2) + I / 2)...};
}
static inline vq lane_counters() { return lane_counters(IndicesUpTo<VQ>::type()); }

// Within each 128 bits: (a0 a2 b0 b2), (a0 b0 a1 b1), (a2 b2 a3 b3) of floats, and the same of pairs of floats.
template <int... I>
static inline vf low_halves(vf a, vf b, Indices<I...>) {
    return __builtin_shufflevector(a, b, (I / 4 * 4 + (I % 4 < 2 ? 2 * (I % 4) : VF + 2 * (I % 4 - 2)))...);
}
template <int... I>
static inline vf interleave_low(vf a, vf b, Indices<I...>) {
    return __builtin_shufflevector(a, b, (I / 4 * 4 + I % 4 / 2 + I % 2 * VF)...);
}
template <int... I>
static inline vf interleave_high(vf a, vf b, Indices<I...>) {
    return __builtin_shufflevector(a, b, (I / 4 * 4 + 2 + I % 4 / 2 + I % 2 * VF)...);
}
template <int... I>
static inline vf pair_low(vf a, vf b, Indices<I...>) {
    return __builtin_shufflevector(a, b, (I / 4 * 4 + I % 2 + I % 4 / 2 * VF)...);
}
template <int... I>
static inline vf pair_high(vf a, vf b, Indices<I...>) {
    return __builtin_shufflevector(a, b, (I / 4 * 4 + 2 + I % 2 + I % 4 / 2 * VF)...);
}
using Lanes = IndicesUpTo<VF>::type;

// Four vectors, each a word (or what came of it) of the blocks in a and b, into memory order.
static inline void store_blocks(vf w0, vf w1, vf w2, vf w3, float* out) {
    const vf a01 = interleave_low(w0, w1, Lanes()), a23 = interleave_low(w2, w3, Lanes());
    const vf b01 = interleave_high(w0, w1, Lanes()), b23 = interleave_high(w2, w3, Lanes());
    store(out, pair_low(a01, a23, Lanes()));
    store(out + VF, pair_high(a01, a23, Lanes()));
    store(out + 2 * VF, pair_low(b01, b23, Lanes()));
    store(out + 3 * VF, pair_high(b01, b23, Lanes()));
}

// Box and Muller: two words to two independent standard normals. The radius takes the upper 31 bits of its word as a
// float in (0, 1]; the angle's quadrant comes from the word's bits, so that only the rest is rounded.
static inline void box_muller(vu radius_word, vu angle_word, vf& first, vf& second) {
    constexpr float TURN = 1.46291807926715968e-9f; // 2 pi / 2^32
    const vf uniform = __builtin_convertvector(vi(radius_word >> 1), vf) * 0x1p-31f + 0x1p-32f;
    const vf radius = sqrt(log(uniform) * -2.0f);
    vf sine, cosine;
    sincos_eighth(__builtin_convertvector(vi(angle_word << 2) >> 2, vf) * TURN, sine, cosine);
    // Bits 31 and 30 of the turned word are the quadrant.
    const vu turned = angle_word + 0x20000000u;
    const vi swapped = vi(turned << 1) < 0;
    first = vf(vu(radius * (swapped ? sine : cosine)) ^ ((turned + 0x40000000u) & 0x80000000u));
    second = vf(vu(radius * (swapped ? cosine : sine)) ^ (turned & 0x80000000u));
}

// Calls emit(words, at) for every part from element `first` (a multiple of 4) on, in whole steps: four vectors of
// words.
template <class F>
static inline void for_each_step(Key key, int64_t first, int64_t n, const F& emit) {
    vq counter = lane_counters() + (key.offset + uint64_t(first) / 4);
    for (int64_t at = 0; at < n; at += RANDOM_STEP) {
        Blocks blocks[CHAINS];
#pragma GCC unroll 4
        for (int c = 0; c < CHAINS; ++c, counter += VQ)
            blocks[c] = first_state(counter);
        philox(blocks, key.seed);
#pragma GCC unroll 4
        for (int c = 0; c < CHAINS; c += 2) {
            vf word[4];
#pragma GCC unroll 4
            for (int w = 0; w < 4; ++w)
                word[w] = low_halves(vf(blocks[c].word[w]), vf(blocks[c + 1].word[w]), Lanes());
            emit(word, at + c / 2 * PART);
        }
    }
}

// Of a draw for dropout: an element is kept when its word is below this, and scaled.
struct Keep {
    uint32_t below;
    double scale;
};
static inline Keep keep_with_probability(double q) {
    const double bound = q * 0x1p32 + 0.5;
    return {bound >= 0x1p32 ? 0xffffffffu : static_cast<uint32_t>(bound), q > 0 ? 1.0 / q : 0.0};
}

// The words (as the bits of floats), or the standard normals, of elements first .. first + n. Whole steps are written.
static inline void random_words(Key key, int64_t first, int64_t n, float* out) {
    for_each_step(key, first, n, [out](const vf* w, int64_t at) { store_blocks(w[0], w[1], w[2], w[3], out + at); });
}

// Two loops, since each step of either is a long chain of dependent instructions: short steps overlap.
static inline void random_normals(Key key, int64_t first, int64_t n, float* out) {
    for_each_step(key, first, n, [out](const vf* w, int64_t at) {
        for (int i = 0; i < 4; ++i)
            store(out + at + i * VF, w[i]);
    });
    for (int64_t at = 0; at < n; at += PART) {
        vf normal[4];
        for (int i = 0; i < 4; i += 2)
            box_muller(vu(load(out + at + i * VF)), vu(load(out + at + (i + 1) * VF)), normal[i], normal[i + 1]);
        store_blocks(normal[0], normal[1], normal[2], normal[3], out + at);
    }
}

// Random numbers are made a tile at a time, which stays in the first-level cache until it is used. Calls
// f(first, count) for every tile of n elements, on as many threads as pay.
constexpr int64_t RANDOM_TILE = 1024, RANDOM_TILES_PER_THREAD = 8;
static inline int64_t random_tiles(int64_t n) { return (n + RANDOM_TILE - 1) / RANDOM_TILE; }
template <class F>
static inline void for_each_random_tile(int64_t n, const F& f) {
    parallel_for(0, random_tiles(n), RANDOM_TILES_PER_THREAD, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
            f(t * RANDOM_TILE, t + 1 < random_tiles(n) ? RANDOM_TILE : n - t * RANDOM_TILE);
    });
}

}
