// Few output channels, as at the end of a generator: every pixel times all taps of all output channels in one product,
// then the products are added up, shifted by their taps (col2im). A tile's rows are (tap, output channel) pairs, so
// that it is full however few the channels are, and every input pixel is read once.
#pragma once

#include "cpu/conv_transpose/direct.h"
#include "cpu/conv_transpose/lines.h"

namespace aigc::AIGC_LEVEL {
namespace {

constexpr int64_t COL2IM_CHANNELS = 8;       // output channels at most
constexpr int64_t COL2IM_INPUTS = 8;         // input channels at least: fewer make the sums after the product dear
constexpr int64_t PRODUCT_FLOATS = 64 << 10; // products of a work item: they stay in L2
constexpr int64_t LEAST_LINES = 4;           // output lines of a work item: its neighbours' lines are computed twice
constexpr int64_t MOST_COLUMNS = 1024;       // pixels multiplied at a time: long runs are fetched ahead of their use,
constexpr int64_t COLUMN_FLOATS = 64 << 10;  // as many as stay in L2

class Col2im {
  public:
    Col2im(const Geometry& g, const Image& in, const Image& out, const float* packed, const Epilogue& epilogue)
        : g_(g), in_(in), out_(out), packed_(packed), epilogue_(epilogue), rows_(g.taps() * g.out_channels) {
        for (int i = 0; i < AXES; ++i)
            g_.axis[i].offset_range(low_[i], high_[i]);
        border_ = most<int64_t>(0, most(-low_[2], high_[2] + g_.axis[2].steps() - in_.size[2]));
        line_ = in_.size[2] + border_;
        const int64_t panels = COLUMN_FLOATS / (PANEL_WIDTH * in_.channels);
        columns_ = least(MOST_COLUMNS, PANEL_WIDTH * most<int64_t>(1, panels));
        column_step_ = columns_ + VF;
    }

    static bool fits(const Geometry& g) {
        return g.groups == 1 && g.out_channels <= COL2IM_CHANNELS && g.in_channels >= COL2IM_INPUTS &&
               g.axis[0].in_step() == 1 && g.axis[1].in_step() == 1 && g.axis[2].in_step() == 1;
    }

    void run() {
        place_taps();
        const Band whole = choose_band();
        const int64_t lines = ceil_div(g_.axis[1].steps(), whole.steps[1]);
        const int64_t planes = ceil_div(g_.axis[0].steps(), whole.steps[0]);
        parallel_for(0, out_.batch * planes * lines, 1, [&](int64_t begin, int64_t end) {
            for (int64_t item = begin; item < end; ++item) {
                Band band = whole;
                band.n = item / (lines * planes);
                band.first[0] = item / lines % planes * whole.steps[0];
                band.first[1] = item % lines * whole.steps[1];
                run_band(band);
            }
        });
    }

  private:
    // Steps of output planes and lines of one image, and the input that they read, cut at the image's edge.
    struct Band {
        int64_t n, first[2], steps[2], in_first[2], in_size[2];

        int64_t lines() const { return in_size[0] * in_size[1]; }
    };

    // What one tap adds to its phase: products from `row` on, of the pixel that lies `offset` from the output's step.
    struct Tap {
        int64_t row, offset[AXES];
    };

    void place_taps() {
        const int64_t phases = g_.phases();
        taps_ = static_cast<Tap*>(
            scratch(Slot::shared, int64_t(sizeof(Tap)) * g_.taps() + int64_t(sizeof(int64_t)) * (phases + 1)));
        first_tap_ = reinterpret_cast<int64_t*>(taps_ + g_.taps());
        int64_t placed = 0;
        for (int64_t phase = 0; phase < phases; ++phase) {
            const PhaseTaps of(g_, phase);
            first_tap_[phase] = placed;
            of.each(g_, [&](int64_t, int64_t kd, int64_t kh, int64_t kw) {
                taps_[placed] = {placed * g_.out_channels,
                                 {g_.axis[0].offset(of.phase[0], kd), g_.axis[1].offset(of.phase[1], kh),
                                  g_.axis[2].offset(of.phase[2], kw)}};
                ++placed;
            });
        }
        first_tap_[phases] = placed;
    }

    // Input planes and lines that some steps of one axis read at most.
    int64_t reach(int axis, int64_t steps) const { return steps + high_[axis] - low_[axis]; }

    Band choose_band() const {
        const int64_t most_lines = most<int64_t>(1, PRODUCT_FLOATS / (rows_ * line_));
        Band band{};
        for (int i = 0; i < 2; ++i)
            band.steps[i] = g_.axis[i].steps();
        while (band.steps[0] > 1 && reach(0, band.steps[0]) * in_.size[1] > most_lines)
            band.steps[0] = ceil_div(band.steps[0], 2);
        while (band.steps[1] > LEAST_LINES && (reach(1, band.steps[1]) * reach(0, band.steps[0]) > most_lines ||
                                               out_.batch * g_.axis[0].steps() * g_.axis[1].steps() <
                                                   2 * thread_count() * band.steps[0] * band.steps[1]))
            band.steps[1] = ceil_div(band.steps[1], 2);
        return band;
    }

    void run_band(Band band) const {
        for (int i = 0; i < 2; ++i) {
            band.steps[i] = least(band.steps[i], g_.axis[i].steps() - band.first[i]);
            band.in_first[i] = least(most<int64_t>(0, band.first[i] + low_[i]), in_.size[i]);
            const int64_t end = band.first[i] + band.steps[i] + high_[i];
            band.in_size[i] = most<int64_t>(0, least(in_.size[i], end) - band.in_first[i]);
        }
        const int64_t pixels = round_up(band.lines() * line_ + border_, VF);
        const int64_t steps = round_up(g_.axis[2].steps(), VF), sums_size = g_.axis[2].phases() * steps;
        const int64_t products_size = rows_ * pixels + steps + VF;
        char* memory =
            static_cast<char*>(scratch(Slot::local, sizeof(float) * (products_size + in_.channels * column_step_ +
                                                                     sums_size + interleaved_size(g_.axis[2])) +
                                                        sizeof(float*) * 2 * rows_));
        auto* products = reinterpret_cast<float*>(memory + sizeof(float*) * 2 * rows_);
        float *columns = products + products_size, *sums = columns + in_.channels * column_step_,
              *row = sums + sums_size;
        multiply_band(band, pixels, products, columns, reinterpret_cast<const float**>(memory));
        const auto** lines = reinterpret_cast<const float**>(memory);
        for (int64_t i = 0; i < band.steps[0] * band.steps[1]; ++i)
            for (int64_t phase = 0; phase < g_.axis[0].phases() * g_.axis[1].phases(); ++phase)
                write_lines(band, i / band.steps[1], i % band.steps[1], phase, products, pixels, sums, row, lines);
    }

    // products: [tap, phase by phase][output channel][pixel of the band]; the pixels of a line follow its border of
    // zeros, which ends the line before it.
    void multiply_band(const Band& band, int64_t pixels, float* products, float* columns, const float** from) const {
        float** to = const_cast<float**>(from) + rows_;
        const int64_t used = band.lines() * line_ + border_, none = 0;
        for (int64_t r = 0; r < rows_; ++r)
            from[r] = packed_ + r * in_.channels;
        for (int64_t first = 0; first < used; first += columns_) {
            const int64_t count = least(columns_, used - first);
            read_columns(band, first, count, columns);
            for (int64_t r = 0; r < rows_; ++r)
                to[r] = products + r * pixels + first;
            const Product product{.rows = from,
                                  .a_step = 1,
                                  .a_offsets = &none,
                                  .b = columns,
                                  .b_step = column_step_,
                                  .b_offsets = &none,
                                  .batch = 1,
                                  .depth = in_.channels,
                                  .c = to,
                                  .accumulate = false,
                                  .steps_ahead = 0};
            multiply(product, rows_, ceil_div(count, VF));
        }
    }

    // Neighbouring pixels, or a border of zeros where `from` is null.
    struct Run {
        int64_t at, count;
        const char* from;
    };

    // Some neighbouring pixels of a band, [input channel][column_step_].
    void read_columns(const Band& band, int64_t first, int64_t count, float* columns) const {
        Run runs[MOST_COLUMNS];
        int64_t found = 0;
        for (int64_t at = 0; at < count; ++found) {
            const int64_t line = (first + at) / line_, w = (first + at) % line_ - border_;
            const int64_t d = line / band.in_size[1], h = line % band.in_size[1];
            const bool border = w < 0 || d >= band.in_size[0];
            const int64_t run = least(count - at, w < 0 ? -w : in_.size[2] - w);
            runs[found] = {at, run,
                           border ? nullptr : in_.at(band.n, 0, band.in_first[0] + d, band.in_first[1] + h, w)};
            at += run;
        }
        const bool whole_lines = in_.dtype == FLOAT32 && in_.stride[2] == 1;
        for (int64_t c = 0; c < in_.channels; ++c)
            for (int64_t i = 0; i < found; ++i) {
                float* to = columns + c * column_step_ + runs[i].at;
                if (!runs[i].from)
                    clear(to, runs[i].count);
                else if (whole_lines)
                    copy(reinterpret_cast<const float*>(runs[i].from) + c * in_.channel_stride, runs[i].count, to);
            }
        for (int64_t i = 0; i < found && !whole_lines; ++i)
            if (runs[i].from)
                read_run(runs[i].from, runs[i].count, columns + runs[i].at);
    }

    static void clear(float* to, int64_t count) {
        store(to, vf{});
        for (int64_t i = VF; i < count; i += VF)
            store(to + i, vf{});
    }
    static void copy(const float* from, int64_t count, float* to) {
        for (int64_t i = 0; i < count; i += VF)
            store(to + i, load_part(from + i, count - i));
    }

    void read_run(const char* at, int64_t count, float* to) const {
        const auto* from = reinterpret_cast<const float*>(at);
        if (in_.dtype == BFLOAT16)
            read_scattered(reinterpret_cast<const uint16_t*>(at), count, to);
        else if (in_.channel_stride == 1)
            transpose(from, in_.stride[2], to, column_step_, count, in_.channels);
        else
            read_scattered(from, count, to);
    }

    template <class T>
    void read_scattered(const T* from, int64_t count, float* to) const {
        for (int64_t c = 0; c < in_.channels; ++c, from += in_.channel_stride, to += column_step_)
            for (int64_t i = 0; i < count; ++i)
                to[i] = to_float(from[i * in_.stride[2]]);
    }

    // One output line of every channel: step (d, h) of the band, of one phase along D and H.
    void write_lines(const Band& band, int64_t d, int64_t h, int64_t phase, const float* products, int64_t pixels,
                     float* sums, float* row, const float** lines) const {
        const int64_t phases_h = g_.axis[1].phases(), phases_w = g_.axis[2].phases();
        const int64_t at_d = band.first[0] + d, at_h = band.first[1] + h;
        const int64_t od = g_.axis[0].first_out(phase / phases_h) + at_d * g_.axis[0].out_step();
        const int64_t oh = g_.axis[1].first_out(phase % phases_h) + at_h * g_.axis[1].out_step();
        if (od >= out_.size[0] || oh >= out_.size[1])
            return;
        const int64_t steps = round_up(g_.axis[2].steps(), VF);
        for (int64_t o = 0; o < out_.channels; ++o) {
            for (int64_t phase_w = 0; phase_w < phases_w; ++phase_w)
                add_taps(band, at_d, at_h, phase * phases_w + phase_w, products + o * pixels, pixels, lines,
                         sums + phase_w * steps);
            interleave(g_.axis[2], sums, steps, row);
            epilogue_.apply_row(row, out_.size[2], o);
            write_row(out_, row, out_.at(band.n, o, od, oh, 0));
        }
    }

    // One phase of an output line: the sum of its taps' products, each shifted by its tap.
    void add_taps(const Band& band, int64_t at_d, int64_t at_h, int64_t phase, const float* products, int64_t pixels,
                  const float** lines, float* sums) const {
        int64_t count = 0;
        for (const Tap* tap = taps_ + first_tap_[phase]; tap < taps_ + first_tap_[phase + 1]; ++tap) {
            const int64_t d = at_d + tap->offset[0] - band.in_first[0], h = at_h + tap->offset[1] - band.in_first[1];
            if (d >= 0 && d < band.in_size[0] && h >= 0 && h < band.in_size[1])
                lines[count++] =
                    products + tap->row * pixels + (d * band.in_size[1] + h) * line_ + border_ + tap->offset[2];
        }
        for (int64_t j = 0; j < g_.axis[2].steps(); j += VF) {
            vf sum{};
            for (int64_t i = 0; i < count; ++i)
                sum += load(lines[i] + j);
            store(sums + j, sum);
        }
    }

    const Geometry& g_;
    const Image &in_, &out_;
    const float* packed_;
    const Epilogue& epilogue_;
    const int64_t rows_;
    int64_t low_[AXES], high_[AXES], border_, line_, columns_,
        column_step_; // a run of pixels is written in whole vectors, beyond the columns
    Tap* taps_;
    int64_t* first_tap_;
};

}
}
