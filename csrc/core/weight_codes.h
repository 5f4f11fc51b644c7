// How weights are kept for generation.
#pragma once

#include "core/codes.h"

namespace aigc {

AIGC_CODES(Weights, FP32, BF16, INT8, INT4)

}
