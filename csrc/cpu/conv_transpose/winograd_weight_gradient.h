// The weight gradient through the same windows: with the small map cut into tiles of m pixels, the taps of a window are
// the outputs of F(reach, m), so the sum over pixels becomes a product over tiles at every point; see windows.h.
#pragma once

#include "cpu/conv_transpose/weight_gradient.h"
#include "cpu/conv_transpose/windows.h"

namespace aigc::AIGC_LEVEL::conv_transpose {
namespace {

class WinogradWeightGradient {
  public:
    // The geometry is that of the convolution from `large` to `small`.
    WinogradWeightGradient(const Windows& windows, const Image& large, const Image& small)
        : w_(windows), g_(windows.g), large_(large), small_(small), pixel_(pixel_stride(small.channels)),
          width_(padded_columns(g_.out_channels)), values_(windows, large, false) {}

    // False where the maps hold values that the transform would spread or overflow: nothing usable is written then.
    bool run(void* out, int64_t dtype) {
        const int64_t sums_size = g_.groups * w_.points * w_.maps * g_.in_channels * width_;
        const Parts parts(g_, large_, small_, weight_of_sums(sums_size), SUMS_PER_THREAD);
        Scope scope;
        sums_ = sum_over(scope, parts, sums_size, [](const Part& part, float* sums) {
            const Windows windows(part.g);
            return WinogradWeightGradient(windows, part.in, part.out).sum(sums);
        });
        if (!sums_)
            return false;
        if (dtype == BFLOAT16)
            write(static_cast<uint16_t*>(out));
        else
            write(static_cast<float*>(out));
        return true;
    }

  private:
    Box box_of(const Strip& strip) const {
        Box box{strip.first_image, strip.images, {}, {}};
        for (int i = 0; i < AXES; ++i) {
            box.origin[i] = strip.first[i] * w_.axis[i].outputs;
            box.length[i] = strip.count[i] * w_.axis[i].outputs;
        }
        return box;
    }

    bool sum(float* sums) {
        sums_ = sums;
        const Strips strips(w_, small_.batch, large_.channels);
        const Strip largest = strips.largest();
        const int64_t box_size = round_up(box_of(largest).pixels() * pixel_, 16);
        const int64_t filters_size = w_.points * largest.tiles() * pixel_ + PANEL_WIDTH;
        Scope scope;
        place_terms(scope.take<int64_t>(w_.points * w_.maps));
        small_pixels_ = scope.take<float>(box_size + filters_size + values_.size(largest));
        filters_ = small_pixels_ + box_size;
        bool accumulate = false;
        return strips.all([&](const Strip& strip) {
            if (!values_.read(strip, filters_ + filters_size))
                return false;
            box_ = box_of(strip);
            read_box(small_, box_, small_pixels_, pixel_);
            if (!transform_small())
                return false;
            multiply_all(accumulate);
            accumulate = true;
            return true;
        });
    }

    // A tile of the small map is the filter here: m pixels to the points, along each axis.
    bool transform_small() {
        const Strip& strip = values_.strip();
        const int64_t grain = most<int64_t>(1, 8192 / (w_.points * pixel_)), step = strip.tiles() * pixel_;
        return parallel_all(0, strip.tiles(), grain, [&](int64_t begin, int64_t end) {
            float grid[POINTS * POINTS * POINTS * VF], other[POINTS * POINTS * POINTS * VF];
            vi suspicious{};
            for (int64_t tile = begin; tile < end; ++tile) {
                const Strip::Place place = strip.at(tile);
                int64_t pixel = place.n;
                for (int i = 0; i < AXES; ++i)
                    pixel = pixel * box_.length[i] + w_.axis[i].window_of(place.of[i]);
                const float* from = small_pixels_ + pixel * pixel_;
                for (int64_t c = 0; c < round_up(g_.out_channels * g_.groups, VF); c += VF) {
                    filter_tile(from + c, grid, other, suspicious);
                    for (int64_t point = 0; point < w_.points; ++point)
                        store(filters_ + point * step + tile * pixel_ + c, load(grid + point * VF));
                }
            }
            return !any(suspicious);
        });
    }

    void filter_tile(const float* from, float* grid, float* other, vi& suspicious) const {
        const WindowAxis* a = w_.axis;
        const int64_t md = a[0].outputs, mh = a[1].outputs, mw = a[2].outputs;
        const int64_t ph = a[1].points, pw = a[2].points;
        for (int64_t d = 0; d < md; ++d)
            for (int64_t h = 0; h < mh; ++h)
                for (int64_t w = 0; w < mw; ++w) {
                    const vf x = load(from + ((d * box_.length[1] + h) * box_.length[2] + w * a[2].spread) * pixel_);
                    suspicious |= ~((x < LARGEST) & (x > -LARGEST));
                    store(grid + ((d * mh + h) * mw + w) * VF, x);
                }
        for (int64_t row = 0; row < md * mh; ++row)
            filter(grid + row * mw * VF, mw, pw, VF, other + row * pw * VF, VF, VF);
        for (int64_t d = 0; d < md; ++d)
            for (int64_t w = 0; w < pw; ++w)
                filter(other + (d * mh * pw + w) * VF, mh, ph, pw * VF, grid + (d * ph * pw + w) * VF, pw * VF, VF);
        __builtin_memcpy(other, grid, sizeof(float) * md * ph * pw * VF);
        for (int64_t hw = 0; hw < ph * pw; ++hw)
            filter(other + hw * VF, md, a[0].points, ph * pw * VF, grid + hw * VF, ph * pw * VF, VF);
    }

    // sums: [group][point][map][large channel][width]
    void multiply_all(bool accumulate) const {
        const int64_t panels = panels_of(g_.out_channels), blocks = ceil_div(g_.in_channels, ROW_BLOCK);
        parallel_for(0, g_.groups * used_ * blocks * panels, 1, [&](int64_t begin, int64_t end) {
            for (int64_t item = begin; item < end; ++item) {
                const int64_t group = item / (blocks * panels * used_), term = terms_[item / (blocks * panels) % used_];
                multiply_block(group * w_.points * w_.maps + term, item / panels % blocks, item % panels, accumulate);
            }
        });
    }

    // The points and maps that have anything in common.
    void place_terms(int64_t* terms) {
        terms_ = terms, used_ = 0;
        for (int64_t point = 0; point < w_.points; ++point)
            for (int64_t map = 0; map < w_.maps; ++map)
                if (uses(point, map))
                    terms[used_++] = point * w_.maps + map;
    }
    bool uses(int64_t point, int64_t map) const {
        int64_t of[AXES];
        w_.map_of(map, of);
        return w_.used_points(of) >> point & 1;
    }

    void multiply_block(int64_t term, int64_t block, int64_t panel, bool accumulate) const {
        const int64_t map = term % w_.maps, point = term / w_.maps % w_.points, group = term / (w_.maps * w_.points);
        const int64_t first_row = block * ROW_BLOCK, rows = least(ROW_BLOCK, g_.in_channels - first_row);
        const float* from[ROW_BLOCK];
        float* to[ROW_BLOCK];
        for (int64_t i = 0; i < rows; ++i)
            to[i] = sums_ + (term * g_.in_channels + first_row + i) * width_ + panel * PANEL_WIDTH;
        const int64_t none = 0;
        for (int64_t tile = 0; tile < values_.strip().tiles(); tile += DEPTH_PIXELS) {
            for (int64_t i = 0; i < rows; ++i)
                from[i] = values_.at(point, map, tile) + group * g_.in_channels + first_row + i;
            const Product product{.rows = from,
                                  .a_step = values_.tile_step(),
                                  .a_offsets = &none,
                                  .b = filters_ + (point * values_.strip().tiles() + tile) * pixel_ +
                                       group * g_.out_channels + panel * PANEL_WIDTH,
                                  .b_step = pixel_,
                                  .b_offsets = &none,
                                  .batch = 1,
                                  .depth = least(DEPTH_PIXELS, values_.strip().tiles() - tile),
                                  .c = to,
                                  .accumulate = accumulate || tile > 0};
            multiply(product, rows, panel_vectors(g_.out_channels, panel));
        }
    }

    template <class T>
    void write(T* out) const {
        const int64_t taps = g_.taps(), in = g_.in_channels, channels = g_.out_channels;
        parallel_for(0, g_.groups * in, 1, [&](int64_t begin, int64_t end) {
            Scope scope;
            auto* stage = scope.take<float>(2 * taps * width_);
            float* turned = stage + taps * width_;
            for (int64_t item = begin; item < end; ++item) {
                const int64_t group = item / in, i = item % in;
                for (int64_t map = 0; map < w_.maps; ++map)
                    invert(group, map, i, stage);
                transpose(stage, width_, turned, taps, taps, channels);
                for (int64_t o = 0; o < channels; ++o)
                    for (int64_t tap = 0; tap < taps; ++tap)
                        from_float(turned[o * taps + tap], out + ((group * channels + o) * in + i) * taps + tap);
            }
        });
    }

    // The taps that one map holds, of one large channel: stage[tap][width].
    void invert(int64_t group, int64_t map, int64_t channel, float* stage) const {
        const WindowAxis* a = w_.axis;
        const int64_t ph = a[1].points, pw = a[2].points;
        int64_t map_of[AXES];
        w_.map_of(map, map_of);
        const uint64_t used = w_.used_points(map_of);
        for (int64_t v = 0; v < width_; v += VF) {
            vf grid[POINTS * POINTS * POINTS];
            for (int64_t point = 0; point < w_.points; ++point) {
                const int64_t term = (group * w_.points + point) * w_.maps + map;
                grid[point] = used >> point & 1 ? load(sums_ + (term * g_.in_channels + channel) * width_ + v) : vf{};
            }
            for (int64_t i = 0; i < ph * pw; ++i)
                inverse(grid + i, a[0].reach, ph * pw);
            for (int64_t d = 0; d < a[0].reach; ++d)
                for (int64_t w = 0; w < pw; ++w)
                    inverse(grid + d * ph * pw + w, a[1].reach, pw);
            for (int64_t dh = 0; dh < a[0].reach * a[1].reach; ++dh) {
                const int64_t d = dh / a[1].reach, h = dh % a[1].reach;
                vf* last = grid + (d * ph + h) * pw;
                inverse(last, a[2].reach, 1);
                for (int64_t w = 0; w < a[2].reach; ++w) {
                    const int64_t kd = a[0].taps[map_of[0]][d], kh = a[1].taps[map_of[1]][h],
                                  kw = a[2].taps[map_of[2]][w];
                    if (kd >= 0 && kh >= 0 && kw >= 0)
                        store(stage + ((kd * g_.axis[1].kernel + kh) * g_.axis[2].kernel + kw) * width_ + v, last[w]);
                }
            }
        }
    }

    const Windows& w_;
    const Geometry& g_;
    const Image &large_, &small_;
    const int64_t pixel_, width_;
    WindowValues values_;
    Box box_;
    float *sums_, *small_pixels_, *filters_;
    const int64_t* terms_; // used points and maps, point * maps + map
    int64_t used_;
};

}
}
