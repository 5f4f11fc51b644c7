// Module aigc_fast._C_cuda: the CUDA kernels as Python functions of device addresses (None for an absent tensor).
#include <pybind11/pybind11.h>

#include "call.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
    py::dict info;
    info["version"] = AIGC_VERSION;
    info["compiler"] = AIGC_CUDA_COMPILER;
    info["architectures"] = AIGC_CUDA_ARCHITECTURES;
    return info;
}

}

PYBIND11_MODULE(_C_cuda, m) {
    m.doc() = "Native CUDA kernels of aigc_fast: device addresses and a stream in; nothing is checked here.";
    for (const auto* table = aigc::kernel_tables; table->level; ++table)
        for (const auto* kernel = table->kernels; kernel->name; ++kernel)
            if (kernel->run)
                m.attr(kernel->name) = py::reinterpret_steal<py::object>(function_of(*kernel));
    m.def("build_info", build_info, "How this module was built.");
}
