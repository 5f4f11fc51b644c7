#include "core/kernel.h"

namespace aigc::AIGC_LEVEL {
namespace {
void placeholder(float* out, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
        out[i] = 0;
}
}
AIGC_EXPORT(random, AIGC_KERNEL(placeholder))
}
