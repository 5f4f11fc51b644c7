// The shape of a convolution as the kernels see it: three spatial axes, each cut into output phases.
//
// A transposed convolution with stride s is s interleaved stride-1 convolutions per axis: output o takes only the taps
// k with (o + padding - k * dilation) divisible by s. A plain convolution is one phase that steps through its input by
// s.
//
// What a kernel requires of a geometry is its `fits`; the direct one and the direct weight gradient take every
// geometry. What it claims to cover is said where its addresses are made, and csrc/check/conv_transpose.cpp holds it to
// that: every output is written once, every tap read inside what was laid out for it.
#pragma once

#include "core/activation_codes.h"
#include "core/dtypes.h"
#include "core/integers.h"

namespace aigc::AIGC_LEVEL::conv_transpose {
namespace {

constexpr int AXES = 3, GEOMETRY_NUMBERS = 14;

struct Axis {
    int64_t in, out, kernel, stride, padding, dilation;
    bool transposed;

    int64_t phases() const { return transposed ? stride : 1; }
    int64_t in_step() const { return transposed ? 1 : stride; }
    int64_t out_step() const { return transposed ? stride : 1; }
    // Outputs per phase, the longest.
    int64_t steps() const { return ceil_div(out, out_step()); }
    int64_t first_out(int64_t phase) const { return transposed ? ((phase - padding) % stride + stride) % stride : 0; }
    int64_t count(int64_t phase) const {
        const int64_t first = first_out(phase);
        return first < out ? ceil_div(out - first, out_step()) : 0;
    }
    bool uses(int64_t phase, int64_t tap) const { return !transposed || (tap * dilation) % stride == phase; }
    // Every output is that of one phase and one of its first `count` steps; those of the others lie beyond the map.
    int64_t output(int64_t phase, int64_t step) const { return first_out(phase) + out_step() * step; }
    int64_t offset(int64_t phase, int64_t tap) const {
        return transposed ? (first_out(phase) + padding - tap * dilation) / stride : tap * dilation - padding;
    }
    // What a step of a phase reads for each of its taps.
    int64_t input(int64_t phase, int64_t tap, int64_t step) const { return in_step() * step + offset(phase, tap); }
    // Whether a tap of this step of a phase lies inside the map.
    bool reads(int64_t phase, int64_t tap, int64_t step) const {
        const int64_t at = input(phase, tap, step);
        return uses(phase, tap) && step < count(phase) && at >= 0 && at < in;
    }
    // The steps, [first, last) of those below `size`, at which a tap of a plain convolution reads inside the map.
    void steps_inside(int64_t tap, int64_t size, int64_t& first, int64_t& last) const {
        first = least(size, most<int64_t>(0, ceil_div(-offset(0, tap), stride)));
        last = most(first, least(size, ceil_div(in - offset(0, tap), stride)));
    }
    // The end of the steps that read the same taps as `step`.
    int64_t end_of_same_taps(int64_t phase, int64_t step) const {
        int64_t end = steps();
        const auto change = [&](int64_t at) { end = at > step ? least(at, end) : end; };
        change(count(phase));
        for (int64_t k = 0; k < kernel; ++k)
            if (uses(phase, k)) {
                change(ceil_div(-offset(phase, k), in_step()));
                change(ceil_div(in - offset(phase, k), in_step()));
            }
        return end;
    }
    // Products of one channel with another.
    int64_t products() const {
        int64_t all = 0;
        for (int64_t phase = 0; phase < phases(); ++phase)
            all += taps(phase) * steps();
        return all;
    }
    // Those that read inside the map.
    int64_t products_inside() const {
        int64_t inside = 0;
        for (int64_t phase = 0; phase < phases(); ++phase)
            for (int64_t step = 0, end; step < steps(); step = end) {
                end = end_of_same_taps(phase, step);
                for (int64_t k = 0; k < kernel; ++k)
                    inside += reads(phase, k, step) * (end - step);
            }
        return inside;
    }
    // Calls f(tap) for those that a phase uses; without a division for each, which small maps would notice.
    template <class F>
    void each_tap(int64_t phase, const F& f) const {
        int64_t rest = transposed ? 0 : phase;
        for (int64_t k = 0; k < kernel; ++k) {
            if (rest == phase)
                f(k);
            if (transposed)
                for (rest += dilation; rest >= stride;)
                    rest -= stride;
        }
    }
    int64_t taps(int64_t phase) const {
        int64_t found = 0;
        each_tap(phase, [&](int64_t) { ++found; });
        return found;
    }
};

// The offsets of all taps along an axis, from which follows what steps read.
struct Reach {
    int64_t low = INT64_MAX, high = INT64_MIN;

    explicit Reach(const Axis& a) {
        for (int64_t phase = 0; phase < a.phases(); ++phase)
            a.each_tap(phase, [&](int64_t k) {
                low = least(low, a.offset(phase, k));
                high = most(high, a.offset(phase, k));
            });
    }
    // All that `steps` steps of every phase read, from the first one on.
    int64_t origin(const Axis& a, int64_t first_step) const { return a.in_step() * first_step + low; }
    int64_t length(const Axis& a, int64_t steps) const { return a.in_step() * (steps - 1) + high - low + 1; }
};

// What meets an element of a map before, or after, the convolution that reads, or writes, it.
struct Surroundings {
    int64_t activation = NONE; // of what is read; 0 stays 0
    float slope = 0;
    bool reflects = false; // beyond the map's edges it is read as in a mirror, not as 0
    int64_t to_added = 0;  // bytes from each element that is written to what is added to it; 0 for nothing

    bool is_read_as_it_lies() const { return activation == NONE && !reflects; }
};

// A tensor (N, C, D, H, W) of any strides.
struct Image {
    char* data;
    int64_t dtype, batch, channels, size[AXES], batch_stride, channel_stride, stride[AXES];
    Surroundings with;

    // sizes and strides of the five dimensions
    Image(void* pointer, int64_t element, const int64_t* layout)
        : data(static_cast<char*>(pointer)), dtype(element), batch(layout[0]), channels(layout[1]),
          batch_stride(layout[5]), channel_stride(layout[6]) {
        for (int i = 0; i < AXES; ++i) {
            size[i] = layout[2 + i];
            stride[i] = layout[7 + i];
        }
    }
    int64_t element_size() const { return ELEMENT_BYTES[dtype]; }
    int64_t numel() const { return batch * channels * size[0] * size[1] * size[2]; }
    Image images(int64_t first, int64_t count) const {
        Image part(*this);
        part.data = at(first, 0, 0, 0, 0);
        part.batch = count;
        return part;
    }
    Image rows(int axis, int64_t first, int64_t count) const {
        Image part(*this);
        part.data += element_size() * first * stride[axis];
        part.size[axis] = count;
        return part;
    }
    char* at(int64_t n, int64_t c, int64_t d, int64_t h, int64_t w) const {
        return data +
               element_size() * (n * batch_stride + c * channel_stride + d * stride[0] + h * stride[1] + w * stride[2]);
    }
};

struct Geometry {
    Axis axis[AXES];
    int64_t groups, in_channels, out_channels; // channels of one group

    // kernel, stride, padding, dilation of three axes each; then groups, transposed: GEOMETRY_NUMBERS of them
    Geometry(const int64_t* list, const Image& in, const Image& out) {
        for (int i = 0; i < AXES; ++i)
            axis[i] = {in.size[i], out.size[i], list[i], list[3 + i], list[6 + i], list[9 + i], list[13] != 0};
        groups = list[12];
        in_channels = in.channels / groups;
        out_channels = out.channels / groups;
    }
    int64_t taps() const { return axis[0].kernel * axis[1].kernel * axis[2].kernel; }
    int64_t phases() const { return axis[0].phases() * axis[1].phases() * axis[2].phases(); }
    int64_t multiply_adds(const Image& out) const {
        int64_t total = out.batch * groups * in_channels * out_channels;
        for (const Axis& a : axis)
            total *= a.transposed ? a.in * a.kernel : a.out * a.kernel;
        return total;
    }
};

// A weight (dim0, dim1, D, H, W) of any strides, seen as (group, output channel, input channel, tap).
struct Weight {
    const char* data;
    int64_t dtype, group_stride, out_stride, in_stride, stride[AXES];

    Weight(const void* pointer, int64_t element, const int64_t* strides, const Geometry& g)
        : data(static_cast<const char*>(pointer)), dtype(element), stride{strides[2], strides[3], strides[4]} {
        const bool transposed = g.axis[0].transposed;
        out_stride = strides[transposed ? 1 : 0];
        in_stride = strides[transposed ? 0 : 1];
        group_stride = strides[0] * (transposed ? g.in_channels : g.out_channels);
    }
    int64_t element_size() const { return ELEMENT_BYTES[dtype]; }
    const char* at(int64_t group, int64_t out, int64_t in, int64_t tap_offset = 0) const {
        return data + element_size() * (group * group_stride + out * out_stride + in * in_stride + tap_offset);
    }
    // The taps are neighbours in memory, in order.
    bool taps_are_adjacent(const Geometry& g) const {
        int64_t expected = 1;
        for (int i = AXES - 1; i >= 0; --i) {
            if (g.axis[i].kernel > 1 && stride[i] != expected)
                return false;
            expected *= g.axis[i].kernel;
        }
        return true;
    }
};

// Which part of which phase a tap belongs to.
struct PhaseTaps {
    int64_t phase[AXES];

    PhaseTaps(const Geometry& g, int64_t index) {
        for (int i = AXES - 1; i >= 0; --i) {
            phase[i] = index % g.axis[i].phases();
            index /= g.axis[i].phases();
        }
    }
    int64_t taps(const Geometry& g) const {
        return g.axis[0].taps(phase[0]) * g.axis[1].taps(phase[1]) * g.axis[2].taps(phase[2]);
    }
    // Calls f(rank within the phase, tap per axis).
    template <class F>
    void each(const Geometry& g, const F& f) const {
        int64_t rank = 0;
        g.axis[0].each_tap(phase[0], [&](int64_t kd) {
            g.axis[1].each_tap(phase[1], [&](int64_t kh) {
                g.axis[2].each_tap(phase[2], [&](int64_t kw) { f(rank++, kd, kh, kw); });
            });
        });
    }
};

}
}
