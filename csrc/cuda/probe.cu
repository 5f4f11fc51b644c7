// Whether a device and its driver run what this module was compiled for.
#include "cuda/launch.cuh"

namespace aigc::cuda::probe {
namespace {

__global__ void nothing_kernel() {}

// Throws, with the driver's words, where they do not.
void probe(int64_t device) { probe_device(reinterpret_cast<const void*>(&nothing_kernel), {device, nullptr}); }

}

AIGC_EXPORT(AIGC_KERNEL(probe))

}
