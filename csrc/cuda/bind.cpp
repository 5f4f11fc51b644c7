// Module aigc_fast._C_cuda: the CUDA kernels as Python functions of device addresses (None for an absent tensor).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <type_traits>

#include "cuda/kernels.h"

namespace py = pybind11;

namespace {

// What Python passes for a parameter: an integer or None for an address, the value itself for numbers.
template <class P>
using Passed = std::conditional_t<std::is_pointer_v<P>, std::optional<uintptr_t>, P>;

template <class P>
P unpack(Passed<P> value) {
    if constexpr (std::is_pointer_v<P>)
        return reinterpret_cast<P>(value.value_or(0));
    else
        return value;
}

template <class... P>
void bind(py::module_& m, const char* name, void (*function)(P...)) {
    m.def(name, [function](Passed<P>... args) {
        py::gil_scoped_release released;
        function(unpack<P>(args)...);
    });
}

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
    bind(m, "uniform", aigc::cuda::uniform);
    bind(m, "normal", aigc::cuda::normal);
    bind(m, "dropout", aigc::cuda::dropout);
    bind(m, "reparameterize", aigc::cuda::reparameterize);
    bind(m, "reparameterize_backward", aigc::cuda::reparameterize_backward);
    m.def("reparameterize_workspace", aigc::cuda::reparameterize_workspace, "Doubles of workspace that kl needs.");
    m.def("build_info", build_info, "How this module was built.");
}
