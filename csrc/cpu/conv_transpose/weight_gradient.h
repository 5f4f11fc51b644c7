// The weight gradient, shared by convolution and its transpose: for every tap, large-map channels x small-map channels,
// summed over the pixels of the small map. The sum runs along the depth of the product, so both maps are read as they
// lie, channels innermost, and nothing is transposed.
#pragma once

#include "core/cpu.h"
#include "cpu/conv_transpose/direct.h"
#include "cpu/conv_transpose/parts.h"

namespace aigc::AIGC_LEVEL::conv_transpose {
namespace {

constexpr int64_t DEPTH_PIXELS = 128;   // pixels of a partial sum: both operands of a tile stay in L1
constexpr int64_t ROW_BLOCK = 96;       // rows of a work item, at most: their pixels stay in L2 for all its panels
constexpr int64_t PANEL_BLOCK = 8;      // panels of a work item, at most
constexpr int64_t ITEMS_PER_THREAD = 4; // at least, where there are rows and panels enough
constexpr int64_t MOST_SUMS = 512 << 10, MOST_THREADS = 1 << 16;
constexpr int64_t SUMS_PER_THREAD = 2; // partial sums; each is added up again

// Both maps, packed, of the pixels that are summed at a time: every tap reads them again.
int64_t sum_floats() { return second_level_cache() / 2 / int64_t(sizeof(float)); }

// How sums of a part weigh, for Parts: those that leave the cache are read and written again for every few images.
int64_t weight_of_sums(int64_t sums_size) { return sums_size <= MOST_SUMS ? sums_size : INT64_MAX / MOST_THREADS; }

class WeightGradient {
  public:
    // The geometry is that of the convolution from `large` to `small`.
    WeightGradient(const Geometry& g, const Image& large, const Image& small)
        : g_(g), large_(large), small_(small), large_pixel_(pixel_stride(large.channels)),
          small_pixel_(pixel_stride(small.channels)),
          rows_are_large_(g.out_channels >= 2 * VF || g.out_channels >= g.in_channels), taps_(g.taps()),
          reach_{Reach(g.axis[0]), Reach(g.axis[1]), Reach(g.axis[2])} {
        row_channels_ = rows_are_large_ ? g.in_channels : g.out_channels;
        columns_ = rows_are_large_ ? g.out_channels : g.in_channels;
        width_ = padded_columns(columns_);
        // Rows and planes a power of two apart would share their cache sets.
        sums_step_ = pixel_stride(width_);
        sums_plane_ = row_channels_ * sums_step_ + VF;
        by_tap_ = !rows_are_large_ || row_channels_ >= 2 * TILE_ROWS;
    }

    // out: (small channels, large channels / groups, taps), contiguous
    void run(void* out, int64_t dtype) {
        const int64_t sums_size = g_.groups * taps_ * sums_plane_;
        const Parts parts(g_, large_, small_, weight_of_sums(sums_size), SUMS_PER_THREAD);
        Scope scope;
        sums_ = sum_over(scope, parts, sums_size, [](const Part& part, float* sums) {
            WeightGradient(part.g, part.in, part.out).sum(sums);
            return true;
        });
        if (dtype == BFLOAT16)
            write(static_cast<uint16_t*>(out));
        else
            write(static_cast<float*>(out));
    }

  private:
    // Lines of the small map, by where they and what a tap reads start in the packed maps, and their pixels along W.
    struct Lines {
        int64_t *large, *small, count, first_w, last_w;
    };

    static int64_t image_floats(const Box& box, int64_t pixel) { return round_up(box.pixels() * pixel, 16); }

    Box large_box(int64_t first, int64_t images) const {
        Box box{first, images, {}, {}};
        for (int i = 0; i < AXES; ++i) {
            box.origin[i] = reach_[i].origin(g_.axis[i], 0);
            box.length[i] = reach_[i].length(g_.axis[i], small_.size[i]);
        }
        return box;
    }
    Box small_box(int64_t first, int64_t images) const {
        return {first, images, {}, {small_.size[0], small_.size[1], small_.size[2]}};
    }

    int64_t per_image() const {
        return image_floats(large_box(0, 1), large_pixel_) + image_floats(small_box(0, 1), small_pixel_);
    }
    // Taps across W, each with its own lines where the others' pixels lie outside the large map.
    int64_t lists() const { return by_tap_ ? g_.axis[0].kernel * g_.axis[1].kernel : 1; }

    void sum(float* sums) {
        sums_ = sums;
        // Sums that leave the cache are worth more images at a time.
        const int64_t floats = most(sum_floats(), g_.groups * taps_ * sums_plane_ / 2);
        const int64_t most_images = most<int64_t>(1, least(small_.batch, floats / per_image()));
        const int64_t images = ceil_div(small_.batch, ceil_div(small_.batch, most_images));
        const int64_t most_lines = images * small_.size[0] * small_.size[1];
        Scope scope;
        large_pixels_ = scope.take<float>(images * per_image() + 4 * PANEL_WIDTH);
        small_pixels_ = large_pixels_ + images * image_floats(large_box(0, 1), large_pixel_) + 2 * PANEL_WIDTH;
        lines_ = scope.take<Lines>(lists());
        auto* offsets = scope.take<int64_t>(lists() * 2 * most_lines);
        for (int64_t list = 0; list < lists(); ++list) {
            lines_[list].large = offsets + 2 * list * most_lines;
            lines_[list].small = lines_[list].large + most_lines;
        }
        for (int64_t first = 0; first < small_.batch; first += images)
            add_images(first, least(images, small_.batch - first), first > 0);
    }

    // The steps of the small map at which a tap reads inside the large one; all where taps are not told apart.
    void steps_inside(int axis, int64_t tap, int64_t& first, int64_t& last) const {
        first = 0, last = small_.size[axis];
        if (by_tap_)
            g_.axis[axis].steps_inside(tap, last, first, last);
    }

    void list_lines(int64_t kd, int64_t kh, int64_t images, const Box& large, Lines& lines) const {
        int64_t first_d, last_d, first_h, last_h;
        steps_inside(0, kd, first_d, last_d);
        steps_inside(1, kh, first_h, last_h);
        lines.count = 0;
        for (int64_t n = 0; n < images; ++n)
            for (int64_t d = first_d; d < last_d; ++d)
                for (int64_t h = first_h; h < last_h; ++h, ++lines.count) {
                    lines.large[lines.count] =
                        (n * large.length[0] + d * g_.axis[0].in_step()) * plane_ + h * g_.axis[1].in_step() * line_;
                    lines.small[lines.count] =
                        ((n * small_.size[0] + d) * small_.size[1] + h) * small_.size[2] * small_pixel_;
                }
    }

    void add_images(int64_t first, int64_t images, bool accumulate) {
        const Box large = large_box(first, images), small = small_box(first, images);
        read_box(large_, large, large_pixels_, large_pixel_);
        read_box(small_, small, small_pixels_, small_pixel_);
        line_ = large.length[2] * large_pixel_;
        plane_ = large.length[1] * line_;
        for (int64_t list = 0; list < lists(); ++list)
            list_lines(list / g_.axis[1].kernel, list % g_.axis[1].kernel, images, large, lines_[list]);
        const Cut cut = cut_of();
        const int64_t work = small.pixels() * cut.rows * cut.panels * PANEL_WIDTH;
        const int64_t grain = most<int64_t>(1, LEAST_WORK / most<int64_t>(1, work));
        parallel_for(0, cut.items(*this), grain, [&](int64_t begin, int64_t end) {
            for (int64_t item = begin; item < end; ++item)
                add_block(block_of(cut, item), accumulate);
        });
    }

    // Rows of a tap or, where `by_tap_` is false, of all taps; and panels of columns.
    struct Block {
        int64_t group, tap, first_row, rows, first_panel, panels;
    };

    // How many rows and panels a block has.
    struct Cut {
        int64_t rows, panels;
        int64_t row_blocks(const WeightGradient& of) const { return ceil_div(of.rows(), rows); }
        int64_t panel_blocks(const WeightGradient& of) const { return ceil_div(of.panels(), panels); }
        int64_t items(const WeightGradient& of) const {
            return of.g_.groups * of.tap_blocks() * row_blocks(of) * panel_blocks(of);
        }
    };

    int64_t rows() const { return by_tap_ ? row_channels_ : taps_ * row_channels_; }
    int64_t tap_blocks() const { return by_tap_ ? taps_ : 1; }
    int64_t panels() const { return panels_of(columns_); }

    Cut cut_of() const {
        Cut cut{least(ROW_BLOCK, rows()), least(PANEL_BLOCK, panels())};
        const int64_t wanted = ITEMS_PER_THREAD * thread_count();
        while (cut.items(*this) < wanted && cut.panels > 1)
            cut.panels = ceil_div(cut.panels, 2);
        while (cut.items(*this) < wanted && cut.rows > 2 * TILE_ROWS)
            cut.rows = round_up(ceil_div(cut.rows, 2), TILE_ROWS);
        return cut;
    }

    Block block_of(const Cut& cut, int64_t item) const {
        const int64_t row_blocks = cut.row_blocks(*this), panel_blocks = cut.panel_blocks(*this);
        Block block;
        block.first_panel = item % panel_blocks * cut.panels;
        block.panels = least(cut.panels, panels() - block.first_panel);
        item /= panel_blocks;
        block.first_row = item % row_blocks * cut.rows;
        block.rows = least(cut.rows, rows() - block.first_row);
        item /= row_blocks;
        block.tap = item % tap_blocks();
        block.group = item / tap_blocks();
        return block;
    }

    int64_t tap_offset(int64_t tap) const {
        const int64_t kw = tap % g_.axis[2].kernel, kh = tap / g_.axis[2].kernel % g_.axis[1].kernel;
        const int64_t kd = tap / (g_.axis[2].kernel * g_.axis[1].kernel);
        return (g_.axis[0].offset(0, kd) - reach_[0].low) * plane_ +
               (g_.axis[1].offset(0, kh) - reach_[1].low) * line_ +
               (g_.axis[2].offset(0, kw) - reach_[2].low) * large_pixel_;
    }

    float* sums_of(int64_t group, int64_t tap) const { return sums_ + (group * taps_ + tap) * sums_plane_; }

    void add_block(const Block& block, bool accumulate) const {
        const float* large = large_pixels_ + block.group * g_.in_channels;
        const float* small = small_pixels_ + block.group * g_.out_channels;
        const float* from[ROW_BLOCK];
        float* to[ROW_BLOCK];
        int64_t tap = block.tap + block.first_row / row_channels_, channel = block.first_row % row_channels_;
        for (int64_t i = 0; i < block.rows; ++tap, channel = 0) {
            const float* row = rows_are_large_ ? large + tap_offset(tap) : small;
            float* sum = sums_of(block.group, tap);
            for (; i < block.rows && channel < row_channels_; ++i, ++channel) {
                from[i] = row + channel;
                to[i] = sum + channel * sums_step_;
            }
        }
        Lines lines = lines_[by_tap_ ? block.tap / g_.axis[2].kernel : 0];
        steps_inside(2, block.tap % g_.axis[2].kernel, lines.first_w, lines.last_w);
        const int64_t large_step = g_.axis[2].in_step() * large_pixel_;
        const Product product{.rows = from,
                              .a_step = rows_are_large_ ? large_step : small_pixel_,
                              .a_offsets = rows_are_large_ ? lines.large : lines.small,
                              .b = rows_are_large_ ? small : large + tap_offset(block.tap),
                              .b_step = rows_are_large_ ? small_pixel_ : large_step,
                              .b_offsets = rows_are_large_ ? lines.small : lines.large,
                              .batch = 0,
                              .depth = 0,
                              .c = to,
                              .accumulate = accumulate};
        add_pixels(block, product, lines);
    }

    // Sums over all pixels of the lines, a batch of short lines or a part of a long one at a time.
    void add_pixels(const Block& block, const Product& all, const Lines& lines) const {
        const int64_t width = lines.last_w - lines.first_w, parts = most<int64_t>(1, ceil_div(width, DEPTH_PIXELS));
        const int64_t part = most<int64_t>(1, ceil_div(width, parts)), batch = most<int64_t>(1, DEPTH_PIXELS / part);
        if (width * lines.count == 0 && !all.accumulate)
            clear(block, all.c);
        Product product = all;
        for (int64_t line = 0; line < lines.count; line += batch)
            for (int64_t w = lines.first_w; w < lines.last_w; w += part) {
                product.a_offsets = all.a_offsets + line;
                product.b_offsets = all.b_offsets + line;
                product.batch = least(batch, lines.count - line);
                product.depth = least(part, lines.last_w - w);
                add_part(block, product, w);
                product.accumulate = true;
            }
    }

    // The same pixels for all panels of the block, from step w on.
    void add_part(const Block& block, Product product, int64_t w) const {
        const float* from[ROW_BLOCK];
        float* to[ROW_BLOCK];
        const float* const* rows = product.rows;
        float* const* sums = product.c;
        const float* const b = product.b + w * product.b_step;
        product.rows = from;
        product.c = to;
        for (int64_t i = 0; i < block.rows; ++i)
            from[i] = rows[i] + w * product.a_step;
        for (int64_t panel = block.first_panel; panel < block.first_panel + block.panels; ++panel) {
            for (int64_t i = 0; i < block.rows; ++i)
                to[i] = sums[i] + panel * PANEL_WIDTH;
            product.b = b + panel * PANEL_WIDTH;
            multiply(product, block.rows, panel_vectors(columns_, panel));
        }
    }

    void clear(const Block& block, float* const* sums) const {
        for (int64_t i = 0; i < block.rows; ++i)
            __builtin_memset(sums[i] + block.first_panel * PANEL_WIDTH, 0, sizeof(float) * block.panels * PANEL_WIDTH);
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
                        const int64_t row = rows_are_large_ ? i : o, column = rows_are_large_ ? o : i;
                        from_float(sums_of(group, tap)[row * sums_step_ + column], out + (item * in + i) * taps_ + tap);
                    }
            }
        });
    }

    // Float weights in blocks, transposed: rows of sums are taps apart in memory, columns whole filters. A few filters
    // at a time, so that their cache lines are finished before the next ones.
    void write(float* out) const {
        if (!rows_are_large_)
            return write<float>(out);
        constexpr int64_t FILTERS = 16;
        const int64_t in = g_.in_channels, out_channels = g_.out_channels;
        const int64_t grain = most<int64_t>(1, 8192 / (taps_ * out_channels));
        parallel_for(0, g_.groups * in, grain, [&](int64_t begin, int64_t end) {
            for (int64_t item = begin; item < end; ++item) {
                const int64_t group = item / in, i = item % in;
                for (int64_t o = 0; o < out_channels; o += FILTERS)
                    transpose(sums_of(group, 0) + i * sums_step_ + o, sums_plane_,
                              out + ((group * out_channels + o) * in + i) * taps_, in * taps_, taps_,
                              least(FILTERS, out_channels - o));
            }
        });
    }

    const Geometry& g_;
    const Image &large_, &small_;
    const int64_t large_pixel_, small_pixel_;
    const bool rows_are_large_;
    const int64_t taps_;
    const Reach reach_[AXES];
    int64_t row_channels_, columns_, width_, sums_step_, sums_plane_, line_, plane_;
    bool by_tap_; // a work item is of one tap, whose pixels outside the large map are left out
    float *sums_, *large_pixels_, *small_pixels_;
    Lines* lines_;
};

}
}
