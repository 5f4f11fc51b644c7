// The weight gradient of few large-map channels, as at a discriminator's start and a generator's end: the large map is
// laid out by taps (im2col), which is little, so that the small map is read as it lies, channel by channel.
#pragma once

#include "cpu/conv_transpose/weight_gradient.h"

namespace aigc::AIGC_LEVEL::conv_transpose {
namespace {

constexpr int64_t IM2COL_CHANNELS = 4;       // large-map channels at most
constexpr int64_t IM2COL_COLUMNS = 128;      // (channel, tap) pairs at most
constexpr int64_t IM2COL_FLOATS = 128 << 10; // columns of the pixels that are summed at a time: they stay in L2

class Im2colWeightGradient {
  public:
    // The geometry is that of the convolution from `large` to `small`.
    Im2colWeightGradient(const Geometry& g, const Image& large, const Image& small)
        : g_(g), large_(large), small_(small), columns_(g.taps() * g.in_channels), width_(round_up(columns_, VF)) {}

    static bool fits(const Geometry& g, const Image& large, const Image& small) {
        return g.groups == 1 && g.in_channels <= IM2COL_CHANNELS && g.out_channels >= TILE_ROWS &&
               g.taps() * g.in_channels <= IM2COL_COLUMNS && large.dtype == FLOAT32 && small.dtype == FLOAT32;
    }

    // out: (small channels, large channels, taps), contiguous
    void run(float* out) {
        const int64_t sums_size = g_.out_channels * width_;
        const Parts parts(g_, large_, small_, weight_of_sums(sums_size), SUMS_PER_THREAD);
        Scope scope;
        const float* sums = sum_over(scope, parts, sums_size, [](const Part& part, float* of_part) {
            Im2colWeightGradient(part.g, part.in, part.out).sum(of_part);
            return true;
        });
        for (int64_t o = 0; o < g_.out_channels; ++o)
            __builtin_memcpy(out + o * columns_, sums + o * width_, sizeof(float) * columns_);
    }

  private:
    void sum(float* sums) {
        const int64_t lines = small_.batch * small_.size[0] * small_.size[1], width = small_.size[2];
        const int64_t most_lines = least(lines, most<int64_t>(1, IM2COL_FLOATS / (width * width_)));
        const int64_t panel_size = most_lines * width * width_;
        Scope scope;
        sums_ = sums;
        panel_ = scope.take<float>(panel_size);
        small_at_ = scope.take<int64_t>(2 * most_lines);
        panel_at_ = small_at_ + most_lines;
        for (int64_t first = 0; first < lines; first += most_lines)
            add_lines(first, least(most_lines, lines - first), first > 0);
    }

    void add_lines(int64_t first, int64_t lines, bool accumulate) {
        const int64_t width = small_.size[2];
        parallel_for(0, lines, most<int64_t>(1, LEAST_WORK / (8 * width * width_)), [&](int64_t begin, int64_t end) {
            Scope scope;
            auto* stage = scope.take<float>(columns_ * width + VF);
            for (int64_t line = begin; line < end; ++line) {
                read_taps_of_line(first + line, stage);
                transpose(stage, width, panel_ + line * width * width_, width_, columns_, width);
            }
        });
        for (int64_t line = 0; line < lines; ++line) {
            const int64_t h = (first + line) % small_.size[1], d = (first + line) / small_.size[1] % small_.size[0];
            const int64_t n = (first + line) / (small_.size[1] * small_.size[0]);
            small_at_[line] = n * small_.batch_stride + d * small_.stride[0] + h * small_.stride[1];
            panel_at_[line] = line * width * width_;
        }
        const int64_t rows = g_.out_channels, share = ceil_div(rows, ITEMS_PER_THREAD * thread_count());
        const int64_t block = most<int64_t>(8, share), work = lines * width * block * width_;
        parallel_for(0, ceil_div(rows, block), most<int64_t>(1, LEAST_WORK / work), [&](int64_t begin, int64_t end) {
            for (int64_t item = begin; item < end; ++item)
                for (int64_t row = item * block; row < least(rows, (item + 1) * block); row += 8)
                    add_rows(row, least<int64_t>(8, least(rows, (item + 1) * block) - row), lines, accumulate);
        });
    }

    // What every tap of every channel reads along one line of the small map: stage[channel, tap][pixel], each row
    // written in whole vectors, beyond its end.
    void read_taps_of_line(int64_t line, float* stage) const {
        const int64_t h = line % small_.size[1], d = line / small_.size[1] % small_.size[0];
        const int64_t n = line / (small_.size[1] * small_.size[0]), width = small_.size[2];
        const Axis &ad = g_.axis[0], &ah = g_.axis[1], &aw = g_.axis[2];
        for (int64_t c = 0; c < g_.in_channels; ++c)
            for (int64_t kd = 0; kd < ad.kernel; ++kd)
                for (int64_t kh = 0; kh < ah.kernel; ++kh)
                    for (int64_t kw = 0; kw < aw.kernel; ++kw, stage += width) {
                        const int64_t z = ad.input(0, kd, d), y = ah.input(0, kh, h);
                        if (z < 0 || z >= large_.size[0] || y < 0 || y >= large_.size[1])
                            __builtin_memset(stage, 0, sizeof(float) * width);
                        else
                            read_tap(reinterpret_cast<const float*>(large_.at(n, c, z, y, 0)), kw, stage);
                    }
    }

    void read_tap(const float* line, int64_t tap, float* stage) const {
        const Axis& a = g_.axis[2];
        const int64_t width = small_.size[2], step = a.stride * large_.stride[2];
        int64_t low, high;
        a.steps_inside(tap, width, low, high);
        const float* from = line + a.offset(0, tap) * large_.stride[2];
        for (int64_t w = 0; w < width; w += VF)
            store(stage + w, vf{});
        if (step == 1)
            for (int64_t w = low; w < high; w += VF)
                store(stage + w, load_part(from + w, high - w));
        else if (step == 2)
            for (int64_t w = low; w < high; ++w)
                stage[w] = from[w * 2];
        else
            for (int64_t w = low; w < high; ++w)
                stage[w] = from[w * step];
    }

    void add_rows(int64_t first, int64_t rows, int64_t lines, bool accumulate) const {
        const float* from[8];
        float* to[8];
        for (int64_t i = 0; i < rows; ++i) {
            from[i] = reinterpret_cast<const float*>(small_.data) + (first + i) * small_.channel_stride;
            to[i] = sums_ + (first + i) * width_;
        }
        const Product product{.rows = from,
                              .a_step = small_.stride[2],
                              .a_offsets = small_at_,
                              .b = panel_,
                              .b_step = width_,
                              .b_offsets = panel_at_,
                              .batch = lines,
                              .depth = small_.size[2],
                              .c = to,
                              .accumulate = accumulate};
        multiply(product, rows, width_ / VF);
    }

    const Geometry& g_;
    const Image &large_, &small_;
    const int64_t columns_, width_;
    float *sums_, *panel_;
    int64_t *small_at_, *panel_at_;
};

}
}
