// Which activations there are at the end of an op.
#pragma once

#include "core/codes.h"

namespace aigc {

AIGC_CODES(Activation, NONE, RELU, LEAKY_RELU, TANH, SIGMOID, SILU, GELU, GELU_TANH, ELU)

}
