// Sequences of a batch of few, their rows in memory, and how the blocks that go through them wait for each other.
#pragma once

#include "core/recurrent_cells.h"
#include "cuda/launch.cuh"

namespace aigc::cuda::recurrent {

constexpr int MOST_BATCH = 8;
constexpr int UNITS = 8; // of a tile

// Row b of step t is the sequence b of the batch; sequences of fewer steps come last, those that are not there have
// none. A pass goes through the steps from the first to the last or, reversed, the other way.
struct Steps {
    int64_t steps, lengths[MOST_BATCH];
    bool reversed;

    // Of a pass; backward goes through it from its end.
    __device__ int64_t nth(int64_t done) const { return reversed ? steps - 1 - done : done; }
    __device__ int64_t before(int64_t step) const { return reversed ? step + 1 : step - 1; }
    __device__ int count(int64_t step) const {
        int found = 0;
#pragma unroll
        for (int b = 0; b < MOST_BATCH; ++b)
            found += lengths[b] > step;
        return found;
    }
    // Rows of a step that the pass has been in before, and those that it will be in again.
    __device__ int continuing(int64_t step) const { return reversed ? count(step + 1) : step > 0 ? count(step) : 0; }
    __device__ int going_on(int64_t step) const { return reversed ? step > 0 ? count(step) : 0 : count(step + 1); }
    // Rows of all steps before one.
    __device__ int64_t offset(int64_t step) const {
        int64_t found = 0;
#pragma unroll
        for (int b = 0; b < MOST_BATCH; ++b)
            found += lengths[b] < step ? lengths[b] : step;
        return found;
    }
};

// Elements between the rows of neighbouring steps, 0 where rows lie in the order of the steps, and of neighbours in the
// batch.
struct Rows {
    int64_t step, row;

    __device__ int64_t at(const Steps& steps, int64_t t, int b) const {
        return step == 0 ? (steps.offset(t) + b) * row : t * step + b * row;
    }
};

// A unit of a row, whose numbers no other thread touches.
struct Unit {
    int64_t unit;
    int in_tile, b;
    bool is_there;

    // Of this thread, if it has one.
    __device__ Unit(int64_t tile, int64_t units, int rows) {
        in_tile = static_cast<int>(threadIdx.x) % UNITS;
        b = static_cast<int>(threadIdx.x) / UNITS;
        unit = tile * UNITS + in_tile;
        is_there = unit < units && b < rows;
    }
};

// Where all blocks of a grid wait until each of them has come: one word each, zeros at first.
struct Meeting {
    uint32_t* words;
    uint32_t turn = 0;

    __device__ void arrive() {
        ++turn;
        __syncthreads();
        if (threadIdx.x == 0)
            store_release(words + blockIdx.x, turn);
    }
    __device__ void wait() const {
        for (unsigned block = threadIdx.x; block < gridDim.x; block += THREADS)
            while (load_acquire(words + block) < turn)
                wait_a_moment();
        __syncthreads();
    }
};

}
