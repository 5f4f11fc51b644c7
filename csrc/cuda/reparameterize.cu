// z = mu + exp(logvar / 2) * noise, the Kullback-Leibler divergence to the standard normal law, and their gradients.
#include "cuda/launch.cuh"
#include "cuda/philox.cuh"

namespace aigc::cuda::reparameterize {
namespace {

constexpr int64_t CHUNK = 2048; // elements of a row whose divergence one team sums

__host__ __device__ inline int64_t chunks_of(int64_t columns) { return ceil_div(columns, CHUNK); }

// Rows in chunks, each of them taken by a team of lanes of one warp, so that the divergence is summed in an order that
// depends on the shape alone. A group of elements that reaches into a neighbouring chunk is made in both.
struct Walk {
    int64_t rows, columns, chunks, chunk;
    int log_lanes;

    int64_t units() const { return rows * chunks; }
    Grid grid() const { return {blocks_for(units() << log_lanes), THREADS}; }
};

template <class T>
Walk walk_of(int64_t rows, int64_t columns, bool sums) {
    const int64_t chunk = sums ? CHUNK : int64_t(WARP) * GROUP<T>;
    // Rows that do not end with a group may begin and end within one.
    const int64_t longest = columns < chunk ? columns : chunk;
    const int64_t groups = ceil_div(longest, GROUP<T>) + (rows > 1 && columns % GROUP<T> != 0);
    int log_lanes = 0;
    while (1 << log_lanes < WARP && 1 << log_lanes < groups)
        ++log_lanes;
    return {rows, columns, ceil_div(columns, chunk), chunk, log_lanes};
}

// Calls f(unit, row, from, to) with every lane of the warp, for the chunk that is its team's: an empty one beyond the
// last.
template <class F>
__device__ void for_each_unit(const Walk& walk, const F& f) {
    const int64_t units = walk.rows * walk.chunks, of_warp = thread_of_grid() / WARP * WARP >> walk.log_lanes;
    for (int64_t first = of_warp; first < units; first += threads_of_grid() >> walk.log_lanes) {
        const int64_t unit = first + (threadIdx.x % WARP >> walk.log_lanes);
        const int64_t row = walk.chunks == 1 ? unit : unit / walk.chunks;
        const int64_t from = row * walk.columns + (unit - row * walk.chunks) * walk.chunk;
        const int64_t row_end = (row + 1) * walk.columns;
        const int64_t to = from + walk.chunk < row_end ? from + walk.chunk : row_end;
        f(unit, row, from, unit < units ? to : from);
    }
}

// Calls f for every group of the chunk that is this lane's.
template <int N, class F>
__device__ void for_each_group(const Walk& walk, int64_t from, int64_t to, const F& f) {
    const int lanes = 1 << walk.log_lanes, lane = static_cast<int>(threadIdx.x) & (lanes - 1);
    for (int64_t group = (from / N + lane) * N; group < to; group += N * lanes)
        f(Span{group, from, to});
}

// Of the team's first lane.
__device__ inline double sum_of_team(double sum, int log_lanes) {
    for (int offset = (1 << log_lanes) / 2; offset > 0; offset /= 2)
        sum += __shfl_down_sync(ALL_LANES, sum, offset);
    return sum;
}

template <class T, bool WITH_Z, bool WITH_KL>
__global__ void forward_kernel(T* z, T* kl, const T* mu, const T* logvar, Walk walk, const uint64_t* key,
                               double* parts) {
    using C = compute_t<T>;
    constexpr int N = GROUP<T>;
    for_each_unit(walk, [&](int64_t unit, int64_t row, int64_t from, int64_t to) {
        double sum = 0;
        for_each_group<N>(walk, from, to, [&](const Span& span) {
            C m[N], l[N], noise[N], part = 0;
            load(mu, span, m);
            load(logvar, span, l);
            if constexpr (WITH_Z)
                normals(key, span.first, noise);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                const C sigma = exponential(l[i] * C(0.5));
                // What is not of this chunk is zero, and so is its divergence.
                part += m[i] * m[i] + ((sigma * sigma - C(1)) - l[i]);
                if constexpr (WITH_Z)
                    noise[i] = m[i] + sigma * noise[i];
            }
            if constexpr (WITH_Z)
                store(z, span, noise);
            sum += part;
        });
        if constexpr (WITH_KL) {
            sum = sum_of_team(sum, walk.log_lanes);
            const bool writes = to > from && (threadIdx.x & ((1u << walk.log_lanes) - 1)) == 0;
            if (writes && walk.chunks == 1)
                kl[row] = static_cast<T>(static_cast<C>(0.5 * sum));
            else if (writes)
                parts[unit] = sum;
        }
    });
}

// A warp per row.
template <class T>
__global__ void sum_parts_kernel(T* kl, const double* parts, int64_t rows, int64_t chunks) {
    const int lane = static_cast<int>(threadIdx.x) % WARP;
    for (int64_t row = thread_of_grid() / WARP; row < rows; row += threads_of_grid() / WARP) {
        double sum = 0;
        for (int64_t c = lane; c < chunks; c += WARP)
            sum += parts[row * chunks + c];
        sum = sum_of_team(sum, 5);
        if (lane == 0)
            kl[row] = static_cast<T>(static_cast<compute_t<T>>(0.5 * sum));
    }
}

template <class T, bool WITH_KL>
__global__ void backward_kernel(T* grad_mu, T* grad_logvar, const T* grad_z, const T* grad_kl, const T* mu,
                                const T* logvar, Walk walk, const uint64_t* key) {
    using C = compute_t<T>;
    constexpr int N = GROUP<T>;
    for_each_unit(walk, [&](int64_t, int64_t row, int64_t from, int64_t to) {
        C g = 0;
        if constexpr (WITH_KL)
            g = to > from ? static_cast<C>(grad_kl[row]) : C(0);
        for_each_group<N>(walk, from, to, [&](const Span& span) {
            C noise[N], gz[N], l[N];
            normals(key, span.first, noise);
            load(grad_z, span, gz);
            load(logvar, span, l);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                const C sigma = exponential(l[i] * C(0.5));
                l[i] = gz[i] * noise[i] * sigma;
                if constexpr (WITH_KL)
                    l[i] += (sigma * sigma - C(1)) * g;
                l[i] *= C(0.5);
            }
            store(grad_logvar, span, l);
            if constexpr (WITH_KL) {
                C m[N];
                load(mu, span, m);
#pragma unroll
                for (int i = 0; i < N; ++i)
                    m[i] = gz[i] + m[i] * g;
                store(grad_mu, span, m);
            }
        });
    });
}

// Number of doubles that `reparameterize` needs as workspace for kl.
int64_t reparameterize_workspace(int64_t rows, int64_t columns) {
    return chunks_of(columns) > 1 ? rows * chunks_of(columns) : 0;
}

// Without z only the divergence, without kl only the sample.
void reparameterize(void* z, void* kl, const void* mu, const void* logvar, int64_t rows, int64_t columns, int64_t dtype,
                    const uint64_t* key, double* workspace, int64_t device, void* stream) {
    const Queue queue{device, stream};
    with_type(dtype, [=](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const auto kernel = !kl ? &forward_kernel<T, true, false>
                            : z ? &forward_kernel<T, true, true>
                                : &forward_kernel<T, false, true>;
        const Walk walk = walk_of<T>(rows, columns, kl != nullptr);
        launch("reparameterize", kernel, queue, walk.grid(), static_cast<T*>(z), static_cast<T*>(kl),
               static_cast<const T*>(mu), static_cast<const T*>(logvar), walk, key, workspace);
        if (kl && walk.chunks > 1)
            launch("reparameterize's sum", &sum_parts_kernel<T>, queue, {blocks_for(rows * WARP), THREADS},
                   static_cast<T*>(kl), workspace, rows, walk.chunks);
    });
}

// Without grad_kl only the gradient to logvar.
void reparameterize_backward(void* grad_mu, void* grad_logvar, const void* grad_z, const void* grad_kl, const void* mu,
                             const void* logvar, int64_t rows, int64_t columns, int64_t dtype, const uint64_t* key,
                             int64_t device, void* stream) {
    with_type(dtype, [=](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const auto kernel = grad_kl ? &backward_kernel<T, true> : &backward_kernel<T, false>;
        const Walk walk = walk_of<T>(rows, columns, false);
        launch("reparameterize_backward", kernel, {device, stream}, walk.grid(), static_cast<T*>(grad_mu),
               static_cast<T*>(grad_logvar), static_cast<const T*>(grad_z), static_cast<const T*>(grad_kl),
               static_cast<const T*>(mu), static_cast<const T*>(logvar), walk, key);
    });
}

}

AIGC_EXPORT(AIGC_KERNEL(reparameterize_workspace), AIGC_KERNEL(reparameterize), AIGC_KERNEL(reparameterize_backward))

}
