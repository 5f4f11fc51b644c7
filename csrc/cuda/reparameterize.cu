// z = mu + exp(logvar / 2) * noise, the Kullback-Leibler divergence to the standard normal law, and their gradients.
#include "cuda/launch.cuh"
#include "cuda/philox.cuh"

namespace aigc::cuda::reparameterize {
namespace {

constexpr int WARP = 32;
constexpr int64_t CHUNK = 2048; // elements of one row that one warp takes

__host__ __device__ inline int64_t chunks_of(int64_t columns) { return (columns + CHUNK - 1) / CHUNK; }

// One warp takes one chunk of one row, so that the divergence is summed in an order that depends on the shape alone.
// A group of four elements that reaches into a neighbouring chunk is made in both.
template <class T, bool WITH_Z, bool WITH_KL>
__global__ void forward_kernel(T* z, T* kl, const T* mu, const T* logvar, int64_t rows, int64_t columns,
                               const uint64_t* key, double* parts) {
    using C = compute_t<T>;
    const int lane = threadIdx.x % WARP;
    const int64_t chunks = chunks_of(columns), warps = int64_t(gridDim.x) * (blockDim.x / WARP);
    for (int64_t unit = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / WARP; unit < rows * chunks; unit += warps) {
        const int64_t row = unit / chunks, from = row * columns + unit % chunks * CHUNK;
        const int64_t row_end = (row + 1) * columns, to = from + CHUNK < row_end ? from + CHUNK : row_end;
        double sum = 0;
        for (int64_t group = from / 4 * 4 + 4 * lane; group < to; group += 4 * WARP) {
            C noise[4];
            if (WITH_Z)
                four_normals(key, group / 4, noise);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int64_t at = group + i;
                if (at < from || at >= to)
                    continue;
                const C m = static_cast<C>(mu[at]), l = static_cast<C>(logvar[at]), sigma = exponential(l * C(0.5));
                if (WITH_Z)
                    z[at] = static_cast<T>(m + sigma * noise[i]);
                if (WITH_KL)
                    sum += m * m + ((sigma * sigma - C(1)) - l);
            }
        }
        if constexpr (WITH_KL) {
            for (int offset = WARP / 2; offset > 0; offset /= 2)
                sum += __shfl_down_sync(0xffffffffu, sum, offset);
            if (lane == 0 && chunks == 1)
                kl[row] = static_cast<T>(static_cast<C>(0.5 * sum));
            else if (lane == 0)
                parts[unit] = sum;
        }
    }
}

template <class T>
__global__ void sum_parts_kernel(T* kl, const double* parts, int64_t rows, int64_t chunks) {
    const int64_t stride = int64_t(gridDim.x) * blockDim.x;
    for (int64_t row = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; row < rows; row += stride) {
        double sum = 0;
        for (int64_t c = 0; c < chunks; ++c)
            sum += parts[row * chunks + c];
        kl[row] = static_cast<T>(static_cast<compute_t<T>>(0.5 * sum));
    }
}

template <class T, bool WITH_KL>
__global__ void backward_kernel(T* grad_mu, T* grad_logvar, const T* grad_z, const T* grad_kl, int64_t kl_stride,
                                const T* mu, const T* logvar, int64_t n, int64_t columns, const uint64_t* key) {
    using C = compute_t<T>;
    const int64_t stride = int64_t(gridDim.x) * blockDim.x;
    for (int64_t first = 4 * (int64_t(blockIdx.x) * blockDim.x + threadIdx.x); first < n; first += 4 * stride) {
        C noise[4], gz[4], l[4], m[4], to_mu[4], to_logvar[4];
        four_normals(key, first / 4, noise);
        load_four(grad_z + first, n - first, gz);
        load_four(logvar + first, n - first, l);
        if (WITH_KL)
            load_four(mu + first, n - first, m);
        for (int i = 0; i < 4; ++i) {
            const C sigma = exponential(l[i] * C(0.5));
            to_logvar[i] = gz[i] * noise[i] * sigma;
            if (WITH_KL && first + i < n) {
                const C g = static_cast<C>(grad_kl[(first + i) / columns * kl_stride]);
                to_mu[i] = gz[i] + m[i] * g;
                to_logvar[i] += (sigma * sigma - C(1)) * g;
            }
            to_logvar[i] *= C(0.5);
        }
        store_four(grad_logvar + first, n - first, to_logvar);
        if (WITH_KL)
            store_four(grad_mu + first, n - first, to_mu);
    }
}

// Number of doubles that `reparameterize` needs as workspace for kl.
int64_t reparameterize_workspace(int64_t rows, int64_t columns) {
    return chunks_of(columns) > 1 ? rows * chunks_of(columns) : 0;
}

// Without z only the divergence, without kl only the sample.
void reparameterize(void* z, void* kl, const void* mu, const void* logvar, int64_t rows, int64_t columns, int64_t dtype,
                    const uint64_t* key, double* workspace, void* stream) {
    const auto queue = static_cast<cudaStream_t>(stream);
    const int64_t chunks = chunks_of(columns);
    with_type(dtype, [=](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const auto kernel = !kl ? &forward_kernel<T, true, false>
                            : z ? &forward_kernel<T, true, true>
                                : &forward_kernel<T, false, true>;
        kernel<<<blocks_for(rows * chunks * WARP), THREADS, 0, queue>>>(
            static_cast<T*>(z), static_cast<T*>(kl), static_cast<const T*>(mu), static_cast<const T*>(logvar), rows,
            columns, key, workspace);
        check_launch("reparameterize");
        if (kl && chunks > 1)
            sum_parts_kernel<<<blocks_for(rows), THREADS, 0, queue>>>(static_cast<T*>(kl), workspace, rows, chunks);
    });
    check_launch("reparameterize's sum");
}

// Without grad_kl only the gradient to logvar.
void reparameterize_backward(void* grad_mu, void* grad_logvar, const void* grad_z, const void* grad_kl,
                             int64_t kl_stride, const void* mu, const void* logvar, int64_t n, int64_t columns,
                             int64_t dtype, const uint64_t* key, void* stream) {
    with_type(dtype, [=](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const auto kernel = grad_kl ? &backward_kernel<T, true> : &backward_kernel<T, false>;
        kernel<<<blocks_for((n + 3) / 4), THREADS, 0, static_cast<cudaStream_t>(stream)>>>(
            static_cast<T*>(grad_mu), static_cast<T*>(grad_logvar), static_cast<const T*>(grad_z),
            static_cast<const T*>(grad_kl), kl_stride, static_cast<const T*>(mu), static_cast<const T*>(logvar), n,
            columns, key);
    });
    check_launch("reparameterize_backward");
}

}

AIGC_EXPORT(AIGC_KERNEL(reparameterize_workspace), AIGC_KERNEL(reparameterize), AIGC_KERNEL(reparameterize_backward))

}
