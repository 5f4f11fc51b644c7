// Kernels as Python functions: each reads its arguments by the signature in its table, so that no op is known here.
// Included once by every module.
#pragma once

#include <Python.h>

#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <vector>

#include "core/kernel.h"

namespace {

const aigc::TensorExchange* tensor_exchange = nullptr;
PyObject* dtypes = nullptr; // with their codes of DLPack

struct Reference {
    PyObject* object;
    explicit Reference(PyObject* owned) : object(owned) {}
    Reference(const Reference&) = delete;
    ~Reference() { Py_XDECREF(object); }
};

// Room for what a call is given: on the stack, for most of them.
template <class T, int64_t N>
class Room {
  public:
    Room() {} // leaves the elements as they are
    Room(const Room&) = delete;
    Room& operator=(const Room&) = delete;

    T* take(int64_t count) {
        if (used_ + count > N) {
            more_.emplace_back(new T[static_cast<size_t>(count)]);
            return more_.back().get();
        }
        used_ += count;
        return first_ + used_ - count;
    }

  private:
    T first_[N];
    int64_t used_ = 0;
    std::vector<std::unique_ptr<T[]>> more_;
};

struct Arguments {
    Room<aigc::Arg, 48> args;
    Room<int64_t, 96> integers;
    Room<aigc::Tensor, 12> tensors;
    Room<const aigc::Tensor*, 12> items;
    Room<aigc::Tensors, 2> lists;

    // A sequence of integers, or bytes: int64 numbers as they lie in memory, which cost nothing to read.
    bool take_list(PyObject* object, aigc::Arg& out) {
        if (PyBytes_Check(object)) {
            out.list = reinterpret_cast<const int64_t*>(PyBytes_AS_STRING(object));
            return true;
        }
        PyObject* sequence = PySequence_Fast(object, "expected a sequence of integers");
        if (!sequence)
            return false;
        const Py_ssize_t size = PySequence_Fast_GET_SIZE(sequence);
        int64_t* const list = integers.take(size);
        out.list = list;
        bool good = true;
        for (Py_ssize_t i = 0; good && i < size; ++i) {
            list[i] = PyLong_AsLongLong(PySequence_Fast_GET_ITEM(sequence, i));
            good = list[i] != -1 || !PyErr_Occurred();
        }
        Py_DECREF(sequence);
        return good;
    }

    // What a torch that lends nothing tells of a tensor by its attributes.
    bool ask_tensor(PyObject* object, aigc::Tensor& out) {
        const Reference address(PyObject_CallMethod(object, "data_ptr", nullptr));
        const Reference device(address.object ? PyObject_GetAttrString(object, "is_cpu") : nullptr);
        const Reference dtype(device.object ? PyObject_GetAttrString(object, "dtype") : nullptr);
        const Reference sizes(dtype.object ? PyObject_GetAttrString(object, "shape") : nullptr);
        const Reference strides(sizes.object ? PyObject_CallMethod(object, "stride", nullptr) : nullptr);
        if (!strides.object)
            return false;
        PyObject* const codes = PyDict_GetItemWithError(dtypes, dtype.object);
        aigc::Arg extents, steps;
        if (PyErr_Occurred() || !take_list(sizes.object, extents) || !take_list(strides.object, steps))
            return false;
        out = {};
        out.memory = PyLong_AsVoidPtr(address.object);
        out.device = device.object == Py_True ? 1 : 2;
        out.dimensions = static_cast<int32_t>(PySequence_Size(sizes.object));
        out.lanes = 1;
        out.sizes = extents.list;
        out.strides = steps.list;
        if (codes) {
            out.type = static_cast<uint8_t>(PyLong_AsLong(PyTuple_GET_ITEM(codes, 0)));
            out.bits = static_cast<uint8_t>(PyLong_AsLong(PyTuple_GET_ITEM(codes, 1)));
        }
        return !PyErr_Occurred();
    }

    bool take_tensor(PyObject* object, aigc::Arg& out) {
        out.tensor = nullptr;
        if (object == Py_None)
            return true;
        aigc::Tensor& tensor = *tensors.take(1);
        out.tensor = &tensor;
        return tensor_exchange ? tensor_exchange->look(object, &tensor) == 0 : ask_tensor(object, tensor);
    }

    // A list or a tuple of tensors, or None in their places.
    bool take_tensors(PyObject* object, aigc::Arg& out) {
        const Reference sequence(PySequence_Fast(object, "expected a sequence of tensors"));
        if (!sequence.object)
            return false;
        const Py_ssize_t size = PySequence_Fast_GET_SIZE(sequence.object);
        const aigc::Tensor** const found = items.take(size);
        for (Py_ssize_t i = 0; i < size; ++i) {
            aigc::Arg item;
            if (!take_tensor(PySequence_Fast_GET_ITEM(sequence.object, i), item))
                return false;
            found[i] = item.tensor;
        }
        aigc::Tensors* const list = lists.take(1);
        *list = {found, size};
        out.tensors = list;
        return true;
    }

    // A capsule that a kernel of the same module and level has made.
    static bool take_handle(PyObject* object, const aigc::HandleType* type, aigc::Arg& out) {
        const bool fits = PyCapsule_IsValid(object, type->name) && PyCapsule_GetContext(object) == type;
        if (!fits)
            PyErr_Format(PyExc_TypeError, "expected a handle of %s, got %s", type->name, Py_TYPE(object)->tp_name);
        out.pointer = fits ? PyCapsule_GetPointer(object, type->name) : nullptr;
        return fits;
    }

    bool take(char type, PyObject* object, const aigc::HandleType* handle, aigc::Arg& out) {
        switch (type) {
        case 'p':
            out.pointer = object == Py_None ? nullptr : PyLong_AsVoidPtr(object);
            return out.pointer || !PyErr_Occurred();
        case 'i':
            out.integer = PyLong_AsLongLong(object);
            return out.integer != -1 || !PyErr_Occurred();
        case 'r':
            out.real = PyFloat_AsDouble(object);
            return out.real != -1.0 || !PyErr_Occurred();
        case 't':
            return take_tensor(object, out);
        case 'T':
            return take_tensors(object, out);
        case 'h':
            return take_handle(object, handle, out);
        default:
            return take_list(object, out);
        }
    }
};

void destroy_handle(PyObject* capsule) {
    const auto* type = static_cast<const aigc::HandleType*>(PyCapsule_GetContext(capsule));
    type->destroy(PyCapsule_GetPointer(capsule, type->name));
}

// None for a null one: the kernel could not make it.
PyObject* wrap_handle(void* object, const aigc::HandleType* type) {
    if (!object)
        Py_RETURN_NONE;
    PyObject* const capsule = PyCapsule_New(object, type->name, destroy_handle);
    if (!capsule)
        type->destroy(object);
    else
        PyCapsule_SetContext(capsule, const_cast<aigc::HandleType*>(type));
    return capsule;
}

PyObject* call_kernel(PyObject* capsule, PyObject* const* args, Py_ssize_t count) {
    const auto* kernel = static_cast<const aigc::Kernel*>(PyCapsule_GetPointer(capsule, nullptr));
    const auto expected = static_cast<Py_ssize_t>(std::strlen(kernel->types));
    if (count != expected)
        return PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, got %zd", kernel->name, expected, count);
    Arguments parsed;
    aigc::Arg* const values = parsed.args.take(count);
    for (Py_ssize_t i = 0; i < count; ++i)
        if (!parsed.take(kernel->types[i], args[i], kernel->handles[i], values[i]))
            return nullptr;
    int64_t result = 0;
    PyThreadState* state = PyEval_SaveThread();
    std::exception_ptr error;
    try {
        result = kernel->run(values);
    } catch (...) {
        error = std::current_exception();
    }
    PyEval_RestoreThread(state);
    try {
        if (error)
            std::rethrow_exception(error);
        const aigc::HandleType* const made = kernel->handles[count];
        return made ? wrap_handle(reinterpret_cast<void*>(result), made) : PyLong_FromLongLong(result);
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    } catch (const std::exception& e) {
        return PyErr_Format(PyExc_RuntimeError, "%s: %s", kernel->name, e.what());
    }
}

// A new reference, or null with a Python exception.
PyObject* function_of(const aigc::Kernel& kernel) {
    // A function object refers to its definition for as long as the process lives.
    auto* definition = new PyMethodDef{
        kernel.name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call_kernel)), METH_FASTCALL, nullptr};
    const Reference self(PyCapsule_New(const_cast<aigc::Kernel*>(&kernel), nullptr, nullptr));
    return self.object ? PyCFunction_NewEx(definition, self.object, nullptr) : nullptr;
}

}
