// Module aigc_fast._C_cuda: the CUDA kernels as Python functions of device addresses (None for an absent tensor).
// _C_cuda_host is the same of kernels that run on the host.
#include <pybind11/pybind11.h>

#include "call.h"

#ifdef AIGC_CUDA_HOST
#include "cuda/emulate/device.h"
#endif

namespace py = pybind11;

namespace {

py::dict build_info() {
    py::dict info;
    info["version"] = AIGC_VERSION;
    info["compiler"] = AIGC_CUDA_COMPILER;
    info["architectures"] = AIGC_CUDA_ARCHITECTURES;
    return info;
}

#ifdef AIGC_CUDA_HOST
py::dict last_launch() {
    const auto launch = aigc::emulate::last_launch();
    py::dict found;
    found["kernel"] = launch.name;
    found["blocks"] = launch.blocks;
    found["threads"] = launch.threads;
    found["shared"] = launch.shared;
    found["device"] = launch.device;
    found["stream"] = reinterpret_cast<uintptr_t>(launch.stream);
    return found;
}
#endif

}

PYBIND11_MODULE(AIGC_CUDA_MODULE, m) {
    m.doc() = "Native CUDA kernels of aigc_fast: device addresses and a stream in; nothing is checked here.";
    for (const auto* table = aigc::kernel_tables; table->level; ++table)
        for (const auto* kernel = table->kernels; kernel->name; ++kernel)
            if (kernel->run)
                m.attr(kernel->name) = py::reinterpret_steal<py::object>(function_of(*kernel));
    m.def("build_info", build_info, "How this module was built.");
#ifdef AIGC_CUDA_HOST
    m.def("set_order", aigc::emulate::set_order,
          "The order of blocks, warps and lanes, and how many blocks at a time.");
    m.def("last_launch", last_launch, "What was launched last.");
#endif
}
