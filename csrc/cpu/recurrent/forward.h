// One direction of one layer, a step after another.
#pragma once

#include "cpu/recurrent/cells.h"
#include "cpu/recurrent/packing.h"

namespace aigc::AIGC_LEVEL::recurrent {
namespace {

// So many rows of the input are multiplied by a panel while it is in the caches; so many go through a step together.
constexpr int64_t CHUNK_ROWS = 64, STEP_ROWS = 48;

// What a direction of a layer reads and writes. Of each row: where its input begins, and where its hidden state goes.
struct Pass {
    Steps steps;
    bool reversed;
    int64_t hidden, size, depth; // units, numbers of the hidden state and of the input
    const float* const* input;
    float* const* output;
    const float* const* start;                         // the hidden state of each sequence before its first step
    const float *of_input, *of_hidden, *of_projection; // packed; the last null without one
    const float* bias;
    float* cells;                   // of an LSTM, batch by blocks of units: at first those before the first step
    float* unshown;                 // hidden units before the projection, likewise; null without one
    float* products;                // blocks by rows of a chunk by the width of a block
    float* last;                    // the hidden state of each sequence after its last step
    float *kept_gates, *kept_cells; // rows by gates by units, rows by units; null where nobody wants gradients
};

inline int64_t chunk_rows(int64_t batch) { return batch > CHUNK_ROWS ? batch : CHUNK_ROWS; }

template <int64_t MODE>
class Forward {
  public:
    Forward(const Pass& pass, const Group& group)
        : p_(pass), group_(group), blocks_(blocks_of(pass.hidden, UNITS<MODE>), group.member, group.members),
          padded_(blocks_of(pass.hidden, UNITS<MODE>) * UNITS<MODE>), room_(chunk_rows(pass.steps.batch)) {
        for (int64_t r = 0; r < STEP_ROWS; ++r)
            sums_of_row_[r] = sums_ + r * WIDEST;
    }

    void run() {
        const int64_t steps = p_.steps.steps;
        for (int64_t done = 0; done < steps;) {
            int64_t end = done, rows = 0;
            for (; end < steps && rows + p_.steps.counts[at(end)] <= room_; ++end)
                rows += p_.steps.counts[at(end)];
            const int64_t first = p_.steps.offsets[p_.reversed ? at(end - 1) : at(done)];
            multiply_input(first, rows);
            for (; done < end; ++done)
                run_step(at(done), first);
        }
        store_last();
    }

  private:
    static constexpr int64_t WIDTH = BLOCK_WIDTH<MODE>, WIDEST = WIDTH > PANEL_WIDTH ? WIDTH : PANEL_WIDTH;
    static constexpr int64_t NOWHERE = 0;

    int64_t at(int64_t step) const { return p_.reversed ? p_.steps.steps - 1 - step : step; }

    static void product(const float* const* rows, const float* panel, int64_t step, int64_t depth, float* const* out,
                        int64_t count, int64_t vectors) {
        multiply(Product{rows, 1, &NOWHERE, panel, step, &NOWHERE, 1, depth, out, false}, count, vectors);
    }

    float* products_of(int64_t block, int64_t row) const { return p_.products + (block * room_ + row) * WIDTH; }

    void multiply_input(int64_t first, int64_t rows) {
        for (int64_t block = blocks_.first; block < blocks_.last; ++block)
            for (int64_t r = 0; r < rows; r += STEP_ROWS) {
                const int64_t count = rows - r < STEP_ROWS ? rows - r : STEP_ROWS;
                float* out[STEP_ROWS];
                for (int64_t i = 0; i < count; ++i)
                    out[i] = products_of(block, r + i);
                product(p_.input + first + r, p_.of_input + block * WIDTH * p_.depth, WIDTH, p_.depth, out, count,
                        WIDTH / VF);
            }
    }

    void run_step(int64_t step, int64_t first_of_chunk) {
        const int64_t count = p_.steps.counts[step], first = p_.steps.offsets[step];
        const int64_t going_on = p_.steps.before(step, p_.reversed);
        const float* const* const before =
            going_on ? p_.output + p_.steps.offsets[p_.reversed ? step + 1 : step - 1] : nullptr;
        for (int64_t block = blocks_.first; block < blocks_.last; ++block) {
            for (int64_t r = 0, end; r < count; r = end) {
                // Rows that go on, then rows that begin.
                const bool begins = r >= going_on;
                const int64_t limit = begins ? count : going_on;
                end = limit - r < STEP_ROWS ? limit : r + STEP_ROWS;
                const float* const* const hidden = (begins ? p_.start : before) + r;
                product(hidden, p_.of_hidden + block * WIDTH * p_.size, WIDTH, p_.size, sums_of_row_, end - r,
                        WIDTH / VF);
                for (int64_t i = r; i < end; ++i)
                    finish(block, i, first + i, products_of(block, first + i - first_of_chunk), sums_of_row_[i - r],
                           hidden[i - r]);
            }
        }
        group_.wait();
        if (p_.of_projection) {
            project(first, count);
            group_.wait();
        }
    }

    // The units of a block in one row: `row` of the batch, `place` among all rows.
    void finish(int64_t block, int64_t row, int64_t place, const float* input, const float* sums, const float* hidden) {
        const float* const bias = p_.bias + block * BIAS_WIDTH<MODE>;
        for (int64_t v = 0; v < UNITS<MODE>; v += VF) {
            const int64_t unit = block * UNITS<MODE> + v, left = p_.hidden - unit;
            if (left <= 0)
                return;
            float* const cell = MODE == LSTM ? p_.cells + row * padded_ + unit : nullptr;
            const vf past = MODE == GRU ? load_part(hidden + unit, left) : vf{};
            const auto found = activate<MODE>(input + v, sums + v, bias + v, past, MODE == LSTM ? load(cell) : vf{});
            if constexpr (MODE == LSTM) {
                store(cell, found.cell);
                if (p_.kept_cells)
                    store_part(p_.kept_cells + place * p_.hidden + unit, found.cell, left);
            }
            if (p_.kept_gates)
                for (int64_t gate = 0; gate < KEPT<MODE>; ++gate)
                    store_part(p_.kept_gates + (place * KEPT<MODE> + gate) * p_.hidden + unit, found.gates[gate], left);
            if (MODE == LSTM && p_.unshown)
                store(p_.unshown + row * padded_ + unit, found.hidden);
            else
                store_part(p_.output[place] + unit, found.hidden, left);
        }
    }

    void project(int64_t first, int64_t count) {
        const Share panels(blocks_of(p_.size, PANEL_WIDTH), group_.member, group_.members);
        for (int64_t r = 0; r < count; r += STEP_ROWS) {
            const int64_t rows = count - r < STEP_ROWS ? count - r : STEP_ROWS;
            const float* units[STEP_ROWS];
            for (int64_t i = 0; i < rows; ++i)
                units[i] = p_.unshown + (r + i) * padded_;
            for (int64_t panel = panels.first; panel < panels.last; ++panel) {
                const int64_t column = panel * PANEL_WIDTH;
                product(units, p_.of_projection + column * p_.hidden, PANEL_WIDTH, p_.hidden, sums_of_row_, rows,
                        PANEL_WIDTH / VF);
                for (int64_t i = 0; i < rows; ++i)
                    for (int64_t c = column; c < column + PANEL_WIDTH && c < p_.size; c += VF)
                        store_part(p_.output[first + r + i] + c, load(sums_of_row_[i] + c - column), p_.size - c);
            }
        }
    }

    void store_last() {
        const Share rows(p_.steps.batch, group_.member, group_.members);
        for (int64_t b = rows.first; b < rows.last; ++b) {
            int64_t step = 0;
            while (!p_.reversed && step + 1 < p_.steps.steps && p_.steps.counts[step + 1] > b)
                ++step;
            const float* const from = p_.output[p_.steps.offsets[step] + b];
            for (int64_t c = 0; c < p_.size; c += VF)
                store_part(p_.last + b * p_.size + c, load_part(from + c, p_.size - c), p_.size - c);
        }
    }

    const Pass& p_;
    const Group group_;
    const Share blocks_;
    const int64_t padded_, room_;
    float sums_[STEP_ROWS * WIDEST];
    float* sums_of_row_[STEP_ROWS];
};
}
}
