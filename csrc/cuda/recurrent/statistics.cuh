// What normalizing over all units of a row wants to know: of each tile by its block, then of the row from those of all
// tiles, by every block alike and in an order that does not depend on how many blocks there are.
#pragma once

#include "cuda/recurrent/product.cuh"

namespace aigc::cuda::recurrent {

// Two numbers of a row, by which it is normalized, or what leads to them.
struct Pair {
    float first, second;
};

// What a block keeps of its rows beside what a product takes.
template <int BATCH>
struct RowsShared {
    float numbers[2][BATCH][UNITS];
    Pair found[BATCH];
};

__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int by = WARP / 2; by > 0; by /= 2)
        x += __shfl_xor_sync(ALL_LANES, x, by);
    return x;
}

// Of a number in each lane of a warp, of which `count` are there: their mean, and the sum of the squares of what they
// are off it.
__device__ inline Pair spread_of(float x, bool is_there, float count) {
    const float mean = warp_sum(is_there ? x : 0.0f) / count, apart = is_there ? x - mean : 0.0f;
    return {mean, warp_sum(apart * apart)};
}

// The spread of `count` numbers.
struct Spread {
    float count = 0;
    Pair of = {0, 0};

    __device__ Spread with(const Spread& other) const {
        if (other.count == 0)
            return *this;
        const float all = count + other.count, share = other.count / all, apart = other.of.first - of.first;
        return {all, {of.first + apart * share, of.second + other.of.second + apart * apart * count * share}};
    }
    __device__ Spread of_lanes() const {
        Spread found = *this;
#pragma unroll
        for (int by = WARP / 2; by > 0; by /= 2)
            found = found.with(
                {__shfl_down_sync(ALL_LANES, found.count, by),
                 {__shfl_down_sync(ALL_LANES, found.of.first, by), __shfl_down_sync(ALL_LANES, found.of.second, by)}});
        return found;
    }
};

// Pairs of all tiles, of each row; the threads' part in them.
struct TilePairs {
    Pair* of_tiles; // tiles by batch
    int64_t units;
    int per_unit; // numbers

    static __device__ int warp() { return static_cast<int>(threadIdx.x) / WARP; }
    static __device__ int lane() { return static_cast<int>(threadIdx.x) % WARP; }

    __device__ float count(int64_t tile) const {
        const int64_t left = units - tile * UNITS;
        return static_cast<float>(per_unit * (left < UNITS ? left : UNITS));
    }
    // Row `warp()`'s pair, by all lanes of the warp.
    __device__ void tell(int64_t tile, const Pair& pair) const {
        if (lane() == 0)
            of_tiles[tile * MOST_BATCH + warp()] = pair;
    }
    // The mean of row `warp()`, and one over its standard deviation.
    __device__ Pair normalization(int64_t tiles, float epsilon) const {
        Spread found;
        for (int64_t tile = lane(); tile < tiles; tile += WARP)
            found = found.with({count(tile), of_tiles[tile * MOST_BATCH + warp()]});
        found = found.of_lanes();
        return {found.of.first, 1.0f / sqrtf(found.of.second / found.count + epsilon)};
    }
    // The means over row `warp()` of what was summed up by tiles.
    __device__ Pair means(int64_t tiles) const {
        Pair sums{0, 0};
        for (int64_t tile = lane(); tile < tiles; tile += WARP) {
            const Pair pair = of_tiles[tile * MOST_BATCH + warp()];
            sums.first += pair.first;
            sums.second += pair.second;
        }
        const float all = static_cast<float>(per_unit * units);
        return {warp_sum(sums.first) / all, warp_sum(sums.second) / all};
    }
};

}
