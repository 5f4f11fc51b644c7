// Module aigc_fast._C: the kernels of every compiled level as Python functions of integers, floats and lists.
#include <pybind11/pybind11.h>

#include <cstring>
#include <iterator>

#include "call.h"
#include "core/arena.h"
#include "core/cpu.h"
#include "core/dtypes.h"
#include "core/kernel.h"
#include "core/parallel.h"

namespace py = pybind11;

namespace {

PyObject *tensor_types[2], *strided_layout; // Tensor and Parameter

// signature(tensor or None, ...): as bytes, what the tensors are apart from their address and elements.
PyObject* signature(PyObject*, PyObject* const* args, Py_ssize_t count) {
    constexpr Py_ssize_t MAX_NUMBERS = 256;
    int64_t numbers[MAX_NUMBERS];
    Py_ssize_t used = 0;
    Arguments taken;
    for (Py_ssize_t i = 0; i < count; ++i) {
        aigc::Arg arg;
        if (!taken.take_tensor(args[i], arg))
            return nullptr;
        const aigc::Tensor* tensor = arg.tensor;
        const int64_t dimensions = tensor ? tensor->dimensions : 0;
        if (used + 3 + 2 * dimensions > MAX_NUMBERS)
            return PyErr_Format(PyExc_ValueError, "more dimensions than a signature holds");
        numbers[used++] = tensor ? dimensions : -1;
        if (!tensor)
            continue;
        numbers[used++] = int64_t(tensor->device) << 32 | uint32_t(tensor->device_index);
        numbers[used++] = tensor->type << 16 | tensor->bits;
        for (const int64_t* list : {tensor->sizes, tensor->strides})
            for (int64_t d = 0; d < dimensions; ++d)
                numbers[used++] = list[d];
    }
    return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(numbers), used * Py_ssize_t(sizeof(int64_t)));
}

// Arguments as numbers, each with its type: what is equal but of another type is another argument.
struct Written {
    static constexpr Py_ssize_t MAX_NUMBERS = 256;
    int64_t numbers[MAX_NUMBERS];
    Py_ssize_t used = 0;

    // Room for some numbers, the first of them the object's type; null with a Python exception.
    int64_t* room(PyObject* object, Py_ssize_t count) {
        if (used + 1 + count > MAX_NUMBERS) {
            PyErr_SetString(PyExc_TypeError, "more arguments than can be remembered");
            return nullptr;
        }
        numbers[used] = reinterpret_cast<int64_t>(Py_TYPE(object));
        used += 1 + count;
        return numbers + used - count;
    }

    bool put_integer(PyObject* object) {
        const Reference integer(PyNumber_Index(object));
        int overflow = 0;
        const int64_t value = integer.object ? PyLong_AsLongLongAndOverflow(integer.object, &overflow) : 0;
        if (overflow)
            PyErr_SetString(PyExc_TypeError, "an integer beyond 64 bits");
        int64_t* const at = integer.object && !overflow ? room(object, 1) : nullptr;
        if (at)
            *at = value;
        return at;
    }

    bool put_sequence(PyObject* object) {
        const Py_ssize_t size = PySequence_Fast_GET_SIZE(object);
        int64_t* const at = room(object, 1);
        if (!at)
            return false;
        *at = size;
        for (Py_ssize_t i = 0; i < size; ++i)
            if (!put_integer(PySequence_Fast_GET_ITEM(object, i)))
                return false;
        return true;
    }

    bool put_string(PyObject* object) {
        Py_ssize_t bytes;
        const char* const text = PyUnicode_AsUTF8AndSize(object, &bytes);
        const auto words = static_cast<Py_ssize_t>(text ? (bytes + sizeof(int64_t) - 1) / sizeof(int64_t) : 0);
        int64_t* const at = text ? room(object, 1 + words) : nullptr;
        if (!at)
            return false;
        at[words] = 0;
        at[0] = bytes;
        std::memcpy(at + 1, text, static_cast<size_t>(bytes));
        return true;
    }

    bool put(PyObject* object) {
        if (object == Py_None)
            return room(object, 0);
        if (PyTuple_Check(object) || PyList_Check(object))
            return put_sequence(object);
        if (PyUnicode_CheckExact(object))
            return put_string(object);
        if (!PyFloat_CheckExact(object))
            return put_integer(object);
        int64_t* const at = room(object, 1);
        const double value = PyFloat_AS_DOUBLE(object);
        if (at)
            std::memcpy(at, &value, sizeof(value));
        return at;
    }
};

// arguments(value, ...): as bytes, integers, floats, strings, None and sequences of integers.
PyObject* arguments(PyObject*, PyObject* const* args, Py_ssize_t count) {
    Written written;
    for (Py_ssize_t i = 0; i < count; ++i)
        if (!written.put(args[i]))
            return nullptr;
    return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(written.numbers),
                                     written.used * Py_ssize_t(sizeof(int64_t)));
}

// What there is to a tensor besides its sizes, strides, dtype, device and elements; the most of it decides.
AIGC_CODES(Kind, PLAIN, WANTS_GRADIENT, NEGATED, UNKNOWN)

// -1 with a Python exception.
int kind_of(PyObject* object, bool recording) {
    static PyObject* const is_neg = PyUnicode_InternFromString("is_neg");
    static PyObject* const layout = PyUnicode_InternFromString("layout");
    static PyObject* const requires_grad = PyUnicode_InternFromString("requires_grad");
    auto* const type = reinterpret_cast<PyObject*>(Py_TYPE(object));
    if (type != tensor_types[0] && type != tensor_types[1])
        return UNKNOWN;
    const Reference its_layout(PyObject_GetAttr(object, layout));
    const Reference negated(its_layout.object ? PyObject_CallMethodNoArgs(object, is_neg) : nullptr);
    if (!negated.object)
        return -1;
    if (its_layout.object != strided_layout || negated.object == Py_True)
        return its_layout.object != strided_layout ? UNKNOWN : NEGATED;
    if (!recording)
        return PLAIN;
    const Reference wanted(PyObject_GetAttr(object, requires_grad));
    return !wanted.object ? -1 : wanted.object == Py_True ? WANTS_GRADIENT : PLAIN;
}

// kind(recording, tensor or None, ...): the greatest of their kinds.
PyObject* kind(PyObject*, PyObject* const* args, Py_ssize_t count) {
    int greatest = PLAIN;
    for (Py_ssize_t i = 1; i < count; ++i) {
        const int found = args[i] == Py_None ? PLAIN : kind_of(args[i], args[0] == Py_True);
        if (found < 0)
            return nullptr;
        greatest = found > greatest ? found : greatest;
    }
    return PyLong_FromLong(greatest);
}

PyMethodDef functions_of_tensors[] = {
    {"signature", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(signature)), METH_FASTCALL,
     "Sizes, strides, dtypes and devices of tensors, or None, as bytes."},
    {"arguments", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(arguments)), METH_FASTCALL,
     "Integers, floats, strings, None and sequences of integers, with their types, as bytes."},
    {"kind", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(kind)), METH_FASTCALL,
     "The greatest kind among tensors, or None: 0 of plain ones, 1 where the first argument says that gradients are "
     "recorded and one is wanted, 2 of negated ones, 3 of subclasses, other layouts and what is no tensor."},
    {nullptr, nullptr, 0, nullptr}};

bool use_torch(const py::type& tensor, const py::type& parameter, const py::object& strided, const py::dict& codes,
               const py::object& lent) {
    tensor_types[0] = py::type(tensor).release().ptr();
    tensor_types[1] = py::type(parameter).release().ptr();
    strided_layout = py::object(strided).release().ptr();
    dtypes = py::dict(codes).release().ptr();
    tensor_exchange = nullptr;
    if (lent.is_none())
        return false;
    const auto* exchange =
        static_cast<const aigc::TensorExchange*>(PyCapsule_GetPointer(lent.ptr(), PyCapsule_GetName(lent.ptr())));
    while (exchange && exchange->major != 1)
        exchange = exchange->previous;
    if (exchange && exchange->look)
        tensor_exchange = exchange;
    return tensor_exchange != nullptr;
}

py::list supported_levels() {
    py::list levels;
    for (const char* level : aigc::LEVELS)
        for (const auto* table = aigc::kernel_tables; table->level; ++table)
            if (!std::strcmp(table->level, level) && aigc::cpu_supports(level)) {
                levels.append(level);
                break;
            }
    return levels;
}

py::dict kernels(const std::string& level) {
    if (!aigc::cpu_supports(level.c_str()))
        throw py::value_error("this processor does not run level '" + level + "'");
    py::dict found;
    for (const auto* table = aigc::kernel_tables; table->level; ++table)
        if (level == table->level)
            for (const auto* kernel = table->kernels; kernel->name; ++kernel)
                if (kernel->run)
                    found[kernel->name] = py::reinterpret_steal<py::object>(function_of(*kernel));
    return found;
}

py::dict codes_of(const char* names) {
    py::dict found;
    for (const py::handle name : py::str(names).attr("split")(", "))
        found[name] = found.size();
    return found;
}

// The codes by name that kernels take and give, by what they stand for.
py::dict constants() {
    py::dict found;
    found["dtypes"] = codes_of(aigc::Dtype_names);
    found["factors"] = codes_of(aigc::Factors_names);
    found["kinds"] = codes_of(Kind_names);
    for (const auto* table = aigc::kernel_tables; table->level; ++table)
        if (!std::strcmp(table->level, aigc::LEVELS[0]))
            for (const auto* kernel = table->kernels; kernel->name; ++kernel)
                if (!kernel->run)
                    found[kernel->name] = codes_of(kernel->types);
    return found;
}

py::dict build_info() {
    py::dict info;
    info["version"] = AIGC_VERSION;
    info["compiler"] = AIGC_COMPILER;
    info["flags"] = AIGC_BUILD_FLAGS;
    info["emulated"] = bool(AIGC_EMULATED);
    info["pybind11"] = py::str(std::to_string(PYBIND11_VERSION_MAJOR) + "." + std::to_string(PYBIND11_VERSION_MINOR));
    return info;
}

}

PYBIND11_MODULE(_C, m) {
    m.doc() = "Native CPU kernels of aigc_fast: pointers, sizes and strides in; nothing is checked here.";
    py::tuple names(std::size(aigc::LEVELS));
    for (size_t i = 0; i < std::size(aigc::LEVELS); ++i)
        names[i] = aigc::LEVELS[i];
    m.attr("LEVELS") = names;
    m.attr("constants") = constants();
    m.def("levels", supported_levels,
          "Instruction-set levels that were compiled and that this machine runs, lowest first.");
    m.def("kernels", kernels, py::arg("level"), "The functions of one level, by name.");
    m.def("thread_count", aigc::thread_count, "Threads that the next parallel region will use.");
    m.def("thread_pool", aigc::thread_pool_name, "Whose threads run the kernels.");
    m.def(
        "use_huge_pages",
        [](uintptr_t address, int64_t bytes) { aigc::use_huge_pages(reinterpret_cast<void*>(address), bytes); },
        py::arg("address"), py::arg("bytes"),
        "Backs memory that was not touched yet by huge pages, where there are any.");
    if (PyModule_AddFunctions(m.ptr(), functions_of_tensors))
        throw py::error_already_set();
    m.def("use_torch", use_torch, py::arg("tensor"), py::arg("parameter"), py::arg("strided"), py::arg("dtypes"),
          py::arg("exchange"),
          "Tells the types of tensors, a layout, each dtype's type and bits in DLPack, and torch.Tensor's "
          "`__dlpack_c_exchange_api__` or None; whether torch can lend tensors by it.");
    m.def("build_info", build_info, "How this module was built.");
}
