// Products of a few rows by weights that are read once, as they are kept: float, bfloat16, int8 with a scale for each
// column, int4 with a scale for each column of every 32 numbers of the depth. A warp makes two columns, of which each
// lies in memory by itself and is read by 16 bytes a lane; the rows are in shared memory, normalised on their way
// there. Every sum is made in one order, whatever the number of rows.
#pragma once

#include "core/activation_codes.h"
#include "core/weight_codes.h"
#include "cuda/launch.cuh"

namespace aigc::cuda::decode {

constexpr int GROUP_DEPTH = 32; // numbers of the depth that share a scale in int4
constexpr int WARPS = 4, BLOCK = WARPS * WARP, COLUMNS = 2;
constexpr int MOST_ROWS = 8;
// Numbers of all rows that are in shared memory at a time: of each row, whole sweeps of a warp over any weights.
constexpr int STAGED = MOST_ROWS * WARP * GROUP_DEPTH;

__device__ inline int lane() { return static_cast<int>(threadIdx.x) % WARP; }
__device__ inline int warp() { return static_cast<int>(threadIdx.x) / WARP; }

__device__ inline float as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
// A small unsigned integer less an offset: conversions take longer than to put it behind a float's point.
__device__ inline float less(uint32_t small, float offset) {
    return as_float(small | 0x4b000000u) - (0x1p23f + offset);
}

__device__ inline float sum_of_warp(float x) {
#pragma unroll
    for (int with = WARP / 2; with > 0; with /= 2)
        x += __shfl_xor_sync(ALL_LANES, x, with);
    return x;
}

// Weights that lie in 16 bytes, and number `i` of them.
template <int64_t WEIGHTS>
struct Piece;
template <>
struct Piece<FP32> {
    static constexpr int EACH = 4;
    __device__ static float at(const uint32_t (&words)[4], int i) { return as_float(words[i]); }
};
template <>
struct Piece<BF16> {
    static constexpr int EACH = 8;
    __device__ static float at(const uint32_t (&words)[4], int i) {
        return as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
    }
};
template <>
struct Piece<INT8> {
    static constexpr int EACH = 16;
    __device__ static float at(const uint32_t (&words)[4], int i) {
        return less(words[i / 4] >> 8 * (i % 4) & 0xff, 128);
    }
};
// Four numbers in the lower halves of a word's bytes, the next four in the upper ones.
template <>
struct Piece<INT4> {
    static constexpr int EACH = GROUP_DEPTH;
    __device__ static float at(const uint32_t (&words)[4], int i) {
        return less(words[i / 8] >> (8 * (i % 4) + i % 8 / 4 * 4) & 0xf, 8);
    }
};

// Columns that are made of `depth` numbers; the weights of each are filled up to 16 bytes, or a group.
struct Matrix {
    const uint4* data;
    const void* scales; // float (columns,) of int8, float16 (columns, groups) of int4
    const float* bias;  // or null
    int64_t columns, depth, weights;
};

struct Norm {
    const float *weight, *bias; // without a bias null; both where there is no norm
    float epsilon;
    bool centred;
};

// What becomes of a column's sum and bias: it is stored, or added to what is there, or activated, or, of columns that
// are a gate and what it multiplies in turn, the first one is activated and multiplied by the second.
enum class End { STORE, ADD, ACTIVATE, GATE };

struct Product {
    Matrix matrix;
    Norm norm;
    const float* rows; // (count, depth)
    float* out;        // (count, columns), or half of the columns
    int64_t count;
    End end;
    int64_t activation;
};

// Where a row's number is in shared memory: gaps keep lanes that read far from each other out of each other's way.
__host__ __device__ constexpr int place(int k) { return k + k / GROUP_DEPTH * 4; }

template <int ROWS>
struct Shared {
    float mean[MOST_ROWS], factor[MOST_ROWS], parts[WARPS][MOST_ROWS];
    float rows[1]; // as many as the launch says

    // Numbers of a row at a time.
    __host__ __device__ static constexpr int chunk() { return STAGED / ROWS; }
    __host__ __device__ static int width(int64_t depth) {
        const int64_t all = ceil_div(depth, GROUP_DEPTH) * GROUP_DEPTH;
        return static_cast<int>(all < chunk() ? all : chunk());
    }
    static size_t bytes(int64_t depth) {
        return ((2 + WARPS) * MOST_ROWS + static_cast<size_t>(ROWS * place(width(depth)))) * sizeof(float);
    }
};

__device__ inline float activate(float x, int64_t activation) {
    switch (activation) {
    case GELU:
        return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case GELU_TANH:
        return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * (x * x * x))));
    case SILU:
        return x / (1.0f + expf(-x));
    default:
        return x < 0.0f ? 0.0f : x; // NaN stays
    }
}

// Loops over a row's numbers have some of them under way.
template <int ROWS>
constexpr int UNDER_WAY = MOST_ROWS / ROWS;

// Of each row the mean of what `of` makes of its numbers, by all threads.
template <int ROWS, class F>
__device__ void average(const Product& p, int64_t first, Shared<ROWS>& shared, const F& of, float (&found)[ROWS]) {
    const int depth = static_cast<int>(p.matrix.depth);
    const float* const x = p.rows + first * depth;
    const int rows = p.count - first < ROWS ? static_cast<int>(p.count - first) : ROWS;
    float sums[ROWS] = {};
#pragma unroll(UNDER_WAY<ROWS>)
    for (int k = static_cast<int>(threadIdx.x); k < depth; k += BLOCK)
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
            if (r < rows)
                sums[r] += of(x[int64_t(r) * depth + k], r);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const float sum = sum_of_warp(sums[r]);
        if (lane() == 0)
            shared.parts[warp()][r] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        float sum = 0;
#pragma unroll
        for (int w = 0; w < WARPS; ++w)
            sum += shared.parts[w][r];
        found[r] = sum / static_cast<float>(depth);
    }
    __syncthreads();
}

template <int ROWS>
__device__ void measure(const Product& p, int64_t first, Shared<ROWS>& shared) {
    float means[ROWS] = {}, squares[ROWS];
    if (p.norm.centred)
        average<ROWS>(p, first, shared, [](float x, int) { return x; }, means);
    average<ROWS>(p, first, shared, [&](float x, int r) { return (x - means[r]) * (x - means[r]); }, squares);
    if (threadIdx.x == 0)
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            shared.mean[r] = means[r];
            shared.factor[r] = 1.0f / sqrtf(squares[r] + p.norm.epsilon);
        }
    __syncthreads();
}

// Numbers of the rows from `begin` on, zeros where there are none.
template <int ROWS>
__device__ void stage(const Product& p, int64_t first, int begin, int width, Shared<ROWS>& shared) {
    const int64_t depth = p.matrix.depth;
    const Norm& norm = p.norm;
#pragma unroll(UNDER_WAY<ROWS> < 4 ? UNDER_WAY<ROWS> : 4)
    for (int k = static_cast<int>(threadIdx.x); k < width; k += BLOCK) {
        const bool inside = begin + k < depth;
        const float weight = norm.weight && inside ? norm.weight[begin + k] : 1.0f;
        const float bias = norm.bias && inside ? norm.bias[begin + k] : 0.0f;
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            float x = 0;
            if (inside && first + r < p.count) {
                x = p.rows[(first + r) * depth + begin + k];
                if (norm.weight)
                    x = (x - shared.mean[r]) * shared.factor[r] * weight + bias;
            }
            shared.rows[r * place(width) + place(k)] = x;
        }
    }
}

// Adds products of 16 bytes of each column.
template <int64_t WEIGHTS, int ROWS>
__device__ void multiply(const uint4 (&bits)[COLUMNS], const float (&scales)[COLUMNS], const float* rows, int row,
                         float (&sums)[COLUMNS][ROWS]) {
    using P = Piece<WEIGHTS>;
    uint32_t words[COLUMNS][4];
    memcpy(words, bits, sizeof words);
    float found[COLUMNS][ROWS] = {};
#pragma unroll
    for (int i = 0; i < P::EACH; i += 4) {
        float w[COLUMNS][4];
#pragma unroll
        for (int j = 0; j < COLUMNS * 4; ++j)
            w[j / 4][j % 4] = P::at(words[j / 4], i + j % 4);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            float x[4];
            memcpy(x, __builtin_assume_aligned(rows + r * row + i, sizeof x), sizeof x);
#pragma unroll
            for (int j = 0; j < COLUMNS * 4; ++j)
                found[j / 4][r] += w[j / 4][j % 4] * x[j % 4];
        }
    }
#pragma unroll
    for (int i = 0; i < COLUMNS * ROWS; ++i)
        sums[i / ROWS][i % ROWS] +=
            WEIGHTS == INT4 ? found[i / ROWS][i % ROWS] * scales[i / ROWS] : found[i / ROWS][i % ROWS];
}

// Where a warp's columns lie, and their scales in int4.
struct Columns {
    const uint4* weights[COLUMNS];
    const __half* scales[COLUMNS];
};

// Adds products of the pieces from `from` to `end`, whose rows are in shared memory, `row` numbers from each other.
template <int64_t WEIGHTS, int ROWS>
__device__ void sweep(const Columns& columns, int from, int end, const float* rows, int row,
                      float (&sums)[COLUMNS][ROWS]) {
    constexpr int AHEAD = ROWS > 2 ? 2 : 4; // pieces of each column that are under way
    for (int piece = from + lane(); piece < end; piece += AHEAD * WARP) {
        uint4 bits[AHEAD][COLUMNS];
        float scales[AHEAD][COLUMNS] = {};
#pragma unroll
        for (int i = 0; i < AHEAD * COLUMNS; ++i) {
            const int at = piece + i / COLUMNS * WARP;
            if (at < end) {
                bits[i / COLUMNS][i % COLUMNS] = columns.weights[i % COLUMNS][at];
                if (WEIGHTS == INT4)
                    scales[i / COLUMNS][i % COLUMNS] = static_cast<float>(columns.scales[i % COLUMNS][at]);
            }
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const int at = piece + i * WARP;
            if (at < end)
                multiply<WEIGHTS, ROWS>(bits[i], scales[i], rows + place((at - from) * Piece<WEIGHTS>::EACH), row,
                                        sums);
        }
    }
}

// A lane for each row puts the sums of all where they belong.
template <int64_t WEIGHTS, int ROWS>
__device__ void finish(const Product& p, int64_t first, int64_t column, const float (&sums)[COLUMNS][ROWS]) {
    const Matrix& m = p.matrix;
    float own[COLUMNS] = {};
#pragma unroll
    for (int i = 0; i < COLUMNS * ROWS; ++i) {
        const float sum = sum_of_warp(sums[i / ROWS][i % ROWS]);
        if (lane() == i % ROWS)
            own[i / ROWS] = sum;
    }
    const int64_t row = first + lane();
    if (lane() >= ROWS || row >= p.count)
        return;
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
        if (column + c >= m.columns)
            return;
        if (WEIGHTS == INT8)
            own[c] *= static_cast<const float*>(m.scales)[column + c];
        if (m.bias)
            own[c] += m.bias[column + c];
        float* const to = p.out + row * m.columns + column + c;
        if (p.end == End::STORE)
            *to = own[c];
        else if (p.end == End::ADD)
            *to += own[c];
        else if (p.end == End::ACTIVATE)
            *to = activate(own[c], p.activation);
    }
    if (p.end == End::GATE)
        p.out[(row * m.columns + column) / 2] = activate(own[0], p.activation) * own[1];
}

// Blocks of a multiprocessor at least: left to itself, the compiler puts sums on the stack for more.
constexpr int RESIDENT = 4;

template <int64_t WEIGHTS, int ROWS>
__global__ void __launch_bounds__(BLOCK, RESIDENT) product_kernel(Product p) {
    constexpr int EACH = Piece<WEIGHTS>::EACH;
    auto& shared = shared_memory<Shared<ROWS>>();
    const Matrix& m = p.matrix;
    const int64_t blocks = ceil_div(m.columns, WARPS * COLUMNS);
    const int64_t first = blockIdx.x / blocks * ROWS, column = (blockIdx.x % blocks * WARPS + warp()) * COLUMNS;
    const int depth = static_cast<int>(m.depth), groups = (depth + GROUP_DEPTH - 1) / GROUP_DEPTH;
    const int pieces = WEIGHTS == INT8 ? groups * (GROUP_DEPTH / EACH) : (depth + EACH - 1) / EACH;
    Columns columns;
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
        const int64_t own = column + c < m.columns ? column + c : m.columns - 1;
        columns.weights[c] = m.data + own * pieces;
        columns.scales[c] = static_cast<const __half*>(m.scales) + own * groups;
    }
    if (p.norm.weight)
        measure<ROWS>(p, first, shared);
    const int width = Shared<ROWS>::width(m.depth);
    float sums[COLUMNS][ROWS] = {};
    for (int begin = 0; begin < depth; begin += width) {
        stage<ROWS>(p, first, begin, width, shared);
        __syncthreads();
        const int from = begin / EACH, end = from + width / EACH < pieces ? from + width / EACH : pieces;
        sweep<WEIGHTS, ROWS>(columns, from, end, shared.rows, place(width), sums);
        __syncthreads();
    }
    finish<WEIGHTS, ROWS>(p, first, column, sums);
}

template <int64_t WEIGHTS, int ROWS>
void run(const char* name, const Product& p, const Queue& queue) {
    const int64_t blocks = ceil_div(p.matrix.columns, WARPS * COLUMNS) * ceil_div(p.count, ROWS);
    launch(name, &product_kernel<WEIGHTS, ROWS>, queue, {blocks, BLOCK, Shared<ROWS>::bytes(p.matrix.depth)}, p);
}

template <int64_t WEIGHTS>
void run(const char* name, const Product& p, const Queue& queue) {
    if (p.count == 1)
        run<WEIGHTS, 1>(name, p, queue);
    else if (p.count == 2)
        run<WEIGHTS, 2>(name, p, queue);
    else if (p.count <= 4)
        run<WEIGHTS, 4>(name, p, queue);
    else
        run<WEIGHTS, MOST_ROWS>(name, p, queue);
}

inline void run(const char* name, const Product& p, const Queue& queue) {
    switch (p.matrix.weights) {
    case FP32:
        return run<FP32>(name, p, queue);
    case BF16:
        return run<BF16>(name, p, queue);
    case INT8:
        return run<INT8>(name, p, queue);
    default:
        return run<INT4>(name, p, queue);
    }
}

}
