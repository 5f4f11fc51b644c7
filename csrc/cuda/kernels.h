// The CUDA kernels as plain functions over device pointers; each enqueues on `stream` (a cudaStream_t) and returns.
// `key` points to two integers on the device: a captured CUDA graph reads a new key at every replay.
#pragma once

#include <cstdint>

#include "core/dtypes.h"

namespace aigc::cuda {

void uniform(void* out, int64_t n, int64_t dtype, const uint64_t* key, void* stream);
void normal(void* out, int64_t n, int64_t dtype, const uint64_t* key, void* stream);
void dropout(void* out, const void* in, int64_t n, int64_t dtype, const uint64_t* key, int64_t keep_below, double scale,
             void* stream);

// Number of doubles that `reparameterize` needs as workspace for kl.
int64_t reparameterize_workspace(int64_t rows, int64_t columns);
// Without z only the divergence, without kl only the sample.
void reparameterize(void* z, void* kl, const void* mu, const void* logvar, int64_t rows, int64_t columns, int64_t dtype,
                    const uint64_t* key, double* workspace, void* stream);
// Without grad_kl only the gradient to logvar.
void reparameterize_backward(void* grad_mu, void* grad_logvar, const void* grad_z, const void* grad_kl,
                             int64_t kl_stride, const void* mu, const void* logvar, int64_t n, int64_t columns,
                             int64_t dtype, const uint64_t* key, void* stream);

}
