// Codes that Python passes to kernels and reads from the module by name: an enum that counts from 0, with its names.
#pragma once

#include <cstdint>

#define AIGC_CODES(type, ...)                                                                                          \
    enum type : int64_t { __VA_ARGS__ };                                                                               \
    constexpr char type##_names[] = #__VA_ARGS__;
