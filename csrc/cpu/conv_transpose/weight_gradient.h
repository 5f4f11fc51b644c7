// The weight gradient, shared by convolution and its transpose: for every tap, large-map channels x small-map channels,
// summed over the pixels of the small map. The sum runs along the depth of the product, so both maps are read as they
// lie, channels innermost, and nothing is transposed.
#pragma once

#include "cpu/conv_transpose/direct.h"
#include "cpu/conv_transpose/parts.h"

namespace aigc::AIGC_LEVEL {
namespace {

constexpr int64_t DEPTH_PIXELS = 128;   // pixels of a partial sum: both operands of a tile stay in L1
constexpr int64_t ROW_BLOCK = 384;      // rows of a work item, at most
constexpr int64_t ITEMS_PER_THREAD = 4; // at least, where there are rows enough
constexpr int64_t MOST_SUMS = 512 << 10, MOST_THREADS = 1 << 16;
constexpr int64_t SUM_FLOATS = 256 << 10; // both maps, packed, of the pixels that are summed at a time: they stay in L2

// How sums of a part weigh, for Parts: those that leave the cache are read and written again for every few images.
int64_t weight_of_sums(int64_t sums_size) { return sums_size <= MOST_SUMS ? sums_size : INT64_MAX / MOST_THREADS; }

class WeightGradient {
  public:
    // The geometry is that of the convolution from `large` to `small`.
    WeightGradient(const Geometry& g, const Image& large, const Image& small)
        : g_(g), large_(large), small_(small), large_pixel_(pixel_stride(large.channels)),
          small_pixel_(pixel_stride(small.channels)),
          rows_are_large_(g.out_channels >= 2 * VF || g.out_channels >= g.in_channels), taps_(g.taps()) {
        row_channels_ = rows_are_large_ ? g.in_channels : g.out_channels;
        columns_ = rows_are_large_ ? g.out_channels : g.in_channels;
        width_ = padded_channels(columns_);
        rows_ = taps_ * row_channels_;
        for (int i = 0; i < AXES; ++i)
            g_.axis[i].offset_range(low_[i], high_[i]);
    }

    // out: (small channels, large channels / groups, taps), contiguous
    void run(void* out, int64_t dtype) {
        const int64_t sums_size = g_.groups * rows_ * width_;
        const Parts parts(g_, large_, small_, weight_of_sums(sums_size));
        sums_ = sum_over(parts, sums_size, [](const Part& part, float* sums) {
            WeightGradient(part.g, part.in, part.out).sum(sums);
            return true;
        });
        if (dtype == BFLOAT16)
            write(static_cast<uint16_t*>(out));
        else
            write(static_cast<float*>(out));
    }

  private:
    static int64_t image_floats(const Box& box, int64_t pixel) { return round_up(box.pixels() * pixel, 16); }

    Box large_box(int64_t first, int64_t images) const {
        Box box{first, images, {}, {}};
        for (int i = 0; i < AXES; ++i) {
            box.origin[i] = low_[i];
            box.length[i] = g_.axis[i].in_step() * (small_.size[i] - 1) + high_[i] - low_[i] + 1;
        }
        return box;
    }
    Box small_box(int64_t first, int64_t images) const {
        return {first, images, {}, {small_.size[0], small_.size[1], small_.size[2]}};
    }

    int64_t per_image() const {
        return image_floats(large_box(0, 1), large_pixel_) + image_floats(small_box(0, 1), small_pixel_);
    }

    void sum(float* sums) {
        sums_ = sums;
        const int64_t most_images = most<int64_t>(1, least(small_.batch, SUM_FLOATS / per_image()));
        const int64_t images = ceil_div(small_.batch, ceil_div(small_.batch, most_images));
        const int64_t lines = images * small_.size[0] * small_.size[1];
        char* memory = static_cast<char*>(scratch(
            Slot::shared, sizeof(float) * (images * per_image() + 4 * PANEL_WIDTH) + sizeof(int64_t) * 2 * lines));
        large_pixels_ = reinterpret_cast<float*>(memory);
        small_pixels_ = large_pixels_ + images * image_floats(large_box(0, 1), large_pixel_) + 2 * PANEL_WIDTH;
        offsets_ = reinterpret_cast<int64_t*>(small_pixels_ + images * image_floats(small_box(0, 1), small_pixel_) +
                                              2 * PANEL_WIDTH);
        for (int64_t first = 0; first < small_.batch; first += images)
            add_images(first, least(images, small_.batch - first), lines, first > 0);
    }

    void add_images(int64_t first, int64_t images, int64_t most_lines, bool accumulate) {
        const Box large = large_box(first, images), small = small_box(first, images);
        read_box(large_, large, large_pixels_, large_pixel_);
        read_box(small_, small, small_pixels_, small_pixel_);
        line_ = large.length[2] * large_pixel_;
        plane_ = large.length[1] * line_;
        lines_ = small.lines();
        int64_t* large_at = offsets_;
        int64_t* small_at = offsets_ + most_lines;
        for (int64_t i = 0; i < lines_; ++i) {
            const int64_t h = i % small.length[1], d = i / small.length[1] % small.length[0];
            const int64_t n = i / (small.length[1] * small.length[0]);
            large_at[i] = (n * large.length[0] + d * g_.axis[0].in_step()) * plane_ + h * g_.axis[1].in_step() * line_;
            small_at[i] = i * small.length[2] * small_pixel_;
        }
        const int64_t panels = width_ / PANEL_WIDTH;
        const int64_t share = ceil_div(rows_ * panels * g_.groups, ITEMS_PER_THREAD * thread_count());
        const int64_t block_rows = least(ROW_BLOCK, round_up(share, 2 * TILE_ROWS)),
                      blocks = ceil_div(rows_, block_rows);
        const int64_t work = lines_ * small_.size[2] * least(rows_, block_rows) * PANEL_WIDTH;
        const int64_t grain = most<int64_t>(1, LEAST_WORK / most<int64_t>(1, work));
        parallel_for(0, g_.groups * panels * blocks, grain, [&](int64_t begin, int64_t end) {
            for (int64_t item = begin; item < end; ++item)
                add_block(item / (panels * blocks), item / blocks % panels, item % blocks * block_rows, block_rows,
                          accumulate, large_at, small_at);
        });
    }

    int64_t tap_offset(int64_t tap) const {
        const int64_t kw = tap % g_.axis[2].kernel, kh = tap / g_.axis[2].kernel % g_.axis[1].kernel;
        const int64_t kd = tap / (g_.axis[2].kernel * g_.axis[1].kernel);
        return (g_.axis[0].offset(0, kd) - low_[0]) * plane_ + (g_.axis[1].offset(0, kh) - low_[1]) * line_ +
               (g_.axis[2].offset(0, kw) - low_[2]) * large_pixel_;
    }

    void add_block(int64_t group, int64_t panel, int64_t first_row, int64_t block_rows, bool accumulate,
                   const int64_t* large_at, const int64_t* small_at) const {
        const int64_t rows = least(block_rows, rows_ - first_row);
        const int64_t vectors = panel_vectors(columns_, panel);
        const float* large = large_pixels_ + group * g_.in_channels;
        const float* small = small_pixels_ + group * g_.out_channels;
        const float* from[ROW_BLOCK];
        float* to[ROW_BLOCK];
        for (int64_t i = 0; i < rows; ++i) {
            const int64_t tap = (first_row + i) / row_channels_, channel = (first_row + i) % row_channels_;
            from[i] = rows_are_large_ ? large + tap_offset(tap) + channel : small + channel;
            to[i] = sums_ + (group * rows_ + first_row + i) * width_ + panel * PANEL_WIDTH;
        }
        const int64_t large_step = g_.axis[2].in_step() * large_pixel_;
        Product product{.rows = from,
                        .a_step = rows_are_large_ ? large_step : small_pixel_,
                        .a_offsets = rows_are_large_ ? large_at : small_at,
                        .b = rows_are_large_ ? small + panel * PANEL_WIDTH : large + panel * PANEL_WIDTH,
                        .b_step = rows_are_large_ ? small_pixel_ : large_step,
                        .b_offsets = rows_are_large_ ? small_at : large_at,
                        .batch = 0,
                        .depth = 0,
                        .c = to,
                        .accumulate = accumulate};
        if (rows_are_large_)
            return add_pixels(product, rows, vectors);
        // The taps are columns here: their offset moves B, one tap at a time.
        for (int64_t i = 0; i < rows;) {
            const int64_t tap = (first_row + i) / row_channels_;
            const int64_t of_tap = least(rows - i, (tap + 1) * row_channels_ - first_row - i);
            Product one = product;
            one.rows = from + i;
            one.c = to + i;
            one.b += tap_offset(tap);
            add_pixels(one, of_tap, vectors);
            i += of_tap;
        }
    }

    // Sums over all pixels of the lines, a batch of short lines or a part of a long one at a time.
    void add_pixels(Product product, int64_t rows, int64_t vectors) const {
        const int64_t width = small_.size[2], parts = ceil_div(width, DEPTH_PIXELS), part = ceil_div(width, parts);
        const int64_t batch = most<int64_t>(1, DEPTH_PIXELS / part);
        const int64_t *a_offsets = product.a_offsets, *b_offsets = product.b_offsets;
        const float* b = product.b;
        const float* shifted[ROW_BLOCK];
        const float* const* from = product.rows;
        product.rows = shifted;
        for (int64_t line = 0; line < lines_; line += batch)
            for (int64_t w = 0; w < width; w += part) {
                for (int64_t i = 0; i < rows; ++i)
                    shifted[i] = from[i] + w * product.a_step;
                product.a_offsets = a_offsets + line;
                product.b_offsets = b_offsets + line;
                product.b = b + w * product.b_step;
                product.batch = least(batch, lines_ - line);
                product.depth = least(part, width - w);
                multiply(product, rows, vectors);
                product.accumulate = true;
            }
    }

    template <class T>
    void write(T* out) const {
        const int64_t in = g_.in_channels, out_channels = g_.out_channels;
        const int64_t grain = most<int64_t>(1, 8192 / (taps_ * in));
        parallel_for(0, g_.groups * out_channels, grain, [&](int64_t begin, int64_t end) {
            for (int64_t item = begin; item < end; ++item) {
                const int64_t group = item / out_channels, o = item % out_channels;
                for (int64_t i = 0; i < in; ++i)
                    for (int64_t tap = 0; tap < taps_; ++tap) {
                        const int64_t row = tap * row_channels_ + (rows_are_large_ ? i : o);
                        const int64_t column = rows_are_large_ ? o : i;
                        from_float(sums_[(group * rows_ + row) * width_ + column], out + (item * in + i) * taps_ + tap);
                    }
            }
        });
    }

    // Float weights in blocks, transposed: rows of sums are taps apart in memory, columns whole filters.
    void write(float* out) const {
        if (!rows_are_large_)
            return write<float>(out);
        const int64_t in = g_.in_channels;
        const int64_t grain = most<int64_t>(1, 8192 / (taps_ * g_.out_channels));
        parallel_for(0, g_.groups * in, grain, [&](int64_t begin, int64_t end) {
            for (int64_t item = begin; item < end; ++item) {
                const int64_t group = item / in, i = item % in;
                transpose(sums_ + (group * rows_ + i) * width_, in * width_,
                          out + (group * g_.out_channels * in + i) * taps_, in * taps_, taps_, g_.out_channels);
            }
        });
    }

    const Geometry& g_;
    const Image &large_, &small_;
    const int64_t large_pixel_, small_pixel_;
    const bool rows_are_large_;
    const int64_t taps_;
    int64_t row_channels_, columns_, width_, rows_, low_[AXES], high_[AXES], line_, plane_, lines_;
    float *sums_, *large_pixels_, *small_pixels_;
    int64_t* offsets_;
};

}
}
