// One direction of one layer, a step after another.
#pragma once

#include "core/compact.h"
#include "cpu/recurrent/cells.h"
#include "cpu/recurrent/packing.h"

namespace aigc::AIGC_LEVEL::recurrent {
namespace {

// So many rows of the input are multiplied by a panel while it is in the caches; so many go through a step together.
constexpr int64_t CHUNK_ROWS = 64, STEP_ROWS = 48;

// What a direction of a layer reads and writes, hidden states and input of elements E. Of each row: where its input
// begins, and where its hidden state goes.
template <class E>
struct Pass {
    Steps steps;
    bool reversed;
    int64_t hidden, size, depth; // units, numbers of the hidden state and of the input
    const Factor<E>* const* input;
    Factor<E>* const* output;
    const Factor<E>* const* start;        // the hidden state of each sequence before its first step
    int64_t weights;                      // how these two are kept; of bfloat16 states FP32, which is as they are
    const Factor<E>*of_input, *of_hidden; // packed
    const float* of_projection;           // packed; null without one
    const float* bias;
    float* cells;                   // of an LSTM, batch by blocks of units: at first those before the first step
    float* units;                   // likewise of a GRU its hidden units, of an LSTM those that are projected, of a
                                    // normalized one its output gates
    float epsilon;                  // of normalizations
    float* hidden_products;         // of a normalized LSTM, blocks by batch by ROW_WIDTH
    int64_t room;                   // rows of a chunk
    float* products;                // blocks by rows of a chunk by ROW_WIDTH
    E* last;                        // the hidden state of each sequence after its last step
    float *kept_gates, *kept_cells; // rows by gates by units, rows by units; null where nobody wants gradients
};

// Products of a row with a block, which compact weights make whole panels.
template <int64_t MODE>
constexpr int64_t ROW_WIDTH = PANELS<MODE> * COMPACT_WIDTH;

inline int64_t chunk_rows(int64_t batch) { return batch > CHUNK_ROWS ? batch : CHUNK_ROWS; }
// At most so many steps that their rows are no more than that.
inline int64_t chunk_steps(int64_t steps, int64_t batch) {
    return most<int64_t>(least(steps, CHUNK_ROWS / most<int64_t>(batch, 1)), 1);
}

template <int64_t MODE, class E>
class Forward {
  public:
    Forward(const Pass<E>& pass, const Group& group)
        : p_(pass), group_(group), blocks_(group.units(blocks_of(pass.hidden, UNITS<MODE>))),
          padded_(blocks_of(pass.hidden, UNITS<MODE>) * UNITS<MODE>) {
        for (int64_t r = 0; r < STEP_ROWS; ++r)
            sums_of_row_[r] = sums_ + r * ROW_WIDTH<MODE>;
        rows_ = scope_.take<const Factor<E>*>(p_.room);
        places_ = scope_.take<int64_t>(p_.room);
        // The rows' distance is no power of two, so that they do not crowd each other out of the caches.
        row_bytes_ = is_compact() ? compact_row_bytes(p_.weights, most(p_.depth, p_.size))
                                  : round_up(most(p_.depth, p_.size) * int64_t(sizeof(E)), LINE_BYTES) + LINE_BYTES;
        bytes_ = scope_.take<char>(p_.room * row_bytes_);
    }

    void run() {
        for (int64_t done = 0; done < p_.steps.steps;)
            done = run_chunk(done, p_.steps.steps);
        store_last();
    }

    // The steps from `done` on that there is room for, at most to `last`; returns the step after them.
    int64_t run_chunk(int64_t done, int64_t last) {
        int64_t end = done, rows = 0;
        for (; end < last && rows + p_.steps.counts[at(end)] <= p_.room; ++end)
            rows += p_.steps.counts[at(end)];
        const int64_t lowest = p_.reversed ? at(end - 1) : at(done);
        multiply_input(lowest, lowest + end - done);
        for (; done < end; ++done)
            run_step(at(done), p_.steps.offsets[lowest]);
        return end;
    }

    void store_last() {
        const Share rows(p_.steps.batch, group_.member, group_.members);
        for (int64_t b = rows.first; b < rows.last; ++b) {
            int64_t step = 0;
            while (!p_.reversed && step + 1 < p_.steps.steps && p_.steps.counts[step + 1] > b)
                ++step;
            const E* const from = output(p_.steps.offsets[step] + b);
            for (int64_t c = 0; c < p_.size; c += VF)
                store_up_to(p_.last + b * p_.size + c, load_up_to(from + c, p_.size - c), p_.size - c);
        }
    }

    // A pass of one step, without its `last`, and without its products of the input where these are there.
    void run_only_step(bool is_multiplied = false) {
        if (!is_multiplied)
            multiply_input(0, 1);
        run_step(0, 0);
    }

  private:
    static constexpr int64_t WIDTH = BLOCK_WIDTH<MODE>;
    static constexpr int64_t NOWHERE = 0, LEAST_TOGETHER = 8;
    // Normalization makes much of what little its sums differ, so that a long one is a sum of short ones.
    static constexpr int64_t SUM_DEPTH = MODE == LAYER_NORM_LSTM ? 32 : INT64_MAX;

    int64_t at(int64_t step) const { return p_.reversed ? p_.steps.steps - 1 - step : step; }

    bool is_compact() const { return IS_SAME<E, float> && p_.weights != FP32; }

    // The first of `rows_` as products take them, once for all blocks: compact weights want them prepared, and several
    // rows that lie far from each other are read sooner where they lie side by side.
    void prepare_rows(int64_t count, int64_t depth) {
        if (!is_compact() && count < LEAST_TOGETHER)
            return;
        for (int64_t r = 0; r < count; ++r) {
            char* const row = bytes_ + r * row_bytes_;
            prepare(rows_[r], depth, row);
            rows_[r] = reinterpret_cast<const Factor<E>*>(row);
        }
    }
    void prepare(const Factor<E>* from, int64_t depth, char* row) const {
        if constexpr (IS_SAME<E, float>)
            if (is_compact())
                return prepare_row(p_.weights, from, depth, row);
        __builtin_memcpy(row, from, static_cast<size_t>(depth) * sizeof(Factor<E>));
    }

    // Rows by a block of packed gates.
    void multiply_gates(const Factor<E>* const* rows, const Factor<E>* packed, int64_t block, int64_t depth,
                        float* const* out, int64_t count) const {
        if (is_compact())
            return multiply_compact_gates(reinterpret_cast<const char* const*>(rows),
                                          reinterpret_cast<const char*>(packed), block, depth, out, count);
        const Factor<E>* const panel = packed + block * WIDTH * depth;
        int64_t first = 0;
        do {
            const Factor<E>* const from = panel + first * WIDTH;
            const int64_t here = least(SUM_DEPTH, depth - first);
            multiply_with_panel({rows, 1, &first, from, WIDTH, &NOWHERE, 1, here, out, first > 0}, count);
            first += here;
        } while (first < depth);
    }

    static void multiply_with_panel(const ProductOf<Factor<E>>& p, int64_t count) {
        constexpr int VECTORS = WIDTH / VF;
        // One or two rows by a whole panel: enough sums at a time where registers are few as well.
        if (count == 1)
            return multiply_tile<1, VECTORS>(p, 0, 0);
        if constexpr (VECTORS <= 2 * TILE_VECTORS)
            if (count == 2)
                return multiply_tile<2, VECTORS>(p, 0, 0);
        multiply(p, count, VECTORS);
    }

    void multiply_compact_gates(const char* const* rows, const char* packed, int64_t block, int64_t depth,
                                float* const* out, int64_t count) const {
        const int64_t bytes = compact_panel_bytes(p_.weights, depth);
        for (int64_t panel = 0; panel < PANELS<MODE>; ++panel) {
            float* c[STEP_ROWS];
            for (int64_t r = 0; r < count; ++r)
                c[r] = out[r] + panel * COMPACT_WIDTH;
            multiply_compact({p_.weights, depth, packed + (block * PANELS<MODE> + panel) * bytes, rows, c}, count);
        }
    }

    E* output(int64_t place) const { return reinterpret_cast<E*>(p_.output[place]); }

    float* products_of(int64_t block, int64_t row) const {
        return p_.products + (block * p_.room + row) * ROW_WIDTH<MODE>;
    }

    // Of this member's rows of some steps.
    void multiply_input(int64_t first_step, int64_t last_step) {
        const int64_t depth = p_.depth / PER_FACTOR<E>;
        int64_t rows = 0;
        for (int64_t step = first_step; step < last_step; ++step) {
            const Share own = group_.rows(p_.steps.counts[step]);
            for (int64_t row = own.first; row < own.last; ++row, ++rows) {
                rows_[rows] = p_.input[p_.steps.offsets[step] + row];
                places_[rows] = p_.steps.offsets[step] + row - p_.steps.offsets[first_step];
            }
        }
        prepare_rows(rows, depth);
        for (int64_t block = blocks_.first; block < blocks_.last; ++block)
            for (int64_t r = 0; r < rows; r += STEP_ROWS) {
                const int64_t count = rows - r < STEP_ROWS ? rows - r : STEP_ROWS;
                float* out[STEP_ROWS];
                for (int64_t i = 0; i < count; ++i)
                    out[i] = products_of(block, places_[r + i]);
                multiply_gates(rows_ + r, p_.of_input, block, depth, out, count);
            }
    }

    void run_step(int64_t step, int64_t first_of_chunk) {
        const int64_t first = p_.steps.offsets[step], depth = p_.size / PER_FACTOR<E>;
        const int64_t going_on = p_.steps.before(step, p_.reversed);
        const Factor<E>* const* const before =
            going_on ? p_.output + p_.steps.offsets[p_.reversed ? step + 1 : step - 1] : nullptr;
        const Share own = group_.rows(p_.steps.counts[step]);
        for (int64_t row = own.first; row < own.last; ++row)
            rows_[row - own.first] = row < going_on ? before[row] : p_.start[row];
        prepare_rows(own.last - own.first, depth);
        for (int64_t i = blocks_.first; i < blocks_.last; ++i) {
            // To and fro: what the step before read last is still in the caches where not all of it is.
            const int64_t block = step % 2 ? blocks_.first + blocks_.last - 1 - i : i;
            for (int64_t r = own.first; r < own.last; r += STEP_ROWS) {
                const int64_t count = own.last - r < STEP_ROWS ? own.last - r : STEP_ROWS;
                if constexpr (MODE == LAYER_NORM_LSTM)
                    for (int64_t i = 0; i < count; ++i)
                        sums_of_row_[i] = hidden_products_of(block, r + i);
                multiply_gates(rows_ + (r - own.first), p_.of_hidden, block, depth, sums_of_row_, count);
                if constexpr (MODE != LAYER_NORM_LSTM)
                    for (int64_t row = r; row < r + count; ++row)
                        finish(block, row, first + row, products_of(block, first + row - first_of_chunk),
                               sums_of_row_[row - r]);
            }
        }
        group_.wait();
        if constexpr (MODE == LAYER_NORM_LSTM) {
            for (int64_t row = own.first; row < own.last; ++row)
                update_cells(row, first + row, first + row - first_of_chunk);
            group_.wait();
            for (int64_t row = own.first; row < own.last; ++row)
                show_cells(row, first + row);
            group_.wait();
        }
        if (p_.of_projection) {
            project(first, own);
            group_.wait();
        }
    }

    // The units of a block in one row: `row` of the batch, `place` among all rows.
    void finish(int64_t block, int64_t row, int64_t place, const float* input, const float* sums) {
        const float* const bias = p_.bias + block * BIAS_WIDTH<MODE>;
        for (int64_t v = 0; v < UNITS<MODE>; v += VF) {
            const int64_t unit = block * UNITS<MODE> + v, left = p_.hidden - unit;
            if (left <= 0)
                return;
            const int64_t padded = row * padded_ + unit;
            const vf past = MODE == GRU ? load(p_.units + padded) : vf{};
            const vf cell = MODE == LSTM ? load(p_.cells + padded) : vf{};
            const auto found = activate<MODE>(input + v, sums + v, bias + v, past, cell);
            if constexpr (MODE == LSTM) {
                store(p_.cells + padded, found.cell);
                if (p_.kept_cells)
                    store_up_to(p_.kept_cells + place * p_.hidden + unit, found.cell, left);
            }
            if (p_.kept_gates)
                for (int64_t gate = 0; gate < KEPT<MODE>; ++gate)
                    store_up_to(p_.kept_gates + (place * KEPT<MODE> + gate) * p_.hidden + unit, found.gates[gate],
                                left);
            if (p_.units)
                store(p_.units + padded, found.hidden);
            if (!p_.of_projection)
                store_up_to(output(place) + unit, found.hidden, left);
        }
    }

    float* hidden_products_of(int64_t block, int64_t row) const {
        return p_.hidden_products + (block * p_.steps.batch + row) * ROW_WIDTH<MODE>;
    }

    // The cells of a row, and its output gates, once all of its products are there; `in_chunk`: its place there.
    void update_cells(int64_t row, int64_t place, int64_t in_chunk) {
        const int64_t width = ROW_WIDTH<MODE>;
        const auto of_input = statistics<4>(products_of(0, in_chunk), p_.room * width, p_.hidden, p_.epsilon);
        const auto of_hidden = statistics<4>(hidden_products_of(0, row), p_.steps.batch * width, p_.hidden, p_.epsilon);
        for (int64_t block = blocks_.first; block < blocks_.last; ++block) {
            const float *const input = products_of(block, in_chunk), *const hidden = hidden_products_of(block, row);
            const float* const bias = p_.bias + block * BIAS_WIDTH<MODE>;
            const auto sum = [&](int64_t gate) {
                const vf from_input = of_input.of(load(input + gate * VF)) * load(bias + (INPUT_GAIN + gate) * VF);
                const vf from_hidden = of_hidden.of(load(hidden + gate * VF)) * load(bias + (HIDDEN_GAIN + gate) * VF);
                return (from_input + from_hidden) + load(bias + gate * VF);
            };
            const int64_t unit = block * VF, left = p_.hidden - unit, padded = row * padded_ + unit;
            const vf gates[4] = {sigmoid(sum(0)), sigmoid(sum(1)), tanh(sum(2)), sigmoid(sum(3))};
            const vf cell = gates[1] * load(p_.cells + padded) + gates[0] * gates[2];
            store(p_.cells + padded, cell);
            store(p_.units + padded, gates[3]);
            if (p_.kept_cells)
                store_up_to(p_.kept_cells + place * p_.hidden + unit, cell, left);
            for (int64_t gate = 0; p_.kept_gates && gate < 4; ++gate) {
                float* const kept = p_.kept_gates + (place * KEPT<MODE> + gate) * p_.hidden + unit;
                store_up_to(kept, gates[gate], left);
                store_up_to(kept + 4 * p_.hidden, load(hidden + gate * VF), left);
            }
        }
    }

    // The hidden state of a row whose cells are all there.
    void show_cells(int64_t row, int64_t place) {
        const auto of_cells = statistics<1>(p_.cells + row * padded_, VF, p_.hidden, p_.epsilon);
        for (int64_t block = blocks_.first; block < blocks_.last; ++block) {
            const float* const bias = p_.bias + block * BIAS_WIDTH<MODE>;
            const int64_t unit = block * VF, padded = row * padded_ + unit;
            const vf cell = of_cells.of(load(p_.cells + padded)) * load(bias + CELL_GAIN * VF);
            const vf hidden = load(p_.units + padded) * tanh(cell + load(bias + CELL_BIAS * VF));
            store_up_to(output(place) + unit, hidden, p_.hidden - unit);
        }
    }

    void project(int64_t first, const Share& own) {
        const Share panels = group_.units(blocks_of(p_.size, PANEL_WIDTH));
        for (int64_t r = own.first; r < own.last; r += STEP_ROWS) {
            const int64_t rows = own.last - r < STEP_ROWS ? own.last - r : STEP_ROWS;
            const float* units[STEP_ROWS];
            for (int64_t i = 0; i < rows; ++i)
                units[i] = p_.units + (r + i) * padded_;
            for (int64_t panel = panels.first; panel < panels.last; ++panel) {
                const int64_t column = panel * PANEL_WIDTH;
                const float* const projection = p_.of_projection + column * p_.hidden;
                multiply(
                    Product{units, 1, &NOWHERE, projection, PANEL_WIDTH, &NOWHERE, 1, p_.hidden, sums_of_row_, false},
                    rows, PANEL_WIDTH / VF);
                for (int64_t i = 0; i < rows; ++i)
                    for (int64_t c = column; c < column + PANEL_WIDTH && c < p_.size; c += VF)
                        store_up_to(output(first + r + i) + c, load(sums_of_row_[i] + c - column), p_.size - c);
            }
        }
    }

    const Pass<E>& p_;
    const Group group_;
    const Share blocks_;
    const int64_t padded_;
    Scope scope_;
    const Factor<E>** rows_ = nullptr; // of this member, as products take them
    int64_t* places_ = nullptr;        // of these rows in the chunk
    char* bytes_ = nullptr;
    int64_t row_bytes_ = 0;
    float sums_[STEP_ROWS * ROW_WIDTH<MODE>];
    float* sums_of_row_[STEP_ROWS];
};
}
}
