// One direction of one layer, from the products with its input: all steps in one launch, whose blocks hold their units'
// weights and tell each other of every step's hidden states (after Diamos et al., "Persistent RNNs", 2016).
#pragma once

#include "cuda/recurrent/product.cuh"

namespace aigc::cuda::recurrent {

template <class T>
struct Forward {
    Steps steps;
    Matrix<T> weight; // of the hidden states, by gates and then units
    Cut cut;
    Rows of_sums, of_out;
    const T *sums, *bias;                  // of the input; `bias` of the hidden states' product, or null
    const T *gain, *cell_gain, *cell_bias; // of a normalized LSTM
    float epsilon;
    bool is_relu;                        // of a cell without gates
    const T *start_hidden, *start_cells; // batch by units, as what follows but for `out`
    T *out, *last_hidden, *last_cells;
    float* cells;               // as they are now
    float *gates, *kept_cells;  // what backward reads, in the order of the steps, or null
    float *products, *of_tiles; // of a normalized LSTM: batch by gates by units; statistics of both kinds of each tile
    uint32_t* words;
};

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <class T>
__device__ inline float or_zero(const T* numbers, int64_t at) {
    return numbers ? static_cast<float>(numbers[at]) : 0.0f;
}

// Where the hidden states before a step are, of each row of it; null of others.
template <class T, int BATCH>
struct Before {
    const T* rows[BATCH];

    __device__ Before(const Forward<T>& p, int64_t step) {
        const int count = p.steps.count(step), continuing = p.steps.continuing(step);
#pragma unroll
        for (int b = 0; b < BATCH; ++b)
            rows[b] = b >= count       ? nullptr
                      : b < continuing ? p.out + p.of_out.at(p.steps, p.steps.before(step), b)
                                       : p.start_hidden + b * p.weight.units;
    }
    // See `Product::multiply`.
    __device__ void operator()(float* to, int64_t chunk, int64_t first, int64_t columns, int64_t count) const {
        for (int64_t c = threadIdx.x; c < count; c += THREADS)
#pragma unroll
            for (int b = 0; b < BATCH; ++b)
                to[b * chunk + c] = rows[b] && first + c < columns ? static_cast<float>(rows[b][first + c]) : 0.0f;
    }
};

// What a step makes of a unit: from the sums of the input, and the products with the hidden states.
template <int64_t MODE>
struct Activated {
    float gates[KEPT<MODE>], cell = 0, hidden;
};

template <int64_t MODE>
__device__ inline Activated<MODE> activate(const float (&sums)[GATES<MODE>], const float (&products)[GATES<MODE>],
                                           float hidden, float cell, bool is_relu) {
    Activated<MODE> found;
    if constexpr (MODE == LSTM) {
        const float in = sigmoid(sums[0] + products[0]), forget = sigmoid(sums[1] + products[1]);
        const float fresh = tanhf(sums[2] + products[2]), out = sigmoid(sums[3] + products[3]);
        found.cell = forget * cell + in * fresh;
        found.hidden = out * tanhf(found.cell);
        found.gates[0] = in, found.gates[1] = forget, found.gates[2] = fresh, found.gates[3] = out;
    } else if constexpr (MODE == GRU) {
        const float reset = sigmoid(sums[0] + products[0]), update = sigmoid(sums[1] + products[1]);
        const float fresh = tanhf(sums[2] + reset * products[2]);
        found.hidden = (hidden - fresh) * update + fresh;
        found.gates[0] = reset, found.gates[1] = update, found.gates[2] = fresh, found.gates[3] = products[2];
    } else {
        const float x = sums[0] + products[0];
        found.hidden = !is_relu ? tanhf(x) : x > 0.0f || x != x ? x : 0.0f;
        found.gates[0] = found.hidden;
    }
    return found;
}

template <class T, int64_t MODE>
__device__ inline void load_sums(const Forward<T>& p, int64_t step, const Unit& own, float (&sums)[GATES<MODE>]) {
    const T* const row = p.sums + p.of_sums.at(p.steps, step, own.b) + own.unit;
#pragma unroll
    for (int gate = 0; gate < GATES<MODE>; ++gate)
        sums[gate] = static_cast<float>(row[gate * p.weight.units]);
}

template <class T>
__device__ inline float cell_before(const Forward<T>& p, int64_t step, const Unit& own) {
    const int64_t at = own.b * p.weight.units + own.unit;
    return own.b < p.steps.continuing(step) ? p.cells[at] : static_cast<float>(p.start_cells[at]);
}

template <class T>
__device__ inline void store_cell(const Forward<T>& p, int64_t step, const Unit& own, float cell) {
    const int64_t at = own.b * p.weight.units + own.unit;
    p.cells[at] = cell;
    if (p.kept_cells)
        p.kept_cells[(p.steps.offset(step) + own.b) * p.weight.units + own.unit] = cell;
    if (own.b >= p.steps.going_on(step))
        p.last_cells[at] = static_cast<T>(cell);
}

template <class T>
__device__ inline void store_hidden(const Forward<T>& p, int64_t step, const Unit& own, float hidden) {
    p.out[p.of_out.at(p.steps, step, own.b) + own.unit] = static_cast<T>(hidden);
    if (own.b >= p.steps.going_on(step))
        p.last_hidden[own.b * p.weight.units + own.unit] = static_cast<T>(hidden);
}

template <class T, int64_t MODE, int BATCH>
__global__ void __launch_bounds__(THREADS, 1) forward_kernel(Forward<T> p) {
    const int64_t units = p.weight.units;
    Product<T, GATES<MODE>, BATCH> product(p.weight, p.cut);
    Meeting meeting{p.words};
    for (int64_t done = 0; done < p.steps.steps; ++done) {
        const int64_t step = p.steps.nth(done);
        meeting.wait();
        const Before<T, BATCH> before(p, step);
        for (int64_t tile = p.cut.first(); tile < p.cut.last(); ++tile) {
            // What does not depend on the step before is on its way meanwhile.
            const Unit own(tile, units, p.steps.count(step));
            float sums[GATES<MODE>], products[GATES<MODE>], hidden = 0, cell = 0;
            if (own.is_there) {
                load_sums<T, MODE>(p, step, own, sums);
                if constexpr (HAS_CELLS<MODE>)
                    cell = cell_before(p, step, own);
            }
            product.multiply(tile, [&](float* to, int64_t chunk, int64_t first, int64_t count) {
                before(to, chunk, first, units, count);
            });
            __syncthreads();
            if (own.is_there) {
#pragma unroll
                for (int gate = 0; gate < GATES<MODE>; ++gate)
                    products[gate] =
                        product.sums.of(own.in_tile, gate, own.b) + or_zero(p.bias, gate * units + own.unit);
                if constexpr (MODE == GRU)
                    hidden = own.b < p.steps.continuing(step)
                                 ? p.out[p.of_out.at(p.steps, p.steps.before(step), own.b) + own.unit]
                                 : p.start_hidden[own.b * units + own.unit];
                const Activated<MODE> found = activate<MODE>(sums, products, hidden, cell, p.is_relu);
                store_hidden(p, step, own, found.hidden);
                if constexpr (HAS_CELLS<MODE>)
                    store_cell(p, step, own, found.cell);
                if (p.gates) {
                    float* const kept = p.gates + (p.steps.offset(step) + own.b) * KEPT<MODE> * units + own.unit;
#pragma unroll
                    for (int gate = 0; gate < KEPT<MODE>; ++gate)
                        kept[gate * units] = found.gates[gate];
                }
            }
            __syncthreads();
        }
        meeting.arrive();
    }
}

}
