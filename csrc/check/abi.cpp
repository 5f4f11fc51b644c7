// Kernels of every kind of argument that core/kernel.h knows, as a module of their own: `kernels` holds what
// csrc/call.h makes of them. Only the tests build it.
//
// Usage: built with -DAIGC_LEVEL=check -Icsrc as Python's module `abi`.
#include "call.h"

namespace aigc::AIGC_LEVEL::abi {
namespace {

int64_t living = 0;

// A sum that grows from one call to the next.
class Counter {
  public:
    static constexpr char handle_name[] = "counter";
    explicit Counter(int64_t start) : sum_(start) { ++living; }
    ~Counter() { --living; }
    int64_t add(int64_t more) { return sum_ += more; }

  private:
    int64_t sum_;
};

class Other {
  public:
    static constexpr char handle_name[] = "counter";
};

Counter* make_counter(int64_t start) { return start < 0 ? nullptr : new Counter(start); }
Other* make_other() { return new Other; }
int64_t count(Counter& counter, int64_t more) { return counter.add(more); }
int64_t counters() { return living; }

// Elements of all tensors that are there, and 1000 for each that is not.
int64_t elements(const Tensors& tensors) {
    int64_t sum = 0;
    for (int64_t i = 0; i < tensors.count; ++i)
        sum += tensors.items[i] ? tensors.items[i]->elements() : 1000;
    return sum;
}

int64_t elements_of_two(const Tensors& first, const Tensor* between, const Tensors& second) {
    return 100 * elements(first) + 10 * between->elements() + elements(second);
}

int64_t sum_of(int64_t size, const int64_t* list) {
    int64_t sum = 0;
    for (int64_t i = 0; i < size; ++i)
        sum += list[i];
    return sum;
}

using T = const Tensor*;
int64_t many(T a, T b, T c, T d, T e, T f, T g, T h, T i, T j, T k, T l, T m, T n) {
    int64_t sum = 0;
    for (T each : {a, b, c, d, e, f, g, h, i, j, k, l, m, n})
        sum = 2 * sum + each->elements();
    return sum;
}

}

AIGC_EXPORT(AIGC_KERNEL(make_counter), AIGC_KERNEL(make_other), AIGC_KERNEL(count), AIGC_KERNEL(counters),
            AIGC_KERNEL(elements), AIGC_KERNEL(elements_of_two), AIGC_KERNEL(sum_of), AIGC_KERNEL(many))

}

namespace {

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "abi", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};

}

// Tensors are asked for what they are; of no dtype is the code known.
PyMODINIT_FUNC PyInit_abi() {
    PyObject* const module = PyModule_Create(&definition);
    PyObject* const kernels = PyDict_New();
    dtypes = PyDict_New();
    for (const auto* kernel = aigc::AIGC_LEVEL::abi::kernels; kernel->name; ++kernel)
        PyDict_SetItemString(kernels, kernel->name, Reference(function_of(*kernel)).object);
    PyModule_AddObject(module, "kernels", kernels);
    return module;
}
