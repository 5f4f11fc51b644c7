// The same of LSTMs whose sums and cells are normalized: three times in a step all blocks wait for each other.
#pragma once

#include "cuda/recurrent/forward.cuh"
#include "cuda/recurrent/statistics.cuh"

namespace aigc::cuda::recurrent {

// The products with the hidden states, and what each tile of them comes to.
template <class T, int BATCH>
__device__ void multiply_all(const Forward<T>& p, int64_t step, Product<T, 4, BATCH>& product, const TilePairs& pairs) {
    const int64_t units = p.weight.units;
    const int rows = p.steps.count(step);
    const Before<T, BATCH> before(p, step);
    for (int64_t tile = p.cut.first(); tile < p.cut.last(); ++tile) {
        product.multiply(tile, [&](float* to, int64_t chunk, int64_t first, int64_t count) {
            before(to, chunk, first, units, count);
        });
        __syncthreads();
        const Unit own(tile, units, rows);
        if (own.is_there)
#pragma unroll
            for (int gate = 0; gate < 4; ++gate)
                p.products[(own.b * 4 + gate) * units + own.unit] = product.sums.of(own.in_tile, gate, own.b);
        if (pairs.warp() < rows) {
            const int unit = pairs.lane() / 4;
            const float number = product.sums.of(unit, pairs.lane() % 4, pairs.warp());
            pairs.tell(tile, spread_of(number, tile * UNITS + unit < units, pairs.count(tile)));
        }
        __syncthreads();
    }
}

template <class T>
__device__ void keep_gates(const Forward<T>& p, int64_t step, const Unit& own, const Activated<LSTM>& found) {
    const int64_t units = p.weight.units;
    float* const kept = p.gates + (p.steps.offset(step) + own.b) * KEPT<LAYER_NORM_LSTM> * units + own.unit;
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
        kept[gate * units] = found.gates[gate];
        kept[(gate + 4) * units] = p.products[(own.b * 4 + gate) * units + own.unit];
    }
}

// The cells, and what each tile of them comes to; of the products the last is an output gate then.
template <class T, int BATCH>
__device__ void activate_all(const Forward<T>& p, int64_t step, RowsShared<BATCH>& shared, const TilePairs& pairs) {
    const int64_t units = p.weight.units;
    const int rows = p.steps.count(step);
    for (int64_t tile = p.cut.first(); tile < p.cut.last(); ++tile) {
        const Unit own(tile, units, rows);
        if (own.is_there) {
            float sums[4], products[4];
            load_sums<T, LSTM>(p, step, own, sums);
            const Pair of_row = shared.found[own.b];
#pragma unroll
            for (int gate = 0; gate < 4; ++gate) {
                const int64_t at = gate * units + own.unit;
                const float product = p.products[(own.b * 4 + gate) * units + own.unit];
                products[gate] = (product - of_row.first) * of_row.second * static_cast<float>(p.gain[at]) +
                                 static_cast<float>(p.bias[at]);
            }
            const auto found = activate<LSTM>(sums, products, 0, cell_before(p, step, own), false);
            store_cell(p, step, own, found.cell);
            if (p.gates)
                keep_gates(p, step, own, found);
            p.products[(own.b * 4 + 3) * units + own.unit] = found.gates[3];
            shared.numbers[0][own.b][own.in_tile] = found.cell;
        }
        __syncthreads();
        if (pairs.warp() < rows) {
            const bool is_there = pairs.lane() < pairs.count(tile);
            const float cell = is_there ? shared.numbers[0][pairs.warp()][pairs.lane()] : 0.0f;
            pairs.tell(tile, spread_of(cell, is_there, pairs.count(tile)));
        }
        __syncthreads();
    }
}

template <class T, int BATCH>
__device__ void show_all(const Forward<T>& p, int64_t step, const RowsShared<BATCH>& shared) {
    const int64_t units = p.weight.units;
    for (int64_t tile = p.cut.first(); tile < p.cut.last(); ++tile) {
        const Unit own(tile, units, p.steps.count(step));
        if (!own.is_there)
            continue;
        const Pair of_row = shared.found[own.b];
        const float cell = (p.cells[own.b * units + own.unit] - of_row.first) * of_row.second;
        const float shown =
            cell * static_cast<float>(p.cell_gain[own.unit]) + static_cast<float>(p.cell_bias[own.unit]);
        store_hidden(p, step, own, p.products[(own.b * 4 + 3) * units + own.unit] * tanhf(shown));
    }
}

template <class T, int BATCH>
__global__ void __launch_bounds__(THREADS, 1) normalized_forward_kernel(Forward<T> p) {
    Product<T, 4, BATCH> product(p.weight, p.cut);
    auto& shared = *static_cast<RowsShared<BATCH>*>(product.rest());
    auto* const of_tiles = reinterpret_cast<Pair*>(p.of_tiles);
    const TilePairs of_products{of_tiles, p.weight.units, 4};
    const TilePairs of_cells{of_tiles + p.cut.tiles * MOST_BATCH, p.weight.units, 1};
    Meeting meeting{p.words};
    const auto meet = [&](const TilePairs& pairs, int rows) {
        meeting.arrive();
        meeting.wait();
        if (pairs.warp() < rows) {
            const Pair found = pairs.normalization(p.cut.tiles, p.epsilon);
            if (pairs.lane() == 0)
                shared.found[pairs.warp()] = found;
        }
        __syncthreads();
    };
    for (int64_t done = 0; done < p.steps.steps; ++done) {
        const int64_t step = p.steps.nth(done);
        const int rows = p.steps.count(step);
        meeting.wait();
        multiply_all(p, step, product, of_products);
        meet(of_products, rows);
        activate_all(p, step, shared, of_cells);
        meet(of_cells, rows);
        show_all(p, step, shared);
        meeting.arrive();
    }
}

}
