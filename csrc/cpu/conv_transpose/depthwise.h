// One channel per group (MobileNet, ConvNeXt, Conformer): channels fill the vectors, whatever the layout is. A tile of
// the input is laid out with a few vectors of channels innermost, and what a line of the kernel reads of it is loaded
// once for neighbouring pixels.
#pragma once

#include "cpu/conv_transpose/layout.h"

namespace aigc::AIGC_LEVEL::conv_transpose {
namespace {

constexpr int64_t DEPTHWISE_COLUMNS = 256;     // steps of a tile along W at most
constexpr int64_t DEPTHWISE_FLOATS = 96 << 10; // its input: it stays in L2
constexpr int64_t DEPTHWISE_VECTORS = 4;       // vectors of channels of a tile, where they are innermost in memory
constexpr int64_t DEPTHWISE_REACH = 4096;      // pixels that a single step reads at most
constexpr int64_t DEPTHWISE_WORK = 1 << 15;    // multiply-adds that are worth another thread

// The steps of all phases cut into tiles: one along D, some along H and W.
class DepthwiseTiles {
  public:
    DepthwiseTiles(const Geometry& g, bool channels_innermost)
        : g_(g), reach_{Reach(g.axis[0]), Reach(g.axis[1]), Reach(g.axis[2])},
          vectors_(channels_innermost ? least(DEPTHWISE_VECTORS, ceil_div(g.groups, VF)) : 1) {
        const int64_t deep = reach_[0].length(g.axis[0], 1), of_a_step = reach_[2].length(g.axis[2], 1);
        const int64_t along = DEPTHWISE_FLOATS / (deep * pixel());
        columns_ = even_share(g.axis[2].steps(),
                              least(DEPTHWISE_COLUMNS, 1 + most<int64_t>(0, along - of_a_step) / g.axis[2].in_step()));
        const int64_t line = deep * reach_[2].length(g.axis[2], columns_);
        const int64_t lines = DEPTHWISE_FLOATS / (line * pixel()), of_one = reach_[1].length(g.axis[1], 1);
        rows_ = even_share(g.axis[1].steps(), 1 + most<int64_t>(0, lines - of_one) / g.axis[1].in_step());
        across_ = ceil_div(g.axis[2].steps(), columns_);
        down_ = ceil_div(g.axis[1].steps(), rows_);
    }

    // Whether what a single step reads is little.
    static bool fit(const Geometry& g) {
        int64_t pixels = 1;
        for (const Axis& a : g.axis) {
            const Reach reach(a);
            if (reach.high - reach.low >= DEPTHWISE_REACH)
                return false;
            pixels *= reach.length(a, 1);
        }
        return pixels <= DEPTHWISE_REACH;
    }

    struct Tile {
        int64_t first[AXES], steps[AXES], first_channel, channels;

        int64_t vectors() const { return ceil_div(channels, VF); }
    };

    int64_t pixel() const { return vectors_ * VF; } // floats from one pixel to the next
    int64_t blocks() const { return ceil_div(g_.groups, pixel()); }
    int64_t of_a_block() const { return g_.axis[0].steps() * down_ * across_; }
    int64_t work() const { return rows_ * columns_ * g_.taps() * pixel(); } // multiply-adds of a tile

    // A tile of a block of channels.
    Tile at(int64_t block, int64_t index) const {
        const int64_t column = index % across_ * columns_, row = index / across_ % down_ * rows_;
        const int64_t channel = block * pixel();
        return {{index / across_ / down_, row, column},
                {1, least(rows_, g_.axis[1].steps() - row), least(columns_, g_.axis[2].steps() - column)},
                channel,
                least(pixel(), g_.groups - channel)};
    }
    Box input(const Tile& tile, int64_t image) const {
        Box box{image, 1, {}, {}};
        for (int i = 0; i < AXES; ++i) {
            box.origin[i] = reach_[i].origin(g_.axis[i], tile.first[i]);
            box.length[i] = reach_[i].length(g_.axis[i], tile.steps[i]);
        }
        return box;
    }
    // Floats of the largest tile's input, and of its steps.
    int64_t input_size() const { return input(at(0, 0), 0).pixels() * pixel(); }
    int64_t steps_size() const { return rows_ * columns_ * pixel(); }

    // How far the first tap of each line of a phase's kernel reaches into a box, in floats.
    void place_lines(const PhaseTaps& phase, const Box& box, int64_t* lines) const {
        const int64_t first = lowest_of_line(phase) - reach_[2].low;
        g_.axis[0].each_tap(phase.phase[0], [&](int64_t kd) {
            const int64_t z = g_.axis[0].offset(phase.phase[0], kd) - reach_[0].low;
            g_.axis[1].each_tap(phase.phase[1], [&](int64_t kh) {
                const int64_t y = g_.axis[1].offset(phase.phase[1], kh) - reach_[1].low;
                *lines++ = pixel() * ((z * box.length[1] + y) * box.length[2] + first);
            });
        });
    }
    // From a tap of a line to the next one, in pixels.
    static int64_t spread(const Axis& a, int64_t phase) {
        int64_t offsets[2]{}, found = 0;
        a.each_tap(phase, [&](int64_t k) {
            if (found < 2)
                offsets[found++] = a.offset(phase, k);
        });
        return found < 2 ? 1 : offsets[1] > offsets[0] ? offsets[1] - offsets[0] : offsets[0] - offsets[1];
    }

  private:
    int64_t lowest_of_line(const PhaseTaps& phase) const {
        int64_t low = INT64_MAX;
        g_.axis[2].each_tap(phase.phase[2], [&](int64_t k) { low = least(low, g_.axis[2].offset(phase.phase[2], k)); });
        return low == INT64_MAX ? reach_[2].low : low;
    }
    static int64_t even_share(int64_t size, int64_t largest) {
        return ceil_div(size, ceil_div(size, most<int64_t>(1, largest)));
    }

    const Geometry& g_;
    const Reach reach_[AXES];
    const int64_t vectors_;
    int64_t columns_, rows_, across_, down_;
};

// The channels of a tile.
Image channels_of(const Image& image, const DepthwiseTiles::Tile& tile) {
    Image part(image);
    part.data = image.at(0, tile.first_channel, 0, 0, 0);
    part.channels = tile.channels;
    return part;
}

// A box with `step` floats for each pixel; what lies beyond the channels is left as it was.
void read_pixels(const Image& image, const Box& box, float* out, int64_t step) {
    if (image.dtype != FLOAT32 || image.channel_stride != 1 || image.channels % VF != 0 ||
        image.with.activation != NONE)
        return read_box(image, box, out, step);
    const auto copy = [&](int64_t n, int64_t d, int64_t h, int64_t w, int64_t pixels, float* to, int64_t) {
        const auto* from = reinterpret_cast<const float*>(image.at(n, 0, d, h, w));
        for (int64_t i = 0; i < pixels; ++i, from += image.stride[2], to += step)
            for (int64_t c = 0; c < image.channels; c += VF)
                store(to + c, load(from + c));
    };
    for_each_line(image, box, out, step, copy);
}

class Depthwise {
  public:
    Depthwise(const Geometry& g, const Image& in, const Image& out, const float* packed, const Epilogue& epilogue)
        : g_(g), in_(in), out_(out), packed_(packed), epilogue_(epilogue), tiles_(g, in.channel_stride == 1) {}

    static bool fits(const Geometry& g) {
        return g.groups > 1 && g.in_channels == 1 && g.out_channels == 1 && DepthwiseTiles::fit(g);
    }
    static int64_t weight_size(const Geometry& g) { return g.taps() * round_up(g.groups, VF); }

    // Packed weights: [vector of channels][phase][tap][channel], the taps of a line in the order of what they read.
    // Tells whether all are finite.
    static bool pack(const Geometry& g, const Weight& weight, float* packed) {
        float zero = 0;
        for (int64_t first = 0; first < g.groups; first += VF)
            for (int64_t phase = 0; phase < g.phases(); ++phase) {
                const PhaseTaps taps(g, phase);
                const int64_t line = g.axis[2].taps(taps.phase[2]);
                taps.each(g, [&](int64_t rank, int64_t kd, int64_t kh, int64_t kw) {
                    const int64_t tap = kd * weight.stride[0] + kh * weight.stride[1] + kw * weight.stride[2];
                    const int64_t of_line = g.axis[2].transposed ? line - 1 - rank % line : rank % line;
                    float* to = packed + (rank - rank % line + of_line) * VF;
                    for (int64_t c = 0; c < VF; ++c) {
                        const bool is_there = first + c < g.groups;
                        to[c] = is_there ? read_number(weight.at(first + c, 0, 0, tap), weight.dtype) : 0;
                        zero += to[c] * 0.0f;
                    }
                });
                packed += taps.taps(g) * VF;
            }
        return zero == 0;
    }

    void run() {
        const int64_t blocks = tiles_.blocks(), tiles = tiles_.of_a_block();
        const bool by_pixel = in_.channel_stride == 1;
        const int64_t grain = most<int64_t>(1, DEPTHWISE_WORK / most<int64_t>(1, tiles_.work()));
        parallel_for(0, out_.batch * tiles * blocks, grain, [&](int64_t begin, int64_t end) {
            Scope scope;
            const int64_t size = tiles_.input_size();
            auto* box = scope.take<float>(size);
            auto* line = scope.take<float>(g_.axis[2].out_step() * tiles_.steps_size());
            auto* lines = scope.take<int64_t>(g_.taps());
            __builtin_memset(box, 0, sizeof(float) * size);
            for (int64_t item = begin; item < end; ++item) {
                const int64_t n = item / (tiles * blocks), rest = item % (tiles * blocks);
                run_tile(n, by_pixel ? tiles_.at(rest % blocks, rest / blocks) : tiles_.at(rest / tiles, rest % tiles),
                         box, line, lines);
            }
        });
    }

  private:
    using Tile = DepthwiseTiles::Tile;

    void run_tile(int64_t n, const Tile& tile, float* box, float* line, int64_t* lines) const {
        const Box from = tiles_.input(tile, n);
        const Axis &d = g_.axis[0], &h = g_.axis[1], &w = g_.axis[2];
        read_pixels(channels_of(in_, tile), from, box, tiles_.pixel());
        int64_t placed = 0; // taps of the phases before
        for (int64_t phase = 0; phase < g_.phases(); phase += w.phases()) {
            const PhaseTaps first(g_, phase);
            const int64_t od = d.output(first.phase[0], tile.first[0]);
            for (int64_t row = 0; row < tile.steps[1] && od < out_.size[0]; ++row) {
                const int64_t oh = h.output(first.phase[1], tile.first[1] + row);
                if (oh < out_.size[1])
                    run_line({n, od, oh}, tile, phase, from, box + tiles_.pixel() * h.in_step() * row * from.length[2],
                             placed, line, lines);
            }
            for (int64_t along = 0; along < w.phases(); ++along)
                placed += PhaseTaps(g_, phase + along).taps(g_);
        }
    }

    // A line of the output.
    struct Line {
        int64_t n, d, h;
    };

    void run_line(const Line& at, const Tile& tile, int64_t phase, const Box& from, const float* box, int64_t placed,
                  float* line, int64_t* lines) const {
        const Axis& w = g_.axis[2];
        const int64_t first = w.out_step() * tile.first[2];
        const int64_t pixels = least(out_.size[2], first + w.out_step() * tile.steps[2]) - first;
        const bool in_place =
            out_.dtype == FLOAT32 && out_.channel_stride == 1 && tile.channels % VF == 0 && out_.with.to_added == 0;
        auto* const to =
            in_place ? reinterpret_cast<float*>(out_.at(at.n, tile.first_channel, at.d, at.h, first)) : line;
        const int64_t step = in_place ? out_.stride[2] : tiles_.pixel();
        for (int64_t along = 0; along < w.phases(); ++along) {
            const PhaseTaps taps(g_, phase + along);
            const int64_t of_line = w.taps(along), of_phase = taps.taps(g_);
            const int64_t count = least(tile.first[2] + tile.steps[2], w.count(along)) - tile.first[2];
            tiles_.place_lines(taps, from, lines);
            const Pixels p{.box = box,
                           .pixel = tiles_.pixel(),
                           .step = w.in_step() * tiles_.pixel(),
                           .lines = lines,
                           .count = of_line ? of_phase / of_line : 0,
                           .taps = of_line,
                           .spread = DepthwiseTiles::spread(w, along) * tiles_.pixel(),
                           .weights = packed_ + tile.first_channel * g_.taps() + placed * VF,
                           .weights_step = g_.taps() * VF,
                           .bias = epilogue_.bias ? epilogue_.bias + tile.first_channel : nullptr,
                           .channels = tile.channels,
                           .out_step = w.out_step() * step};
            add_pixels(p, count, to + w.first_out(along) * step);
            placed += of_phase;
        }
        Epilogue{nullptr, epilogue_.activation, epilogue_.slope}.apply(to, pixels, step, tile.channels, 0);
        if (!in_place)
            write_line(line, step, pixels, tile.channels, out_, at.n, tile.first_channel, at.d, at.h, first);
    }

    // Neighbouring steps of a phase: what they read and write.
    struct Pixels {
        const float* box;
        int64_t pixel, step;  // floats from a pixel of the box to the next, and from what one step reads to the next
        const int64_t* lines; // where each line of the kernel begins in the box
        int64_t count, taps;  // of lines, and of the taps of each,
        int64_t spread;       // which lie so many floats apart
        const float* weights; // [vector of channels][line][tap][channel]
        int64_t weights_step;
        const float* bias;
        int64_t channels, out_step;
    };

    static void add_pixels(const Pixels& p, int64_t count, float* out) {
        if (p.spread != p.pixel || p.step > 2 * p.pixel)
            add_steps<0>(p, count, out);
        else if (p.step == p.pixel)
            add_steps<1>(p, count, out);
        else
            add_steps<2>(p, count, out);
    }

    // STEP: pixels from what one step reads to the next, where neighbouring taps read neighbouring pixels; else 0.
    template <int STEP>
    static void add_steps(const Pixels& p, int64_t count, float* out) {
        int64_t done = 0;
        for (; done + 8 <= count; done += 8)
            add_vectors<STEP, 8>(p, done, out);
        for (; done + 4 <= count; done += 4)
            add_vectors<STEP, 4>(p, done, out);
        for (; done < count; ++done)
            add_vectors<STEP, 1>(p, done, out);
    }

    template <int STEP, int COUNT>
    static void add_vectors(const Pixels& p, int64_t first, float* out) {
        for (int64_t c = 0; c < p.channels; c += VF)
            add_lines<STEP, COUNT>(p, p.box + first * p.step + c, p.weights + c / VF * p.weights_step,
                                   p.bias ? load_part(p.bias + c, p.channels - c) : vf{}, out + first * p.out_step + c);
    }

    template <int STEP, int COUNT>
    static void add_lines(const Pixels& p, const float* box, const float* weights, vf bias, float* out) {
        constexpr int TOGETHER = VF > 8 ? 7 : 4; // taps whose weights stay in registers
        vf sums[COUNT];
#pragma GCC unroll 8
        for (int i = 0; i < COUNT; ++i)
            sums[i] = bias;
        for (int64_t line = 0; line < p.count; ++line) {
            const float* from = box + p.lines[line];
            int64_t left = p.taps;
            if constexpr (STEP > 0) {
                for (; left >= TOGETHER; left -= TOGETHER)
                    add_taps<STEP, TOGETHER>(sums, p.pixel, from, weights);
                if (left >= 5)
                    add_taps<STEP, 5>(sums, p.pixel, from, weights), left -= 5;
                if (left >= 3)
                    add_taps<STEP, 3>(sums, p.pixel, from, weights), left -= 3;
            }
            for (; left > 0; --left, from += p.spread, weights += VF) {
                const vf weight = load(weights);
#pragma GCC unroll 8
                for (int i = 0; i < COUNT; ++i)
                    sums[i] += weight * load(from + i * p.step);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < COUNT; ++i)
            store(out + i * p.out_step, sums[i]);
    }

    // Some neighbouring taps of a line, after which the next begin.
    template <int STEP, int TAPS, int COUNT>
    static void add_taps(vf (&sums)[COUNT], int64_t pixel, const float*& from, const float*& weights) {
        vf weight[TAPS];
#pragma GCC unroll 8
        for (int tap = 0; tap < TAPS; ++tap)
            weight[tap] = load(weights + tap * VF);
#pragma GCC unroll 32
        for (int at = 0; at < STEP * (COUNT - 1) + TAPS; ++at) {
            const vf x = in_register(load(from + at * pixel));
#pragma GCC unroll 8
            for (int tap = 0; tap < TAPS; ++tap)
                if (at >= tap && (at - tap) % STEP == 0 && (at - tap) / STEP < COUNT)
                    sums[(at - tap) / STEP] += weight[tap] * x;
        }
        from += TAPS * pixel;
        weights += TAPS * VF;
    }

    const Geometry& g_;
    const Image &in_, &out_;
    const float* packed_;
    const Epilogue& epilogue_;
    const DepthwiseTiles tiles_;
};

}
}
