// Between a user's tensor, of any strides and dtype, and the kernels' own layout: float, channels innermost, a border
// of zeros where the convolution reaches over the edge.
#pragma once

#include "core/activations.h"
#include "core/arena.h"
#include "core/packed.h"
#include "core/parallel.h"
#include "core/simd_math.h"
#include "cpu/conv_transpose/codes.h"
#include "cpu/conv_transpose/geometry.h"

namespace aigc::AIGC_LEVEL::conv_transpose {
namespace {

constexpr int64_t STAGE_COLUMNS = 64;

// Channels between neighbouring pixels: whole vectors, since the transforms write them, and not a multiple of 1 kB,
// which would map a column of pixels to few cache sets.
int64_t pixel_stride(int64_t channels) {
    const int64_t rounded = round_up(channels, VF > 8 ? VF : 8);
    return rounded % 64 == 0 ? rounded + 16 : rounded;
}

// A box of the input: `origin` may lie outside the image, where it reads zero.
struct Box {
    int64_t first_image, images, origin[AXES], length[AXES];

    int64_t lines() const { return images * length[0] * length[1]; }
    int64_t pixels() const { return lines() * length[2]; }
};

template <class T>
void read_channels_innermost(const T* in, int64_t pixels, int64_t step, int64_t channels, float* out,
                             int64_t out_step) {
    for (int64_t w = 0; w < pixels; ++w)
        for (int64_t c = 0; c < channels; ++c)
            out[w * out_step + c] = to_float(in[w * step + c]);
}

template <class T>
void read_pixels_innermost(const T* in, int64_t pixels, int64_t channel_step, int64_t step, int64_t channels,
                           float* out, int64_t out_step) {
    float stage[8 * STAGE_COLUMNS];
    for (int64_t c = 0; c < channels; c += 8)
        for (int64_t w = 0; w < pixels; w += STAGE_COLUMNS) {
            const int64_t rows = least<int64_t>(8, channels - c), columns = least(STAGE_COLUMNS, pixels - w);
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t i = 0; i < columns; ++i)
                    stage[r * STAGE_COLUMNS + i] = to_float(in[(c + r) * channel_step + (w + i) * step]);
            transpose(stage, STAGE_COLUMNS, out + w * out_step + c, out_step, rows, columns);
        }
}

void read_line(const Image& image, int64_t n, int64_t d, int64_t h, int64_t w, int64_t pixels, float* out,
               int64_t step) {
    const char* at = image.at(n, 0, d, h, w);
    const int64_t channel = image.channel_stride, pixel = image.stride[2];
    if (image.dtype == BFLOAT16) {
        const auto* in = reinterpret_cast<const uint16_t*>(at);
        channel == 1 ? read_channels_innermost(in, pixels, pixel, image.channels, out, step)
                     : read_pixels_innermost(in, pixels, channel, pixel, image.channels, out, step);
        return;
    }
    const auto* in = reinterpret_cast<const float*>(at);
    if (channel == 1)
        read_channels_innermost(in, pixels, pixel, image.channels, out, step);
    else if (pixel == 1)
        transpose(in, channel, out, step, image.channels, pixels);
    else
        read_pixels_innermost(in, pixels, channel, pixel, image.channels, out, step);
}

uint16_t rounded(uint16_t x) { return x; }
uint16_t rounded(float x) { return to_bfloat16(x); }

template <class T>
void read_pairs_innermost(const T* in, int64_t pixels, int64_t step, int64_t channels, Pair* out, int64_t out_step) {
    if (sizeof(T) == sizeof(bfloat16) && channels % 2 == 0) { // pairs already
        for (int64_t w = 0; w < pixels; ++w, in += step, out += out_step)
            __builtin_memcpy(out, in, sizeof(T) * channels);
        return;
    }
    for (int64_t w = 0; w < pixels; ++w, in += step, out += out_step) {
        for (int64_t c = 0; c + 1 < channels; c += 2)
            out[c / 2] = pair_of(rounded(in[c]), rounded(in[c + 1]));
        if (channels % 2)
            out[channels / 2] = rounded(in[channels - 1]);
    }
}

template <class T>
void pair_lines(const T* first, const T* second, int64_t step, int64_t count, Pair* out) {
    if (step == 1)
        for (int64_t i = 0; i < count; ++i)
            out[i] = pair_of(rounded(first[i]), rounded(second[i]));
    else
        for (int64_t i = 0; i < count; ++i)
            out[i] = pair_of(rounded(first[i * step]), rounded(second[i * step]));
}

template <class T>
void pair_channels(const T* in, int64_t pixels, int64_t channel_step, int64_t step, int64_t channels, Pair* out,
                   int64_t out_step) {
    Pair stage[TRANSPOSED * STAGE_COLUMNS];
    for (int64_t c = 0; c < channels; c += 2 * TRANSPOSED)
        for (int64_t w = 0; w < pixels; w += STAGE_COLUMNS) {
            const int64_t rows = least<int64_t>(TRANSPOSED, ceil_div(channels - c, 2)),
                          columns = least(STAGE_COLUMNS, pixels - w);
            for (int64_t r = 0; r < rows; ++r) {
                const T* first = in + (c + 2 * r) * channel_step + w * step;
                if (c + 2 * r + 1 < channels)
                    pair_lines(first, first + channel_step, step, columns, stage + r * STAGE_COLUMNS);
                else
                    for (int64_t i = 0; i < columns; ++i)
                        stage[r * STAGE_COLUMNS + i] = rounded(first[i * step]);
            }
            transpose(reinterpret_cast<const float*>(stage), STAGE_COLUMNS,
                      reinterpret_cast<float*>(out + w * out_step + c / 2), out_step, rows, columns);
        }
}

template <class T>
void read_pairs(const Image& image, const T* in, int64_t pixels, Pair* out, int64_t step) {
    if (image.channel_stride == 1)
        read_pairs_innermost(in, pixels, image.stride[2], image.channels, out, step);
    else
        pair_channels(in, pixels, image.channel_stride, image.stride[2], image.channels, out, step);
}

void read_line(const Image& image, int64_t n, int64_t d, int64_t h, int64_t w, int64_t pixels, Pair* out,
               int64_t step) {
    const char* at = image.at(n, 0, d, h, w);
    if (image.dtype == BFLOAT16)
        read_pairs(image, reinterpret_cast<const uint16_t*>(at), pixels, out, step);
    else
        read_pairs(image, reinterpret_cast<const float*>(at), pixels, out, step);
}

int64_t reflected(int64_t at, int64_t size) {
    while (size > 1 && (at < 0 || at >= size))
        at = at < 0 ? -at : 2 * (size - 1) - at;
    return size > 1 ? at : 0;
}

// The pixels of a line of the box beyond the first..last that lie inside the image, which were read.
template <class A, class F>
void reflect_line(const Image& image, const Box& box, int64_t n, int64_t d, int64_t h, int64_t first, int64_t last,
                  A* line, int64_t step, const F& read) {
    for (int64_t w = first > 0 ? 0 : last; w < box.length[2]; w = w + 1 == first ? last : w + 1) {
        const int64_t from = reflected(box.origin[2] + w, image.size[2]), in_box = from - box.origin[2];
        if (in_box >= first && in_box < last)
            __builtin_memcpy(line + w * step, line + in_box * step, sizeof(A) * step);
        else
            read(n, d, h, from, 1, line + w * step, step);
    }
}

// Calls read(n, d, h, w, pixels, out, step) for every line of the box inside the image, and clears what lies outside,
// or reflects what lies inside there.
// out: box.lines() x box.length[2] x step elements
template <class A, class F>
void for_each_line(const Image& image, const Box& box, A* out, int64_t step, const F& read) {
    const int64_t line_size = box.length[2] * step;
    const int64_t low = most<int64_t>(0, -box.origin[2]);
    const int64_t high = least(box.length[2], image.size[2] - box.origin[2]);
    const int64_t grain = most<int64_t>(1, 8192 / most<int64_t>(1, line_size));
    parallel_for(0, box.lines(), grain, [&](int64_t begin, int64_t end) {
        for (int64_t line = begin; line < end; ++line) {
            int64_t h = box.origin[1] + line % box.length[1], d = box.origin[0] + line / box.length[1] % box.length[0];
            const int64_t n = box.first_image + line / (box.length[1] * box.length[0]);
            A* at = out + line * line_size;
            if (image.with.reflects) {
                h = reflected(h, image.size[1]);
                d = reflected(d, image.size[0]);
                const int64_t first = least(low, box.length[2]), last = most(first, high);
                if (first < last)
                    read(n, d, h, box.origin[2] + first, last - first, at + first * step, step);
                reflect_line(image, box, n, d, h, first, last, at, step, read);
                continue;
            }
            const bool inside = h >= 0 && h < image.size[1] && d >= 0 && d < image.size[0] && low < high;
            const int64_t first = inside ? low : box.length[2], last = inside ? high : box.length[2];
            __builtin_memset(at, 0, sizeof(A) * first * step);
            if (inside)
                read(n, d, h, box.origin[2] + first, last - first, at + first * step, step);
            __builtin_memset(at + last * step, 0, sizeof(A) * (box.length[2] - last) * step);
        }
    });
}

void activate_pixels(const Image& image, int64_t pixels, float* at, int64_t step) {
    with_activation(image.with.activation, image.with.slope, [&](const auto& f, const auto&) {
        for (int64_t i = 0; i < pixels; ++i, at += step)
            for_each_vector(image.channels, [&](int64_t c, int64_t n)
                                                AIGC_INLINE { store_up_to(at + c, f(load_up_to(at + c, n)), n); });
    });
}

template <class A>
void read_box(const Image& image, const Box& box, A* out, int64_t step) {
    for_each_line(image, box, out, step,
                  [&](int64_t n, int64_t d, int64_t h, int64_t w, int64_t pixels, A* at, int64_t) {
                      read_line(image, n, d, h, w, pixels, at, step);
                      if constexpr (!IS_PAIR<A>)
                          if (image.with.activation != NONE)
                              activate_pixels(image, pixels, at, step);
                  });
}

// The same as read_box for two planes of pairs. False where a value is not finite: it would spread.
bool read_split_box(const Image& image, const Box& box, Pair* out, int64_t step) {
    const int64_t pixel = pixel_stride(image.channels), depth = elements_of<Pair>(image.channels);
    bool finite = true;
    for_each_line(image, box, out, step,
                  [&](int64_t n, int64_t d, int64_t h, int64_t w, int64_t pixels, Pair* at, int64_t) {
                      Scope scope;
                      auto* line = scope.take<float>(pixels * pixel);
                      read_line(image, n, d, h, w, pixels, line, pixel);
                      vi bad{};
                      for (int64_t i = 0; i < pixels; ++i)
                          bad |= pack_row(line + i * pixel, image.channels, depth, SPLIT_PLANES, at + i * step, depth);
                      if (any(bad))
                          __atomic_store_n(&finite, false, __ATOMIC_RELAXED);
                  });
    return finite;
}

// What happens to a sum before it is written.
struct Epilogue {
    const float* bias; // one per output channel, or null
    int64_t activation;
    float slope;

    // Pixel-major sums: `channels` neighbours from first_channel on, `step` floats between pixels, in whole vectors.
    void apply(float* pixels, int64_t count, int64_t step, int64_t channels, int64_t first_channel) const {
        if (!bias && activation == NONE)
            return;
        for (int64_t c = 0; c < channels; c += VF)
            finish(pixels + c, count, step, bias ? load_part(bias + first_channel + c, channels - c) : vf{});
    }

    // Neighbouring pixels of one channel, up to a whole vector.
    void apply_row(float* row, int64_t count, int64_t channel) const {
        if (bias || activation != NONE)
            finish(row, ceil_div(count, VF), VF, broadcast(bias ? bias[channel] : 0));
    }

  private:
    void finish(float* x, int64_t count, int64_t step, vf shift) const {
        with_activation(activation, slope, [&](const auto& f, const auto&) {
            each(x, count, step, [&](vf v) AIGC_INLINE { return f(v + shift); });
        });
    }

    template <class F>
    static void each(float* x, int64_t count, int64_t step, const F& f) {
        for (int64_t i = 0; i < count; ++i, x += step)
            store(x, f(load(x)));
    }
};

void write_floats(const float* in, int64_t count, float* out) { __builtin_memcpy(out, in, sizeof(float) * count); }
void write_floats(const float* in, int64_t count, bfloat16* out) {
    for_each_vector(count, [&](int64_t i, int64_t n) AIGC_INLINE { store_up_to(out + i, load_up_to(in + i, n), n); });
}

template <class T>
void write_pixels(const float* in, int64_t count, T* out, int64_t step) {
    if (step == 1)
        return write_floats(in, count, out);
    for (int64_t i = 0; i < count; ++i)
        from_float(in[i], out + i * step);
}

template <class T>
void write_scattered(const float* in, int64_t step, int64_t pixels, int64_t channels, T* out, int64_t channel_step,
                     int64_t pixel_step) {
    if (channel_step == 1) {
        for (int64_t w = 0; w < pixels; ++w)
            write_floats(in + w * step, channels, out + w * pixel_step);
        return;
    }
    float stage[TRANSPOSED * STAGE_COLUMNS];
    for (int64_t w = 0; w < pixels; w += STAGE_COLUMNS)
        for (int64_t c = 0; c < channels; c += TRANSPOSED) {
            const int64_t columns = least(TRANSPOSED, channels - c), rows = least(STAGE_COLUMNS, pixels - w);
            transpose(in + w * step + c, step, stage, STAGE_COLUMNS, rows, columns);
            for (int64_t i = 0; i < columns; ++i)
                write_pixels(stage + i * STAGE_COLUMNS, rows, out + (c + i) * channel_step + w * pixel_step,
                             pixel_step);
        }
}

// To floats, `count` neighbours each in lines `step` floats apart.
void add_lines(float* out, int64_t to_added, int64_t lines, int64_t step, int64_t count) {
    for (int64_t i = 0; i < lines; ++i, out += step) {
        const auto* added = reinterpret_cast<const float*>(reinterpret_cast<const char*>(out) + to_added);
        for_each_vector(count, [&](int64_t at, int64_t n) AIGC_INLINE {
            store_up_to(out + at, load_up_to(out + at, n) + load_up_to(added + at, n), n);
        });
    }
}

// Of floats whose pixels or channels are neighbours.
void add_to_line(const Image& image, char* at, int64_t pixels, int64_t channels) {
    auto* const out = reinterpret_cast<float*>(at);
    if (image.channel_stride == 1)
        add_lines(out, image.with.to_added, pixels, image.stride[2], channels);
    else
        add_lines(out, image.with.to_added, channels, image.channel_stride, pixels);
}

// Writes `pixels` neighbours along W, `channels` from first_channel on, out of pixel-major sums.
void write_line(const float* in, int64_t step, int64_t pixels, int64_t channels, const Image& image, int64_t n,
                int64_t first_channel, int64_t d, int64_t h, int64_t w) {
    char* at = image.at(n, first_channel, d, h, w);
    if (image.dtype == BFLOAT16)
        write_scattered(in, step, pixels, channels, reinterpret_cast<uint16_t*>(at), image.channel_stride,
                        image.stride[2]);
    else if (image.stride[2] == 1 && image.channel_stride != 1)
        transpose(in, step, reinterpret_cast<float*>(at), image.channel_stride, pixels, channels);
    else
        write_scattered(in, step, pixels, channels, reinterpret_cast<float*>(at), image.channel_stride,
                        image.stride[2]);
    if (image.with.to_added != 0)
        add_to_line(image, at, pixels, channels);
}

}
}
