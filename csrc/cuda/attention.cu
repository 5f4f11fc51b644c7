// Attention of few queries, the keys in parts: a block for each part of a head's keys, whose warps take tiles in turn.
// The queries of all heads that share keys are its rows, so that keys and values are read once for all of them.
#include "cuda/attention/few_queries.h"

#include "cuda/attention/tiles.cuh"

namespace aigc::cuda::attention {
namespace {

constexpr int WARPS = 4, BLOCK = WARPS * WARP;

// Strides of batches, heads and rows; elements of a row are side by side.
struct Strides {
    int64_t batch, head, row;
};

enum MaskKind : int64_t { NO_MASK, BOOLEAN, OF_FLOAT32, OF_THE_TENSORS };

struct Mask {
    const void* data;
    int64_t kind, batch, head, query, key;
};

struct Sizes {
    int64_t batches, heads, groups, queries, keys, size, value_size, left, right, offset, splits;

    __host__ __device__ int64_t shared() const { return heads / groups; }
    __host__ __device__ int64_t rows() const { return queries * shared(); }
};

// `parts` and `part_sums` are of every part, row after row, and null for one part.
template <class T>
struct Call {
    T* out;
    float *sums, *parts, *part_sums;
    const T *query, *key, *value;
    Strides of_out, of_query, of_key, of_value;
    Mask mask;
    Sizes n;
    float scale;
    bool wide;
    const int64_t *length, *sources;

    // What there is by now, where the device's memory tells how many keys there are: of float32 alone, as tensor cores
    // leave no registers for it.
    __device__ decltype(auto) sizes() const {
        if constexpr (sizeof(T) == sizeof(float)) {
            Sizes found = n;
            if (length) {
                found.keys = *length < n.keys ? *length : n.keys;
                found.offset = found.keys - n.queries;
            }
            return found;
        } else {
            return (n);
        }
    }
    __device__ int64_t source(int64_t batch) const {
        if constexpr (sizeof(T) == sizeof(float))
            return sources ? sources[batch] : batch;
        else
            return batch;
    }
};

template <class T, class P, int WIDTH>
struct Shared {
    T query[P::ROWS][WIDTH];
    float sums[P::ROWS][WIDTH], top[WARPS][P::ROWS], total[WARPS][P::ROWS], weights[WARPS][P::ROWS];
    typename P::Memory of_warp[WARPS];
};

// A row's query and head; beyond the last row, of nothing that is seen.
struct Row {
    bool is_there;
    int64_t query, head;

    __device__ Row(const Sizes& n, int64_t group, int64_t row) : is_there(row < n.rows()) {
        const auto shared = static_cast<unsigned>(n.shared()), at = static_cast<unsigned>(is_there ? row : 0);
        query = at / shared;
        head = group * shared + at % shared;
    }
};

__device__ inline float as_float(float x) { return x; }
template <class T>
__device__ float as_float(T x) {
    return static_cast<float>(x);
}

// What is added to a score: minus infinity where the key is hidden.
template <class T>
__device__ float added(const Call<T>& call, const Sizes& n, int64_t batch, const Row& row, int64_t key) {
    const int64_t distance = key - row.query - n.offset;
    if (!row.is_there || key >= n.keys || distance < -n.left || distance > n.right)
        return -INFINITY;
    const Mask& mask = call.mask;
    if (mask.kind == NO_MASK)
        return 0;
    const int64_t at = batch * mask.batch + row.head * mask.head + row.query * mask.query + key * mask.key;
    if (mask.kind == BOOLEAN)
        return static_cast<const unsigned char*>(mask.data)[at] ? 0 : -INFINITY;
    return mask.kind == OF_FLOAT32 ? static_cast<const float*>(mask.data)[at]
                                   : as_float(static_cast<const T*>(mask.data)[at]);
}

__device__ inline float finite(float top) { return top == -INFINITY ? 0 : top; }

// The tiles that rows of these queries see of a part of the keys.
struct Range {
    int64_t begin, end;

    __device__ Range(const Sizes& n, int64_t first_query, int64_t last_query, int64_t split) {
        const int64_t low = first_query + n.offset - n.left, high = last_query + n.offset + n.right + 1;
        const int64_t first = (low > 0 ? low : 0) / TILE, keys = high < n.keys ? high : n.keys;
        const int64_t last = keys > 0 ? ceil_div(keys, TILE) : 0;
        const int64_t each = last > first ? ceil_div(last - first, n.splits) : 0;
        begin = first + split * each;
        end = begin + each < last ? begin + each : last;
    }
};

template <class P>
__device__ float over_row(float x, bool maximum) {
#pragma unroll
    for (int with = P::FIRST; with <= P::LAST; with *= 2) {
        const float other = __shfl_xor_sync(ALL_LANES, x, with);
        x = maximum ? fmaxf(x, other) : x + other;
    }
    return x;
}

// The running softmax of this lane's two rows.
template <class P>
struct Softmax {
    float top[2] = {-INFINITY, -INFINITY}, total[2] = {};

    // The probabilities for the highest score so far, and what all before is to be scaled by.
    __device__ void take(float (&scores)[2][P::EACH], float (&factors)[2]) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float higher = top[r];
#pragma unroll
            for (float score : scores[r])
                higher = fmaxf(higher, score);
            higher = over_row<P>(higher, true);
            factors[r] = expf(top[r] - finite(higher));
            total[r] *= factors[r];
#pragma unroll
            for (float& score : scores[r]) {
                score = expf(score - finite(higher));
                total[r] += score;
            }
            top[r] = higher;
        }
    }
};

// Blocks of a multiprocessor at least: sums of float32 leave room for two, and would be put on the stack for three.
template <class T>
constexpr int RESIDENT = sizeof(T) == 2 ? 1 : 2;

template <class T, int WIDTH>
__global__ void __launch_bounds__(BLOCK, RESIDENT<T>) parts_kernel(Call<T> call, int64_t blocks) {
    using P = Products<T, WIDTH>;
    auto& shared = shared_memory<Shared<T, P, WIDTH>>();
    const Sizes& n = call.sizes();
    const int64_t split = blockIdx.x % n.splits, unit = blockIdx.x / n.splits;
    const int64_t first = unit % blocks * P::ROWS, of_group = unit / blocks % n.groups,
                  batch = unit / blocks / n.groups, source = call.source(batch);
    const int warp = static_cast<int>(threadIdx.x) / WARP;
    for (int i = static_cast<int>(threadIdx.x); i < P::ROWS * WIDTH; i += BLOCK) {
        const int r = i / WIDTH, element = i % WIDTH;
        const Row row(n, of_group, first + r);
        const bool there = row.is_there && element < n.size;
        const T* const from =
            call.query + batch * call.of_query.batch + row.head * call.of_query.head + row.query * call.of_query.row;
        shared.query[r][element] = there ? from[element] : static_cast<T>(0.0f);
        shared.sums[r][element] = 0;
    }
    __syncthreads();
    const Matrix<T> keys{call.key + source * call.of_key.batch + of_group * call.of_key.head, call.of_key.row,
                         static_cast<int>(n.keys), static_cast<int>(n.size), call.wide};
    const Matrix<T> values{call.value + source * call.of_value.batch + of_group * call.of_value.head, call.of_value.row,
                           static_cast<int>(n.keys), static_cast<int>(n.value_size), call.wide};
    const Row rows[] = {{n, of_group, first + P::row(0)}, {n, of_group, first + P::row(1)}};
    const int64_t last = first + P::ROWS < n.rows() ? first + P::ROWS - 1 : n.rows() - 1;
    const Range range(n, first / n.shared(), last / n.shared(), split);
    P products(shared.of_warp[warp]);
    Softmax<P> softmax;
    for (int64_t tile = range.begin + warp; tile < range.end; tile += WARPS) {
        const int at = static_cast<int>(tile * TILE);
        float more[2][P::EACH], scores[2][P::EACH], factors[2];
        bool any = false;
#pragma unroll
        for (int i = 0; i < 2 * P::EACH; ++i) {
            float& one = more[i / P::EACH][i % P::EACH];
            one = added(call, n, source, rows[i / P::EACH], at + P::key(i % P::EACH));
            any = any || one != -INFINITY;
        }
        if (!__any_sync(ALL_LANES, any))
            continue;
        P::scores(shared.query, keys, at, scores);
#pragma unroll
        for (int i = 0; i < 2 * P::EACH; ++i) {
            float& score = scores[i / P::EACH][i % P::EACH];
            const float one = more[i / P::EACH][i % P::EACH];
            // What is hidden may be anything, NaN too.
            score = one == -INFINITY ? -INFINITY : score * call.scale + one;
        }
        softmax.take(scores, factors);
        products.add(scores, factors, values, at);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        softmax.total[r] = over_row<P>(softmax.total[r], false);
        if (P::leads()) {
            shared.top[warp][P::row(r)] = softmax.top[r];
            shared.total[warp][P::row(r)] = softmax.total[r];
        }
    }
    __syncthreads();
    // A thread of each row weighs its warps; what they sum is put together in their order.
    if (const int r = static_cast<int>(threadIdx.x); r < P::ROWS) {
        float top = -INFINITY, total = 0;
        for (int w = 0; w < WARPS; ++w)
            top = fmaxf(top, shared.top[w][r]);
        for (int w = 0; w < WARPS; ++w) {
            shared.weights[w][r] = expf(shared.top[w][r] - finite(top));
            total += shared.weights[w][r] * shared.total[w][r];
        }
        for (int w = 0; w < WARPS; ++w)
            shared.weights[w][r] /= total == 0 ? 1 : total;
        const Row row(n, of_group, first + r);
        if (row.is_there) {
            const int64_t at = (batch * n.heads + row.head) * n.queries + row.query;
            float* const to = n.splits == 1 ? call.sums : call.part_sums + split * n.batches * n.heads * n.queries;
            to[at] = total == 0 ? -INFINITY : top + logf(total);
        }
    }
    for (int w = 0; w < WARPS; ++w) {
        __syncthreads();
        if (w == warp)
            products.give(shared.sums, shared.weights[w]);
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < P::ROWS * WIDTH; i += BLOCK) {
        const int r = i / WIDTH, element = i % WIDTH;
        const Row row(n, of_group, first + r);
        if (!row.is_there || element >= n.value_size)
            continue;
        const int64_t at = (batch * n.heads + row.head) * n.queries + row.query;
        if (n.splits == 1)
            call.out[batch * call.of_out.batch + row.head * call.of_out.head + row.query * call.of_out.row + element] =
                static_cast<T>(shared.sums[r][element]);
        else
            call.parts[(split * n.batches * n.heads * n.queries + at) * n.value_size + element] =
                shared.sums[r][element];
    }
}

// A warp for each row.
template <class T>
__global__ void combine_kernel(Call<T> call) {
    const Sizes& n = call.n;
    const int64_t total_rows = n.batches * n.heads * n.queries;
    for (int64_t at = thread_of_grid() / WARP; at < total_rows; at += threads_of_grid() / WARP) {
        float top = -INFINITY, total = 0;
        for (int64_t split = 0; split < n.splits; ++split)
            top = fmaxf(top, call.part_sums[split * total_rows + at]);
        for (int64_t split = 0; split < n.splits; ++split)
            total += expf(call.part_sums[split * total_rows + at] - finite(top));
        const int64_t query = at % n.queries, head = at / n.queries % n.heads, batch = at / n.queries / n.heads;
        T* const out = call.out + batch * call.of_out.batch + head * call.of_out.head + query * call.of_out.row;
        for (int64_t element = lane(); element < n.value_size; element += WARP) {
            float sum = 0;
            for (int64_t split = 0; split < n.splits; ++split)
                sum += expf(call.part_sums[split * total_rows + at] - finite(top)) *
                       call.parts[(split * total_rows + at) * n.value_size + element];
            out[element] = static_cast<T>(sum / (total == 0 ? 1 : total));
        }
        if (lane() == 0)
            call.sums[at] = total == 0 ? -INFINITY : top + logf(total);
    }
}

template <class T, int WIDTH>
void run(const Call<T>& call, const Queue& queue) {
    using P = Products<T, WIDTH>;
    const Sizes& n = call.n;
    const int64_t blocks = ceil_div(n.rows(), P::ROWS);
    launch("attention_few_queries", &parts_kernel<T, WIDTH>, queue,
           {n.batches * n.groups * blocks * n.splits, BLOCK, sizeof(Shared<T, P, WIDTH>)}, call, blocks);
    if (n.splits > 1)
        launch("attention_few_queries' parts", &combine_kernel<T>, queue,
               {blocks_for(n.batches * n.heads * n.queries * WARP), THREADS}, call);
}

template <class T>
bool is_wide(const T* data, const Strides& of, int64_t size) {
    constexpr int64_t EACH = sizeof(uint4) / sizeof(T);
    const bool steps = of.batch % EACH == 0 && of.head % EACH == 0 && of.row % EACH == 0 && size % EACH == 0;
    return steps && reinterpret_cast<uintptr_t>(data) % sizeof(uint4) == 0;
}

Strides strides_of(const int64_t* numbers) { return {numbers[0], numbers[1], numbers[2]}; }

}

// See few_queries.h.
void attention_few_queries(void* out, float* sums, float* parts, float* part_sums, const void* query, const void* key,
                           const void* value, const int64_t* strides, const void* mask, const int64_t* of_mask,
                           int64_t dtype, const int64_t* sizes, const void* length, const void* sources, double scale,
                           int64_t device, void* stream) {
    Sizes n;
    std::memcpy(&n, sizes, sizeof n);
    const auto call_of = [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        Call<T> call{static_cast<T*>(out),
                     sums,
                     parts,
                     part_sums,
                     static_cast<const T*>(query),
                     static_cast<const T*>(key),
                     static_cast<const T*>(value),
                     strides_of(strides),
                     strides_of(strides + 3),
                     strides_of(strides + 6),
                     strides_of(strides + 9),
                     {mask, of_mask[0], of_mask[1], of_mask[2], of_mask[3], of_mask[4]},
                     n,
                     static_cast<float>(scale),
                     false,
                     static_cast<const int64_t*>(length),
                     static_cast<const int64_t*>(sources)};
        call.wide = is_wide(call.key, call.of_key, n.size) && is_wide(call.value, call.of_value, n.value_size);
        const Queue queue{device, stream};
        const int64_t widest = n.size > n.value_size ? n.size : n.value_size;
        if (widest <= 64)
            run<T, 64>(call, queue);
        else if (widest <= 128)
            run<T, 128>(call, queue);
        else
            run<T, 256>(call, queue);
    };
    if (dtype == FLOAT32)
        call_of(static_cast<float*>(nullptr));
    else if (dtype == BFLOAT16)
        call_of(static_cast<__nv_bfloat16*>(nullptr));
    else
        call_of(static_cast<__half*>(nullptr));
}

AIGC_EXPORT(AIGC_KERNEL(attention_few_queries))

}
