// Holds csrc/cuda/emulate to what a card does, and to finding what would go wrong there: kernels that are right, and
// the same with a mistake planted.
//
// Usage: built with -DAIGC_CUDA_HOST -Icsrc, with or without sanitizers, and cuda/emulate/emulate.cpp without; run with
// the name of a case. Returns 0 where every order gives the right numbers, else says what is wrong and returns 1.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "cuda/device.cuh"

namespace {

using namespace aigc::cuda;

enum Mistake {
    NONE,
    NO_BARRIER_AFTER_LOAD,
    NO_BARRIER_BEFORE_OVERWRITE,
    NO_BARRIER_BEFORE_MERGE,
    WAITS_FOR_TOO_FEW,
    NO_SYNC_OF_WARP,
    BEYOND_SHARED,
    BEYOND_GLOBAL,
    MISALIGNED,
    DIVERGENT_BARRIER,
    MISSING_LANE,
    NO_RELEASE,
    NOT_RESIDENT,
    NO_MEETING,
    TOO_MANY,
};

constexpr int THREADS = 64, TILES = 5;

// A tile is turned round in shared memory.
template <Mistake MISTAKE>
__global__ void reverse(float* out, const float* in) {
    struct Tile {
        float at[THREADS];
    };
    auto& tile = shared_memory<Tile>();
    const int i = threadIdx.x;
    for (int t = 0; t < TILES; ++t) {
        const int64_t first = (int64_t(blockIdx.x) * TILES + t) * THREADS;
        tile.at[i + (MISTAKE == BEYOND_SHARED)] = in[first + i];
        if (MISTAKE != NO_BARRIER_AFTER_LOAD && (MISTAKE != DIVERGENT_BARRIER || i > 3))
            __syncthreads();
        out[first + i + (MISTAKE == BEYOND_GLOBAL ? THREADS * TILES : 0)] = tile.at[THREADS - 1 - i];
        if (MISTAKE != NO_BARRIER_BEFORE_OVERWRITE)
            __syncthreads();
    }
}

// A sum of each block, by its warps and then by one.
template <Mistake MISTAKE>
__global__ void sum(float* out, const float* in) {
    struct Parts {
        float of_warp[THREADS / 32];
    };
    auto& parts = shared_memory<Parts>();
    float value = in[int64_t(blockIdx.x) * THREADS + threadIdx.x];
    if (MISTAKE == MISSING_LANE && threadIdx.x == 7)
        return;
    for (int offset = 16; offset > 0; offset /= 2)
        value += __shfl_xor_sync(ALL_LANES, value, offset);
    if (threadIdx.x % 32 == 0)
        parts.of_warp[threadIdx.x / 32] = value;
    if (MISTAKE != NO_BARRIER_BEFORE_MERGE)
        __syncthreads();
    if (threadIdx.x == 0)
        out[blockIdx.x] = parts.of_warp[0] + parts.of_warp[1];
}

// Lanes of a warp exchange by shared memory.
template <Mistake MISTAKE>
__global__ void rotate(float* out, const float* in) {
    struct Row {
        float at[THREADS];
    };
    auto& row = shared_memory<Row>();
    const int i = threadIdx.x, next = i / 32 * 32 + (i + 1) % 32;
    const int64_t first = int64_t(blockIdx.x) * THREADS;
    row.at[i] = in[first + i];
    if (MISTAKE != NO_SYNC_OF_WARP)
        __syncwarp();
    out[first + i] = row.at[next];
}

// Tiles of a row are copied asynchronously, one ahead, and added up.
template <Mistake MISTAKE>
__global__ void stream(float* out, const float* in) {
    struct alignas(16) Buffers {
        float at[2][4 * THREADS];
    };
    auto& buffers = shared_memory<Buffers>();
    const int i = threadIdx.x;
    const float* const row = in + int64_t(blockIdx.x) * TILES * 4 * THREADS + (MISTAKE == MISALIGNED);
    const auto fetch = [&](int tile) {
        if (tile < TILES)
            copy_async(&buffers.at[tile % 2][4 * i], row + (tile * THREADS + i) * 4);
        commit_copies();
    };
    fetch(0);
    float total = 0;
    for (int t = 0; t < TILES; ++t) {
        fetch(t + 1);
        wait_for_copies<(MISTAKE == WAITS_FOR_TOO_FEW ? 2 : 1)>();
        __syncthreads();
        for (int k = 0; k < 4; ++k)
            total += buffers.at[t % 2][(4 * i + 4 + k) % (4 * THREADS)];
        __syncthreads();
    }
    out[int64_t(blockIdx.x) * THREADS + i] = total;
}

// Blocks in a row, each adding to what the one before it found, in the order in which they come.
template <Mistake MISTAKE>
__global__ void chain(float* out, const float* in, uint32_t* ticket, uint32_t* ready) {
    struct Place {
        uint32_t of_block;
    };
    auto& place = shared_memory<Place>();
    if (threadIdx.x == 0)
        place.of_block = MISTAKE == NOT_RESIDENT ? gridDim.x - 1 - blockIdx.x : atomicAdd(ticket, 1u);
    __syncthreads();
    const uint32_t block = place.of_block;
    if (threadIdx.x != 0)
        return;
    while (block > 0 && load_acquire(ready + block - 1) == 0)
        wait_a_moment();
    out[block] = in[block] + (block > 0 ? out[block - 1] : 0.0f);
    if (MISTAKE == NO_RELEASE)
        atomicExch(ready + block, 1u);
    else
        store_release(ready + block, 1);
}

// Blocks that are under way at once, each of which reads what the next one wrote.
template <Mistake MISTAKE>
__global__ void meet(float* out, float* between, const float* in, uint32_t* ready) {
    if (threadIdx.x == 0) {
        between[blockIdx.x] = in[blockIdx.x];
        store_release(ready + blockIdx.x, 1);
    }
    for (unsigned block = threadIdx.x; block < gridDim.x; block += THREADS)
        while (MISTAKE != NO_MEETING && load_acquire(ready + block) == 0)
            wait_a_moment();
    __syncthreads();
    if (threadIdx.x == 0)
        out[blockIdx.x] = between[(blockIdx.x + 1) % gridDim.x];
}

// The product of a 16x16 and a 16x8 matrix, which are the same for every block.
template <class T>
__global__ void multiply(float* out, const T* a, const T* b) {
    const int row = threadIdx.x / 4, k = threadIdx.x % 4 * 2;
    const auto pair = [](T first, T second) {
        const T both[2] = {first, second};
        uint32_t word;
        memcpy(&word, both, sizeof word);
        return word;
    };
    uint32_t of_a[4], of_b[2];
    for (int i = 0; i < 4; ++i) {
        const T* const at = a + (row + 8 * (i % 2)) * 16 + k + 8 * (i / 2);
        of_a[i] = pair(at[0], at[1]);
    }
    for (int i = 0; i < 2; ++i)
        of_b[i] = pair(b[(k + 8 * i) * 8 + row], b[(k + 8 * i + 1) * 8 + row]);
    float d[4] = {1, 1, 1, 1};
    multiply_add(d, of_a, of_b, static_cast<const T*>(nullptr));
    for (int i = 0; i < 4; ++i)
        out[int64_t(blockIdx.x) * 128 + (row + 8 * (i / 2)) * 8 + k + i % 2] = d[i];
}

// What lanes tell each other, of a warp that is not whole.
__global__ void tell(float* out, int* count) {
    const unsigned lane = threadIdx.x, odd = __ballot_sync(ALL_LANES, lane % 2);
    const int below = __shfl_up_sync(ALL_LANES, int(lane), 1), above = __shfl_down_sync(ALL_LANES, int(lane), 1, 8);
    const int first = __shfl_sync(ALL_LANES, int(lane), 0, 4);
    const bool any = __any_sync(ALL_LANES, lane == 23), all = __all_sync(ALL_LANES, lane < 24);
    atomicAdd(count, 1);
    out[int64_t(blockIdx.x) * blockDim.x + lane] =
        float(__popc(odd & ((1u << lane) - 1)) + 100 * below + 10000 * above + 1000000 * first) +
        (any && all ? 0.5f : 0);
}

bool failed = false;

void expect(const std::vector<float>& found, const std::vector<float>& expected, const char* what) {
    if (!failed && found != expected) {
        std::printf("%s: wrong numbers\n", what);
        failed = true;
    }
}

constexpr int BLOCKS = 6;

std::vector<float> counted(int64_t n) {
    std::vector<float> values(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i)
        values[static_cast<size_t>(i)] = static_cast<float>(i % 251);
    return values;
}
std::vector<float> nothing(int64_t n) { return std::vector<float>(static_cast<size_t>(n), -1.0f); }

template <Mistake MISTAKE>
void check_reverse() {
    const auto in = counted(BLOCKS * TILES * THREADS);
    auto out = nothing(BLOCKS * TILES * THREADS), expected = out;
    launch("reverse", &reverse<MISTAKE>, {}, {BLOCKS, THREADS, sizeof(float) * THREADS}, out.data(), in.data());
    for (size_t i = 0; i < out.size(); ++i)
        expected[i] = in[i / THREADS * THREADS + THREADS - 1 - i % THREADS];
    expect(out, expected, "reverse");
}

template <Mistake MISTAKE>
void check_sum() {
    const auto in = counted(BLOCKS * THREADS);
    auto out = nothing(BLOCKS), expected = std::vector<float>(BLOCKS);
    launch("sum", &sum<MISTAKE>, {}, {BLOCKS, THREADS, sizeof(float) * THREADS / 32}, out.data(), in.data());
    for (size_t i = 0; i < in.size(); ++i)
        expected[i / THREADS] += in[i];
    expect(out, expected, "sum");
}

template <Mistake MISTAKE>
void check_rotate() {
    const auto in = counted(BLOCKS * THREADS);
    auto out = nothing(BLOCKS * THREADS), expected = out;
    launch("rotate", &rotate<MISTAKE>, {}, {BLOCKS, THREADS, sizeof(float) * THREADS}, out.data(), in.data());
    for (size_t i = 0; i < in.size(); ++i)
        expected[i] = in[i / 32 * 32 + (i + 1) % 32];
    expect(out, expected, "rotate");
}

template <Mistake MISTAKE>
void check_stream() {
    const auto in = counted(BLOCKS * TILES * 4 * THREADS + 4);
    auto out = nothing(BLOCKS * THREADS), expected = std::vector<float>(BLOCKS * THREADS);
    launch("stream", &stream<MISTAKE>, {}, {BLOCKS, THREADS, 2 * 4 * sizeof(float) * THREADS}, out.data(), in.data());
    for (size_t i = 0; i < expected.size(); ++i)
        for (size_t t = 0; t < TILES; ++t)
            for (size_t k = 0; k < 4; ++k)
                expected[i] += in[(i / THREADS * TILES + t) * 4 * THREADS + (i % THREADS * 4 + 4 + k) % (4 * THREADS)];
    expect(out, expected, "stream");
}

template <Mistake MISTAKE>
void check_chain() {
    const auto in = counted(BLOCKS);
    auto out = nothing(BLOCKS), expected = in;
    std::vector<uint32_t> words(BLOCKS + 1);
    launch("chain", &chain<MISTAKE>, {}, {BLOCKS, THREADS, sizeof(uint32_t)}, out.data(), in.data(), words.data(),
           words.data() + 1);
    for (size_t i = 1; i < in.size(); ++i)
        expected[i] += expected[i - 1];
    expect(out, expected, "chain");
}

template <Mistake MISTAKE>
void check_meet() {
    const int64_t blocks = aigc::emulate::resident_blocks() + (MISTAKE == TOO_MANY);
    const auto in = counted(blocks);
    auto out = nothing(blocks), between = out, expected = in;
    std::vector<uint32_t> ready(static_cast<size_t>(blocks));
    launch("meet", &meet<MISTAKE>, {}, {blocks, THREADS, 0, true}, out.data(), between.data(), in.data(), ready.data());
    std::rotate(expected.begin(), expected.begin() + 1, expected.end());
    expect(out, expected, "meet");
}

template <class T>
void check_multiply() {
    std::vector<T> a, b;
    for (int i = 0; i < 256; ++i)
        a.emplace_back(static_cast<float>(i % 13) - 5);
    for (int i = 0; i < 128; ++i)
        b.emplace_back(static_cast<float>(i % 7) - 2);
    auto out = nothing(BLOCKS * 128), expected = std::vector<float>(BLOCKS * 128, 1.0f);
    launch("multiply", &multiply<T>, {}, {BLOCKS, 32}, out.data(), a.data(), b.data());
    for (size_t i = 0; i < out.size(); ++i)
        for (size_t k = 0; k < 16; ++k)
            expected[i] += static_cast<float>(a[i % 128 / 8 * 16 + k]) * static_cast<float>(b[k * 8 + i % 8]);
    expect(out, expected, "multiply");
}

void check_tell() {
    constexpr int LANES = 24;
    int count = 0;
    auto out = nothing(BLOCKS * LANES), expected = out;
    launch("tell", &tell, {}, {BLOCKS, LANES}, out.data(), &count);
    for (int i = 0; i < BLOCKS * LANES; ++i) {
        const int lane = i % LANES, above = lane % 8 == 7 ? lane : lane + 1;
        const int below = lane > 0 ? lane - 1 : 0;
        expected[static_cast<size_t>(i)] =
            float(lane / 2 + 100 * below + 10000 * above + 1000000 * (lane / 4 * 4)) + 0.5f;
    }
    expect(out, expected, "tell");
    expect({float(count)}, {float(BLOCKS * LANES)}, "atomicAdd");
}

void check_right() {
    check_reverse<NONE>();
    check_sum<NONE>();
    check_rotate<NONE>();
    check_stream<NONE>();
    check_chain<NONE>();
    check_meet<NONE>();
    check_multiply<__nv_bfloat16>();
    check_multiply<__half>();
    check_tell();
}

struct Case {
    const char* name;
    void (*run)();
};
constexpr Case CASES[] = {
    {"right", check_right},
    {"no barrier after load", check_reverse<NO_BARRIER_AFTER_LOAD>},
    {"no barrier before overwrite", check_reverse<NO_BARRIER_BEFORE_OVERWRITE>},
    {"no barrier before merge", check_sum<NO_BARRIER_BEFORE_MERGE>},
    {"waits for too few", check_stream<WAITS_FOR_TOO_FEW>},
    {"no __syncwarp", check_rotate<NO_SYNC_OF_WARP>},
    {"beyond shared memory", check_reverse<BEYOND_SHARED>},
    {"beyond global memory", check_reverse<BEYOND_GLOBAL>},
    {"misaligned", check_stream<MISALIGNED>},
    {"divergent barrier", check_reverse<DIVERGENT_BARRIER>},
    {"missing lane", check_sum<MISSING_LANE>},
    {"no release", check_chain<NO_RELEASE>},
    {"not resident", check_chain<NOT_RESIDENT>},
    {"no meeting", check_meet<NO_MEETING>},
    {"too many", check_meet<TOO_MANY>},
};

}

int main(int count, char** arguments) {
    for (const Case& one : CASES)
        if (count == 2 && one.name == std::string(arguments[1])) {
            try {
                for (uint64_t seed = 0; seed < 8; ++seed) {
                    aigc::emulate::set_order(seed, 1 + static_cast<int64_t>(seed % 4));
                    one.run();
                }
            } catch (const std::runtime_error& error) {
                std::printf("%s\n", error.what());
                return 1;
            }
            return failed;
        }
    std::printf("there is no such case\n");
    return 2;
}
