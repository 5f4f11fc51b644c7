// The gradients of one direction of one layer, from the last step to the first, in one launch as forward: of the gates'
// sums, from which products over all rows make those of weights and input, and of the states before the first step.
#pragma once

#include "cuda/recurrent/product.cuh"

namespace aigc::cuda::recurrent {

template <class T>
struct Backward {
    Steps steps;
    Matrix<T> weight; // of each unit those with which the hidden state came to the gates: by gates and then units
    Cut cut;
    Rows of_grads, of_out;
    const T *grads, *out; // `grads`: of the layer's output
    const T *start_hidden, *start_cells;
    const float *gates, *kept_cells; // what forward kept
    float* to_gates;                 // rows by kept gates by units
    T* before;                       // rows by units: the hidden states before each step
    float *to_hidden, *to_cells;     // of the states after the last step; at the end before the first
    bool is_relu;
    // Of a normalized LSTM: gains of the products and of cells, biases of these; of each row how its products and its
    // cells were normalized; rows by units, the gradients of normalized cells; pairs of each tile, of both.
    const T *gain, *cell_gain, *cell_bias;
    const float* normalizations;
    float *to_normalized, *of_tiles;
    uint32_t* words;

    __device__ int64_t row(int64_t step, int b) const { return steps.offset(step) + b; }
    __device__ float hidden_before(int64_t step, const Unit& own) const {
        return own.b < steps.continuing(step) ? out[of_out.at(steps, steps.before(step), own.b) + own.unit]
                                              : start_hidden[own.b * weight.units + own.unit];
    }
    __device__ float cell_before(int64_t step, const Unit& own) const {
        return own.b < steps.continuing(step) ? kept_cells[row(steps.before(step), own.b) * weight.units + own.unit]
                                              : static_cast<float>(start_cells[own.b * weight.units + own.unit]);
    }
    __device__ float grad(int64_t step, const Unit& own) const {
        return static_cast<float>(grads[of_grads.at(steps, step, own.b) + own.unit]) +
               to_hidden[own.b * weight.units + own.unit];
    }
};

// The gradients of the sums, in place of `gates`; of the cell before, in place of `to_cell`; returns what of
// `to_hidden` reaches the hidden state before other than through the sums.
template <int64_t MODE>
__device__ inline float differentiate(float (&gates)[KEPT<MODE>], float to_hidden, float& to_cell, float hidden,
                                      float cell_before, float cell, bool is_relu) {
    if constexpr (MODE == LSTM) {
        const float in = gates[0], forget = gates[1], fresh = gates[2], out = gates[3], shown = tanhf(cell);
        const float total = to_cell + to_hidden * out * (1.0f - shown * shown);
        gates[0] = total * fresh * in * (1.0f - in);
        gates[1] = total * cell_before * forget * (1.0f - forget);
        gates[2] = total * in * (1.0f - fresh * fresh);
        gates[3] = to_hidden * shown * out * (1.0f - out);
        to_cell = total * forget;
        return 0;
    } else if constexpr (MODE == GRU) {
        const float reset = gates[0], update = gates[1], fresh = gates[2], past = gates[3];
        const float to_fresh = to_hidden * (1.0f - update) * (1.0f - fresh * fresh);
        gates[0] = to_fresh * past * reset * (1.0f - reset);
        gates[1] = to_hidden * (hidden - fresh) * update * (1.0f - update);
        gates[2] = to_fresh;
        gates[3] = to_fresh * reset;
        return to_hidden * update;
    } else {
        const float h = gates[0];
        gates[0] = !is_relu ? to_hidden * (1.0f - h * h) : h > 0.0f ? to_hidden : 0.0f;
        return 0;
    }
}

// The gradients to the hidden states before a step, through the gates' sums: those that the products were in.
template <class T, int64_t MODE, int BATCH>
__device__ void multiply_gates(const Backward<T>& p, int64_t step, Product<T, 1, BATCH>& product) {
    const int64_t units = p.weight.units;
    const int count = p.steps.count(step);
    const float* rows[BATCH];
#pragma unroll
    for (int b = 0; b < BATCH; ++b)
        rows[b] = b < count ? p.to_gates + p.row(step, b) * KEPT<MODE> * units : nullptr;
    // A GRU's new gate has its product within the reset gate, a normalized LSTM's gates are normalized products.
    const int64_t skips_from = MODE == GRU ? 2 * units : 0;
    const int64_t skips = MODE == GRU ? units : MODE == LAYER_NORM_LSTM ? 4 * units : 0;
    for (int64_t tile = p.cut.first(); tile < p.cut.last(); ++tile) {
        product.multiply(tile, [&](float* to, int64_t chunk, int64_t first, int64_t columns) {
            for (int64_t c = threadIdx.x; c < columns; c += THREADS) {
                const int64_t column = first + c, at = column + (column >= skips_from ? skips : 0);
#pragma unroll
                for (int b = 0; b < BATCH; ++b)
                    to[b * chunk + c] = rows[b] && column < p.weight.columns ? rows[b][at] : 0.0f;
            }
        });
        __syncthreads();
        const Unit own(tile, units, count);
        if (own.is_there) {
            float& to = p.to_hidden[own.b * units + own.unit];
            to = (MODE == GRU ? to : 0.0f) + product.sums.of(own.in_tile, 0, own.b);
        }
        __syncthreads();
    }
}

template <class T, int64_t MODE>
__device__ void differentiate_unit(const Backward<T>& p, int64_t step, const Unit& own) {
    const int64_t units = p.weight.units, row = p.row(step, own.b), of_state = own.b * units + own.unit;
    float gates[KEPT<MODE>], to_cell = 0, cell = 0, cell_before = 0;
#pragma unroll
    for (int gate = 0; gate < KEPT<MODE>; ++gate)
        gates[gate] = p.gates[(row * KEPT<MODE> + gate) * units + own.unit];
    if constexpr (HAS_CELLS<MODE>) {
        to_cell = p.to_cells[of_state];
        cell = p.kept_cells[row * units + own.unit];
        cell_before = p.cell_before(step, own);
    }
    const float hidden = p.hidden_before(step, own);
    p.before[row * units + own.unit] = static_cast<T>(hidden);
    const float past = differentiate<MODE>(gates, p.grad(step, own), to_cell, hidden, cell_before, cell, p.is_relu);
#pragma unroll
    for (int gate = 0; gate < KEPT<MODE>; ++gate)
        p.to_gates[(row * KEPT<MODE> + gate) * units + own.unit] = gates[gate];
    if constexpr (HAS_CELLS<MODE>)
        p.to_cells[of_state] = to_cell;
    if constexpr (MODE == GRU)
        p.to_hidden[of_state] = past;
}

template <class T, int64_t MODE, int BATCH>
__global__ void __launch_bounds__(THREADS, 1) backward_kernel(Backward<T> p) {
    Product<T, 1, BATCH> product(p.weight, p.cut);
    Meeting meeting{p.words};
    for (int64_t done = 0; done < p.steps.steps; ++done) {
        const int64_t step = p.steps.nth(p.steps.steps - 1 - done);
        for (int64_t tile = p.cut.first(); tile < p.cut.last(); ++tile) {
            const Unit own(tile, p.weight.units, p.steps.count(step));
            if (own.is_there)
                differentiate_unit<T, MODE>(p, step, own);
        }
        meeting.arrive();
        meeting.wait();
        multiply_gates<T, MODE>(p, step, product);
    }
}

}
