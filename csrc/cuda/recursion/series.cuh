// What recursions run over, in parts of a series that are taken side by side: from zeros to the memory at a part's end,
// which the memory at its beginning changes by a matrix (Blelloch, "Prefix sums and their applications", 1990, on
// linear recurrences).
#pragma once

#include "cuda/launch.cuh"

namespace aigc::cuda::recursion {

// A part's memory that grows beyond this keeps a series in one piece: what overflows there is to be infinite, not the
// difference of two infinities.
constexpr double MOST_GROWTH = 1e6;
// Of what a thread keeps in registers.
template <class T>
constexpr int LARGEST_ORDER = 256 / sizeof(T);
constexpr int BLOCK = 128;
// Blocks of a multiprocessor at least, which leave a thread the registers that it needs.
template <class T, int MOST>
constexpr int RESIDENT = MOST * sizeof(T) < 256 ? 4 : 2;

template <class T>
struct Rows {
    T* data;
    int64_t row; // stride
    __device__ T* at(int64_t b) const { return data + b * row; }
};

// Coefficients of row stride 0 are shared, of step stride 0 those of all steps. Reversed, series run from the last step
// to the first.
template <class T>
struct Series {
    Rows<const T> in, state; // the state's data may be null
    const T* coeffs;
    int64_t coeffs_row, coeffs_step;
    Rows<T> out;
    int64_t count, length;
    int order;
    T sign;
    bool reversed;
    int64_t parts, part; // steps of each but the last

    __device__ int64_t step_of(int64_t n) const { return reversed ? length - 1 - n : n; }
    __device__ const T* coeffs_at(int64_t b, int64_t step) const {
        return coeffs + b * coeffs_row + step * coeffs_step;
    }
};

// Memory and coefficients of one series, in registers: of all steps, with what earlier steps add to later ones.
template <class T, int MOST>
class Constant {
  public:
    T memory[MOST];

    __device__ Constant(const Series<T>& s, int64_t b) : order_(s.order) {
#pragma unroll
        for (int i = 0; i < MOST; ++i) {
            coeffs_[i] = i < order_ ? s.sign * s.coeffs_at(b, 0)[i] : T(0);
            memory[i] = 0;
        }
    }
    // What has been before the first step: the state, the earliest first.
    __device__ void remember(const T* state) {
        for (int i = order_ - 1; i >= 0; --i)
            push(state[i]);
    }
    __device__ T step(T x, const T*) {
        const T y = x + memory[0];
        push(y);
        return y;
    }

  private:
    __device__ void push(T y) {
        // Coefficients beyond the order are zero, and to be nothing for what is not finite either.
        const bool finite = y - y == T(0);
#pragma unroll
        for (int i = 0; i < MOST; ++i) {
            const T later = i + 1 < MOST ? memory[i + 1] : T(0);
            memory[i] = finite || i < order_ ? coeffs_[i] * y + later : T(0);
        }
    }

    T coeffs_[MOST];
    const int order_;
};

// Of every step, with the values before it.
template <class T, int MOST>
class Varying {
  public:
    T memory[MOST];

    __device__ Varying(const Series<T>& s, int64_t) : order_(s.order), sign_(s.sign) {
#pragma unroll
        for (int i = 0; i < MOST; ++i)
            memory[i] = 0;
    }
    __device__ void remember(const T* state) {
#pragma unroll
        for (int i = 0; i < MOST; ++i)
            if (i < order_)
                memory[i] = state[i];
    }
    __device__ T step(T x, const T* coeffs) {
        T sum = 0;
#pragma unroll
        for (int i = 0; i < MOST; ++i)
            if (i < order_)
                sum += coeffs[i] * memory[i];
#pragma unroll
        for (int i = MOST - 1; i > 0; --i)
            memory[i] = memory[i - 1];
        memory[0] = x + sign_ * sum;
        return memory[0];
    }

  private:
    const int order_;
    const T sign_;
};

// The transpose, with what a step adds to those that come after it in turn.
template <class T, int MOST>
class Transposed {
  public:
    T memory[MOST];

    __device__ Transposed(const Series<T>& s, int64_t) : order_(s.order), sign_(s.sign) {
#pragma unroll
        for (int i = 0; i < MOST; ++i)
            memory[i] = 0;
    }
    __device__ void remember(const T*) {}
    __device__ T step(T x, const T* coeffs) {
        const T y = x + memory[0], signed_y = sign_ * y;
#pragma unroll
        for (int i = 0; i < MOST; ++i) {
            const T later = i + 1 < MOST ? memory[i + 1] : T(0);
            if (i < order_)
                memory[i] = coeffs[i] * signed_y + later;
        }
        return y;
    }

  private:
    const int order_;
    const T sign_;
};

// Elements of 32 rows, a column for each lane of the warp that fills it.
template <class T>
struct Tiles {
    T of_warp[BLOCK / WARP][WARP][WARP + 1];
};

// The steps from `begin` on of a series that are one lane's.
struct Run {
    int64_t series, begin, steps;
};

// Runs every lane's steps, a tile at a time: the warp reads and writes its lanes' rows one after the other, as rows of
// neighbouring steps are moved at once.
template <class T, class F, bool WRITES>
__device__ void run_lanes(const Series<T>& s, F& filter, const Run& mine) {
    auto& tile = shared_memory<Tiles<T>>().of_warp[threadIdx.x / WARP];
    const int lane = static_cast<int>(threadIdx.x) % WARP;
    const int64_t ahead = s.reversed ? -1 : 1, begin = s.step_of(mine.begin);
    for (int64_t first = 0; __any_sync(ALL_LANES, first < mine.steps); first += WARP) {
        const int64_t rest = mine.steps - first;
        const int steps = rest < 0 ? 0 : rest < WARP ? static_cast<int>(rest) : WARP;
        // So many loads under way at a time; all 32 would take more registers than there are.
#pragma unroll 4
        for (int row = 0; row < WARP; ++row) {
            const int64_t at = __shfl_sync(ALL_LANES, mine.series * s.in.row + begin, row);
            if (lane < __shfl_sync(ALL_LANES, steps, row))
                tile[row][lane] = s.in.data[at + ahead * (first + lane)];
        }
        __syncwarp();
        const T* coeffs = s.coeffs_at(mine.series, begin + ahead * first);
        // A step is unrolled over its lags: several at a time would take more registers than there are.
#pragma unroll 1
        for (int i = 0; i < steps; ++i, coeffs += ahead * s.coeffs_step)
            tile[lane][i] = filter.step(tile[lane][i], coeffs);
        __syncwarp();
#pragma unroll 4
        for (int row = 0; WRITES && row < WARP; ++row) {
            const int64_t at = __shfl_sync(ALL_LANES, mine.series * s.out.row + begin, row);
            if (lane < __shfl_sync(ALL_LANES, steps, row))
                s.out.data[at + ahead * (first + lane)] = tile[row][lane];
        }
        __syncwarp();
    }
}

// Series and part of a lane. There are never more parts than divide in 32 bits, which takes no call.
struct Place {
    int64_t series, part;
};
__device__ inline Place place_of(int64_t index, int64_t parts) {
    if (parts == 1)
        return {index, 0};
    const auto series = static_cast<uint32_t>(index) / static_cast<uint32_t>(parts);
    return {series, index - series * parts};
}

// What stands between the parts.
template <class T>
struct Between {
    T* memory;      // (series, part, MOST): at each part's beginning
    T* matrices;    // (series or 1, part or 1, MOST, MOST): what a part makes of each element of memory
    int64_t* whole; // of each series, the part from which on it is run in one piece

    __device__ T* memory_at(int64_t index, int most) const { return memory + index * most; }
};

template <class T, class F, int MOST>
__device__ void copy_memory(const F& filter, T* out) {
#pragma unroll
    for (int i = 0; i < MOST; ++i)
        out[i] = filter.memory[i];
}

// The memory at every part's end, from zeros, is what the next one begins with, until the matrices are taken in.
template <class T, class F, int MOST>
__global__ void __launch_bounds__(BLOCK, RESIDENT<T, MOST>) ends_kernel(Series<T> s, Between<T> between) {
    const int64_t total = s.count * (s.parts - 1), index = thread_of_grid();
    const bool mine = index < total;
    const auto [b, p] = place_of(mine ? index : total - 1, s.parts - 1);
    F filter(s, b);
    run_lanes<T, F, false>(s, filter, {b, p * s.part, mine ? s.part : 0});
    if (mine)
        copy_memory<T, F, MOST>(filter, between.memory_at(b * s.parts + p + 1, MOST));
}

// The matrices' columns, each from an element of memory alone. Coefficients of all steps make the same one of each
// part.
template <class T, class F, int MOST>
__global__ void __launch_bounds__(BLOCK, RESIDENT<T, MOST>)
    matrices_kernel(Series<T> s, Between<T> between, int64_t total) {
    for (int64_t index = thread_of_grid(); index < total * s.order; index += threads_of_grid()) {
        const auto [which, element] = place_of(index, s.order);
        const auto [b, p] = place_of(which, s.coeffs_step == 0 ? 1 : s.parts - 1);
        F filter(s, b);
#pragma unroll
        for (int i = 0; i < MOST; ++i)
            filter.memory[i] = i == element ? T(1) : T(0);
#pragma unroll 1
        for (int64_t n = 0; n < s.part; ++n)
            filter.step(T(0), s.coeffs_at(b, s.step_of(p * s.part + n)));
        copy_memory<T, F, MOST>(filter, between.matrices + (which * MOST + element) * MOST);
    }
}

template <class T, int MOST>
struct Carried {
    T memory[MOST];
    int grows;
};

// The memory at every part's beginning, one after the other; a block per series.
template <class T, class F, int MOST>
__global__ void carry_kernel(Series<T> s, Between<T> between) {
    auto& carried = shared_memory<Carried<T, MOST>>();
    const int i = static_cast<int>(threadIdx.x);
    for (int64_t b = blockIdx.x; b < s.count; b += gridDim.x) {
        __syncthreads();
        if (i == 0) {
            F filter(s, b);
            if (s.state.data)
                filter.remember(s.state.at(b));
            copy_memory<T, F, MOST>(filter, carried.memory);
            copy_memory<T, F, MOST>(filter, between.memory_at(b * s.parts, MOST));
            carried.grows = 0;
        }
        __syncthreads();
        int64_t whole = s.parts - 1;
        for (int64_t p = 1; p < s.parts; ++p) {
            const int64_t which = s.coeffs_step != 0 ? b * (s.parts - 1) + p - 1 : s.coeffs_row != 0 ? b : 0;
            const T* const matrix = between.matrices + which * MOST * MOST;
            T* const next = between.memory_at(b * s.parts + p, MOST) + i;
            T sum = *next, growth = 0;
            for (int j = 0; j < s.order; ++j) {
                const T element = matrix[j * MOST + i];
                sum += element * carried.memory[j];
                growth += element < 0 ? -element : element;
            }
            // What is not finite fails every comparison.
            if (i < s.order && !(growth < T(MOST_GROWTH) && sum - sum == T(0)))
                atomicExch(&carried.grows, 1);
            __syncthreads();
            if (carried.grows) {
                whole = p - 1;
                break;
            }
            carried.memory[i] = sum;
            *next = sum;
            __syncthreads();
        }
        if (i == 0)
            between.whole[b] = whole;
    }
}

// Every part from its memory; a series without parts from its state.
template <class T, class F, int MOST>
__global__ void __launch_bounds__(BLOCK, RESIDENT<T, MOST>) run_kernel(Series<T> s, Between<T> between) {
    const int64_t total = s.count * s.parts, index = thread_of_grid(), within = index < total ? index : total - 1;
    const auto [b, p] = place_of(within, s.parts);
    F filter(s, b);
    int64_t whole = 0;
    if (s.parts > 1) {
        whole = between.whole[b];
#pragma unroll
        for (int i = 0; i < MOST; ++i)
            filter.memory[i] = between.memory_at(within, MOST)[i];
    } else if (s.state.data) {
        filter.remember(s.state.at(b));
    }
    const int64_t begin = p * s.part;
    const int64_t steps = index >= total || p > whole ? 0 : p == whole ? s.length - begin : s.part;
    run_lanes<T, F, true>(s, filter, {b, begin, steps});
}

// Orders that no thread keeps: a warp per series, whose lanes share the lags of every step.
template <class T>
__global__ void any_order_kernel(Series<T> s) {
    const int lane = static_cast<int>(threadIdx.x) % WARP;
    for (int64_t b = thread_of_grid() / WARP; b < s.count; b += threads_of_grid() / WARP) {
        T* const out = s.out.at(b);
        for (int64_t n = 0; n < s.length; ++n) {
            T sum = 0;
            for (int64_t i = lane; i < s.order; i += WARP) {
                const int64_t before = n - 1 - i;
                if (before < 0 && !s.state.data)
                    break;
                const T value = before < 0 ? s.state.at(b)[-1 - before] : out[s.step_of(before)];
                sum += s.coeffs_at(b, s.step_of(s.reversed ? before : n))[i] * value;
            }
            for (int offset = WARP / 2; offset > 0; offset /= 2)
                sum += __shfl_xor_sync(ALL_LANES, sum, offset);
            if (lane == 0)
                out[s.step_of(n)] = s.in.at(b)[s.step_of(n)] + s.sign * sum;
            __syncwarp();
        }
    }
}

}
