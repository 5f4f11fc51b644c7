// Arithmetic of sizes.
#pragma once

#include <cstdint>

namespace aigc::AIGC_LEVEL {

template <class T>
static inline T least(T a, T b) {
    return a < b ? a : b;
}
template <class T>
static inline T most(T a, T b) {
    return a > b ? a : b;
}
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}
