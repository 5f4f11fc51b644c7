// Few output channels, as at the end of a generator: every pixel times all taps of all output channels in one product,
// then the products are added up, shifted by their taps (col2im). A tile's rows are (tap, output channel) pairs, so
// that it is full however few the channels are, and every input pixel is read once.
#pragma once

#include "cpu/conv_transpose/direct.h"
#include "cpu/conv_transpose/lines.h"

namespace aigc::AIGC_LEVEL::conv_transpose {
namespace {

constexpr int64_t COL2IM_CHANNELS = 8;          // output channels at most
constexpr int64_t COL2IM_INPUTS = 8;            // input channels at least: fewer make the sums after the product dear
constexpr int64_t PRODUCT_FLOATS = 64 << 10;    // products of a work item: they stay in L2
constexpr int64_t LEAST_LINES = 4;              // output lines of a work item: its neighbours' lines are computed twice
constexpr int64_t FLOATS_OF_LINE = 16;          // of the cache
constexpr int64_t ROWS_AT_ONCE = 2 * TILE_ROWS; // rows of tiles between which few enough lines are fetched
constexpr int64_t COLUMNS = 64;                 // pixels read at a time: several lines of a page, and few enough for L1

class Col2im {
  public:
    Col2im(const Geometry& g, const Image& in, const Image& out, const float* packed, const Epilogue& epilogue)
        : g_(g), in_(in), out_(out), packed_(packed), epilogue_(epilogue), rows_(g.taps() * g.out_channels),
          reach_{Reach(g.axis[0]), Reach(g.axis[1]), Reach(g.axis[2])} {
        line_ = in_.size[2];
        steps_ = g_.axis[2].steps();
        margin_ = round_up(most<int64_t>(0, -reach_[2].low), VF);
        flat_ = in_.dtype == FLOAT32 && in_.stride[2] == 1 && (in_.size[1] == 1 || in_.stride[1] == line_) &&
                (in_.size[0] == 1 || in_.stride[0] == line_ * in_.size[1]);
        whole_rows_ = out_.dtype == FLOAT32 && out_.stride[2] == 1 && out_.size[2] % VF == 0 &&
                      out_.size[2] == steps_ * g_.axis[2].phases();
    }

    static bool fits(const Geometry& g) {
        return g.groups == 1 && g.out_channels <= COL2IM_CHANNELS && g.in_channels >= COL2IM_INPUTS &&
               g.axis[0].in_step() == 1 && g.axis[1].in_step() == 1 && g.axis[2].in_step() == 1;
    }

    void run() {
        Scope scope;
        place_taps(scope);
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

    void place_taps(Scope& scope) {
        const int64_t phases = g_.phases();
        const int64_t reach = margin_ + most(line_, most<int64_t>(0, reach_[2].high) + g_.axis[2].steps()) + VF;
        taps_ = scope.take<Tap>(g_.taps());
        first_tap_ = scope.take<int64_t>(phases + 1);
        auto* inside = scope.take<float>(reach);
        __builtin_memset(inside, 0, sizeof(float) * reach);
        __builtin_memset(inside + margin_, 0xff, sizeof(float) * line_);
        inside_ = inside + margin_;
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
    int64_t reach(int axis, int64_t steps) const { return reach_[axis].length(g_.axis[axis], steps); }

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
            const int64_t origin = reach_[i].origin(g_.axis[i], band.first[i]);
            band.in_first[i] = least(most<int64_t>(0, origin), in_.size[i]);
            const int64_t end = origin + reach(i, band.steps[i]);
            band.in_size[i] = most<int64_t>(0, least(in_.size[i], end) - band.in_first[i]);
        }
        Scope scope;
        const Work work = take_memory(scope, band);
        multiply_band(band, work);
        for (int64_t phase_d = 0; phase_d < g_.axis[0].phases(); ++phase_d)
            for (int64_t phase_h = 0; phase_h < g_.axis[1].phases(); ++phase_h) {
                const int64_t phase = (phase_d * g_.axis[1].phases() + phase_h) * g_.axis[2].phases();
                for (int64_t d = band.first[0]; d < band.first[0] + band.steps[0]; ++d)
                    for (int64_t h = band.first[1]; h < band.first[1] + band.steps[1]; ++h)
                        write_lines(band, d, h, phase, g_.axis[0].output(phase_d, d), g_.axis[1].output(phase_h, h),
                                    work);
            }
    }

    // What one tap adds to an output line: products of the first output channel, and which of them lie inside.
    struct Term {
        const float *products, *inside;
    };

    // A thread's memory. products: [tap, phase by phase][output channel][pixel of the band]
    struct Work {
        int64_t pixels; // from one row of products to the next
        float *products, *panel, *sums, *row;
        const float** rows;
        float** to;
        Term *terms, **ends;
    };

    Work take_memory(Scope& scope, const Band& band) const {
        const int64_t pixels = round_up(band.lines() * line_, COLUMNS) + VF; // no multiple of a page
        const int64_t steps = round_up(steps_, VF), phases = g_.axis[2].phases();
        const int64_t products_size = margin_ + rows_ * pixels + most<int64_t>(0, reach_[2].high) + steps + VF;
        const int64_t panel_size = in_.channels * COLUMNS, sums_size = phases * steps;
        Work work;
        work.pixels = pixels;
        work.products = scope.take<float>(products_size) + margin_;
        work.panel = scope.take<float>(panel_size);
        work.sums = scope.take<float>(sums_size);
        work.row = scope.take<float>(interleaved_size(g_.axis[2]));
        work.terms = scope.take<Term>(g_.taps());
        work.rows = scope.take<const float*>(rows_);
        work.to = scope.take<float*>(rows_);
        work.ends = scope.take<Term*>(phases);
        return work;
    }

    void multiply_band(const Band& band, const Work& work) const {
        const int64_t used = band.lines() * line_, none = 0;
        for (int64_t r = 0; r < rows_; ++r)
            work.rows[r] = packed_ + r * in_.channels;
        for (int64_t first = 0; first < used; first += COLUMNS) {
            const int64_t count = least(COLUMNS, used - first), vectors = ceil_div(count, VF);
            for (int64_t r = 0; r < rows_; ++r)
                work.to[r] = work.products + r * work.pixels + first;
            open_panel(band, first, count, work.panel);
            const Product product{.rows = work.rows,
                                  .a_step = 1,
                                  .a_offsets = &none,
                                  .b = work.panel,
                                  .b_step = COLUMNS,
                                  .b_offsets = &none,
                                  .batch = 1,
                                  .depth = in_.channels,
                                  .c = work.to,
                                  .accumulate = false,
                                  .steps_ahead = 0};
            multiply_and_fetch(product, vectors, next_panel(band, first + COLUMNS));
        }
    }

    // Where the next panel starts, or null where it is not known.
    const char* next_panel(const Band& band, int64_t first) const {
        if (!flat_)
            return nullptr;
        if (first < band.lines() * line_)
            return pixel(band, first);
        return band.n + 1 < in_.batch ? in_.at(band.n + 1, 0, 0, 0, 0) : nullptr;
    }

    // A panel comes from memory: fetched a little at a time between the tiles, it never makes them wait.
    void multiply_and_fetch(const Product& whole, int64_t vectors, const char* next) const {
        const int64_t parts = ceil_div(rows_, ROWS_AT_ONCE), calls = parts * ceil_div(vectors, TILE_VECTORS);
        const int64_t channel_bytes = in_.channel_stride * in_.element_size();
        int64_t fetched = 0, call = 0;
        for (int64_t v = 0; v < vectors; v += TILE_VECTORS)
            for (int64_t part = 0; part < parts; ++part) {
                const int64_t row = rows_ * part / parts, end = rows_ * (part + 1) / parts;
                Product product = whole;
                product.rows += row;
                product.c += row;
                multiply_panel(product, end - row, v * VF, least<int64_t>(TILE_VECTORS, vectors - v));
                for (++call; next && fetched < in_.channels * call / calls; ++fetched)
                    for (int64_t line = 0; line < COLUMNS; line += FLOATS_OF_LINE)
                        __builtin_prefetch(next + fetched * channel_bytes + line * sizeof(float), 0, 2);
            }
    }

    const char* pixel(const Band& band, int64_t at) const {
        const int64_t line = at / line_, d = line / band.in_size[1], h = line % band.in_size[1];
        return in_.at(band.n, 0, band.in_first[0] + d, band.in_first[1] + h, at % line_);
    }

    // Some neighbouring pixels of a band, [input channel][COLUMNS], as the products meet them.
    void open_panel(const Band& band, int64_t first, int64_t count, float* panel) const {
        read_panel(band, first, count, panel);
        if (in_.with.activation != NONE)
            activate(in_.with.activation, in_.with.slope, panel, in_.channels * COLUMNS);
    }

    void read_panel(const Band& band, int64_t first, int64_t count, float* panel) const {
        if (flat_ && (band.in_size[0] == 1 || band.in_size[1] == in_.size[1])) {
            const auto* from = reinterpret_cast<const float*>(pixel(band, first));
            return count == COLUMNS ? copy_panel<true>(from, count, panel) : copy_panel<false>(from, count, panel);
        }
        for (int64_t at = 0; at < count;) {
            const int64_t run = least(count - at, line_ - (first + at) % line_);
            read_run(pixel(band, first + at), run, panel + at);
            at += run;
        }
    }

    template <bool WHOLE>
    void copy_panel(const float* from, int64_t count, float* panel) const {
        for (int64_t c = 0; c < in_.channels; ++c, from += in_.channel_stride, panel += COLUMNS) {
            if (WHOLE)
                __builtin_memcpy(panel, from, sizeof(float) * COLUMNS);
            else
                for (int64_t i = 0; i < count; i += VF)
                    store(panel + i, load_part(from + i, count - i));
        }
    }

    void read_run(const char* at, int64_t count, float* to) const {
        const auto* from = reinterpret_cast<const float*>(at);
        if (in_.dtype == BFLOAT16)
            read_scattered(reinterpret_cast<const uint16_t*>(at), count, to);
        else if (in_.channel_stride == 1)
            transpose(from, in_.stride[2], to, COLUMNS, count, in_.channels);
        else
            read_scattered(from, count, to);
    }

    template <class T>
    void read_scattered(const T* from, int64_t count, float* to) const {
        for (int64_t c = 0; c < in_.channels; ++c, from += in_.channel_stride, to += COLUMNS)
            for (int64_t i = 0; i < count; ++i)
                to[i] = to_float(from[i * in_.stride[2]]);
    }

    // The output line (od, oh) of every channel: step (d, h) of `phase` and its neighbours along W.
    void write_lines(const Band& band, int64_t d, int64_t h, int64_t phase, int64_t od, int64_t oh,
                     const Work& work) const {
        if (od >= out_.size[0] || oh >= out_.size[1])
            return;
        const int64_t phases = g_.axis[2].phases(), steps = round_up(steps_, VF);
        Term* end = work.terms;
        for (int64_t i = 0; i < phases; ++i)
            work.ends[i] = end = find_terms(band, d, h, phase + i, work, end);
        for (int64_t o = 0; o < out_.channels; ++o) {
            const Term* first = work.terms;
            for (int64_t i = 0; i < phases; first = work.ends[i++])
                add_terms(first, work.ends[i], o * work.pixels, work.sums + i * steps);
            char* const at = out_.at(band.n, o, od, oh, 0);
            float* const row = whole_rows_ ? reinterpret_cast<float*>(at) : work.row;
            interleave(g_.axis[2], work.sums, steps, row);
            epilogue_.apply_row(row, out_.size[2], o);
            if (!whole_rows_)
                write_row(out_, row, at);
        }
    }

    Term* find_terms(const Band& band, int64_t step_d, int64_t step_h, int64_t phase, const Work& work,
                     Term* end) const {
        const Tap* const last = taps_ + first_tap_[phase + 1];
        for (const Tap* tap = taps_ + first_tap_[phase]; tap < last; ++tap) {
            const int64_t d = step_d + tap->offset[0] - band.in_first[0];
            const int64_t h = step_h + tap->offset[1] - band.in_first[1];
            if (d >= 0 && d < band.in_size[0] && h >= 0 && h < band.in_size[1])
                *end++ = {work.products + tap->row * work.pixels + (d * band.in_size[1] + h) * line_ + tap->offset[2],
                          inside_ + tap->offset[2]};
        }
        return end;
    }

    // One phase of an output line: the sum of its taps' products, each shifted by its tap.
    void add_terms(const Term* first, const Term* end, int64_t channel, float* sums) const {
        for (int64_t j = 0; j < steps_; j += VF) {
            const bool inside = j + reach_[2].low >= 0 && j + VF + reach_[2].high <= line_;
            vf sum{};
            if (inside)
                for (const Term* term = first; term < end; ++term)
                    sum += load(term->products + channel + j);
            else
                for (const Term* term = first; term < end; ++term)
                    sum += vf(vi(load(term->products + channel + j)) & vi(load(term->inside + j)));
            store(sums + j, sum);
        }
    }

    const Geometry& g_;
    const Image &in_, &out_;
    const float* packed_;
    const Epilogue& epilogue_;
    const int64_t rows_;
    const Reach reach_[AXES];
    int64_t line_, steps_; // pixels of an input line, steps along W of each phase
    int64_t margin_;       // of what a line's first vector reads before it
    bool flat_;            // whether each channel's pixels follow each other
    bool whole_rows_;      // whether an output line is as many whole vectors as its phases
    Tap* taps_;
    int64_t* first_tap_;
    const float* inside_; // per pixel of a line and of its surroundings, all bits where it is inside
};

}
}
