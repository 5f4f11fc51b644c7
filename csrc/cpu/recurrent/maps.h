// A step of an LSTM whose units are the pixels of maps, and the gradients of it: planes of gates come of convolutions,
// in the order in, forget, out, fresh.
#pragma once

#include "cpu/recurrent/cells.h"

namespace aigc::AIGC_LEVEL::recurrent {
namespace {

// Of each image its units, those of all maps one after the other, and how far one image is from the next.
struct Planes {
    float* data;
    int64_t apart;

    // `tensor`: (images, channels, ...), or null; the channels of an image lie without gaps.
    explicit Planes(const Tensor* tensor) : data(elements<float>(tensor)), apart(tensor ? tensor->strides[0] : 0) {}
    float* of(int64_t image) const { return data + image * apart; }
};

constexpr int64_t UNITS_TOGETHER = 1024;

// Where the planes of a cell's gates lie.
constexpr int64_t PLACES[] = {0, 1, 3, 2};

// Calls f(image, first, last) for parts of all images' units.
template <class F>
void for_each_part(int64_t images, int64_t units, const F& f) {
    const int64_t parts = blocks_of(units, UNITS_TOGETHER);
    parallel_for(0, images * parts, 4, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part) {
            const int64_t first = part % parts * UNITS_TOGETHER;
            f(part / parts, first, least(first + UNITS_TOGETHER, units));
        }
    });
}

// `kept`: the gates, or null.
void step_of_maps(const Planes& hidden, const Planes& cell, const Planes& kept, const Planes& inputs,
                  const Planes& products, const Planes& cell_before, int64_t images, int64_t units) {
    for_each_part(images, units, [&](int64_t image, int64_t first, int64_t last) {
        const float *const x = inputs.of(image), *const h = products.of(image), *const c = cell_before.of(image);
        for_each_vector(last - first, [&](int64_t i, int64_t width) AIGC_INLINE {
            const int64_t at = first + i;
            const auto sum = [&](int64_t gate) AIGC_INLINE {
                return load_up_to(x + gate * units + at, width) + load_up_to(h + gate * units + at, width);
            };
            const auto found = activate_lstm(sum(PLACES[0]), sum(PLACES[1]), sum(PLACES[2]), sum(PLACES[3]),
                                             load_up_to(c + at, width));
            store_up_to(cell.of(image) + at, found.cell, width);
            store_up_to(hidden.of(image) + at, found.hidden, width);
            if (kept.data) {
#pragma GCC unroll 4
                for (int64_t gate = 0; gate < 4; ++gate)
                    store_up_to(kept.of(image) + PLACES[gate] * units + at, found.gates[gate], width);
            }
        });
    });
}

// The gradients of the sums, and of the cell before in place of the cell's. `to_hidden`: of the hidden state, what
// reaches it by the output, and, in `by_next`, by the next step's products, or null.
void differentiate_maps(const Planes& to_sums, const Planes& to_cell, const Planes& to_hidden, const Planes& by_next,
                        const Planes& kept, const Planes& cell, const Planes& cell_before, int64_t images,
                        int64_t units) {
    for_each_part(images, units, [&](int64_t image, int64_t first, int64_t last) {
        for_each_vector(last - first, [&](int64_t i, int64_t width) AIGC_INLINE {
            const int64_t at = first + i;
            vf gates[KEPT<LSTM>];
#pragma GCC unroll 4
            for (int64_t gate = 0; gate < 4; ++gate)
                gates[gate] = load_up_to(kept.of(image) + PLACES[gate] * units + at, width);
            vf of_hidden = load_up_to(to_hidden.of(image) + at, width);
            if (by_next.data)
                of_hidden += load_up_to(by_next.of(image) + at, width);
            vf of_cell = load_up_to(to_cell.of(image) + at, width);
            differentiate<LSTM>(gates, of_hidden, of_cell, vf{}, load_up_to(cell_before.of(image) + at, width),
                                load_up_to(cell.of(image) + at, width));
            store_up_to(to_cell.of(image) + at, of_cell, width);
#pragma GCC unroll 4
            for (int64_t gate = 0; gate < 4; ++gate)
                store_up_to(to_sums.of(image) + PLACES[gate] * units + at, gates[gate], width);
        });
    });
}

}
}
