// Rows that are normalized each by itself, with a weight and a bias for every column.
#pragma once

#include "cpu/norm/groups.h"

namespace aigc::AIGC_LEVEL::norm {
namespace {

// Rows whose gradients to weight and bias are added up together, at least, and how many such parts there are at most.
constexpr int64_t ROWS_TOGETHER = 32, MOST_PARTS = 64;

// Calls f(first, count) for the blocks of a row.
template <class F>
void for_each_block(int64_t columns, const F& f) {
    parallel_for(0, ceil_div(columns, BLOCK), LEAST_ELEMENTS / BLOCK, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block)
            f(block * BLOCK, least(BLOCK, columns - block * BLOCK));
    });
}

template <class T>
void forward_rows(T* out, const T* in, const Affine& affine, int64_t rows, int64_t columns, double epsilon,
                  const Ending& ending) {
    for_each_apart(rows, columns, [&](int64_t row) {
        const T* const x = in + row * columns;
        T* const y = out + row * columns;
        const Scale scale(moments_of(x, columns), epsilon);
        for_each_block(columns, [&](int64_t first, int64_t n) {
            write_block(y + first, n, ending, [&](auto* z) {
                for_each_vector(n, [&](int64_t i, int64_t width) AIGC_INLINE {
                    const vf weight = load_up_to(affine.weight + first + i, width);
                    const vf bias = load_up_to(affine.bias + first + i, width);
                    store_up_to(z + i, scale(load_up_to(x + first + i, width)) * weight + bias, width);
                });
            });
        });
    });
}

// One row's gradient; those to weight and bias are added to. z: room for a row of floats.
template <class T>
void backward_row(T* out, float* of_weight, float* of_bias, const T* grad, const T* x, const Scale& scale,
                  const Affine& affine, int64_t columns, const Ending& ending, float* z) {
    Scope scope;
    auto* const sums = scope.take<double>(2 * ceil_div(columns, BLOCK));
    const bool ends = ending.is_there();
    for_each_block(columns, [&](int64_t first, int64_t n) {
        double* const of_block = sums + 2 * (first / BLOCK);
        of_block[0] = of_block[1] = 0;
        if (ends) {
            for_each_vector(n, [&](int64_t i, int64_t width) AIGC_INLINE {
                const int64_t at = first + i;
                const vf weight = load_up_to(affine.weight + at, width), bias = load_up_to(affine.bias + at, width);
                store_up_to(z + at, scale(load_up_to(x + at, width)) * weight + bias, width);
            });
            ending.derive(z + first, n);
        }
        sum_over<2>(n, of_block, [&](int64_t i, int64_t width, Sums<2>& of) AIGC_INLINE {
            const int64_t at = first + i;
            const vf normal = scale(load_up_to(x + at, width));
            vf g = load_up_to(grad + at, width);
            if (ends)
                g *= load_up_to(z + at, width);
            store_up_to(of_bias + at, load_up_to(of_bias + at, width) + g, width);
            store_up_to(of_weight + at, load_up_to(of_weight + at, width) + g * normal, width);
            g *= load_up_to(affine.weight + at, width);
            store_up_to(z + at, g, width);
            of.of[0] += g;
            of.of[1] += g * normal;
        });
    });
    double sum = 0, product = 0;
    for (int64_t block = 0; block < ceil_div(columns, BLOCK); ++block)
        sum += sums[2 * block], product += sums[2 * block + 1];
    const Loss loss(sum, product, static_cast<double>(columns), scale.inverse);
    for_each_block(
        columns, [&](int64_t first, int64_t n) { spread_plane(out + first, z + first, x + first, n, scale, 1, loss); });
}

// grad_weight, grad_bias: floats.
template <class T>
void backward_rows(T* out, float* grad_weight, float* grad_bias, const T* grad, const T* in, const Affine& affine,
                   int64_t rows, int64_t columns, double epsilon, const Ending& ending) {
    const int64_t together = columns > PART_ELEMENTS ? rows : most(ROWS_TOGETHER, ceil_div(rows, MOST_PARTS));
    const int64_t parts = ceil_div(rows, together), padded = round_up(columns, VF);
    Scope scope;
    auto* const of_parts = scope.take<float>(parts * 2 * padded);
    for_each_apart(parts, together * columns, [&](int64_t part) {
        Scope inner;
        auto* const z = inner.take<float>(padded);
        float* const of_weight = of_parts + part * 2 * padded;
        __builtin_memset(of_weight, 0, sizeof(float) * static_cast<size_t>(2 * padded));
        for (int64_t row = part * together; row < least(rows, (part + 1) * together); ++row)
            backward_row(out + row * columns, of_weight, of_weight + padded, grad + row * columns, in + row * columns,
                         Scale(moments_of(in + row * columns, columns), epsilon), affine, columns, ending, z);
    });
    for_each_vector(columns, [&](int64_t i, int64_t width) AIGC_INLINE {
        vf weight{}, bias{};
        for (int64_t part = 0; part < parts; ++part) {
            weight += load_up_to(of_parts + part * 2 * padded + i, width);
            bias += load_up_to(of_parts + (2 * part + 1) * padded + i, width);
        }
        store_up_to(grad_weight + i, weight, width);
        store_up_to(grad_bias + i, bias, width);
    });
}

}
}
