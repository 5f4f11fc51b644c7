// Few output or few input channels, as at a generator's end and a discriminator's start: rows of the tile are output
// channels, columns neighbouring pixels of the padded map, read in place. Lines run into each other, so that a vector
// is full however narrow the image is; what falls on the border is computed and dropped.
#pragma once

#include "cpu/conv_transpose/direct.h"
#include "cpu/conv_transpose/lines.h"

namespace aigc::AIGC_LEVEL::conv_transpose {
namespace {

constexpr int64_t NARROW_CHANNELS = 8; // output channels at most,
constexpr int64_t NARROW_INPUTS = 4;   // or input channels
constexpr int64_t NARROW_BLOCK = 24;   // output channels of a work item
constexpr int64_t INPUT_BLOCK = 64;    // input channels whose lines stay in L1 for all phases
constexpr int64_t BAND_PIXELS = 512;   // pixels of a work item

class Narrow {
  public:
    Narrow(const Geometry& g, const Image& in, const Image& out, const float* packed, const Epilogue& epilogue)
        : g_(g), in_(in), out_(out), packed_(packed), epilogue_(epilogue),
          reach_{Reach(g.axis[0]), Reach(g.axis[1]), Reach(g.axis[2])} {}

    static bool fits(const Geometry& g) {
        return g.groups == 1 && (g.out_channels <= NARROW_CHANNELS || g.in_channels <= NARROW_INPUTS) &&
               g.axis[0].in_step() == 1 && g.axis[1].in_step() == 1 && g.axis[2].in_step() == 1;
    }
    static int64_t weight_size(const Geometry& g) { return g.taps() * g.out_channels * g.in_channels; }

    // Packed weights: [phase][tap][output channel][input channel].
    // Tells whether all are finite.
    static bool pack(const Geometry& g, const Weight& weight, float* packed) {
        float zero = 0;
        for (int64_t phase = 0; phase < g.phases(); ++phase)
            PhaseTaps(g, phase).each(g, [&](int64_t, int64_t kd, int64_t kh, int64_t kw) {
                const int64_t tap = kd * weight.stride[0] + kh * weight.stride[1] + kw * weight.stride[2];
                for (int64_t o = 0; o < g.out_channels; ++o)
                    for (int64_t i = 0; i < g.in_channels; ++i) {
                        *packed = read_number(weight.at(0, o, i, tap), weight.dtype);
                        zero += *packed++ * 0.0f;
                    }
            });
        return zero == 0;
    }

    void run() {
        for (int i = 0; i < AXES; ++i)
            length_[i] = reach_[i].length(g_.axis[i], i == 2 ? g_.axis[i].steps() : 1);
        const int64_t lines = g_.axis[1].steps(), depth = g_.axis[0].steps();
        band_ = most<int64_t>(1, least(lines, BAND_PIXELS / length_[2]));
        const int64_t bands = ceil_div(lines, band_);
        band_ = ceil_div(lines, bands);
        length_[1] += band_ - 1;
        plane_ = round_up(length_[0] * length_[1] * length_[2], 16) + MAX_VECTORS * VF;
        const int64_t blocks = ceil_div(g_.out_channels, NARROW_BLOCK);
        parallel_for(0, out_.batch * depth * bands, 1, [&](int64_t begin, int64_t end) {
            Scope scope;
            auto* planes = scope.take<float>(plane_ * in_.channels);
            for (int64_t item = begin; item < end; ++item)
                for (int64_t block = 0; block < blocks; ++block)
                    run_band({item / (bands * depth), item / bands % depth, item % bands * band_, block * NARROW_BLOCK,
                              least(NARROW_BLOCK, g_.out_channels - block * NARROW_BLOCK)},
                             planes);
        });
    }

  private:
    template <class T>
    static void copy_line(const T* from, int64_t step, int64_t count, float* to) {
        if (step == 1)
            for (int64_t w = 0; w < count; ++w)
                to[w] = to_float(from[w]);
        else
            for (int64_t w = 0; w < count; ++w)
                to[w] = to_float(from[w * step]);
    }

    // The lines that a band needs, [channel][d][h][w] with a border of zeros.
    void read_band(int64_t n, int64_t first_d, int64_t first_h, float* planes) const {
        const int64_t before = most<int64_t>(0, -reach_[2].low), skip = most<int64_t>(0, reach_[2].low);
        const int64_t inside = most<int64_t>(0, least(in_.size[2] - skip, length_[2] - before));
        const bool innermost = in_.channel_stride == 1 && in_.dtype == FLOAT32 && in_.channels > 1;
        __builtin_memset(planes, 0, sizeof(float) * plane_ * in_.channels);
        for (int64_t i = 0; i < length_[0] * length_[1] && innermost; ++i) {
            const int64_t h = first_h + reach_[1].low + i % length_[1], d = first_d + reach_[0].low + i / length_[1];
            if (holds(d, h) && inside > 0)
                transpose(reinterpret_cast<const float*>(in_.at(n, 0, d, h, skip)), in_.stride[2],
                          planes + i * length_[2] + before, plane_, inside, in_.channels);
        }
        for (int64_t c = 0; c < in_.channels && !innermost; ++c)
            for (int64_t i = 0; i < length_[0] * length_[1]; ++i) {
                const int64_t h = first_h + reach_[1].low + i % length_[1],
                              d = first_d + reach_[0].low + i / length_[1];
                if (!holds(d, h))
                    continue;
                const char* from = in_.at(n, c, d, h, skip);
                __builtin_prefetch(from + in_.channel_stride * in_.element_size());
                float* to = planes + c * plane_ + i * length_[2] + before;
                if (in_.dtype == BFLOAT16)
                    copy_line(reinterpret_cast<const uint16_t*>(from), in_.stride[2], inside, to);
                else
                    copy_line(reinterpret_cast<const float*>(from), in_.stride[2], inside, to);
            }
        if (in_.with.activation != NONE)
            activate(in_.with.activation, in_.with.slope, planes, plane_ * in_.channels);
    }

    bool holds(int64_t d, int64_t h) const { return d >= 0 && d < in_.size[0] && h >= 0 && h < in_.size[1]; }

    // Some lines of one image, for some output channels.
    struct Band {
        int64_t n, d, first_h, first_channel, channels;
    };

    void run_band(const Band& band, float* planes) const {
        const int64_t lines = least(band_, g_.axis[1].steps() - band.first_h),
                      columns = wide_vectors(band.channels) * VF;
        const int64_t pixels = round_up(lines * length_[2], columns);
        Scope scope;
        auto* sums = scope.take<float>(g_.phases() * band.channels * pixels);
        auto* row = scope.take<float>(interleaved_size(g_.axis[2]));
        auto* offsets = scope.take<int64_t>(2 * g_.taps());
        if (band.first_channel == 0)
            read_band(band.n, band.d, band.first_h, planes);
        place_offsets(offsets);
        multiply_band(band, planes, pixels, sums, offsets);
        for (int64_t phase = 0; phase < g_.axis[0].phases() * g_.axis[1].phases(); ++phase)
            write_lines(band, lines, pixels, phase / g_.axis[1].phases(), phase % g_.axis[1].phases(),
                        sums + phase * g_.axis[2].phases() * band.channels * pixels, row);
    }

    // Per tap, phase by phase: where its weights start, and how far it reaches into the planes.
    void place_offsets(int64_t* offsets) const {
        int64_t *steps = offsets + g_.taps(), placed = 0;
        for (int64_t phase = 0; phase < g_.phases(); ++phase) {
            const PhaseTaps taps(g_, phase);
            g_.axis[0].each_tap(taps.phase[0], [&](int64_t kd) {
                const int64_t z = g_.axis[0].offset(taps.phase[0], kd) - reach_[0].low;
                g_.axis[1].each_tap(taps.phase[1], [&](int64_t kh) {
                    const int64_t y = z * length_[1] + g_.axis[1].offset(taps.phase[1], kh) - reach_[1].low;
                    g_.axis[2].each_tap(taps.phase[2], [&](int64_t kw) {
                        steps[placed] = y * length_[2] + g_.axis[2].offset(taps.phase[2], kw) - reach_[2].low;
                        offsets[placed] = placed * g_.out_channels * g_.in_channels;
                        ++placed;
                    });
                });
            });
        }
    }

    // sums: [phase][channel][pixel]. A few columns at a time take all phases, then the next input channels.
    void multiply_band(const Band& band, const float* planes, int64_t pixels, float* sums,
                       const int64_t* offsets) const {
        const int64_t columns = wide_vectors(band.channels) * VF, depth = g_.in_channels;
        const float* from[NARROW_BLOCK];
        float* to[NARROW_BLOCK];
        for (int64_t column = 0; column < pixels; column += columns)
            for (int64_t k = 0; k < depth; k += INPUT_BLOCK) {
                int64_t placed = 0;
                for (int64_t o = 0; o < band.channels; ++o)
                    from[o] = packed_ + (band.first_channel + o) * depth + k;
                for (int64_t phase = 0; phase < g_.phases(); ++phase) {
                    const int64_t count = PhaseTaps(g_, phase).taps(g_);
                    for (int64_t o = 0; o < band.channels; ++o)
                        to[o] = sums + (phase * band.channels + o) * pixels + column;
                    const Product product{.rows = from,
                                          .a_step = 1,
                                          .a_offsets = offsets + placed,
                                          .b = planes + k * plane_ + column,
                                          .b_step = plane_,
                                          .b_offsets = offsets + g_.taps() + placed,
                                          .batch = count,
                                          .depth = least(INPUT_BLOCK, depth - k),
                                          .c = to,
                                          .accumulate = k > 0,
                                          .steps_ahead = 0};
                    multiply_wide(product, band.channels, least(columns, pixels - column) / VF);
                    placed += count;
                }
            }
    }

    void write_lines(const Band& band, int64_t lines, int64_t pixels, int64_t phase_d, int64_t phase_h,
                     const float* sums, float* row) const {
        const int64_t od = g_.axis[0].output(phase_d, band.d);
        for (int64_t i = 0; i < lines && od < out_.size[0]; ++i) {
            const int64_t oh = g_.axis[1].output(phase_h, band.first_h + i);
            if (oh >= out_.size[1])
                continue;
            for (int64_t o = 0; o < band.channels; ++o) {
                interleave(g_.axis[2], sums + o * pixels + i * length_[2], band.channels * pixels, row);
                epilogue_.apply_row(row, out_.size[2], band.first_channel + o);
                write_row(out_, row, out_.at(band.n, band.first_channel + o, od, oh, 0));
            }
        }
    }

    const Geometry& g_;
    const Image &in_, &out_;
    const float* packed_;
    const Epilogue& epilogue_;
    const Reach reach_[AXES];
    int64_t length_[AXES], plane_, band_;
};

}
}
