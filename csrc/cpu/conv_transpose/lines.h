// Finished lines of one output channel: the phases along W brought together, and the line written in the user's layout.
#pragma once

#include "cpu/conv_transpose/layout.h"

namespace aigc::AIGC_LEVEL::conv_transpose {
namespace {

// The phases along W, `phase_step` floats apart in `sums`, become neighbouring pixels of `row`.
void interleave(const Axis& a, const float* sums, int64_t phase_step, float* row) {
    if (a.phases() == 2) {
        const bool starts_even = a.padding % 2 == 0;
        const float* even = sums + (starts_even ? 0 : phase_step);
        const float* odd = sums + (starts_even ? phase_step : 0);
        for (int64_t j = 0; j < a.steps(); ++j) {
            row[2 * j] = even[j];
            row[2 * j + 1] = odd[j];
        }
        return;
    }
    for (int64_t phase = 0; phase < a.phases(); ++phase)
        for (int64_t j = 0; j < a.steps(); ++j)
            row[a.output(phase, j)] = sums[phase * phase_step + j];
}

// Floats of a row that `interleave` may write.
int64_t interleaved_size(const Axis& a) { return round_up(a.phases() * (a.steps() + 1), 16); }

void write_row(const Image& out, const float* row, char* at) {
    if (out.dtype == BFLOAT16)
        write_pixels(row, out.size[2], reinterpret_cast<bfloat16*>(at), out.stride[2]);
    else
        write_pixels(row, out.size[2], reinterpret_cast<float*>(at), out.stride[2]);
}

}
}
