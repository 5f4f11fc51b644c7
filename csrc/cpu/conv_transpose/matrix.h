// The transposed convolution of a single pixel, as at a generator's start: one product of (images, input channels) with
// the weight, whose columns are packed in the order in which an output image lies in memory.
#pragma once

#include "cpu/conv_transpose/direct.h"

namespace aigc::AIGC_LEVEL::conv_transpose {
namespace {

constexpr int64_t IMAGE_BLOCK = 48; // images of a work item

class Matrix {
  public:
    Matrix(const Geometry& g, const Image& out) : g_(g), out_(out), columns_(g.taps() * g.out_channels) {}

    // The input is one pixel and every output pixel meets one tap.
    static bool fits(const Geometry& g) {
        bool one = g.groups == 1;
        for (const Axis& a : g.axis)
            one = one && a.transposed && a.in == 1 && a.padding == 0 && a.out == a.kernel;
        return one;
    }

    int64_t panels() const { return panels_of(columns_); }
    int64_t weight_size() const { return packed_size<float>(g_.in_channels, columns_); }

    // Packed weights: [panel of columns][input channel][PANEL_WIDTH].
    void pack(const Weight& weight, float* packed) const {
        parallel_for(0, panels(), most<int64_t>(1, 4096 / g_.in_channels), [&](int64_t begin, int64_t end) {
            for (int64_t panel = begin; panel < end; ++panel)
                pack_columns(weight, panel, packed + panel * g_.in_channels * PANEL_WIDTH);
        });
    }

    void run(const Image& in, const float* packed, const Epilogue& epilogue) const {
        const int64_t depth = g_.in_channels, blocks = ceil_div(in.batch, IMAGE_BLOCK);
        int64_t step = in.batch_stride, channel_step = in.channel_stride;
        const float* pixels = reinterpret_cast<const float*>(in.data);
        Scope scope;
        if (in.dtype == BFLOAT16) {
            auto* wide = scope.take<float>(in.batch * depth);
            for (int64_t n = 0; n < in.batch; ++n)
                for (int64_t c = 0; c < depth; ++c)
                    wide[n * depth + c] = read_number(in.at(n, c, 0, 0, 0), in.dtype);
            pixels = wide, step = depth, channel_step = 1;
        }
        const int64_t grain = most<int64_t>(1, LEAST_WORK / (depth * PANEL_WIDTH * least(in.batch, IMAGE_BLOCK)));
        parallel_for(0, panels() * blocks, grain, [&](int64_t begin, int64_t end) {
            for (int64_t item = begin; item < end; ++item) {
                const int64_t panel = item / blocks, first = item % blocks * IMAGE_BLOCK;
                run_block(pixels + first * step, step, channel_step, packed + panel * depth * PANEL_WIDTH, epilogue,
                          panel, first, least(IMAGE_BLOCK, in.batch - first));
            }
        });
    }

  private:
    struct Column {
        int64_t channel, tap;
    };
    Column column(int64_t index) const {
        return out_.channel_stride == 1 && g_.out_channels > 1
                   ? Column{index % g_.out_channels, index / g_.out_channels}
                   : Column{index / g_.taps(), index % g_.taps()};
    }
    int64_t width(int64_t panel) const { return panel_columns(columns_, panel); }

    void pack_columns(const Weight& weight, int64_t panel, float* packed) const {
        const char* from[PANEL_WIDTH];
        for (int64_t i = 0; i < width(panel); ++i) {
            const Column at = column(panel * PANEL_WIDTH + i);
            const int64_t kw = at.tap % g_.axis[2].kernel, kh = at.tap / g_.axis[2].kernel % g_.axis[1].kernel;
            const int64_t kd = at.tap / (g_.axis[2].kernel * g_.axis[1].kernel);
            from[i] =
                weight.at(0, at.channel, 0, kd * weight.stride[0] + kh * weight.stride[1] + kw * weight.stride[2]);
        }
        pack_panel(from, width(panel), weight.in_stride * weight.element_size(), g_.in_channels, weight.dtype, packed);
    }

    void run_block(const float* pixels, int64_t step, int64_t channel_step, const float* weights,
                   const Epilogue& epilogue, int64_t panel, int64_t first_image, int64_t images) const {
        float sums[IMAGE_BLOCK * PANEL_WIDTH], shift[PANEL_WIDTH] = {};
        const float* from[IMAGE_BLOCK];
        float* to[IMAGE_BLOCK];
        for (int64_t i = 0; i < images; ++i)
            to[i] = sums + i * PANEL_WIDTH;
        const int64_t none = 0;
        for (int64_t k = 0; k < g_.in_channels; k += DEPTH_BLOCK) {
            for (int64_t i = 0; i < images; ++i)
                from[i] = pixels + i * step + k * channel_step;
            const Product product{.rows = from,
                                  .a_step = channel_step,
                                  .a_offsets = &none,
                                  .b = weights + k * PANEL_WIDTH,
                                  .b_step = PANEL_WIDTH,
                                  .b_offsets = &none,
                                  .batch = 1,
                                  .depth = least(DEPTH_BLOCK, g_.in_channels - k),
                                  .c = to,
                                  .accumulate = k > 0};
            multiply(product, images, TILE_VECTORS);
        }
        for (int64_t i = 0; epilogue.bias && i < width(panel); ++i)
            shift[i] = epilogue.bias[column(panel * PANEL_WIDTH + i).channel];
        const Epilogue of_columns{epilogue.bias ? shift : nullptr, epilogue.activation, epilogue.slope};
        of_columns.apply(sums, images, PANEL_WIDTH, PANEL_WIDTH, 0);
        for (int64_t i = 0; i < images; ++i)
            write(sums + i * PANEL_WIDTH, width(panel), first_image + i, panel * PANEL_WIDTH);
    }

    void write(const float* sums, int64_t count, int64_t image, int64_t column) const {
        const int64_t at = image * out_.batch_stride + column;
        if (out_.dtype == BFLOAT16)
            write_floats(sums, count, reinterpret_cast<bfloat16*>(out_.data) + at);
        else
            write_floats(sums, count, reinterpret_cast<float*>(out_.data) + at);
    }

    const Geometry& g_;
    const Image& out_;
    const int64_t columns_;
};

}
}
