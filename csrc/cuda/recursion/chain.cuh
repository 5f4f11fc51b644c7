// Recursions of order 1 in one pass over memory: tiles of a series that wait for what those before them come to, by a
// chain over windows of tiles (after Merrill and Garland, "Single-pass parallel prefix scan with decoupled look-back",
// 2016). Unlike theirs the tiles' sums are put together in an order that does not depend on which of them is first, so
// that the same bits come of it every time.
#pragma once

#include "cuda/recursion/series.cuh"

namespace aigc::cuda::recursion {

constexpr int CHAIN_WARPS = THREADS / WARP, ROUNDS = 8;
constexpr int WINDOW = WARP; // tiles
template <class T>
constexpr int AT_ONCE_OF = sizeof(uint4) / sizeof(T);
template <class T>
constexpr int CHAIN_TILE = THREADS * ROUNDS * AT_ONCE_OF<T>;

// What steps make of the value before them: factor * value + sum.
template <class T>
struct Steps {
    T factor = 1, sum = 0;

    __device__ T after(T value) const { return factor * value + sum; }
    __device__ Steps after(const Steps& earlier) const { return {factor * earlier.factor, after(earlier.sum)}; }
    // Whether it can stand for the steps: what overflows is to be infinite, and what is infinite is to last.
    __device__ bool stands() const { return factor < T(MOST_GROWTH) && factor > -T(MOST_GROWTH) && sum - sum == T(0); }
};

template <class T>
__device__ Steps<T> from_lanes_below(const Steps<T>& own, unsigned by) {
    return {__shfl_up_sync(ALL_LANES, own.factor, by), __shfl_up_sync(ALL_LANES, own.sum, by)};
}
template <class T>
__device__ Steps<T> from_last_lane(const Steps<T>& own) {
    return {__shfl_sync(ALL_LANES, own.factor, WARP - 1), __shfl_sync(ALL_LANES, own.sum, WARP - 1)};
}

// Of a warp's lanes up to each one, in a fixed tree.
template <class T>
__device__ Steps<T> up_to_lane(Steps<T> own) {
    const unsigned lane = threadIdx.x % WARP;
#pragma unroll
    for (unsigned by = 1; by < WARP; by *= 2) {
        const Steps<T> earlier = from_lanes_below(own, by);
        if (lane >= by)
            own = own.after(earlier);
    }
    return own;
}

// Told of a tile: nothing yet; its steps; where they cannot stand for it, its last value; steps and last value.
enum Told : uint32_t { NOTHING, ITS_STEPS, ITS_END, BOTH };

// Between tiles: of each, in the order of tiles and then of series.
template <class T>
struct Chain {
    Steps<T>* steps;
    T* ends;
    uint32_t *told, *ticket; // zeros at first
};

template <class T>
struct ChainShared {
    uint32_t ticket, in_turn;
    int stands[CHAIN_WARPS];
    Steps<T> of_warp[CHAIN_WARPS];
    T before;
};

__device__ inline uint32_t wait_until_told(const uint32_t* told, bool of_end) {
    uint32_t found = load_acquire(told);
    while (found == NOTHING || (of_end && found == ITS_STEPS)) {
        wait_a_moment();
        found = load_acquire(told);
    }
    return found;
}

__global__ void clear_kernel(uint32_t* words, int64_t count) {
    for (int64_t i = thread_of_grid(); i < count; i += threads_of_grid())
        words[i] = 0;
}

// Steps of a series in the order in which they run.
template <class T>
struct Line {
    const T *in, *coeffs;
    T* out;
    int64_t length, coeffs_step;
    T sign;
    bool reversed, wide_in, wide_out;

    __device__ Line(const Series<T>& s, int64_t b)
        : in(s.in.at(b)), coeffs(s.coeffs + b * s.coeffs_row), out(s.out.at(b)), length(s.length),
          coeffs_step(s.coeffs_step), sign(s.sign), reversed(s.reversed), wide_in(is_wide(in)), wide_out(is_wide(out)) {
    }

    __device__ int64_t step_of(int64_t n) const { return reversed ? length - 1 - n : n; }
    // What the value before is multiplied by: reversed, the coefficient of that one's step.
    __device__ T factor(int64_t n) const {
        if (coeffs_step == 0)
            return sign * coeffs[0];
        if (n >= length || (reversed && n == 0))
            return 0;
        return sign * coeffs[step_of(reversed ? n - 1 : n) * coeffs_step];
    }
    __device__ void load(int64_t n, T (&x)[AT_ONCE_OF<T>]) const {
        constexpr int EACH = AT_ONCE_OF<T>;
        if (wide_in && n + EACH <= length) {
            const uint4 bits = *reinterpret_cast<const uint4*>(in + (reversed ? length - EACH - n : n));
            T found[EACH];
            memcpy(found, &bits, sizeof bits);
#pragma unroll
            for (int i = 0; i < EACH; ++i)
                x[i] = reversed ? found[EACH - 1 - i] : found[i];
            return;
        }
#pragma unroll
        for (int i = 0; i < EACH; ++i)
            x[i] = n + i < length ? in[step_of(n + i)] : T(0);
    }
    __device__ void store(int64_t n, const T (&y)[AT_ONCE_OF<T>]) const {
        constexpr int EACH = AT_ONCE_OF<T>;
        if (wide_out && n + EACH <= length) {
            T found[EACH];
#pragma unroll
            for (int i = 0; i < EACH; ++i)
                found[i] = reversed ? y[EACH - 1 - i] : y[i];
            uint4 bits;
            memcpy(&bits, found, sizeof bits);
            *reinterpret_cast<uint4*>(out + (reversed ? length - EACH - n : n)) = bits;
            return;
        }
#pragma unroll
        for (int i = 0; i < EACH; ++i)
            if (n + i < length)
                out[step_of(n + i)] = y[i];
    }

  private:
    __device__ bool is_wide(const T* data) const {
        return reinterpret_cast<uintptr_t>(reversed ? data + length : data) % sizeof(uint4) == 0;
    }
};

// What each of a thread's values before is multiplied by.
template <class T, bool VARYING>
struct Factors {
    T each[ROUNDS][AT_ONCE_OF<T>];

    __device__ void load(const Line<T>& line, int round, int64_t n) {
#pragma unroll
        for (int i = 0; i < AT_ONCE_OF<T>; ++i)
            each[round][i] = line.factor(n + i);
    }
    __device__ T at(int round, int i) const { return each[round][i]; }
};
template <class T>
struct Factors<T, false> {
    T all;

    __device__ void load(const Line<T>& line, int, int64_t) { all = line.factor(0); }
    __device__ T at(int, int) const { return all; }
};

// The value before a tile, by the first warp: from the end of the last window and the steps of the tiles since, or,
// where these cannot stand for them, from the end of the tile before.
template <class T>
__device__ T value_before(const Series<T>& s, const Chain<T>& chain, int64_t b, int64_t tile) {
    const int64_t window = tile / WINDOW * WINDOW, mine = window + threadIdx.x;
    T carry = s.state.data ? s.state.at(b)[0] : T(0);
    if (window > 0) {
        const int64_t at = (window - 1) * s.count + b;
        wait_until_told(chain.told + at, true);
        carry = chain.ends[at];
    }
    Steps<T> own;
    if (mine < tile) {
        const int64_t at = mine * s.count + b;
        own = wait_until_told(chain.told + at, false) == ITS_END ? Steps<T>{0, chain.ends[at]} : chain.steps[at];
    }
    const Steps<T> since = up_to_lane(own);
    const T value = from_last_lane(since).after(carry);
    const bool stands = carry - carry == T(0) && since.stands() && value - value == T(0);
    if (tile == window || __all_sync(ALL_LANES, stands))
        return tile == window ? carry : value;
    const int64_t at = (tile - 1) * s.count + b;
    wait_until_told(chain.told + at, true);
    return chain.ends[at];
}

template <class T, bool VARYING>
__global__ void __launch_bounds__(THREADS, sizeof(T) == 8 ? 1 : 2) chain_kernel(Series<T> s, Chain<T> chain) {
    constexpr int EACH = AT_ONCE_OF<T>;
    auto& shared = shared_memory<ChainShared<T>>();
    const int warp = static_cast<int>(threadIdx.x) / WARP, lane = static_cast<int>(threadIdx.x) % WARP;
    // Tiles begin in the order of their tickets, so that those that a tile waits for are under way or done.
    if (threadIdx.x == 0)
        shared.ticket = atomicAdd(chain.ticket, 1u);
    __syncthreads();
    const int64_t place = shared.ticket, b = place % s.count, tile = place / s.count;
    const Line<T> line(s, b);
    const int64_t begin = tile * CHAIN_TILE<T>, first = begin + (warp * ROUNDS * WARP + lane) * EACH;
    T x[ROUNDS][EACH];
    Factors<T, VARYING> factors;
    Steps<T> before[ROUNDS], of_warp;
    bool stands = true;
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        line.load(first + round * WARP * EACH, x[round]);
        factors.load(line, round, first + round * WARP * EACH);
    }
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        Steps<T> own;
#pragma unroll
        for (int i = 0; i < EACH; ++i)
            own = Steps<T>{factors.at(round, i), x[round][i]}.after(own);
        const Steps<T> up_to = up_to_lane(own), below = from_lanes_below(up_to, 1);
        before[round] = lane == 0 ? of_warp : below.after(of_warp);
        of_warp = from_last_lane(up_to).after(of_warp);
        stands = stands && up_to.stands() && before[round].stands();
    }
    const int all_stand = __all_sync(ALL_LANES, stands && of_warp.stands());
    if (lane == 0) {
        shared.of_warp[warp] = of_warp;
        shared.stands[warp] = all_stand;
    }
    __syncthreads();
    Steps<T> to_warp, of_tile;
    stands = true;
#pragma unroll
    for (int w = 0; w < CHAIN_WARPS; ++w) {
        if (w == warp)
            to_warp = of_tile;
        of_tile = shared.of_warp[w].after(of_tile);
        stands = stands && shared.stands[w] && of_tile.stands();
    }
    if (threadIdx.x == 0 && stands) {
        chain.steps[place] = of_tile;
        store_release(chain.told + place, ITS_STEPS);
    }
    if (warp == 0) {
        const T value = value_before(s, chain, b, tile);
        if (lane == 0) {
            shared.before = value;
            const T end = of_tile.after(value);
            const bool in_turn = !stands || !(value - value == T(0)) || !(end - end == T(0));
            shared.in_turn = in_turn;
            if (!in_turn) {
                chain.ends[place] = end;
                store_release(chain.told + place, BOTH);
            }
        }
    }
    __syncthreads();
    if (shared.in_turn) {
        if (threadIdx.x == 0) {
            const int64_t end = begin + CHAIN_TILE<T> < s.length ? begin + CHAIN_TILE<T> : s.length;
            T y = shared.before;
            for (int64_t n = begin; n < end; ++n) {
                y = line.in[line.step_of(n)] + line.factor(n) * y;
                line.out[line.step_of(n)] = y;
            }
            chain.ends[place] = y;
            store_release(chain.told + place, stands ? BOTH : ITS_END);
        }
        return;
    }
    const T value = to_warp.after(shared.before);
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        T y[EACH], last = before[round].after(value);
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            last = x[round][i] + factors.at(round, i) * last;
            y[i] = last;
        }
        line.store(first + round * WARP * EACH, y);
    }
}

}
