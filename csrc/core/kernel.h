// What an op's source exports to Python: typed functions over pointers, sizes and strides, listed in one table per
// source and instruction-set level. The binding reads the signature from `types`, so it knows no op by name.
#pragma once

#include <cstdint>

#include "core/tensor.h"

namespace aigc {

// A list of tensors, null where there is none.
struct Tensors {
    const Tensor* const* items;
    int64_t count;
};

union Arg {
    void* pointer;
    int64_t integer;
    double real;
    const int64_t* list;
    const Tensor* tensor;
    const Tensors* tensors;
};

// What Python keeps without looking into it, from the kernel that makes it until nobody refers to it.
struct HandleType {
    const char* name;
    void (*destroy)(void*);
};

// A function, or, with none, the names of some codes from 0 on.
struct Kernel {
    const char* name;
    // Per argument: p pointer, i integer, r real, l list of integers, t tensor or null, T list of tensors, h handle.
    const char* types;
    int64_t (*run)(const Arg*);
    // Of each argument, and last of the result; null where that is no handle.
    const HandleType* const* handles;
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
template <>
struct ArgOf<const Tensors&> {
    static constexpr char code = 'T';
    static const Tensors& get(const Arg& a) { return *a.tensors; }
};
template <class T>
struct ArgOf<T*> {
    static constexpr char code = 'p';
    static T* get(const Arg& a) { return static_cast<T*>(a.pointer); }
};
// A handle is any class with a `handle_name`: a kernel that returns T* makes one, a kernel that takes T& is given it.
template <class T>
struct ArgOf<T&> {
    static constexpr char code = 'h';
    static T& get(const Arg& a) { return *static_cast<T*>(a.pointer); }
};

template <class T>
constexpr HandleType HANDLE_TYPE{T::handle_name, [](void* object) { delete static_cast<T*>(object); }};
template <class T>
struct HandleOf {
    static constexpr const HandleType* type = nullptr;
};
template <class T>
struct HandleOf<T&> {
    static constexpr const HandleType* type = &HANDLE_TYPE<T>;
};
template <>
struct HandleOf<const Tensors&> : HandleOf<void> {};

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
    static constexpr const HandleType* handles[] = {HandleOf<A>::type..., nullptr};
    template <int... I>
    static int64_t call(const Arg* args, Indices<I...>) {
        return F(ArgOf<A>::get(args[I])...);
    }
    static int64_t run(const Arg* args) { return call(args, typename IndicesUpTo<sizeof...(A)>::type()); }
};
template <auto F, class... A>
struct Wrapped<F, void (*)(A...)> {
    static constexpr char types[] = {ArgOf<A>::code..., '\0'};
    static constexpr const HandleType* handles[] = {HandleOf<A>::type..., nullptr};
    template <int... I>
    static void call(const Arg* args, Indices<I...>) {
        F(ArgOf<A>::get(args[I])...);
    }
    static int64_t run(const Arg* args) {
        call(args, typename IndicesUpTo<sizeof...(A)>::type());
        return 0;
    }
};
template <auto F, class T, class... A>
struct Wrapped<F, T* (*)(A...)> {
    static constexpr char types[] = {ArgOf<A>::code..., '\0'};
    static constexpr const HandleType* handles[] = {HandleOf<A>::type..., HandleOf<T&>::type};
    template <int... I>
    static T* call(const Arg* args, Indices<I...>) {
        return F(ArgOf<A>::get(args[I])...);
    }
    static int64_t run(const Arg* args) {
        return reinterpret_cast<int64_t>(call(args, typename IndicesUpTo<sizeof...(A)>::type()));
    }
};

}

#define AIGC_KERNEL(function)                                                                                          \
    ::aigc::Kernel { #function, Wrapped<&function>::types, &Wrapped<&function>::run, Wrapped<&function>::handles }
#define AIGC_KERNEL_CODES(name, type)                                                                                  \
    ::aigc::Kernel { #name, type##_names, nullptr, nullptr }
// The array has external linkage on purpose: the generated tables.cpp lists it.
#define AIGC_EXPORT(...)                                                                                               \
    extern const ::aigc::Kernel kernels[];                                                                             \
    const ::aigc::Kernel kernels[] = {__VA_ARGS__, {nullptr, nullptr, nullptr, nullptr}};
#endif
