// Winograd's minimal filtering (Lavin and Gray, arXiv:1509.09308) over the windows of a strided kernel.
//
// All phases of a transposed convolution read the same windows of `reach` neighbouring inputs (two for kernel 4 and
// stride 2), so one input transform serves them all: F(3, 2) takes 4 products where the direct way takes 6, per axis. A
// strided convolution is the mirror image: one output phase, and one map of inputs for each residue of the stride.
// Points 0, 1, -1 and infinity: transforms only add, halve and subtract, and the error stays in the direct way's class.
// A phase or residue with fewer taps than the others, as the odd ones of kernel 5, leaves 0 or infinity out.
//
// A longer kernel of one dimension is a sum of short ones, whose products add up before the output transform: 11 taps
// as 3 + 3 + 3 + 2 take 15 products for 22. One with dilation d is d plain ones, for each residue of the outputs.
//
// The outputs of a row of tiles are made in a line of their own and written from there, all phases at once. That takes
// phases whose outputs of a window are neighbours, which dilation can drive apart: see `WindowAxis::fits`.
#pragma once

#include "core/arena.h"
#include "cpu/conv_transpose/layout.h"

namespace aigc::AIGC_LEVEL::conv_transpose {
namespace {

constexpr int POINTS = 4;
constexpr int MOST_REACH = 3, MOST_STRIDE = 8;
constexpr int64_t MOST_KERNEL = 12, MOST_SPREAD = 16; // of a row that is cut into pieces
// Transformed input that is kept at a time, so that it stays in the caches; and the fewest tiles that are worth it.
constexpr int64_t VALUE_FLOATS = 1 << 19, LEAST_STRIP = 192;
constexpr float LARGEST = 1e30f; // beyond it, sums of inputs might overflow

// The magnitudes of inputs, as exponents of two. A transform adds neighbours up and takes them apart again: the
// rounding of a large one stays in outputs that do not see it.
class Magnitudes {
  public:
    void add(vf x) {
        const vi magnitude = vi(x) & 0x7fffffff;
        largest_ = magnitude > largest_ ? magnitude : largest_;
    }
    // Inputs that stand for the others beside them.
    void add_to_mean(vf x) {
        const vi exponent = (vi(x) & 0x7fffffff) >> 23;
        sum_ += exponent;
        count_ -= exponent != 0;
    }

    // No infinity, no NaN, nothing that sums would overflow, and nothing that stands out.
    bool suit_transform() const {
        int64_t largest = 0, sum = 0, count = 0;
        for (int v = 0; v < VF; ++v) {
            largest = most<int64_t>(largest, largest_[v] >> 23);
            sum += sum_[v];
            count += count_[v];
        }
        return largest < MOST_EXPONENT && largest * count - sum <= MOST_SPREAD * count;
    }

  private:
    static constexpr int64_t MOST_EXPONENT = 127 + 99; // of LARGEST
    static constexpr int64_t MOST_SPREAD = 14;         // from the mean of all that are not zero to the largest
    vi largest_{}, sum_{}, count_{};
};

// How all axes of a geometry are taken apart.
struct Apart {
    bool phases;    // what sees the windows are the phases of a transposed convolution, else maps of the input
    bool long_rows; // whether W alone gains, so that its kernel may be long or dilated

    explicit Apart(const Geometry& g)
        : phases(g.axis[0].transposed && g.phases() > 1), long_rows(g.axis[0].kernel == 1 && g.axis[1].kernel == 1) {}
    Apart(bool phases_, bool long_rows_) : phases(phases_), long_rows(long_rows_) {}
};

// One axis: what every phase or map sees through its windows. Maps are the residues of a strided input, or the pieces
// of at most MOST_REACH taps that a long kernel of stride 1 is cut into, whose windows are shifted.
struct WindowAxis {
    int64_t reach, outputs, points, kinds, maps, first, windows, tiles, spread = 1;
    int64_t shifts[MOST_STRIDE] = {};           // of the window of output step 0, per phase or map
    int64_t taps[MOST_STRIDE][MOST_REACH] = {}; // the tap at each place of a window, or -1
    uint64_t used_points[MOST_STRIDE] = {};     // per phase or map, a bit for each point where it has anything
    bool phases;                                // see Apart
    bool shared; // whether the windows of each map are those of map 0, some tiles further
    bool fits;   // what the kernels require of every axis, also of those along which nothing is to be gained
    // reach: inputs of a window; outputs, points: of F(outputs, reach), 1 and 1 where nothing is to be gained;
    // kinds: of phases or maps; maps: of them, the maps; first: input step of window 0; tiles: of `outputs` windows;
    // spread: from one of a tile's inputs, and outputs, to the next: tiles of a dilated kernel lie within each other.

    static int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

    bool is_strided(const Axis& a) const { return !phases && a.stride > 1; }

    // The phase or map that a tap belongs to.
    bool has(const Axis& a, int64_t kind, int64_t tap) const {
        if (phases)
            return a.uses(kind, tap);
        if (a.stride > 1)
            return a.offset(0, tap) - floor_div(a.offset(0, tap), a.stride) * a.stride == kind;
        // As many pieces of 3 taps as leave pieces of 2, the former first.
        const int64_t threes = a.kernel - 2 * kinds, place = step(a, 0, tap);
        const int64_t piece = place < 3 * threes ? place / 3 : threes + (place - 3 * threes) / 2;
        return kinds == 1 || piece == kind;
    }
    // Where its input lies from that of window 0 of phase 0 or map 0, in steps of `spread` inputs of a map.
    int64_t step(const Axis& a, int64_t kind, int64_t tap) const {
        if (phases)
            return a.offset(kind, tap);
        if (a.stride > 1)
            return floor_div(a.offset(0, tap), a.stride);
        return (a.offset(0, tap) - least(a.offset(0, 0), a.offset(0, a.kernel - 1))) / spread;
    }

    // Range of the window steps that a phase or map uses.
    void range(const Axis& a, int64_t kind, int64_t& low, int64_t& high) const {
        low = INT64_MAX, high = INT64_MIN;
        for (int64_t k = 0; k < a.kernel; ++k)
            if (has(a, kind, k)) {
                low = least(low, step(a, kind, k));
                high = most(high, step(a, kind, k));
            }
    }

    // Windows coincide where they can; a phase or map whose taps lie further has its own shifted.
    void place_taps(const Axis& a, int64_t kind) {
        int64_t low, high;
        range(a, kind, low, high);
        shifts[kind] = low <= high ? most<int64_t>(0, high - reach + 1 - first) : 0;
        for (int64_t k = 0; k < a.kernel; ++k)
            if (has(a, kind, k))
                taps[kind][step(a, kind, k) - first - shifts[kind]] = k;
        used_points[kind] = (uint64_t(1) << points) - 1;
        if (points > 1 && taps[kind][0] < 0)
            used_points[kind] &= ~uint64_t(1);
        if (points > 1 && taps[kind][reach - 1] < 0)
            used_points[kind] &= ~(uint64_t(1) << (points - 1));
    }

    // Of a kernel of stride 1.
    void cut(const Axis& a, bool long_rows) {
        const bool may = long_rows && a.kernel > 1 && a.kernel <= MOST_KERNEL && a.dilation <= MOST_SPREAD;
        spread = may ? a.dilation : 1;
        // Of odd kernels the windows of all pieces are the same: 3 + 2 + 2 taps begin 0, 2 and 4 inputs further.
        kinds = !may ? 1 : a.kernel > MOST_REACH && a.kernel % 2 ? a.kernel / 2 : ceil_div(a.kernel, MOST_REACH);
    }

    WindowAxis(const Axis& a, Apart apart) : phases(apart.phases) {
        for (auto& places : taps)
            for (auto& tap : places)
                tap = -1;
        kinds = a.stride;
        if (!phases && a.stride == 1)
            cut(a, apart.long_rows);
        maps = phases ? 1 : kinds;
        reach = 1, first = INT64_MAX;
        for (int64_t kind = 0; kind < kinds; ++kind) {
            int64_t low, high;
            range(a, kind, low, high);
            if (low <= high) {
                reach = most(reach, high - low + 1);
                first = least(first, low);
            }
        }
        fits = reach <= MOST_REACH && kinds <= MOST_STRIDE;
        points = fits && reach > 1 ? POINTS : 1;
        outputs = points == 1 ? 1 : points - reach + 1;
        for (int64_t kind = 0; fits && kind < kinds; ++kind)
            place_taps(a, kind);
        windows = 0;
        for (int64_t phase = 0; phase < a.phases(); ++phase)
            windows = most(windows, (phases ? shifts[phase] : 0) + a.count(phase));
        tiles = spread * ceil_div(windows, outputs * spread);
        shared = !phases && a.stride == 1 && kinds > 1;
        for (int64_t kind = 0; shared && kind < kinds; ++kind)
            shared = shifts[kind] % outputs == 0;
        fits = fits && outputs_are_neighbours(a);
    }

    // Whether the outputs of a window follow each other, and so those of neighbouring windows: a phase whose window is
    // shifted leaves gaps where the others' are not.
    bool outputs_are_neighbours(const Axis& a) const {
        const int64_t first_of_all = first_output(a, 0);
        for (int64_t phase = 0; phase < a.phases(); ++phase)
            if (output(a, phase, 0) - first_of_all >= a.out_step())
                return false;
        return true;
    }

    // Points that the phases or maps use, all together.
    int64_t products(const Axis& a) const {
        int64_t used = 0;
        for (int64_t kind = 0; kind < kinds; ++kind)
            used += __builtin_popcountll(used_points[kind]);
        return used;
    }

    // The first window of a tile: those of a dilated kernel's neighbouring tiles lie within each other.
    int64_t window_of(int64_t tile) const {
        return spread == 1 ? tile * outputs : tile / spread * outputs * spread + tile % spread;
    }
    int64_t shift_of_inputs(int64_t map) const { return phases ? 0 : shifts[map] * spread; }
    int64_t shift_of_tiles(int64_t map) const { return shifts[map] / outputs * spread; }
    // Of a whole number of `spread` tiles.
    int64_t input_steps(int64_t of_tiles) const {
        int64_t widest = 0;
        for (int64_t map = 0; map < maps; ++map)
            widest = most(widest, shift_of_inputs(map));
        return of_tiles * outputs + (reach - 1) * spread + widest;
    }
    // The first output whose window is `window` or later: the outputs of neighbouring windows are neighbours.
    int64_t first_output(const Axis& a, int64_t window) const {
        int64_t first_of_all = INT64_MAX;
        for (int64_t phase = 0; phase < a.phases(); ++phase)
            first_of_all = least(first_of_all, output(a, phase, window));
        return first_of_all;
    }
    int64_t output(const Axis& a, int64_t phase, int64_t window) const {
        return a.output(phase, window - (phases ? shifts[phase] : 0));
    }
    // Outputs of some tiles, of all phases: a line that begins with the first output of their first window.
    int64_t line_length(const Axis& a, int64_t tiles_of_line) const { return a.out_step() * outputs * tiles_of_line; }

    // The input steps between neighbouring points, and the outputs between neighbours of a tile.
    int64_t point_step(const Axis& a) const { return a.in_step() * spread; }
    int64_t tile_step(const Axis& a) const { return a.out_step() * spread; }

    // The inputs that some tiles read: a box whose lines may begin before the map and end beyond it.
    int64_t box_origin(const Axis& a, int64_t first_tile) const {
        const int64_t origin = phases || a.stride > 1 ? first : least(a.offset(0, 0), a.offset(0, a.kernel - 1));
        return a.in_step() * (origin + first_tile * outputs);
    }
    int64_t box_length(const Axis& a, int64_t of_tiles) const { return a.in_step() * input_steps(of_tiles); }
    // Where the first input that a tile reads of a map lies in the box of tiles from 0 on; those at the next points are
    // point_step further.
    int64_t first_input(const Axis& a, int64_t tile, int64_t map) const {
        return (window_of(tile) + shift_of_inputs(map)) * a.in_step() + (is_strided(a) ? map : 0);
    }
};

// The windows of all axes.
struct Windows {
    const Geometry& g;
    const Apart apart;
    WindowAxis axis[AXES];
    int64_t points, maps;

    explicit Windows(const Geometry& geometry)
        : g(geometry), apart(geometry), axis{WindowAxis(g.axis[0], without_long_rows()),
                                             WindowAxis(g.axis[1], without_long_rows()), WindowAxis(g.axis[2], apart)},
          points(axis[0].points * axis[1].points * axis[2].points), maps(axis[0].maps * axis[1].maps * axis[2].maps) {}

    Apart without_long_rows() const { return {apart.phases, false}; }
    int64_t tiles() const { return axis[0].tiles * axis[1].tiles * axis[2].tiles; }
    // Floats of one image, transformed.
    int64_t image_floats(int64_t channels) const { return points * maps * tiles() * pixel_stride(channels); }
    void map_of(int64_t map, int64_t* of) const {
        of[2] = map % axis[2].maps;
        of[1] = map / axis[2].maps % axis[1].maps;
        of[0] = map / (axis[1].maps * axis[2].maps);
    }

    // The points that a phase or a map uses, a bit for each.
    uint64_t used_points(const int64_t* index) const {
        uint64_t used = 0;
        for (int64_t d = 0; d < axis[0].points; ++d)
            for (int64_t h = 0; h < axis[1].points; ++h)
                if (axis[0].used_points[index[0]] >> d & axis[1].used_points[index[1]] >> h & 1)
                    used |= axis[2].used_points[index[2]] << (d * axis[1].points + h) * axis[2].points;
        return used;
    }

    bool fit() const { return axis[0].fits && axis[1].fits && axis[2].fits && points > 1; }

    // Multiplications of the direct way for one of this one's; 0 where the transform does not apply.
    double gain(int64_t images) const {
        if (!fit() || images == 0)
            return 0;
        double direct = 1, ours = 1;
        for (int i = 0; i < AXES; ++i) {
            const Axis& a = g.axis[i];
            direct *= a.products_inside();
            ours *= double(axis[i].tiles) * axis[i].products(a);
        }
        return direct / ours;
    }
};

// Tiles that are transformed at a time: those of some whole images, or a strip of one.
struct Strip {
    int64_t first_image, images, first[AXES], count[AXES];

    int64_t tiles() const { return images * count[0] * count[1] * count[2]; }

    // Where a tile lies, counted within the strip.
    struct Place {
        int64_t n, of[AXES];
    };
    Place at(int64_t tile) const {
        const int64_t w = tile % count[2], dh = tile / count[2];
        return {dh / (count[1] * count[0]), {dh / count[1] % count[0], dh % count[1], w}};
    }
};

// How a batch is cut into strips: along the outermost axis that has several tiles.
class Strips {
  public:
    Strips(const Windows& windows, int64_t batch, int64_t channels) : w_(windows), batch_(batch) {
        const WindowAxis* a = w_.axis;
        axis_ = a[0].tiles > 1 ? 0 : a[1].tiles > 1 ? 1 : 2;
        const int64_t floats = most<int64_t>(1, w_.image_floats(channels)), tiles = a[axis_].tiles;
        images_ = equal_share(batch, VALUE_FLOATS / floats);
        const int64_t across = most<int64_t>(1, w_.tiles() / most<int64_t>(1, tiles));
        const int64_t fitting = VALUE_FLOATS * tiles / floats, worth = ceil_div(LEAST_STRIP, across);
        const int64_t spread = a[axis_].spread;
        tiles_ = images_ > 1 ? tiles : spread * equal_share(tiles / spread, most(fitting, worth) / spread);
    }

    Strip largest() const { return strip(0, 0); }

    // False where f was for a strip.
    template <class F>
    bool all(const F& f) const {
        for (int64_t image = 0; image < batch_; image += images_)
            for (int64_t tile = 0; tile < w_.axis[axis_].tiles; tile += tiles_)
                if (!f(strip(image, tile)))
                    return false;
        return true;
    }

  private:
    static int64_t equal_share(int64_t count, int64_t most_at_a_time) {
        return count < 1 ? 1 : ceil_div(count, ceil_div(count, most<int64_t>(1, least(count, most_at_a_time))));
    }

    Strip strip(int64_t image, int64_t tile) const {
        const WindowAxis* a = w_.axis;
        Strip strip{image, least(images_, batch_ - image), {}, {a[0].tiles, a[1].tiles, a[2].tiles}};
        strip.first[axis_] = tile;
        strip.count[axis_] = least(tiles_, a[axis_].tiles - tile);
        return strip;
    }

    const Windows& w_;
    const int64_t batch_;
    int axis_;
    int64_t images_, tiles_;
};

// The transformed input of a strip: [point][map][tile][channel], `pixel` floats from tile to tile. Maps that share
// their windows are one, whose rows are longer than the strip's.
class WindowValues {
  public:
    WindowValues(const Windows& windows, const Image& in, bool may_share)
        : w_(windows), g_(windows.g), in_(in), pixel_(pixel_stride(in.channels)),
          shared_(may_share && windows.axis[2].shared), maps_(shared_ ? 1 : w_.maps),
          further_(shared_ ? w_.axis[2].shift_of_tiles(w_.maps - 1) : 0) {}

    // Floats of working memory for a strip.
    int64_t size(const Strip& strip) const {
        return box_of(strip).pixels() * pixel_ + w_.points * maps_ * step_of(strip);
    }

    // False where the input holds values that the transform would spread or overflow.
    bool read(const Strip& strip, float* memory) {
        box_ = box_of(strip);
        strip_ = strip;
        step_ = step_of(strip);
        pixels_ = memory;
        values_ = memory + box_.pixels() * pixel_;
        read_box(in_, box_, pixels_, pixel_);
        return transform_input();
    }

    // Where a map's values at a point begin.
    int64_t offset(int64_t point, int64_t map) const {
        return shared_ ? point * step_ + w_.axis[2].shift_of_tiles(map) * pixel_ : (point * maps_ + map) * step_;
    }
    const float* at(int64_t point, int64_t map, int64_t tile) const {
        return values_ + offset(point, map) + tile * pixel_;
    }
    const Strip& strip() const { return strip_; }
    int64_t row_length() const { return strip_.count[2] + further_; }
    int64_t tile_step() const { return pixel_; }

  private:
    Box box_of(const Strip& strip) const {
        Box box{strip.first_image, strip.images, {}, {}};
        for (int i = 0; i < AXES; ++i) {
            box.origin[i] = w_.axis[i].box_origin(g_.axis[i], strip.first[i]);
            box.length[i] = w_.axis[i].box_length(g_.axis[i], strip.count[i] + (i == 2 ? further_ : 0));
        }
        return box;
    }
    Strip wider(Strip strip) const {
        strip.count[2] += further_;
        return strip;
    }
    int64_t step_of(const Strip& strip) const { return wider(strip).tiles() * pixel_ + 16; }

    bool transform_input() {
        const int64_t grain = most<int64_t>(1, 8192 / (w_.points * maps_ * pixel_));
        const Strip read = wider(strip_);
        int64_t step[AXES];
        for (int i = 0; i < AXES; ++i)
            step[i] = w_.axis[i].point_step(g_.axis[i]);
        return parallel_all(0, read.tiles(), grain, [&](int64_t begin, int64_t end) {
            Magnitudes magnitudes;
            for (int64_t tile = begin; tile < end; ++tile) {
                const Strip::Place place = read.at(tile);
                for (int64_t map = 0; map < maps_; ++map) {
                    int64_t of[AXES], at[AXES];
                    w_.map_of(map, of);
                    for (int i = 0; i < AXES; ++i)
                        at[i] = w_.axis[i].first_input(g_.axis[i], place.of[i], of[i]);
                    const int64_t line = (place.n * box_.length[0] + at[0]) * box_.length[1] + at[1];
                    const float* from = pixels_ + (line * box_.length[2] + at[2]) * pixel_;
                    const uint64_t used = w_.apart.phases || shared_ ? ~uint64_t(0) : w_.used_points(of);
                    transform_tile(from, step, used, values_ + map * step_ + tile * pixel_, magnitudes);
                }
            }
            return magnitudes.suit_transform();
        });
    }

    // B^T along one axis of a grid of vectors.
    static void forward(vf* grid, int64_t points, int64_t step) {
        if (points == 1)
            return;
        const vf x0 = grid[0], x1 = grid[step], x2 = grid[2 * step], x3 = grid[3 * step];
        grid[0] = x0 - x2;
        grid[step] = x1 + x2;
        grid[2 * step] = x2 - x1;
        grid[3 * step] = x3 - x1;
    }

    template <int PD, int PH, int PW>
    void transform_tile_of(const float* from, const int64_t* step, uint64_t used, float* to,
                           Magnitudes& magnitudes) const {
        const int64_t row = step[1] * box_.length[2] * pixel_,
                      plane = step[0] * box_.length[1] * box_.length[2] * pixel_;
        const int64_t out_step = maps_ * step_, columns = round_up(in_.channels, VF);
        for (int64_t c = 0; c < columns; c += VF) {
            vf grid[PD * PH * PW];
            for (int d = 0; d < PD; ++d)
                for (int h = 0; h < PH; ++h)
                    for (int w = 0; w < PW; ++w) {
                        const vf x = load(from + d * plane + h * row + w * step[2] * pixel_ + c);
                        magnitudes.add(x);
                        grid[(d * PH + h) * PW + w] = x;
                    }
            magnitudes.add_to_mean(grid[0]);
            for (int i = 0; i < PD * PH; ++i)
                forward(grid + i * PW, PW, 1);
            for (int d = 0; d < PD; ++d)
                for (int w = 0; w < PW; ++w)
                    forward(grid + d * PH * PW + w, PH, PW);
            for (int i = 0; i < PH * PW; ++i)
                forward(grid + i, PD, PH * PW);
            for (int p = 0; p < PD * PH * PW; ++p)
                if (used >> p & 1)
                    store(to + p * out_step + c, grid[p]);
        }
    }

    void transform_tile(const float* from, const int64_t* step, uint64_t used, float* to,
                        Magnitudes& magnitudes) const {
        const WindowAxis* a = w_.axis;
        const int64_t kind = (a[0].points > 1) * 4 + (a[1].points > 1) * 2 + (a[2].points > 1);
        switch (kind) {
        case 1:
            return transform_tile_of<1, 1, 4>(from, step, used, to, magnitudes);
        case 2:
            return transform_tile_of<1, 4, 1>(from, step, used, to, magnitudes);
        case 3:
            return transform_tile_of<1, 4, 4>(from, step, used, to, magnitudes);
        case 4:
            return transform_tile_of<4, 1, 1>(from, step, used, to, magnitudes);
        case 5:
            return transform_tile_of<4, 1, 4>(from, step, used, to, magnitudes);
        case 6:
            return transform_tile_of<4, 4, 1>(from, step, used, to, magnitudes);
        default:
            return transform_tile_of<4, 4, 4>(from, step, used, to, magnitudes);
        }
    }

    const Windows& w_;
    const Geometry& g_;
    const Image& in_;
    const int64_t pixel_;
    const bool shared_;
    const int64_t maps_, further_; // that are read, and the tiles by which the last one's windows lie further
    Box box_;
    Strip strip_;
    int64_t step_;
    float *pixels_, *values_;
};

// A^T of F(outputs, reach) along one axis of a grid of vectors, in place.
static inline void inverse(vf* grid, int64_t outputs, int64_t step) {
    if (outputs == 1)
        return;
    const vf sum = grid[step] + grid[2 * step], difference = grid[step] - grid[2 * step], last = grid[3 * step];
    grid[0] += sum;
    grid[step] = outputs == 3 ? difference : difference + last;
    grid[2 * step] = sum + last;
}

// G of F(outputs, reach) along one axis: `reach` vectors to `points`, `step` floats apart.
static inline void filter(const float* taps, int64_t reach, int64_t points, int64_t step, float* out, int64_t out_step,
                          int64_t width) {
    for (int64_t v = 0; v < width; v += VF) {
        const vf first = load(taps + v);
        store(out + v, first);
        if (points == 1)
            continue;
        const vf last = load(taps + (reach - 1) * step + v);
        const vf even = reach == 3 ? first + last : first, odd = load(taps + step + v);
        store(out + out_step + v, 0.5f * (even + odd));
        store(out + 2 * out_step + v, 0.5f * (even - odd));
        store(out + 3 * out_step + v, last);
    }
}

}
}
