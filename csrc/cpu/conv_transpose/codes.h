// What Python names to a convolution's kernels.
#pragma once

#include "core/codes.h"

namespace aigc::AIGC_LEVEL::conv_transpose {
namespace {

AIGC_CODES(Algorithm, DIRECT, WINOGRAD, NARROW, COL2IM, DIRECT_BF16, DIRECT_SPLIT, MATRIX, DEPTHWISE)

}
}
