// The same of LSTMs whose sums and cells are normalized: three times in a step all blocks wait for each other.
#pragma once

#include "cuda/recurrent/backward.cuh"
#include "cuda/recurrent/statistics.cuh"

namespace aigc::cuda::recurrent {

constexpr int64_t OF_NORMALIZED = KEPT<LAYER_NORM_LSTM>;

// How a row's products and cells were normalized.
template <class T>
__device__ inline Pair of_products(const Backward<T>& p, int64_t row) {
    return {p.normalizations[row * 4], p.normalizations[row * 4 + 1]};
}
template <class T>
__device__ inline Pair of_cells(const Backward<T>& p, int64_t row) {
    return {p.normalizations[row * 4 + 2], p.normalizations[row * 4 + 3]};
}
__device__ inline float normalize(float x, const Pair& by) { return (x - by.first) * by.second; }

// Of a row's gradients `given` to normalized numbers `x`, by the means over the row of given and of given * x, those to
// the numbers before.
__device__ inline float through(float given, float x, const Pair& means, float scale) {
    return scale * (given - means.first - x * means.second);
}

// Sums up what `numbers(own)` gives of each unit of each row of a tile.
template <int BATCH, class F>
__device__ void sum_up(const TilePairs& pairs, RowsShared<BATCH>& shared, int64_t tile, int rows, const F& numbers) {
    const Unit own(tile, pairs.units, rows);
    if (own.is_there) {
        const Pair found = numbers(own);
        shared.numbers[0][own.b][own.in_tile] = found.first;
        shared.numbers[1][own.b][own.in_tile] = found.second;
    }
    __syncthreads();
    if (pairs.warp() < rows) {
        const bool is_there = pairs.lane() < UNITS && tile * UNITS + pairs.lane() < pairs.units;
        const auto sum = [&](int which) {
            return warp_sum(is_there ? shared.numbers[which][pairs.warp()][pairs.lane()] : 0.0f);
        };
        const float first = sum(0), second = sum(1);
        pairs.tell(tile, {first, second});
    }
    __syncthreads();
}

// Of a unit's hidden state the gradients to its output gate and to its normalized cell.
template <class T>
__device__ inline Pair differentiate_shown(const Backward<T>& p, int64_t step, const Unit& own) {
    const int64_t units = p.weight.units, row = p.row(step, own.b);
    const float given = p.grad(step, own), out = p.gates[(row * OF_NORMALIZED + 3) * units + own.unit];
    const float cell = normalize(p.kept_cells[row * units + own.unit], of_cells(p, row));
    const float gain = static_cast<float>(p.cell_gain[own.unit]);
    const float shown = tanhf(cell * gain + static_cast<float>(p.cell_bias[own.unit]));
    const float to_normalized = given * out * (1.0f - shown * shown);
    p.before[row * units + own.unit] = static_cast<T>(p.hidden_before(step, own));
    p.to_normalized[row * units + own.unit] = to_normalized;
    p.to_gates[(row * OF_NORMALIZED + 3) * units + own.unit] = given * shown * out * (1.0f - out);
    return {to_normalized * gain, to_normalized * gain * cell};
}

// The gradients to its other gates and to its cell before.
template <class T>
__device__ inline void differentiate_cell(const Backward<T>& p, int64_t step, const Unit& own, const Pair& means) {
    const int64_t units = p.weight.units, row = p.row(step, own.b);
    const auto at = [&](int gate) { return (row * OF_NORMALIZED + gate) * units + own.unit; };
    const float in = p.gates[at(0)], forget = p.gates[at(1)], fresh = p.gates[at(2)];
    const Pair of_row = of_cells(p, row);
    const float cell = normalize(p.kept_cells[row * units + own.unit], of_row);
    const float given = p.to_normalized[row * units + own.unit] * static_cast<float>(p.cell_gain[own.unit]);
    float& to_cell = p.to_cells[own.b * units + own.unit];
    const float total = to_cell + through(given, cell, means, of_row.second);
    p.to_gates[at(0)] = total * fresh * in * (1.0f - in);
    p.to_gates[at(1)] = total * p.cell_before(step, own) * forget * (1.0f - forget);
    p.to_gates[at(2)] = total * in * (1.0f - fresh * fresh);
    to_cell = total * forget;
}

// Of a unit's products, f(gate, gradient to the normalized one, the normalized one).
template <class T, class F>
__device__ inline void each_product(const Backward<T>& p, int64_t step, const Unit& own, const F& f) {
    const int64_t units = p.weight.units, row = p.row(step, own.b);
    const Pair of_row = of_products(p, row);
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
        const float given = p.to_gates[(row * OF_NORMALIZED + gate) * units + own.unit] *
                            static_cast<float>(p.gain[gate * units + own.unit]);
        f(gate, given, normalize(p.gates[(row * OF_NORMALIZED + gate + 4) * units + own.unit], of_row));
    }
}

template <class T, int BATCH>
__global__ void __launch_bounds__(THREADS, 1) normalized_backward_kernel(Backward<T> p) {
    const int64_t units = p.weight.units;
    Product<T, 1, BATCH> product(p.weight, p.cut);
    auto& shared = *static_cast<RowsShared<BATCH>*>(product.rest());
    auto* const of_tiles = reinterpret_cast<Pair*>(p.of_tiles);
    const TilePairs to_cells{of_tiles, units, 1}, to_products{of_tiles + p.cut.tiles * MOST_BATCH, units, 4};
    Meeting meeting{p.words};
    const auto meet = [&](const TilePairs& pairs, int rows) {
        meeting.arrive();
        meeting.wait();
        if (pairs.warp() < rows) {
            const Pair found = pairs.means(p.cut.tiles);
            if (pairs.lane() == 0)
                shared.found[pairs.warp()] = found;
        }
        __syncthreads();
    };
    for (int64_t done = 0; done < p.steps.steps; ++done) {
        const int64_t step = p.steps.nth(p.steps.steps - 1 - done);
        const int rows = p.steps.count(step);
        for (int64_t tile = p.cut.first(); tile < p.cut.last(); ++tile)
            sum_up(to_cells, shared, tile, rows, [&](const Unit& own) { return differentiate_shown(p, step, own); });
        meet(to_cells, rows);
        for (int64_t tile = p.cut.first(); tile < p.cut.last(); ++tile)
            sum_up(to_products, shared, tile, rows, [&](const Unit& own) {
                differentiate_cell(p, step, own, shared.found[own.b]);
                Pair sums{0, 0};
                each_product(p, step, own, [&](int, float given, float product) {
                    sums.first += given;
                    sums.second += given * product;
                });
                return sums;
            });
        meet(to_products, rows);
        for (int64_t tile = p.cut.first(); tile < p.cut.last(); ++tile) {
            const Unit own(tile, units, rows);
            if (!own.is_there)
                continue;
            const int64_t row = p.row(step, own.b);
            const float scale = of_products(p, row).second;
            each_product(p, step, own, [&](int gate, float given, float product) {
                p.to_gates[(row * OF_NORMALIZED + gate + 4) * units + own.unit] =
                    through(given, product, shared.found[own.b], scale);
            });
        }
        meeting.arrive();
        meeting.wait();
        multiply_gates<T, LAYER_NORM_LSTM>(p, step, product);
    }
}

}
