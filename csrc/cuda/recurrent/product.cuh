// Products of a matrix, whose rows the blocks of a grid divide among them for all steps of a pass, with a few vectors.
// What fits of a block's rows stays in its shared memory; the rest is read anew at each step, from the second-level
// cache where that holds it.
#pragma once

#include <type_traits>

#include "cuda/recurrent/steps.cuh"

namespace aigc::cuda::recurrent {

constexpr int WARPS = THREADS / WARP;
constexpr int EACH = 4;            // columns of a lane at a time
constexpr int SWEEP = WARP * EACH; // of a warp

// The gates of a unit are a warp's rows; of units with a single row, four are, and four warps divide their columns.
template <int GATES_OF_ROW>
struct Division {
    static constexpr int ROWS = GATES_OF_ROW == 1 ? 4 : GATES_OF_ROW;
    static constexpr int SEGMENTS = GATES_OF_ROW == 1 ? 4 : 1;
    static constexpr int ALL_ROWS = UNITS * GATES_OF_ROW; // of a tile
    static_assert(WARPS / SEGMENTS * ROWS == ALL_ROWS);
};

// How a call is cut, which the results do not depend on but for `chunk`.
struct Cut {
    int64_t tiles, each, chunk, kept; // of all units and of a block; columns staged at a time, and kept of each row

    __device__ int64_t first() const { return blockIdx.x * each; }
    __device__ int64_t last() const { return first() + each < tiles ? first() + each : tiles; }
};

template <class T>
struct Matrix {
    const T* rows;
    int64_t units, columns, stride; // `stride`: from row to row; zeros beyond the columns
};

template <class T>
__device__ inline void load_four(const T* from, float (&to)[EACH]) {
    using Bits = std::conditional_t<sizeof(T) == 4, uint4, uint2>;
    const Bits bits = *reinterpret_cast<const Bits*>(from);
    T elements[EACH];
    memcpy(elements, &bits, sizeof bits);
#pragma unroll
    for (int i = 0; i < EACH; ++i)
        to[i] = static_cast<float>(elements[i]);
}

// The sums of a tile, then the vectors' chunk, then what is kept of the matrix.
template <int GATES_OF_ROW, int BATCH>
struct alignas(16) Sums {
    using D = Division<GATES_OF_ROW>;
    float at[D::SEGMENTS][D::ALL_ROWS][BATCH];

    __device__ float of(int unit, int gate, int b) const {
        float sum = at[0][unit * GATES_OF_ROW + gate][b];
#pragma unroll
        for (int s = 1; s < D::SEGMENTS; ++s)
            sum += at[s][unit * GATES_OF_ROW + gate][b];
        return sum;
    }
};

// Of N numbers in every lane of a warp the sums over the lanes, of which lane l has that of number l * N / 32.
template <int N, int BY = WARP / 2>
__device__ inline float scattered_sum(const float (&numbers)[N]) {
    if constexpr (BY == 0) {
        return numbers[0];
    } else if constexpr (N == 1) {
        const float both[1] = {numbers[0] + __shfl_xor_sync(ALL_LANES, numbers[0], BY)};
        return scattered_sum<1, BY / 2>(both);
    } else {
        const bool upper = threadIdx.x & BY;
        float half[N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; ++i) {
            const float given = upper ? numbers[i] : numbers[i + N / 2];
            const float own = upper ? numbers[i + N / 2] : numbers[i];
            half[i] = own + __shfl_xor_sync(ALL_LANES, given, BY);
        }
        return scattered_sum<N / 2, BY / 2>(half);
    }
}

__host__ __device__ constexpr int power_of_two_from(int n) { return n <= 1 ? 1 : 2 * power_of_two_from((n + 1) / 2); }

template <class T, int GATES_OF_ROW, int BATCH>
class Product {
  public:
    using D = Division<GATES_OF_ROW>;

    Sums<GATES_OF_ROW, BATCH>& sums;

    __device__ Product(const Matrix<T>& matrix, const Cut& cut)
        : sums(shared_memory<Sums<GATES_OF_ROW, BATCH>>()), matrix_(matrix), cut_(cut),
          staged_(reinterpret_cast<float*>(&sums + 1)), kept_(reinterpret_cast<T*>(staged_ + BATCH * cut.chunk)) {
        for (int64_t tile = cut.first(); tile < cut.last(); ++tile)
            for (int slot = warp(); slot < D::ALL_ROWS; slot += WARPS) {
                const T* const from = row(tile, slot);
                T* const to = kept_row(tile, slot);
                for (int64_t c = lane() * EACH; c < cut.kept; c += SWEEP)
#pragma unroll
                    for (int i = 0; i < EACH; ++i)
                        to[c + i] = c < matrix.stride ? from[c + i] : T(0.0f);
            }
    }

    // Fills the sums of a tile; `stage(to, chunk, first, count)` writes `count` columns from `first` on of each vector,
    // `chunk` apart. Threads may read the sums after a barrier, which there must be again before the next tile's.
    template <class Stage>
    __device__ void multiply(int64_t tile, const Stage& stage) {
        constexpr int NUMBERS = power_of_two_from(D::ROWS * BATCH), PER_NUMBER = WARP / NUMBERS;
        float sums_of_lane[NUMBERS] = {};
        for (int64_t first = 0; first < matrix_.columns; first += cut_.chunk) {
            const int64_t left = matrix_.stride - first, count = left < cut_.chunk ? left : cut_.chunk;
            if (count < matrix_.stride || tile == cut_.first()) {
                __syncthreads();
                stage(staged_, cut_.chunk, first, count);
                __syncthreads();
            }
            for (int64_t c = (warp() % D::SEGMENTS) * SWEEP + lane() * EACH; c < count; c += D::SEGMENTS * SWEEP)
                if (first + c < cut_.kept)
                    add(sums_of_lane, c, [&](int slot) { return kept_row(tile, slot) + first + c; });
                else
                    add(sums_of_lane, c, [&](int slot) { return row(tile, slot) + first + c; });
        }
        const float sum = scattered_sum(sums_of_lane);
        const int number = lane() / PER_NUMBER;
        if (lane() % PER_NUMBER == 0 && number < D::ROWS * BATCH)
            sums.at[warp() % D::SEGMENTS][slot_of(number / BATCH)][number % BATCH] = sum;
    }

    // Behind all that the cut takes.
    __device__ void* rest() const { return kept_ + cut_.each * D::ALL_ROWS * cut_.kept; }

  private:
    static __device__ int warp() { return static_cast<int>(threadIdx.x) / WARP; }
    static __device__ int lane() { return static_cast<int>(threadIdx.x) % WARP; }
    static __device__ int slot_of(int r) { return warp() / D::SEGMENTS * D::ROWS + r; }

    // Rows beyond the last unit's are read as that one's, and their sums by nobody.
    __device__ const T* row(int64_t tile, int slot) const {
        const int64_t wanted = tile * UNITS + slot / GATES_OF_ROW, gate = slot % GATES_OF_ROW;
        const int64_t unit = wanted < matrix_.units ? wanted : matrix_.units - 1;
        return matrix_.rows + (gate * matrix_.units + unit) * matrix_.stride;
    }
    __device__ T* kept_row(int64_t tile, int slot) const {
        return kept_ + ((tile - cut_.first()) * D::ALL_ROWS + slot) * cut_.kept;
    }

    template <int N, class At>
    __device__ void add(float (&sums_of_lane)[N], int64_t c, const At& at) const {
        float weights[D::ROWS][EACH];
#pragma unroll
        for (int r = 0; r < D::ROWS; ++r)
            load_four(at(slot_of(r)), weights[r]);
#pragma unroll
        for (int b = 0; b < BATCH; ++b) {
            float numbers[EACH];
            load_four(staged_ + b * cut_.chunk + c, numbers);
#pragma unroll
            for (int r = 0; r < D::ROWS; ++r)
#pragma unroll
                for (int i = 0; i < EACH; ++i)
                    sums_of_lane[r * BATCH + b] += weights[r][i] * numbers[i];
        }
    }

    const Matrix<T>& matrix_;
    const Cut& cut_;
    float* staged_;
    T* kept_;
};

// Bytes of shared memory that a cut takes, without the rest.
template <class T, int GATES_OF_ROW, int BATCH>
int64_t shared_bytes(const Cut& cut) {
    const int64_t rows = cut.each * Division<GATES_OF_ROW>::ALL_ROWS;
    return int64_t(sizeof(Sums<GATES_OF_ROW, BATCH>)) + BATCH * cut.chunk * int64_t(sizeof(float)) +
           rows * cut.kept * int64_t(sizeof(T));
}

// All units over as many blocks as can be under way at once, each with at least a tile; of their rows as much in shared
// memory as there is, of at most `most_shared` bytes and without `rest`.
template <class T, int GATES_OF_ROW, int BATCH>
Cut cut_for(const Matrix<T>& matrix, const Device& device, int64_t most_shared, int64_t rest) {
    constexpr int64_t STAGED = 16 << 10; // floats of all vectors
    Cut cut{ceil_div(matrix.units, UNITS), 0, 0, 0};
    cut.each = ceil_div(cut.tiles, device.processors);
    const int64_t whole = ceil_div(matrix.stride, SWEEP) * SWEEP, fits = STAGED / BATCH;
    cut.chunk = whole < fits ? whole : fits;
    const int64_t most = most_shared < int64_t(device.shared) ? most_shared : int64_t(device.shared);
    const int64_t left = most - rest - shared_bytes<T, GATES_OF_ROW, BATCH>(cut);
    const int64_t sweeps = left / (cut.each * Division<GATES_OF_ROW>::ALL_ROWS * SWEEP * int64_t(sizeof(T)));
    cut.kept = sweeps < 0 ? 0 : sweeps * SWEEP < whole ? sweeps * SWEEP : whole;
    return cut;
}

}
