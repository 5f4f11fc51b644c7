// Which recurrent cells there are, and what there is of each hidden unit.
#pragma once

#include "core/codes.h"

namespace aigc {

AIGC_CODES(Cell, RNN_TANH, RNN_RELU, LSTM, GRU, LAYER_NORM_LSTM)

template <int64_t MODE>
constexpr bool HAS_CELLS = MODE == LSTM || MODE == LAYER_NORM_LSTM;

// Gates in a row of weights, and numbers of each unit that backward reads: the gates, of a GRU the product within its
// reset gate, of a normalized LSTM the products with the hidden state.
template <int64_t MODE>
constexpr int GATES = HAS_CELLS<MODE> ? 4
                      : MODE == GRU   ? 3
                                      : 1;
template <int64_t MODE>
constexpr int KEPT = MODE == LAYER_NORM_LSTM       ? 8
                     : MODE == LSTM || MODE == GRU ? 4
                                                   : 1;

}
