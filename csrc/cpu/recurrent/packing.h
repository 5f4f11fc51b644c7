// Weights and biases as the passes read them.
#pragma once

#include "core/compact.h"
#include "core/packed.h"
#include "cpu/recurrent/problem.h"

namespace aigc::AIGC_LEVEL::recurrent {
namespace {

template <int64_t MODE>
int64_t packed_floats(int64_t hidden, int64_t depth) {
    return blocks_of(hidden, UNITS<MODE>) * BLOCK_WIDTH<MODE> * depth;
}

inline void clear(float* at, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
        at[i] = 0.0f;
}

// (gates * hidden, depth) as a panel for every block of units: a row for each number of the input, in which the gates
// follow each other. Pairs of bfloat16 are moved as floats are, half as many of them.
template <int64_t MODE>
void pack_gates(const float* weight, int64_t hidden, int64_t depth, float* packed) {
    constexpr int64_t WIDTH = BLOCK_WIDTH<MODE>;
    parallel_for(0, blocks_of(hidden, UNITS<MODE>), 1, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) {
            const int64_t unit = block * UNITS<MODE>;
            const int64_t units = hidden - unit < UNITS<MODE> ? hidden - unit : UNITS<MODE>;
            float* const panel = packed + block * WIDTH * depth;
            if (units < UNITS<MODE>)
                clear(panel, WIDTH * depth);
            for (int64_t gate = 0; gate < GATES<MODE>; ++gate)
                transpose(weight + (gate * hidden + unit) * depth, depth, panel + gate * UNITS<MODE>, WIDTH, units,
                          depth);
        }
    });
}

// Compact panels of a block.
template <int64_t MODE>
constexpr int64_t PANELS = (BLOCK_WIDTH<MODE> + COMPACT_WIDTH - 1) / COMPACT_WIDTH;

template <int64_t MODE>
int64_t compact_gates_bytes(int64_t weights, int64_t hidden, int64_t depth) {
    return blocks_of(hidden, UNITS<MODE>) * PANELS<MODE> * compact_panel_bytes(weights, depth);
}

// The same as compact panels, whose columns are the units of the gates, and zeros that fill up a block's last panel.
template <int64_t MODE>
void pack_compact_gates(int64_t weights, const float* weight, int64_t hidden, int64_t depth, char* packed) {
    constexpr int64_t COLUMNS = PANELS<MODE> * COMPACT_WIDTH;
    Scope scope;
    float* const zeros = scope.take<float>(depth);
    clear(zeros, depth);
    const auto column_at = [&](int64_t column) {
        const int64_t i = column % COLUMNS, gate = i / UNITS<MODE>;
        const int64_t unit = column / COLUMNS * UNITS<MODE> + i % UNITS<MODE>;
        const bool is_there = gate < GATES<MODE> && unit < hidden;
        return reinterpret_cast<const char*>(is_there ? weight + (gate * hidden + unit) * depth : zeros);
    };
    pack_columns(weights, blocks_of(hidden, UNITS<MODE>) * COLUMNS, sizeof(float), depth, FLOAT32, column_at, packed);
}

// Rows of a head as columns of compact panels.
inline void pack_compact_head(int64_t weights, const float* weight, int64_t heads, int64_t depth, char* packed) {
    const auto column_at = [&](int64_t column) { return reinterpret_cast<const char*>(weight + column * depth); };
    pack_columns(weights, heads, sizeof(float), depth, FLOAT32, column_at, packed);
}

inline int64_t panels_floats(int64_t depth, int64_t columns) {
    return blocks_of(columns, PANEL_WIDTH) * PANEL_WIDTH * depth;
}

// A matrix (depth, columns) of any strides, one of them 1, as panels of columns.
inline void pack_panels(const float* matrix, int64_t row, int64_t column, int64_t depth, int64_t columns,
                        float* packed) {
    parallel_for(0, blocks_of(columns, PANEL_WIDTH), 1, [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
            const int64_t first = p * PANEL_WIDTH;
            const int64_t width = columns - first < PANEL_WIDTH ? columns - first : PANEL_WIDTH;
            float* const panel = packed + first * depth;
            if (width < PANEL_WIDTH)
                clear(panel, PANEL_WIDTH * depth);
            if (row == 1) {
                transpose(matrix + first * column, column, panel, PANEL_WIDTH, width, depth);
                continue;
            }
            for (int64_t k = 0; k < depth; ++k)
                for (int64_t c = 0; c < width; c += VF)
                    store_up_to(panel + k * PANEL_WIDTH + c, load_up_to(matrix + k * row + first + c, width - c),
                                width - c);
        }
    });
}

// Vectors of units that lie side by side: f(vector of a block's units, where it goes, units left from it on).
template <int64_t MODE, class F>
void each_bias(int64_t hidden, float* packed, const F& f) {
    for (int64_t unit = 0; unit < hidden; unit += VF)
        f(unit, packed + unit / UNITS<MODE> * BIAS_WIDTH<MODE> + unit % UNITS<MODE>, hidden - unit);
}

// What is added to the sums of each block, gate by gate; of a GRU's new gate the input's and the hidden bias stay
// apart.
template <int64_t MODE, class E>
void pack_bias(const E* of_input, const E* of_hidden, int64_t hidden, float* packed) {
    clear(packed, blocks_of(hidden, UNITS<MODE>) * BIAS_WIDTH<MODE>);
    if (!of_input)
        return;
    each_bias<MODE>(hidden, packed, [&](int64_t unit, float* to, int64_t left) {
        for (int64_t gate = 0; gate < GATES<MODE>; ++gate) {
            const vf input = load_up_to(of_input + gate * hidden + unit, left);
            const vf past = load_up_to(of_hidden + gate * hidden + unit, left);
            const bool apart = MODE == GRU && gate == 2;
            store(to + gate * UNITS<MODE>, apart ? input : input + past);
            if (apart)
                store(to + 3 * UNITS<MODE>, past);
        }
    });
}

// What a normalized LSTM has in a block behind the biases of the gates.
constexpr int64_t INPUT_GAIN = 4, HIDDEN_GAIN = 8, CELL_GAIN = 12, CELL_BIAS = 13;

template <class E>
struct Norms {
    const E *input_gain, *hidden_gain, *cell_gain, *cell_bias; // of four gates, of four gates, of the cell
};

template <int64_t MODE, class E>
void pack_norms(const Norms<E>& norms, int64_t hidden, float* packed) {
    each_bias<MODE>(hidden, packed, [&](int64_t unit, float* to, int64_t left) {
        const auto pack = [&](const E* from, int64_t place) {
            store(to + place * UNITS<MODE>, load_up_to(from + unit, left));
        };
        for (int64_t gate = 0; gate < 4; ++gate) {
            pack(norms.input_gain + gate * hidden, INPUT_GAIN + gate);
            pack(norms.hidden_gain + gate * hidden, HIDDEN_GAIN + gate);
        }
        pack(norms.cell_gain, CELL_GAIN);
        pack(norms.cell_bias, CELL_BIAS);
    });
}

}
}
