// The weight gradient of one channel per group: the sums of a few taps at a time, a vector of channels each, stay in
// registers along a line of pixels.
#pragma once

#include "cpu/conv_transpose/depthwise.h"
#include "cpu/conv_transpose/parts.h"

namespace aigc::AIGC_LEVEL::conv_transpose {
namespace {

class DepthwiseWeightGradient {
  public:
    // The geometry is that of the convolution from `large` to `small`.
    DepthwiseWeightGradient(const Geometry& g, const Image& large, const Image& small)
        : g_(g), large_(large), small_(small), tiles_(g, large.channel_stride == 1 && small.channel_stride == 1) {}

    // out: (channels, taps), contiguous
    void run(void* out, int64_t dtype) const {
        const int64_t tiles = small_.batch * tiles_.of_a_block(), blocks = tiles_.blocks();
        const int64_t parts = least(tiles, ceil_div(PARTS_PER_THREAD * thread_count(), blocks));
        const int64_t of_part = g_.taps() * tiles_.pixel();
        Scope scope;
        auto* sums = scope.take<float>(blocks * parts * of_part);
        parallel_for(0, blocks * parts, 1, [&](int64_t begin, int64_t end) {
            for (int64_t item = begin; item < end; ++item) {
                const int64_t part = item % parts;
                sum(item / parts, tiles * part / parts, tiles * (part + 1) / parts, sums + item * of_part);
            }
        });
        if (dtype == BFLOAT16)
            write(sums, parts, static_cast<bfloat16*>(out));
        else
            write(sums, parts, static_cast<float*>(out));
    }

  private:
    // Over some tiles of all images, [first, last). sums: [vector of channels][tap][channel]
    void sum(int64_t block, int64_t first, int64_t last, float* sums) const {
        const int64_t pixel = tiles_.pixel(), input = tiles_.input_size(), steps = tiles_.steps_size();
        Scope scope;
        auto* from_large = scope.take<float>(input);
        auto* from_small = scope.take<float>(steps);
        auto* lines = scope.take<int64_t>(g_.taps());
        __builtin_memset(from_large, 0, sizeof(float) * input);
        __builtin_memset(from_small, 0, sizeof(float) * steps);
        __builtin_memset(sums, 0, sizeof(float) * g_.taps() * pixel);
        for (int64_t index = first; index < last; ++index) {
            const int64_t n = index / tiles_.of_a_block();
            const DepthwiseTiles::Tile tile = tiles_.at(block, index % tiles_.of_a_block());
            const Box box = tiles_.input(tile, n);
            const Box of_steps{n, 1, {tile.first[0], tile.first[1], tile.first[2]}, {1, tile.steps[1], tile.steps[2]}};
            read_pixels(channels_of(large_, tile), box, from_large, pixel);
            read_pixels(channels_of(small_, tile), of_steps, from_small, pixel);
            tiles_.place_lines(PhaseTaps(g_, 0), box, lines);
            for (int64_t row = 0; row < tile.steps[1]; ++row)
                for (int64_t c = 0; c < tile.channels; c += VF)
                    add_line(from_large + pixel * g_.axis[1].in_step() * row * box.length[2] + c, lines,
                             from_small + pixel * row * tile.steps[2] + c, tile.steps[2], sums + c * g_.taps());
        }
    }

    void add_line(const float* from_large, const int64_t* lines, const float* from_small, int64_t count,
                  float* sums) const {
        constexpr int TOGETHER = 8;
        const float* taps[TOGETHER];
        const Axis& w = g_.axis[2];
        const int64_t all = g_.taps();
        for (int64_t first = 0; first < all; first += TOGETHER, sums += TOGETHER * VF) {
            const int64_t some = least<int64_t>(TOGETHER, all - first);
            for (int64_t i = 0; i < some; ++i)
                taps[i] =
                    from_large + lines[(first + i) / w.kernel] + (first + i) % w.kernel * w.dilation * tiles_.pixel();
            if (some == TOGETHER)
                add_products<TOGETHER>(taps, from_small, count, sums);
            else
                for (int64_t i = 0; i < some; ++i)
                    add_products<1>(taps + i, from_small, count, sums + i * VF);
        }
    }

    template <int TAPS>
    void add_products(const float* const* taps, const float* from_small, int64_t count, float* sums) const {
        const int64_t pixel = tiles_.pixel(), step = g_.axis[2].in_step() * pixel;
        vf totals[TAPS];
#pragma GCC unroll 8
        for (int i = 0; i < TAPS; ++i)
            totals[i] = vf{};
        for (int64_t at = 0; at < count; ++at) {
            const vf x = load(from_small + at * pixel);
#pragma GCC unroll 8
            for (int i = 0; i < TAPS; ++i)
                totals[i] += x * load(taps[i] + at * step);
        }
#pragma GCC unroll 8
        for (int i = 0; i < TAPS; ++i)
            store(sums + i * VF, load(sums + i * VF) + totals[i]);
    }

    template <class T>
    void write(const float* sums, int64_t parts, T* out) const {
        const int64_t pixel = tiles_.pixel(), of_part = g_.taps() * pixel;
        for (int64_t c = 0; c < g_.groups; ++c)
            for (int64_t tap = 0; tap < g_.taps(); ++tap) {
                const float* at = sums + c / pixel * parts * of_part + (c % pixel / VF * g_.taps() + tap) * VF + c % VF;
                float total = 0;
                for (int64_t part = 0; part < parts; ++part)
                    total += at[part * of_part];
                from_float(total, out + c * g_.taps() + tap);
            }
    }

    const Geometry& g_;
    const Image &large_, &small_;
    const DepthwiseTiles tiles_;
};

}
}
