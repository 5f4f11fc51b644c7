// What a step makes of the sums of a vector of hidden units, and the gradients of it.
#pragma once

#include "cpu/recurrent/problem.h"

namespace aigc::AIGC_LEVEL::recurrent {
namespace {

// A vector of units in one row: `gates` are what backward reads of them.
template <int64_t MODE>
struct Activated {
    vf gates[KEPT<MODE>];
    vf cell, hidden;
};

// Of an LSTM, of the sums of its gates.
inline Activated<LSTM> activate_lstm(vf in, vf forget, vf fresh, vf out, vf cell) {
    Activated<LSTM> found;
    in = sigmoid(in), forget = sigmoid(forget), fresh = tanh(fresh), out = sigmoid(out);
    found.cell = forget * cell + in * fresh;
    found.hidden = out * tanh(found.cell);
    found.gates[0] = in, found.gates[1] = forget, found.gates[2] = fresh, found.gates[3] = out;
    return found;
}

// `input` and `recurrent`: the products of a vector of each gate; `hidden` and `cell`: of the step before.
template <int64_t MODE>
inline Activated<MODE> activate(const float* input, const float* recurrent, const float* bias, vf hidden, vf cell) {
    constexpr int64_t STEP = UNITS<MODE>;
    Activated<MODE> found;
    const auto sum = [&](int64_t gate) {
        return (load(input + gate * STEP) + load(recurrent + gate * STEP)) + load(bias + gate * STEP);
    };
    if constexpr (MODE == LSTM) {
        return activate_lstm(sum(0), sum(1), sum(2), sum(3), cell);
    } else if constexpr (MODE == GRU) {
        const vf reset = sigmoid(sum(0)), update = sigmoid(sum(1));
        const vf past = load(recurrent + 2 * STEP) + load(bias + 3 * STEP);
        const vf fresh = tanh((load(input + 2 * STEP) + load(bias + 2 * STEP)) + reset * past);
        found.hidden = (hidden - fresh) * update + fresh;
        found.gates[0] = reset, found.gates[1] = update, found.gates[2] = fresh, found.gates[3] = past;
    } else {
        const vf x = sum(0);
        found.hidden = MODE == RNN_TANH ? tanh(x) : greater(vf{}, x);
        found.gates[0] = found.hidden;
    }
    return found;
}

// Of a normalization.
struct Statistics {
    float mean, scale; // scale: one over the standard deviation
    vf of(vf x) const { return (x - mean) * scale; }
};

// The first `count` numbers, then zeros.
inline vf up_to(vf x, int64_t count) {
    if (count >= VF)
        return x;
    float numbers[VF];
    store(numbers, x);
    return load_up_to(numbers, count);
}

// The sum of f(unit, v), vectors from a unit on, over v < VECTORS and all units.
template <int VECTORS, class F>
float total(int64_t units, const F& f) {
    vf sums[VECTORS]{};
    for (int64_t unit = 0; unit < units; unit += VF)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v)
            sums[v] += up_to(f(unit, v), units - unit);
    float found = 0;
    for (int v = 0; v < VECTORS; ++v)
        for (int i = 0; i < VF; ++i)
            found += sums[v][i];
    return found;
}

// Of all gates of a row, or of its cells: of each vector of units VECTORS vectors, one after the other, and those of
// the next ones `stride` further.
template <int VECTORS>
Statistics statistics(const float* first, int64_t stride, int64_t units, float epsilon) {
    const auto at = [&](int64_t unit, int v) { return load_up_to(first + unit / VF * stride + v * VF, units - unit); };
    const float count = static_cast<float>(VECTORS * units);
    const float mean = total<VECTORS>(units, at) / count;
    const float squares = total<VECTORS>(units, [&](int64_t unit, int v) {
        const vf apart = at(unit, v) - mean;
        return apart * apart;
    });
    return {mean, 1.0f / __builtin_sqrtf(squares / count + epsilon)};
}

// The gradients of the sums, in place of `gates`; of the cell before, in place of `to_cell`; returns what of
// `to_hidden` reaches the hidden state before other than through the sums. `hidden` and `cell` are of the step before.
template <int64_t MODE>
inline vf differentiate(vf (&gates)[KEPT<MODE>], vf to_hidden, vf& to_cell, vf hidden, vf cell_before, vf cell) {
    if constexpr (MODE == LSTM) {
        const vf in = gates[0], forget = gates[1], fresh = gates[2], out = gates[3], shown = tanh(cell);
        const vf total = to_cell + to_hidden * out * (1.0f - shown * shown);
        gates[0] = total * fresh * in * (1.0f - in);
        gates[1] = total * cell_before * forget * (1.0f - forget);
        gates[2] = total * in * (1.0f - fresh * fresh);
        gates[3] = to_hidden * shown * out * (1.0f - out);
        to_cell = total * forget;
        return vf{};
    } else if constexpr (MODE == GRU) {
        const vf reset = gates[0], update = gates[1], fresh = gates[2], past = gates[3];
        const vf to_fresh = to_hidden * (1.0f - update) * (1.0f - fresh * fresh);
        gates[0] = to_fresh * past * reset * (1.0f - reset);
        gates[1] = to_hidden * (hidden - fresh) * update * (1.0f - update);
        gates[2] = to_fresh;
        gates[3] = to_fresh * reset;
        return to_hidden * update;
    } else {
        const vf h = gates[0];
        gates[0] = MODE == RNN_TANH ? to_hidden * (1.0f - h * h) : (h > 0.0f ? to_hidden : vf{});
        return vf{};
    }
}

}
}
