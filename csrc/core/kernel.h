// What an op's source exports to Python: typed functions over pointers, sizes and strides, listed in one table per
// source and instruction-set level. The binding reads the signature from `types`, so it knows no op by name.
#pragma once

#include <cstdint>

#include "core/tensor.h"

namespace aigc {

union Arg {
    void* pointer;
    int64_t integer;
    double real;
    const int64_t* list;
    const Tensor* tensor;
};

// A function, or, with none, the names of some codes from 0 on.
struct Kernel {
    const char* name;
    const char* types; // per argument: p pointer, i integer, r real, l list of integers, t tensor or null
    int64_t (*run)(const Arg*);
};

struct KernelTable {
    const char* level;
    const Kernel* kernels; // ends with a null name
};

extern const KernelTable kernel_tables[]; // ends with a null level

}

#ifdef AIGC_LEVEL
namespace aigc::AIGC_LEVEL {

template <class T>
struct ArgOf;
template <>
struct ArgOf<int64_t> {
    static constexpr char code = 'i';
    static int64_t get(const Arg& a) { return a.integer; }
};
template <>
struct ArgOf<double> {
    static constexpr char code = 'r';
    static double get(const Arg& a) { return a.real; }
};
template <>
struct ArgOf<const int64_t*> {
    static constexpr char code = 'l';
    static const int64_t* get(const Arg& a) { return a.list; }
};
template <>
struct ArgOf<const Tensor*> {
    static constexpr char code = 't';
    static const Tensor* get(const Arg& a) { return a.tensor; }
};
template <class T>
struct ArgOf<T*> {
    static constexpr char code = 'p';
    static T* get(const Arg& a) { return static_cast<T*>(a.pointer); }
};

template <int... I>
struct Indices {};
template <int N, int... I>
struct IndicesUpTo : IndicesUpTo<N - 1, N - 1, I...> {};
template <int... I>
struct IndicesUpTo<0, I...> {
    using type = Indices<I...>;
};

template <auto F, class Signature = decltype(F)>
struct Wrapped;
template <auto F, class... A>
struct Wrapped<F, int64_t (*)(A...)> {
    static constexpr char types[] = {ArgOf<A>::code..., '\0'};
    template <int... I>
    static int64_t call(const Arg* args, Indices<I...>) {
        return F(ArgOf<A>::get(args[I])...);
    }
    static int64_t run(const Arg* args) { return call(args, typename IndicesUpTo<sizeof...(A)>::type()); }
};
template <auto F, class... A>
struct Wrapped<F, void (*)(A...)> {
    static constexpr char types[] = {ArgOf<A>::code..., '\0'};
    template <int... I>
    static void call(const Arg* args, Indices<I...>) {
        F(ArgOf<A>::get(args[I])...);
    }
    static int64_t run(const Arg* args) {
        call(args, typename IndicesUpTo<sizeof...(A)>::type());
        return 0;
    }
};

}

#define AIGC_KERNEL(function)                                                                                          \
    ::aigc::Kernel { #function, Wrapped<&function>::types, &Wrapped<&function>::run }
#define AIGC_KERNEL_CODES(name, type)                                                                                  \
    ::aigc::Kernel { #name, type##_names, nullptr }
// The array has external linkage on purpose: the generated tables.cpp lists it.
#define AIGC_EXPORT(...)                                                                                               \
    extern const ::aigc::Kernel kernels[];                                                                             \
    const ::aigc::Kernel kernels[] = {__VA_ARGS__, {nullptr, nullptr, nullptr}};
#endif
