// Few output channels, as at the end of a generator: rows of the tile are output channels, columns neighbouring pixels
// of the padded map, read in place. Lines run into each other, so that a vector is full however narrow the image is;
// what falls on the border is computed and dropped.
#pragma once

#include "cpu/conv_transpose/direct.h"

namespace aigc::AIGC_LEVEL {
namespace {

constexpr int64_t NARROW_CHANNELS = 8;
constexpr int64_t BAND_PIXELS = 512; // pixels of a work item

class Narrow {
  public:
    Narrow(const Geometry& g, const Image& in, const Image& out, const float* packed, const Epilogue& epilogue)
        : g_(g), in_(in), out_(out), packed_(packed), epilogue_(epilogue) {
        for (int i = 0; i < AXES; ++i)
            g_.axis[i].offset_range(low_[i], high_[i]);
    }

    static bool fits(const Geometry& g) {
        return g.groups == 1 && g.out_channels <= NARROW_CHANNELS && g.axis[0].in_step() == 1 &&
               g.axis[1].in_step() == 1 && g.axis[2].in_step() == 1;
    }
    static int64_t weight_size(const Geometry& g) { return g.taps() * g.out_channels * g.in_channels; }

    // Packed weights: [phase][tap][output channel][input channel].
    static void pack(const Geometry& g, const Weight& weight, float* packed) {
        for (int64_t phase = 0; phase < g.phases(); ++phase)
            PhaseTaps(g, phase).each(g, [&](int64_t, int64_t kd, int64_t kh, int64_t kw) {
                const int64_t tap = kd * weight.stride[0] + kh * weight.stride[1] + kw * weight.stride[2];
                for (int64_t o = 0; o < g.out_channels; ++o)
                    for (int64_t i = 0; i < g.in_channels; ++i) {
                        const char* at = weight.at(0, o, i, tap);
                        *packed++ = weight.dtype == BFLOAT16 ? to_float(*reinterpret_cast<const uint16_t*>(at))
                                                             : *reinterpret_cast<const float*>(at);
                    }
            });
    }

    void run() {
        for (int i = 0; i < AXES; ++i)
            length_[i] = g_.axis[i].steps() + high_[i] - low_[i];
        plane_ = length_[0] * length_[1] * length_[2] + MAX_VECTORS * VF;
        const int64_t per_image = plane_ * g_.in_channels;
        int64_t images = most<int64_t>(1, least(out_.batch, BOX_FLOATS / per_image));
        images = ceil_div(out_.batch, ceil_div(out_.batch, images));
        planes_ = static_cast<float*>(scratch(Slot::shared, sizeof(float) * images * per_image));
        const int64_t lines_d = g_.axis[0].steps();
        band_ = most<int64_t>(1, least(g_.axis[1].steps(), BAND_PIXELS / length_[2]));
        const int64_t bands = ceil_div(g_.axis[1].steps(), band_);
        const int64_t phases = g_.axis[0].phases() * g_.axis[1].phases();
        for (int64_t first = 0; first < out_.batch; first += images) {
            const int64_t count = least(images, out_.batch - first);
            read_planes(first, count);
            parallel_for(0, count * lines_d * bands * phases, 1, [&](int64_t begin, int64_t end) {
                for (int64_t item = begin; item < end; ++item) {
                    const int64_t phase = item % phases, band = item / phases % bands;
                    const int64_t d = item / (phases * bands) % lines_d, n = item / (phases * bands * lines_d);
                    run_band(first, n, d, band * band_, phase / g_.axis[1].phases(), phase % g_.axis[1].phases());
                }
            });
        }
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

    void read_planes(int64_t first, int64_t count) const {
        const int64_t before = most<int64_t>(0, -low_[2]), skip = most<int64_t>(0, low_[2]);
        const int64_t inside = most<int64_t>(0, least(in_.size[2] - skip, length_[2] - before));
        const bool innermost = in_.channel_stride == 1 && in_.dtype == FLOAT32 && in_.channels > 1;
        parallel_for(0, count * length_[0] * length_[1], 4, [&](int64_t begin, int64_t end) {
            for (int64_t item = begin; item < end; ++item) {
                const int64_t y = item % length_[1], z = item / length_[1] % length_[0],
                              n = item / (length_[1] * length_[0]);
                const int64_t h = y + low_[1], d = z + low_[0];
                float* to = planes_ + n * in_.channels * plane_ + (z * length_[1] + y) * length_[2];
                const bool empty = h < 0 || h >= in_.size[1] || d < 0 || d >= in_.size[0] || inside == 0;
                for (int64_t c = 0; c < in_.channels; ++c) {
                    float* line = to + c * plane_;
                    __builtin_memset(line, 0, sizeof(float) * length_[2]);
                    if (empty || innermost)
                        continue;
                    const char* at = in_.at(first + n, c, d, h, skip);
                    if (in_.dtype == BFLOAT16)
                        copy_line(reinterpret_cast<const uint16_t*>(at), in_.stride[2], inside, line + before);
                    else
                        copy_line(reinterpret_cast<const float*>(at), in_.stride[2], inside, line + before);
                }
                if (innermost && !empty)
                    transpose(reinterpret_cast<const float*>(in_.at(first + n, 0, d, h, skip)), in_.stride[2],
                              to + before, plane_, inside, in_.channels);
            }
        });
    }

    void run_band(int64_t first_image, int64_t n, int64_t d, int64_t first_h, int64_t phase_d, int64_t phase_h) const {
        const int64_t lines = least(band_, g_.axis[1].steps() - first_h), pixels = round_up(lines * length_[2], VF);
        const int64_t phases = g_.axis[2].phases(), channels = g_.out_channels;
        const int64_t sums_size = phases * channels * pixels, row_size = phases * (g_.axis[2].steps() + 1);
        auto* sums = static_cast<float*>(
            scratch(Slot::local, sizeof(float) * (sums_size + row_size + 16) + sizeof(int64_t) * 2 * g_.taps()));
        float* row = sums + sums_size;
        auto* offsets = reinterpret_cast<int64_t*>(sums + round_up(sums_size + row_size, 2));
        const float* start = planes_ + n * in_.channels * plane_ + (d * length_[1] + first_h) * length_[2];
        for (int64_t phase = 0; phase < phases; ++phase)
            multiply_phase(start, phase_d, phase_h, phase, pixels, sums + phase * channels * pixels, offsets);
        const int64_t od = g_.axis[0].first_out(phase_d) + d * g_.axis[0].out_step();
        for (int64_t i = 0; i < lines && od < out_.size[0]; ++i) {
            const int64_t oh = g_.axis[1].first_out(phase_h) + (first_h + i) * g_.axis[1].out_step();
            if (oh >= out_.size[1])
                continue;
            for (int64_t o = 0; o < channels; ++o) {
                interleave(sums + o * pixels + i * length_[2], channels * pixels, row);
                epilogue_.apply_row(row, out_.size[2], o);
                write_row(row, out_.at(first_image + n, o, od, oh, 0));
            }
        }
    }

    void multiply_phase(const float* start, int64_t phase_d, int64_t phase_h, int64_t phase_w, int64_t pixels,
                        float* sums, int64_t* offsets) const {
        const int64_t phase = (phase_d * g_.axis[1].phases() + phase_h) * g_.axis[2].phases() + phase_w;
        const PhaseTaps taps(g_, phase);
        const int64_t count = taps.taps(g_), channels = g_.out_channels, depth = g_.in_channels;
        int64_t* steps = offsets + g_.taps();
        taps.each(g_, [&](int64_t rank, int64_t kd, int64_t kh, int64_t kw) {
            const int64_t z = g_.axis[0].offset(phase_d, kd) - low_[0], y = g_.axis[1].offset(phase_h, kh) - low_[1];
            steps[rank] = (z * length_[1] + y) * length_[2] + g_.axis[2].offset(phase_w, kw) - low_[2];
            offsets[rank] = rank * channels * depth;
        });
        int64_t earlier = 0;
        for (int64_t i = 0; i < phase; ++i)
            earlier += PhaseTaps(g_, i).taps(g_);
        const float* from[NARROW_CHANNELS];
        float* to[NARROW_CHANNELS];
        for (int64_t o = 0; o < channels; ++o) {
            from[o] = packed_ + (earlier * channels + o) * depth;
            to[o] = sums + o * pixels;
        }
        const Product product{.rows = from,
                              .a_step = 1,
                              .a_offsets = offsets,
                              .b = start,
                              .b_step = plane_,
                              .b_offsets = steps,
                              .batch = count,
                              .depth = depth,
                              .c = to,
                              .accumulate = false};
        multiply_wide(product, channels, pixels / VF);
    }

    // The phases along W, one after the other in `sums`, become neighbouring pixels of `row`.
    void interleave(const float* sums, int64_t phase_step, float* row) const {
        const Axis& a = g_.axis[2];
        if (a.phases() == 2) {
            const float* even = sums + (a.first_out(0) == 0 ? 0 : phase_step);
            const float* odd = sums + (a.first_out(0) == 0 ? phase_step : 0);
            for (int64_t j = 0; j < a.steps(); ++j) {
                row[2 * j] = even[j];
                row[2 * j + 1] = odd[j];
            }
            return;
        }
        for (int64_t phase = 0; phase < a.phases(); ++phase)
            for (int64_t j = 0; j < a.steps(); ++j)
                row[a.first_out(phase) + a.out_step() * j] = sums[phase * phase_step + j];
    }

    void write_row(const float* row, char* at) const {
        const int64_t step = out_.stride[2];
        if (out_.dtype == BFLOAT16)
            for (int64_t w = 0; w < out_.size[2]; ++w)
                from_float(row[w], reinterpret_cast<uint16_t*>(at) + w * step);
        else if (step == 1)
            __builtin_memcpy(at, row, sizeof(float) * out_.size[2]);
        else
            for (int64_t w = 0; w < out_.size[2]; ++w)
                reinterpret_cast<float*>(at)[w * step] = row[w];
    }

    const Geometry& g_;
    const Image &in_, &out_;
    const float* packed_;
    const Epilogue& epilogue_;
    int64_t low_[AXES], high_[AXES], length_[AXES], plane_, band_;
    float* planes_;
};

}
}
