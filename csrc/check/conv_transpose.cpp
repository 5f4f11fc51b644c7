// Holds the kernels of csrc/cpu/conv_transpose to what they claim of their geometry, without data: every output is
// written once, and every tap is read at the input that the definition names, inside what was laid out for it. For all
// kernels, strides, dilations, paddings and output_paddings up to 4, and some longer kernels, in one dimension and in
// two.
//
// A kernel makes its addresses axis by axis. Where an output or an input lies along an axis follows from a phase and a
// step, or from a window, along that axis alone, and the kernel goes through all combinations of them. So what it
// writes is the product of what it writes along each axis: every output once if and only if every place of every axis
// once. What ties axes together is which kernel takes them. It is asked of every pair of axes whether each kernel's
// `fits` takes it, worth while or not, and then both must have kept that kernel's claim.
//
// Usage: built with -DAIGC_LEVEL=baseline -Icsrc and run; says what fails, if anything does, and then returns 1.
#include <cstdio>
#include <vector>

#include "cpu/conv_transpose/col2im.h"
#include "cpu/conv_transpose/depthwise.h"
#include "cpu/conv_transpose/matrix.h"
#include "cpu/conv_transpose/narrow.h"
#include "cpu/conv_transpose/parts.h"
#include "cpu/conv_transpose/windows.h"

namespace aigc {

static int64_t threads = 1;
int64_t thread_count() { return threads; }
void parallel_run(int64_t begin, int64_t end, int64_t, RangeFunction function, void* context) {
    function(context, begin, end);
}
Arena::Place Arena::here() { return {}; }
void* Arena::take(int64_t) { return nullptr; }
void Arena::return_to(const Place&) {}

namespace AIGC_LEVEL::conv_transpose {
namespace {

constexpr int64_t MOST = 4, SIZES = 7, MOST_THREADS_TRIED = 3, WIDE = 512, MOST_MESSAGES = 20;

int64_t failures = 0;

// One axis under examination; `holds` says so where it does not.
struct Claims {
    const Axis& a;
    const char* kernel;
    bool kept = true;

    void holds(bool fact, const char* what, int64_t number) {
        if (fact)
            return;
        kept = false;
        if (++failures <= MOST_MESSAGES)
            std::printf("%s: %s (%ld): kernel %ld, stride %ld, dilation %ld, padding %ld, %s, %ld to %ld\n", kernel,
                        what, long(number), long(a.kernel), long(a.stride), long(a.dilation), long(a.padding),
                        a.transposed ? "transposed" : "plain", long(a.in), long(a.out));
    }
    void once(const std::vector<int64_t>& times, const char* what) {
        for (size_t i = 0; i < times.size(); ++i)
            holds(times[i] == 1, what, int64_t(i));
    }
};

// The definition: whether a tap ties this input to this output.
bool meet(const Axis& a, int64_t in, int64_t tap, int64_t out) {
    return a.transposed ? in * a.stride - a.padding + tap * a.dilation == out
                        : out * a.stride - a.padding + tap * a.dilation == in;
}

// Phases and steps, which the direct way, Narrow, Col2im and the direct weight gradient go through.
bool phases_cover(const Axis& a) {
    Claims claims{a, "phases"};
    std::vector<int64_t> written(a.out), used(a.kernel);
    for (int64_t phase = 0; phase < a.phases(); ++phase) {
        a.each_tap(phase, [&](int64_t tap) { ++used[tap]; });
        int64_t of_phase = 0;
        for (int64_t tap = 0; tap < a.kernel; ++tap)
            of_phase += a.uses(phase, tap);
        claims.holds(of_phase == a.taps(phase), "each_tap and uses differ in a phase", phase);
        for (int64_t step = 0; step < a.steps(); ++step) {
            const int64_t out = a.output(phase, step);
            claims.holds(out >= 0 && (out < a.out) == (step < a.count(phase)), "a step leaves the map", out);
            if (out < 0 || out >= a.out)
                continue;
            ++written[out];
            for (int64_t tap = 0; tap < a.kernel; ++tap)
                for (int64_t in = 0; in < a.in; ++in) {
                    const bool reads = a.uses(phase, tap) && a.input(phase, tap, step) == in;
                    claims.holds(reads == meet(a, in, tap, out), "a tap reads another input", out);
                }
        }
    }
    claims.once(written, "an output is not written once");
    claims.once(used, "a tap is not of one phase");
    return claims.kept;
}

// What a tap reads of a box that was laid out for some steps, and where a step's taps meet the map.
bool boxes_hold(const Axis& a) {
    Claims claims{a, "boxes"};
    const Reach reach(a);
    for (int64_t first = 0; first < a.steps(); ++first)
        for (int64_t steps = 1; first + steps <= a.steps(); ++steps)
            for (int64_t phase = 0; phase < a.phases(); ++phase)
                a.each_tap(phase, [&](int64_t tap) {
                    for (const int64_t step : {first, first + steps - 1}) {
                        const int64_t at = a.input(phase, tap, step) - reach.origin(a, first);
                        claims.holds(at >= 0 && at < reach.length(a, steps), "a tap leaves its box", at);
                    }
                });
    for (int64_t phase = 0; phase < a.phases(); ++phase)
        for (int64_t step = 0, end; step < a.steps(); step = end) {
            end = a.end_of_same_taps(phase, step);
            claims.holds(end > step, "a region has no end", step);
            for (int64_t tap = 0; tap < a.kernel; ++tap)
                for (int64_t other = step; other < end; ++other)
                    claims.holds(a.reads(phase, tap, step) == a.reads(phase, tap, other), "a region's taps differ",
                                 other);
        }
    for (int64_t tap = 0; tap < a.kernel && !a.transposed; ++tap) {
        int64_t first, last;
        a.steps_inside(tap, a.out, first, last);
        for (int64_t step = 0; step < a.out; ++step)
            claims.holds(a.reads(0, tap, step) == (step >= first && step < last), "a tap's steps inside", tap);
    }
    return claims.kept;
}

// Finished lines of Narrow and Col2im, whose neighbouring sums are those of neighbouring inputs.
bool lines_hold(const Axis& a) {
    if (a.in_step() != 1)
        return false;
    Claims claims{a, "lines"};
    std::vector<float> sums(a.phases() * a.steps()), row(interleaved_size(a), -1.0f);
    for (size_t i = 0; i < sums.size(); ++i)
        sums[i] = static_cast<float>(i);
    for (int64_t phase = 0; phase < a.phases(); ++phase)
        for (int64_t step = 0; step < a.steps(); ++step)
            claims.holds(a.output(phase, step) < int64_t(row.size()), "a line is too short", a.output(phase, step));
    if (!claims.kept)
        return false;
    interleave(a, sums.data(), a.steps(), row.data());
    for (int64_t phase = 0; phase < a.phases(); ++phase)
        for (int64_t step = 0; step < a.count(phase); ++step)
            claims.holds(row[a.output(phase, step)] == sums[phase * a.steps() + step], "a sum in another place",
                         a.output(phase, step));
    return claims.kept;
}

// Depthwise packs the taps of a line in the order of what they read, and takes them for equally far apart.
bool spreads_hold(const Axis& a) {
    Claims claims{a, "depthwise"};
    for (int64_t phase = 0; phase < a.phases(); ++phase) {
        const int64_t count = a.taps(phase), spread = DepthwiseTiles::spread(a, phase);
        int64_t lowest = INT64_MAX, rank = 0;
        a.each_tap(phase, [&](int64_t tap) { lowest = least(lowest, a.offset(phase, tap)); });
        a.each_tap(phase, [&](int64_t tap) {
            const int64_t place = a.transposed ? count - 1 - rank : rank;
            claims.holds(a.offset(phase, tap) == lowest + place * spread, "a tap reads another input", tap);
            ++rank;
        });
    }
    return claims.kept;
}

// Winograd's windows along one axis, whether or not it gains by them.
class WindowClaims {
  public:
    WindowClaims(const Axis& a, Apart apart) : a_(a), w_(a, apart), claims_{a, "windows"} {}

    bool keep() {
        if (!w_.fits)
            return false;
        std::vector<int64_t> written(a_.out);
        // Lines of one tile and of all: those of others are shorter than the latter.
        lines(w_.tiles, written);
        claims_.once(written, "an output is not written once");
        written.assign(a_.out, 0);
        lines(w_.spread, written);
        claims_.once(written, "an output is not written once in the shortest lines");
        taps();
        inputs();
        return claims_.kept;
    }

  private:
    // Of a whole number of tiles that lie within each other.
    void lines(int64_t tiles, std::vector<int64_t>& written) {
        for (int64_t first_tile = 0; first_tile < w_.tiles; first_tile += tiles) {
            const int64_t window = w_.window_of(first_tile), first = w_.first_output(a_, window);
            std::vector<int64_t> line(w_.line_length(a_, tiles));
            for (int64_t phase = 0; phase < a_.phases(); ++phase)
                for (int64_t i = 0; i < tiles * w_.outputs; ++i) {
                    const int64_t of_tile = i % w_.outputs, further = w_.window_of(i / w_.outputs);
                    const int64_t at = w_.output(a_, phase, window) - first + further * a_.out_step() +
                                       of_tile * w_.tile_step(a_),
                                  out = first + at;
                    const bool inside = at >= 0 && at < int64_t(line.size());
                    claims_.holds(inside, "an output lies outside its line", at);
                    claims_.holds(out == w_.output(a_, phase, window + further + of_tile * w_.spread),
                                  "an output of another window", out);
                    line[inside ? at : 0] += inside;
                    if (inside && out >= 0 && out < a_.out)
                        ++written[out];
                }
            claims_.once(line, "a place of a line is not written once");
        }
    }

    void taps() {
        std::vector<int64_t> placed(a_.kernel);
        for (int64_t index = 0; index < w_.kinds; ++index) {
            for (int64_t place = 0; place < MOST_REACH; ++place) {
                const int64_t tap = w_.taps[index][place];
                claims_.holds(tap < 0 || place < w_.reach, "a tap lies outside its window", tap);
                if (tap >= 0)
                    ++placed[tap];
            }
            const bool first = w_.taps[index][0] >= 0, last = w_.taps[index][w_.reach - 1] >= 0;
            const uint64_t used = w_.used_points[index];
            claims_.holds(!first || (used & 1), "the first point is left out", index);
            claims_.holds(!last || (used >> (w_.points - 1) & 1), "the last point is left out", index);
            for (int64_t point = 1; point + 1 < w_.points; ++point)
                claims_.holds(used >> point & 1, "a point is left out", index);
        }
        claims_.once(placed, "a tap has not one place");
    }

    void inputs() {
        const int64_t points = w_.outputs + w_.reach - 1;
        claims_.holds(points == w_.points, "a window's points", points);
        for (int64_t tile = 0; tile < w_.tiles; ++tile)
            for (const int64_t before : {int64_t(0), tile / w_.spread / 2, tile / w_.spread})
                for (int64_t index = 0; index < w_.kinds; ++index)
                    input(before * w_.spread, tile, index);
    }

    // Of the last tiles of a strip that begins with the tile `first`.
    void input(int64_t first, int64_t tile, int64_t index) {
        const int64_t map = w_.phases ? 0 : index, phase = w_.phases ? index : 0, step = w_.point_step(a_);
        const int64_t tiles = round_up(tile - first + 1, w_.spread);
        const int64_t from = w_.first_input(a_, tile - first, map), to = from + (w_.points - 1) * step;
        claims_.holds(from >= 0 && to < w_.box_length(a_, tiles), "a window leaves its box", tile);
        for (int64_t i = 0; i < w_.outputs; ++i)
            for (int64_t place = 0; place < w_.reach; ++place) {
                const int64_t tap = w_.taps[index][place];
                const int64_t of = w_.window_of(tile) + i * w_.spread - (w_.phases ? w_.shifts[phase] : 0);
                const int64_t in = w_.box_origin(a_, first) + from + (i + place) * step;
                claims_.holds(tap < 0 || in == a_.input(phase, tap, of), "a tap reads another input", tap);
            }
    }

    const Axis& a_;
    const WindowAxis w_;
    Claims claims_;
};

// A map of one axis, along W.
Image image_of(int64_t size, int64_t channels) {
    const int64_t layout[] = {1, channels, 1, 1, size, channels * size, size, size, size, 1};
    return Image(nullptr, FLOAT32, layout);
}

Geometry geometry_of(const Axis& height, const Axis& width, int64_t in_channels, int64_t out_channels) {
    const int64_t none[GEOMETRY_NUMBERS] = {1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, width.transposed};
    Geometry g(none, image_of(1, in_channels), image_of(1, out_channels));
    g.axis[1] = height;
    g.axis[2] = width;
    return g;
}

const Axis& point_of(const Axis& like) {
    static const Axis plain{1, 1, 1, 1, 0, 1, false}, transposed{1, 1, 1, 1, 0, 1, true};
    return like.transposed ? transposed : plain;
}

// The ways in which an axis may be taken apart, whatever the others are.
std::vector<Apart> ways_of(const Axis& a) {
    if (!a.transposed)
        return {{false, false}, {false, true}};
    if (a.stride > 1)
        return {{true, false}, {true, true}};
    return {{false, false}, {false, true}, {true, false}, {true, true}};
}

bool windows_are_alike(const Axis& part, const Axis& whole, Apart way) {
    const WindowAxis w(part, way), of_whole(whole, way);
    return w.fits == of_whole.fits && w.reach == of_whole.reach &&
           !(w.fits && __builtin_memcmp(w.taps, of_whole.taps, sizeof(w.taps)));
}

// Parts of the output, each a convolution of its own with the weights that were packed for the whole.
bool parts_cover(const Axis& a) {
    Claims claims{a, "parts"};
    for (threads = 1; threads <= MOST_THREADS_TRIED; ++threads) {
        const Geometry g = geometry_of(point_of(a), a, WIDE, WIDE);
        const Image in = image_of(a.in, WIDE), out = image_of(a.out, WIDE);
        const Parts parts(g, in, out, 0);
        int64_t end = 0;
        for (int64_t i = 0; i < parts.count(); ++i) {
            const Part part = parts.at(i);
            const Axis& of = part.g.axis[2];
            claims.holds(part.out.data - out.data == end * out.element_size(), "a part begins elsewhere", end);
            claims.holds(of.out == part.out.size[2] && of.in == a.in, "a part's size", of.out);
            for (int64_t o = 0; o < of.out; ++o)
                for (int64_t tap = 0; tap < a.kernel; ++tap)
                    for (int64_t i_at = 0; i_at < a.in; ++i_at)
                        claims.holds(meet(of, i_at, tap, o) == meet(a, i_at, tap, end + o), "a part's taps", o);
            for (const Apart& way : ways_of(a)) {
                claims.holds(windows_are_alike(of, a, way), "a part's windows", i);
                claims.holds(!WindowAxis(of, way).fits || WindowClaims(of, way).keep(), "a part's windows", i);
            }
            claims.holds(phases_cover(of) && boxes_hold(of), "a part's phases", i);
            end += of.out;
        }
        claims.holds(end == a.out, "the parts end elsewhere", end);
    }
    threads = 1;
    return claims.kept;
}

// Of a single pixel every tap makes an output of its own, the one of its number.
bool taps_are_outputs(const Axis& a) {
    Claims claims{a, "matrix"};
    claims.holds(a.in == 1 && a.out == a.kernel, "the sizes differ", a.out);
    for (int64_t tap = 0; tap < a.kernel; ++tap)
        for (int64_t out = 0; out < a.out; ++out)
            claims.holds(meet(a, 0, tap, out) == (tap == out), "a tap of another output", tap);
    return claims.kept;
}

// An axis of every size that was tried, and the claims that it kept with all of them.
struct Kept {
    std::vector<Axis> axes;
    bool phases = true, lines = true, windows[2][2] = {{true, true}, {true, true}};

    bool windows_of(const Apart& way) const { return windows[way.phases][way.long_rows]; }
};

void examine(const Axis& a, Kept& kept) {
    kept.axes.push_back(a);
    kept.phases &= phases_cover(a) && boxes_hold(a) && spreads_hold(a) && parts_cover(a);
    for (const Apart& way : ways_of(a))
        kept.windows[way.phases][way.long_rows] &= WindowClaims(a, way).keep();
    kept.lines &= lines_hold(a);
}

// Calls f(kernel, stride, dilation, padding, output_padding) for all that a convolution may have.
template <class F>
void for_each_setting(bool transposed, const F& f) {
    for (int64_t kernel = 1; kernel <= MOST; ++kernel)
        for (int64_t stride = 1; stride <= MOST; ++stride)
            for (int64_t dilation = 1; dilation <= MOST; ++dilation)
                for (int64_t padding = 0; padding <= MOST; ++padding)
                    for (int64_t extra = 0; extra < (transposed ? most(stride, dilation) : 1); ++extra)
                        f(kernel, stride, dilation, padding, extra);
    for (const int64_t kernel : {5, 7, 8, 11})
        for (int64_t dilation = 1; dilation < MOST; ++dilation)
            for (const int64_t padding : {0, 4})
                f(kernel, 1, dilation, padding, 0);
}

std::vector<Kept> all_axes(bool transposed) {
    std::vector<Kept> found;
    for_each_setting(transposed, [&](int64_t kernel, int64_t stride, int64_t dilation, int64_t padding, int64_t extra) {
        Kept kept;
        for (int64_t in = 1; int64_t(kept.axes.size()) < SIZES; ++in) {
            const int64_t reach = dilation * (kernel - 1) + 1, room = in + 2 * padding - reach;
            const int64_t out =
                transposed ? (in - 1) * stride - 2 * padding + reach + extra : (room < 0 ? 0 : room / stride + 1);
            if (out > 0)
                examine({in, out, kernel, stride, padding, dilation, transposed}, kept);
        }
        found.push_back(kept);
    });
    return found;
}

// What a kernel takes together, each axis must have kept on its own.
void examine_pair(const Kept& height, const Kept& width) {
    constexpr int64_t FEW = COL2IM_CHANNELS < NARROW_CHANNELS ? COL2IM_CHANNELS : NARROW_CHANNELS;
    const Axis &h = height.axes.back(), &w = width.axes.back();
    const Geometry g = geometry_of(h, w, WIDE, FEW);
    Claims direct{h, "direct with another axis"}, windows{h, "windows with another axis"};
    Claims lines{h, "lines with another axis"};
    direct.holds(height.phases && width.phases, "kernel along W", w.kernel);
    const Windows apart(g);
    windows.holds(!apart.fit() || (height.windows_of(apart.without_long_rows()) && width.windows_of(apart.apart)),
                  "kernel along W", w.kernel);
    lines.holds(!(Narrow::fits(g) || Col2im::fits(g)) || (height.phases && height.lines && width.phases && width.lines),
                "kernel along W", w.kernel);
    for (const Axis* first : {&height.axes.front(), &h})
        for (const Axis* second : {&width.axes.front(), &w})
            if (Matrix::fits(geometry_of(*first, *second, WIDE, FEW)))
                direct.holds(taps_are_outputs(*first) && taps_are_outputs(*second), "kernel along W", w.kernel);
}

int64_t examine_all(bool transposed) {
    const std::vector<Kept> axes = all_axes(transposed);
    for (const Kept& height : axes)
        for (const Kept& width : axes)
            examine_pair(height, width);
    const auto count = static_cast<long>(axes.size());
    std::printf("%s: %ld axes of %ld sizes each, %ld pairs\n", transposed ? "transposed" : "plain", count, long(SIZES),
                count * count);
    return count;
}

}
}
}

int main() {
    using namespace aigc::AIGC_LEVEL::conv_transpose;
    examine_all(true);
    examine_all(false);
    std::printf("%ld claims do not hold\n", long(failures));
    return failures > 0;
}
