// The gradients of one direction of one layer, from the last step to the first: of the gates' sums, from which products
// over all rows make those of the weights and of the input, and of the states before the first step.
#pragma once

#include "cpu/recurrent/cells.h"
#include "cpu/recurrent/packing.h"

namespace aigc::AIGC_LEVEL::recurrent {
namespace {

struct BackwardPass {
    Steps steps;
    bool reversed;
    int64_t hidden, size;
    const float* const* grads;   // of each row's hidden state, as the layer's output
    const float* const* before;  // the hidden state of each row's step before
    const float *gates, *cells;  // what forward kept
    const float* start_cells;    // of an LSTM: batch by hidden
    const float* of_gates;       // the hidden weight in panels of its columns
    const float* of_projection;  // likewise; null without one
    float* to_gates;             // rows by kept gates by hidden
    float *to_hidden, *to_cells; // of the states after the last step; at the end before the first
    float* to_shown;             // rows by size: of the hidden states that the projection gave
    float* shown;                // rows by hidden: what was projected
    // Of a normalized LSTM: gains of the hidden sums, gain and bias of the cells, and, rows by hidden, the gradients of
    // normalized cells.
    const float *hidden_gain, *cell_gain, *cell_bias;
    float epsilon;
    float* to_normalized;
};

template <int64_t MODE>
class Backward {
  public:
    Backward(const BackwardPass& pass, const Group& group)
        : p_(pass), group_(group), units_(group.units(blocks_of(pass.hidden, PANEL_WIDTH))),
          columns_(group.units(blocks_of(pass.size, PANEL_WIDTH))) {
        for (int64_t gate = 0; gate < GATES<MODE>; ++gate) {
            // Of a GRU's new gate the product with the hidden state lies within the reset gate.
            const int64_t kept = MODE == LAYER_NORM_LSTM ? gate + 4 : MODE == GRU && gate == 2 ? 3 : gate;
            in_gates_[gate] = kept * p_.hidden;
            in_panel_[gate] = gate * p_.hidden * PANEL_WIDTH;
        }
        for (int64_t r = 0; r < ROWS; ++r)
            sums_of_row_[r] = sums_ + r * PANEL_WIDTH;
    }

    void run() {
        const int64_t steps = p_.steps.steps;
        for (int64_t done = 0; done < steps; ++done) {
            const int64_t step = p_.reversed ? done : steps - 1 - done;
            if (p_.of_projection) {
                add_output(step);
                group_.wait();
            }
            if constexpr (MODE == LAYER_NORM_LSTM)
                differentiate_normalized(step);
            else
                for (int64_t block = units_.first; block < units_.last; ++block)
                    differentiate_units(step, block * PANEL_WIDTH);
            group_.wait();
            multiply_gates(step);
            group_.wait();
        }
    }

  private:
    static constexpr int64_t ROWS = 48;

    int64_t rows(int64_t from, int64_t count) const { return count - from < ROWS ? count - from : ROWS; }

    // Of the hidden states that the projection gave: from the output and from the step after.
    void add_output(int64_t step) {
        const Share own = group_.rows(p_.steps.counts[step]);
        for (int64_t r = own.first; r < own.last; ++r) {
            const int64_t place = p_.steps.offsets[step] + r;
            for (int64_t c = columns_.first * PANEL_WIDTH; c < columns_.last * PANEL_WIDTH && c < p_.size; c += VF) {
                const int64_t left = p_.size - c;
                const vf sum = load_up_to(p_.grads[place] + c, left) + load_up_to(p_.to_hidden + r * p_.size + c, left);
                store_up_to(p_.to_shown + place * p_.size + c, sum, left);
            }
        }
    }

    void differentiate_units(int64_t step, int64_t unit) {
        static constexpr int64_t START = 0;
        const Share own = group_.rows(p_.steps.counts[step]);
        const int64_t first = p_.steps.offsets[step];
        for (int64_t r = own.first; r < own.last; r += ROWS) {
            const int64_t height = rows(r, own.last);
            if (p_.of_projection) {
                const float* given[ROWS];
                for (int64_t i = 0; i < height; ++i)
                    given[i] = p_.to_shown + (first + r + i) * p_.size;
                multiply(Product{given, 1, &START, p_.of_projection + unit * p_.size, PANEL_WIDTH, &START, 1, p_.size,
                                 sums_of_row_, false},
                         height, PANEL_WIDTH / VF);
            }
            for (int64_t i = 0; i < height; ++i)
                for (int64_t v = 0; v < PANEL_WIDTH && unit + v < p_.hidden; v += VF)
                    differentiate_vector(step, r + i, unit + v, sums_of_row_[i] + v);
        }
    }

    void differentiate_vector(int64_t step, int64_t row, int64_t unit, const float* projected) {
        const int64_t place = p_.steps.offsets[step] + row, left = p_.hidden - unit;
        vf gates[KEPT<MODE>];
        for (int64_t gate = 0; gate < KEPT<MODE>; ++gate)
            gates[gate] = load_up_to(p_.gates + (place * KEPT<MODE> + gate) * p_.hidden + unit, left);
        float* const to_hidden = p_.to_hidden + row * p_.size + unit;
        const vf given = MODE == LSTM && p_.of_projection
                             ? load(projected)
                             : load_up_to(p_.grads[place] + unit, left) + load_up_to(to_hidden, left);
        vf to_cell{}, before{}, cell{}, hidden{};
        if constexpr (MODE == LSTM) {
            to_cell = load_up_to(p_.to_cells + row * p_.hidden + unit, left);
            cell = load_up_to(p_.cells + place * p_.hidden + unit, left);
            before = load_up_to(cells_before(step, row) + unit, left);
            if (p_.shown)
                store_up_to(p_.shown + place * p_.hidden + unit, gates[3] * tanh(cell), left);
        }
        if constexpr (MODE == GRU)
            hidden = load_up_to(p_.before[place] + unit, left);
        const vf past = differentiate<MODE>(gates, given, to_cell, hidden, before, cell);
        for (int64_t gate = 0; gate < KEPT<MODE>; ++gate)
            store_up_to(p_.to_gates + (place * KEPT<MODE> + gate) * p_.hidden + unit, gates[gate], left);
        if constexpr (MODE == LSTM)
            store_up_to(p_.to_cells + row * p_.hidden + unit, to_cell, left);
        if constexpr (MODE == GRU)
            store_up_to(to_hidden, past, left);
    }

    // Calls f(row, its place, unit, units left) for this member's vectors of units of a step, then begin(place) before
    // those of each row.
    template <class Begin, class F>
    void each_vector(int64_t step, const Begin& begin, const F& f) {
        const Share own = group_.rows(p_.steps.counts[step]);
        const int64_t last = least(units_.last * PANEL_WIDTH, p_.hidden);
        for (int64_t row = own.first; row < own.last; ++row) {
            const int64_t place = p_.steps.offsets[step] + row;
            const auto of_row = begin(place);
            for (int64_t unit = units_.first * PANEL_WIDTH; unit < last; unit += VF)
                f(row, place, unit, p_.hidden - unit, of_row);
        }
    }

    // What normalizing a row's numbers leaves of the gradients `given(i)` of normalized ones `x(i)`, but for the scale:
    // given(i) - mean - x(i) * slope.
    struct Rest {
        Statistics of;
        float mean, slope;
        vf from(vf given, vf x) const { return of.scale * (given - mean - x * slope); }
    };
    template <class Given, class X>
    static Rest rest_of(const Statistics& of, int64_t count, const Given& given, const X& x) {
        const float mean = total<1>(count, [&](int64_t i, int) { return given(i); }) / static_cast<float>(count);
        const float slope =
            total<1>(count, [&](int64_t i, int) { return given(i) * x(i); }) / static_cast<float>(count);
        return {of, mean, slope};
    }

    // From the hidden states to the normalized cells, from these to the sums, and from these to the products.
    void differentiate_normalized(int64_t step) {
        const int64_t hidden = p_.hidden;
        const auto gate_at = [&](int64_t place, int64_t gate) { return (place * KEPT<MODE> + gate) * hidden; };
        const auto of_cells = [&](int64_t place) {
            return statistics<1>(p_.cells + place * hidden, VF, hidden, p_.epsilon);
        };
        each_vector(step, of_cells, [&](int64_t row, int64_t place, int64_t unit, int64_t left, const Statistics& of) {
            const vf given =
                load_up_to(p_.grads[place] + unit, left) + load_up_to(p_.to_hidden + row * hidden + unit, left);
            const vf out = load_up_to(p_.gates + gate_at(place, 3) + unit, left);
            const vf cell = of.of(load_up_to(p_.cells + place * hidden + unit, left));
            const vf shown = tanh(cell * load_up_to(p_.cell_gain + unit, left) + load_up_to(p_.cell_bias + unit, left));
            store_up_to(p_.to_normalized + place * hidden + unit, given * out * (1.0f - shown * shown), left);
            store_up_to(p_.to_gates + gate_at(place, 3) + unit, given * shown * out * (1.0f - out), left);
        });
        group_.wait();
        const auto to_cell = [&](int64_t place, int64_t unit) {
            const int64_t left = hidden - unit;
            return load_up_to(p_.to_normalized + place * hidden + unit, left) * load_up_to(p_.cell_gain + unit, left);
        };
        const auto rest_of_cells = [&](int64_t place) {
            const Statistics of = of_cells(place);
            const float* const cells = p_.cells + place * hidden;
            return rest_of(
                of, hidden, [&](int64_t i) { return to_cell(place, i); },
                [&](int64_t i) { return of.of(load_up_to(cells + i, hidden - i)); });
        };
        each_vector(step, rest_of_cells, [&](int64_t row, int64_t place, int64_t unit, int64_t left, const Rest& rest) {
            const auto gate = [&](int64_t which) { return load_up_to(p_.gates + gate_at(place, which) + unit, left); };
            const vf in = gate(0), forget = gate(1), fresh = gate(2);
            const vf cell = rest.of.of(load_up_to(p_.cells + place * hidden + unit, left));
            float* const later = p_.to_cells + row * hidden + unit;
            const vf sum = load_up_to(later, left) + rest.from(to_cell(place, unit), cell);
            const vf before = load_up_to(cells_before(step, row) + unit, left);
            float* const to = p_.to_gates + gate_at(place, 0) + unit;
            store_up_to(to, sum * fresh * in * (1.0f - in), left);
            store_up_to(to + hidden, sum * before * forget * (1.0f - forget), left);
            store_up_to(to + 2 * hidden, sum * in * (1.0f - fresh * fresh), left);
            store_up_to(later, sum * forget, left);
        });
        group_.wait();
        const auto rest_of_sums = [&](int64_t place) {
            const float *const given = p_.to_gates + gate_at(place, 0), *const products = p_.gates + gate_at(place, 4);
            const int64_t count = 4 * hidden;
            const Statistics of = statistics<1>(products, VF, count, p_.epsilon);
            return rest_of(
                of, count,
                [&](int64_t i) { return load_up_to(given + i, count - i) * load_up_to(p_.hidden_gain + i, count - i); },
                [&](int64_t i) { return of.of(load_up_to(products + i, count - i)); });
        };
        each_vector(step, rest_of_sums, [&](int64_t, int64_t place, int64_t unit, int64_t left, const Rest& rest) {
            for (int64_t gate = 0; gate < 4; ++gate) {
                float* const given = p_.to_gates + gate_at(place, gate) + unit;
                const vf product = rest.of.of(load_up_to(p_.gates + gate_at(place, gate + 4) + unit, left));
                const vf gain = load_up_to(p_.hidden_gain + gate * hidden + unit, left);
                store_up_to(given + 4 * hidden, rest.from(load_up_to(given, left) * gain, product), left);
            }
        });
    }

    const float* cells_before(int64_t step, int64_t row) const {
        const int64_t other = p_.reversed ? step + 1 : step - 1;
        return row < p_.steps.before(step, p_.reversed) ? p_.cells + (p_.steps.offsets[other] + row) * p_.hidden
                                                        : p_.start_cells + row * p_.hidden;
    }

    // Of the hidden states before, through the gates' sums.
    void multiply_gates(int64_t step) {
        const Share own = group_.rows(p_.steps.counts[step]);
        const int64_t first = p_.steps.offsets[step];
        for (int64_t panel = columns_.first; panel < columns_.last; ++panel) {
            const int64_t column = panel * PANEL_WIDTH;
            for (int64_t r = own.first; r < own.last; r += ROWS) {
                const int64_t height = rows(r, own.last);
                const float* given[ROWS];
                for (int64_t i = 0; i < height; ++i)
                    given[i] = p_.to_gates + (first + r + i) * KEPT<MODE> * p_.hidden;
                multiply(Product{given, 1, in_gates_, p_.of_gates + column * GATES<MODE> * p_.hidden, PANEL_WIDTH,
                                 in_panel_, GATES<MODE>, p_.hidden, sums_of_row_, false},
                         height, PANEL_WIDTH / VF);
                for (int64_t i = 0; i < height; ++i)
                    for (int64_t c = column; c < column + PANEL_WIDTH && c < p_.size; c += VF)
                        add(p_.to_hidden + (r + i) * p_.size + c, load(sums_of_row_[i] + c - column), p_.size - c);
            }
        }
    }

    static void add(float* to, vf sum, int64_t left) {
        store_up_to(to, MODE == GRU ? load_up_to(to, left) + sum : sum, left);
    }

    const BackwardPass& p_;
    const Group group_;
    const Share units_, columns_;
    int64_t in_gates_[GATES<MODE>], in_panel_[GATES<MODE>];
    float sums_[ROWS * PANEL_WIDTH];
    float* sums_of_row_[ROWS];
};

}
}
