// Winograd's minimal filtering (Lavin and Gray, arXiv:1509.09308) over the windows of a strided kernel.
//
// All phases of a transposed convolution read the same windows of `reach` neighbouring inputs (two for kernel 4 and
// stride 2), so one input transform serves them all: F(3, 2) takes 4 products where the direct way takes 6, per axis. A
// strided convolution is the mirror image: one output phase, and one map of inputs for each residue of the stride.
// Points 0, 1, -1 and infinity: transforms only add, halve and subtract, and the error stays in the direct way's class.
#pragma once

#include "cpu/conv_transpose/direct.h"

namespace aigc::AIGC_LEVEL {
namespace {

constexpr int POINTS = 4;
constexpr int64_t TILE_BLOCK = 48;         // tiles of a product
constexpr int64_t BLOCK_FLOATS = 96 << 10; // products that are kept before their output transform
constexpr int64_t VALUE_FLOATS = 3 << 19;  // transformed input kept at a time
constexpr float LARGEST = 1e30f;           // beyond it, sums of inputs might overflow

// One axis: what every phase (transposed) or residue (plain) sees through its windows.
struct WindowAxis {
    int64_t reach, outputs, points, maps, first, windows, tiles;
    // reach: inputs of a window; outputs, points: of F(outputs, reach), 1 and 1 where nothing is to be gained;
    // maps: residues of a strided input; first: input step of window 0; tiles: of `outputs` windows.

    static int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

    // Range of the window steps that map (residue) or phase `index` uses.
    static void range(const Axis& a, int64_t index, int64_t& low, int64_t& high) {
        low = INT64_MAX, high = INT64_MIN;
        for (int64_t k = 0; k < a.kernel; ++k) {
            if (a.transposed ? !a.uses(index, k) : residue(a, k) != index)
                continue;
            const int64_t at = a.transposed ? a.offset(index, k) : floor_div(a.offset(0, k), a.stride);
            low = least(low, at);
            high = most(high, at);
        }
    }
    static int64_t residue(const Axis& a, int64_t k) {
        const int64_t offset = a.offset(0, k);
        return offset - floor_div(offset, a.stride) * a.stride;
    }

    explicit WindowAxis(const Axis& a) {
        maps = a.in_step();
        reach = 1, first = INT64_MAX;
        for (int64_t i = 0; i < a.stride; ++i) {
            int64_t low, high;
            range(a, i, low, high);
            if (low <= high) {
                reach = most(reach, high - low + 1);
                first = least(first, low);
            }
        }
        points = reach == 2 || reach == 3 ? POINTS : 1;
        outputs = points == 1 ? 1 : points - reach + 1;
        windows = 0;
        for (int64_t phase = 0; phase < a.phases(); ++phase)
            windows = most(windows, (a.transposed ? shift(a, phase) : 0) + a.count(phase));
        tiles = ceil_div(windows, outputs);
    }

    // How far the window of output step 0 lies from the first: of a phase (transposed) or of a map (plain). Windows
    // coincide where they can.
    int64_t shift(const Axis& a, int64_t index) const {
        int64_t low, high;
        range(a, index, low, high);
        return low <= high ? most<int64_t>(0, high - reach + 1 - first) : 0;
    }
    // Where tap k of a phase or map lies in its window; -1 where it belongs to another.
    int64_t place(const Axis& a, int64_t index, int64_t k) const {
        if (a.transposed ? !a.uses(index, k) : residue(a, k) != index)
            return -1;
        const int64_t at = a.transposed ? a.offset(index, k) : floor_div(a.offset(0, k), a.stride);
        return at - first - shift(a, index);
    }
    bool fits() const { return reach <= 3; }
    int64_t input_steps(const Axis& a) const {
        int64_t widest = 0;
        for (int64_t map = 0; map < maps; ++map)
            widest = most(widest, a.transposed ? 0 : shift(a, map));
        return tiles * outputs + reach - 1 + widest;
    }
    // The first output whose window is `window` or later: the outputs of neighbouring windows are neighbours.
    int64_t first_output(const Axis& a, int64_t window) const {
        int64_t first_of_all = INT64_MAX;
        for (int64_t phase = 0; phase < a.phases(); ++phase)
            first_of_all = least(first_of_all, output(a, phase, window));
        return first_of_all;
    }
    int64_t output(const Axis& a, int64_t phase, int64_t window) const {
        return a.first_out(phase) + a.out_step() * (window - (a.transposed ? shift(a, phase) : 0));
    }
};

class Winograd {
  public:
    explicit Winograd(const Geometry& g)
        : g_(g), axis_{WindowAxis(g.axis[0]), WindowAxis(g.axis[1]), WindowAxis(g.axis[2])} {
        points_ = axis_[0].points * axis_[1].points * axis_[2].points;
        maps_ = axis_[0].maps * axis_[1].maps * axis_[2].maps;
        panels_ = padded_channels(g.out_channels) / PANEL_WIDTH;
    }

    // Multiplications of the direct way for one of this one's; 0 where the transform does not apply.
    double gain(int64_t images) const {
        if (!axis_[0].fits() || !axis_[1].fits() || !axis_[2].fits() || points_ == 1 || images == 0)
            return 0;
        double direct = 1, ours = 1;
        for (int i = 0; i < AXES; ++i) {
            const Axis& a = g_.axis[i];
            direct *= double(a.transposed ? a.in : a.out) * a.kernel;
            ours *= double(axis_[i].tiles * axis_[i].points) * a.phases() * axis_[i].maps;
        }
        return direct / ours;
    }
    int64_t tiles() const { return axis_[0].tiles * axis_[1].tiles * axis_[2].tiles; }
    int64_t weight_size() const { return g_.groups * panels_ * panel_size(); }

    bool pack(const Weight& weight, float* packed) const;
    bool run(const Image& in, const Image& out, const float* packed, const Epilogue& epilogue) const;

  private:
    friend class WinogradRun;

    // Packed weights: [group][panel][point][phase][map][input channel][PANEL_WIDTH].
    int64_t term_size() const { return maps_ * g_.in_channels * PANEL_WIDTH; }
    int64_t panel_size() const { return points_ * g_.phases() * term_size(); }

    void transform_taps(const float* taps, const int64_t* phase, const int64_t* map, float* out) const;
    static void filter(const float* taps, int64_t reach, int64_t points, int64_t step, float* out, int64_t out_step);

    const Geometry& g_;
    WindowAxis axis_[AXES];
    int64_t points_, maps_, panels_;
};

// G of F(3, 2) or F(2, 3), over rows of PANEL_WIDTH floats.
void Winograd::filter(const float* taps, int64_t reach, int64_t points, int64_t step, float* out, int64_t out_step) {
    for (int v = 0; v < PANEL_WIDTH; v += VF) {
        const vf first = load(taps + v);
        if (points == 1) {
            store(out + v, first);
            continue;
        }
        const vf last = load(taps + (reach - 1) * step + v);
        const vf even = reach == 3 ? first + last : first, odd = load(taps + step + v);
        store(out + v, first);
        store(out + out_step + v, 0.5f * (even + odd));
        store(out + 2 * out_step + v, 0.5f * (even - odd));
        store(out + 3 * out_step + v, last);
    }
}

// taps: [tap of the whole kernel][PANEL_WIDTH] -> out: [point][PANEL_WIDTH] for one phase and one map.
void Winograd::transform_taps(const float* taps, const int64_t* phase, const int64_t* map, float* out) const {
    float grid[27 * PANEL_WIDTH] = {}, other[64 * PANEL_WIDTH];
    int64_t place[AXES][3]; // tap at each position of the window, or -1
    for (int i = 0; i < AXES; ++i) {
        const Axis& a = g_.axis[i];
        for (auto& p : place[i])
            p = -1;
        for (int64_t k = 0; k < a.kernel; ++k) {
            const int64_t at = axis_[i].place(a, a.transposed ? phase[i] : map[i], k);
            if (at >= 0)
                place[i][at] = k;
        }
    }
    const int64_t rd = axis_[0].reach, rh = axis_[1].reach, rw = axis_[2].reach;
    for (int64_t d = 0; d < rd; ++d)
        for (int64_t h = 0; h < rh; ++h)
            for (int64_t w = 0; w < rw; ++w)
                if (place[0][d] >= 0 && place[1][h] >= 0 && place[2][w] >= 0) {
                    const int64_t tap =
                        (place[0][d] * g_.axis[1].kernel + place[1][h]) * g_.axis[2].kernel + place[2][w];
                    __builtin_memcpy(grid + ((d * rh + h) * rw + w) * PANEL_WIDTH, taps + tap * PANEL_WIDTH,
                                     sizeof(float) * PANEL_WIDTH);
                }
    const int64_t pd = axis_[0].points, ph = axis_[1].points, pw = axis_[2].points;
    float third[36 * PANEL_WIDTH];
    for (int64_t row = 0; row < rd * rh; ++row)
        filter(grid + row * rw * PANEL_WIDTH, rw, pw, PANEL_WIDTH, third + row * pw * PANEL_WIDTH, PANEL_WIDTH);
    for (int64_t d = 0; d < rd; ++d)
        for (int64_t w = 0; w < pw; ++w)
            filter(third + (d * rh * pw + w) * PANEL_WIDTH, rh, ph, pw * PANEL_WIDTH,
                   other + (d * ph * pw + w) * PANEL_WIDTH, pw * PANEL_WIDTH);
    for (int64_t hw = 0; hw < ph * pw; ++hw)
        filter(other + hw * PANEL_WIDTH, rd, pd, ph * pw * PANEL_WIDTH, out + hw * PANEL_WIDTH, ph * pw * PANEL_WIDTH);
}

// False where a weight is not finite: the caller takes the direct way, which keeps it from spreading.
bool Winograd::pack(const Weight& weight, float* packed) const {
    const int64_t kernel = g_.taps(), phases = g_.phases();
    bool finite = true;
    const int64_t grain = most<int64_t>(1, LEAST_WORK / most<int64_t>(1, points_ * phases * maps_ * PANEL_WIDTH));
    parallel_for(0, g_.groups * panels_ * g_.in_channels, grain, [&](int64_t begin, int64_t end) {
        auto* taps = static_cast<float*>(scratch(Slot::local, sizeof(float) * (kernel + points_) * PANEL_WIDTH));
        float* transformed = taps + kernel * PANEL_WIDTH;
        bool all_finite = true;
        for (int64_t item = begin; item < end; ++item) {
            const int64_t i = item % g_.in_channels, panel = item / g_.in_channels % panels_;
            const int64_t group = item / (g_.in_channels * panels_);
            all_finite &= read_taps(g_, weight, group, panel, i, taps);
            float* out = packed + (group * panels_ + panel) * panel_size() + i * PANEL_WIDTH;
            for (int64_t phase = 0; phase < phases; ++phase)
                for (int64_t map = 0; map < maps_; ++map) {
                    const int64_t map_of[AXES] = {map / (axis_[1].maps * axis_[2].maps),
                                                  map / axis_[2].maps % axis_[1].maps, map % axis_[2].maps};
                    transform_taps(taps, PhaseTaps(g_, phase).phase, map_of, transformed);
                    for (int64_t point = 0; point < points_; ++point)
                        __builtin_memcpy(out + ((point * phases + phase) * maps_ + map) * g_.in_channels * PANEL_WIDTH,
                                         transformed + point * PANEL_WIDTH, sizeof(float) * PANEL_WIDTH);
                }
        }
        if (!all_finite)
            __atomic_store_n(&finite, false, __ATOMIC_RELAXED);
    });
    return finite;
}

// One call's transformed input and products.
class WinogradRun {
  public:
    WinogradRun(const Winograd& plan, const Image& in, const Image& out, const float* packed, const Epilogue& epilogue)
        : plan_(plan), g_(plan.g_), in_(in), out_(out), packed_(packed), epilogue_(epilogue),
          pixel_(pixel_stride(in.channels)) {}

    bool run() {
        const int64_t per_image = plan_.points_ * plan_.maps_ * plan_.tiles() * pixel_;
        int64_t images = least(out_.batch, most<int64_t>(1, VALUE_FLOATS / per_image));
        images = ceil_div(out_.batch, ceil_div(out_.batch, images));
        for (int64_t first = 0; first < out_.batch; first += images)
            if (!run_images(first, least(images, out_.batch - first)))
                return false;
        return true;
    }

  private:
    bool run_images(int64_t first, int64_t images) {
        Box box{first, images, {}, {}};
        for (int i = 0; i < AXES; ++i) {
            box.origin[i] = g_.axis[i].in_step() * plan_.axis_[i].first;
            box.length[i] = g_.axis[i].in_step() * plan_.axis_[i].input_steps(g_.axis[i]);
        }
        tiles_ = images * plan_.tiles();
        value_step_ = tiles_ * pixel_ + 16;
        const int64_t box_size = box.pixels() * pixel_, values_size = plan_.points_ * plan_.maps_ * value_step_;
        pixels_ = static_cast<float*>(scratch(Slot::shared, sizeof(float) * (box_size + values_size)));
        values_ = pixels_ + box_size;
        box_ = box;
        first_image_ = first;
        read_box(in_, box, pixels_, pixel_);
        if (!transform_input())
            return false;
        multiply_tiles();
        return true;
    }

    bool transform_input() {
        const WindowAxis* a = plan_.axis_;
        bool fine = true;
        const int64_t grain = most<int64_t>(1, 8192 / (plan_.points_ * plan_.maps_ * pixel_));
        parallel_for(0, tiles_, grain, [&](int64_t begin, int64_t end) {
            vi suspicious{};
            for (int64_t tile = begin; tile < end; ++tile) {
                const int64_t w = tile % a[2].tiles, h = tile / a[2].tiles % a[1].tiles;
                const int64_t d = tile / (a[2].tiles * a[1].tiles) % a[0].tiles, n = tile / plan_.tiles();
                const int64_t step[AXES] = {g_.axis[0].in_step(), g_.axis[1].in_step(), g_.axis[2].in_step()};
                for (int64_t map = 0; map < plan_.maps_; ++map) {
                    const int64_t map_w = map % a[2].maps, map_h = map / a[2].maps % a[1].maps;
                    const int64_t map_d = map / (a[2].maps * a[1].maps);
                    const int64_t line =
                        (n * box_.length[0] + first_input(0, d, map_d)) * box_.length[1] + first_input(1, h, map_h);
                    const float* from = pixels_ + (line * box_.length[2] + first_input(2, w, map_w)) * pixel_;
                    transform_tile(from, step, values_ + map * value_step_ + tile * pixel_, suspicious);
                }
            }
            for (int v = 0; v < VF; ++v)
                if (suspicious[v])
                    __atomic_store_n(&fine, false, __ATOMIC_RELAXED);
        });
        return fine;
    }

    // Where a tile's inputs of a map start in the box.
    int64_t first_input(int axis, int64_t tile, int64_t map) const {
        const Axis& a = g_.axis[axis];
        const WindowAxis& windows = plan_.axis_[axis];
        return (tile * windows.outputs + (a.transposed ? 0 : windows.shift(a, map))) * a.in_step() + map;
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
    void transform_tile_of(const float* from, const int64_t* step, float* to, vi& suspicious) const {
        const int64_t row = step[1] * box_.length[2] * pixel_,
                      plane = step[0] * box_.length[1] * box_.length[2] * pixel_;
        const int64_t out_step = plan_.maps_ * value_step_, columns = round_up(in_.channels, VF);
        for (int64_t c = 0; c < columns; c += VF) {
            vf grid[PD * PH * PW];
            for (int d = 0; d < PD; ++d)
                for (int h = 0; h < PH; ++h)
                    for (int w = 0; w < PW; ++w) {
                        const vf x = load(from + d * plane + h * row + w * step[2] * pixel_ + c);
                        suspicious |= ~((x < LARGEST) & (x > -LARGEST));
                        grid[(d * PH + h) * PW + w] = x;
                    }
            for (int i = 0; i < PD * PH; ++i)
                forward(grid + i * PW, PW, 1);
            for (int d = 0; d < PD; ++d)
                for (int w = 0; w < PW; ++w)
                    forward(grid + d * PH * PW + w, PH, PW);
            for (int i = 0; i < PH * PW; ++i)
                forward(grid + i, PD, PH * PW);
            for (int p = 0; p < PD * PH * PW; ++p)
                store(to + p * out_step + c, grid[p]);
        }
    }

    void transform_tile(const float* from, const int64_t* step, float* to, vi& suspicious) const {
        const WindowAxis* a = plan_.axis_;
        const int64_t kind = (a[0].points > 1) * 4 + (a[1].points > 1) * 2 + (a[2].points > 1);
        switch (kind) {
        case 1:
            return transform_tile_of<1, 1, 4>(from, step, to, suspicious);
        case 2:
            return transform_tile_of<1, 4, 1>(from, step, to, suspicious);
        case 3:
            return transform_tile_of<1, 4, 4>(from, step, to, suspicious);
        case 4:
            return transform_tile_of<4, 1, 1>(from, step, to, suspicious);
        case 5:
            return transform_tile_of<4, 1, 4>(from, step, to, suspicious);
        case 6:
            return transform_tile_of<4, 4, 1>(from, step, to, suspicious);
        default:
            return transform_tile_of<4, 4, 4>(from, step, to, suspicious);
        }
    }

    // A part of a row of tiles along W, for one panel of output channels, or several whole rows.
    struct Block {
        int64_t group, panel, first_row, rows, first_tile, tiles;
    };

    void multiply_tiles() const {
        const WindowAxis& w = plan_.axis_[2];
        const int64_t room = BLOCK_FLOATS / (plan_.points_ * g_.phases() * PANEL_WIDTH);
        const int64_t most_tiles = most<int64_t>(TILE_ROWS, least(TILE_BLOCK, room));
        const int64_t segments = ceil_div(w.tiles, most_tiles), segment = ceil_div(w.tiles, segments);
        const int64_t rows = tiles_ / w.tiles, rows_per_block = least(rows, most<int64_t>(1, most_tiles / segment));
        const int64_t row_blocks = ceil_div(rows, rows_per_block), columns = g_.groups * plan_.panels_;
        parallel_for(0, columns * segments * row_blocks, 1, [&](int64_t begin, int64_t end) {
            for (int64_t index = begin; index < end; ++index) {
                const int64_t column = index % columns, part = index / columns % segments;
                const int64_t row_block = index / (columns * segments);
                Block block{
                    column / plan_.panels_, column % plan_.panels_, row_block * rows_per_block, 0, part * segment, 0};
                block.rows = least(rows_per_block, rows - block.first_row);
                block.tiles = least(segment, w.tiles - block.first_tile);
                multiply_block(block);
            }
        });
    }

    void multiply_block(const Block& block) const {
        const WindowAxis* a = plan_.axis_;
        const int64_t tiles = block.rows * block.tiles,
                      products_size = plan_.points_ * g_.phases() * tiles * PANEL_WIDTH;
        int64_t line_floats = PANEL_WIDTH * block.tiles;
        for (int i = 0; i < AXES; ++i)
            line_floats *= g_.axis[i].out_step() * a[i].outputs;
        auto* products = static_cast<float*>(
            scratch(Slot::local, sizeof(float) * (products_size + line_floats) + sizeof(int64_t) * 2 * plan_.maps_));
        float* lines = products + products_size;
        multiply_points(block, products, reinterpret_cast<int64_t*>(lines + line_floats));
        for (int64_t row = 0; row < block.rows; ++row)
            write_row(block, row, products, lines);
    }

    // products: [phase][point][tile][PANEL_WIDTH]
    void multiply_points(const Block& block, float* products, int64_t* offsets) const {
        const int64_t tiles = block.rows * block.tiles, depth = g_.in_channels, maps = plan_.maps_;
        const float* from[TILE_BLOCK];
        float* to[TILE_BLOCK];
        for (int64_t map = 0; map < maps; ++map) {
            offsets[map] = map * value_step_;
            offsets[maps + map] = map * depth * PANEL_WIDTH;
        }
        const float* weights = packed_ + (block.group * plan_.panels_ + block.panel) * plan_.panel_size();
        const int64_t batch = most<int64_t>(1, DEPTH_BLOCK / depth), part = least(depth, DEPTH_BLOCK);
        for (int64_t point = 0; point < plan_.points_; ++point)
            for (int64_t phase = 0; phase < g_.phases(); ++phase, weights += plan_.term_size())
                for (int64_t t = 0; t < maps; t += batch)
                    for (int64_t k = 0; k < depth; k += part) {
                        for (int64_t i = 0; i < tiles; ++i) {
                            const int64_t tile = (block.first_row + i / block.tiles) * plan_.axis_[2].tiles +
                                                 block.first_tile + i % block.tiles;
                            from[i] = values_ + point * maps * value_step_ + tile * pixel_ + block.group * depth + k;
                            to[i] = products + ((phase * plan_.points_ + point) * tiles + i) * PANEL_WIDTH;
                        }
                        const Product product{.rows = from,
                                              .a_step = 1,
                                              .a_offsets = offsets + t,
                                              .b = weights + k * PANEL_WIDTH,
                                              .b_step = PANEL_WIDTH,
                                              .b_offsets = offsets + maps + t,
                                              .batch = least(batch, maps - t),
                                              .depth = least(part, depth - k),
                                              .c = to,
                                              .accumulate = t > 0 || k > 0};
                        multiply(product, tiles, PANEL_WIDTH / VF);
                    }
    }

    // A^T along one axis, in place.
    static void inverse(vf* grid, int64_t reach, int64_t step) {
        if (reach == 1)
            return;
        const vf sum = grid[step] + grid[2 * step], difference = grid[step] - grid[2 * step], last = grid[3 * step];
        grid[0] += sum;
        grid[step] = reach == 2 ? difference : difference + last;
        grid[2 * step] = sum + last;
    }

    // Output lines that a row of tiles yields, [d][h][w][PANEL_WIDTH], finished and written.
    void write_row(const Block& block, int64_t row, const float* products, float* lines) const {
        const WindowAxis* a = plan_.axis_;
        const int64_t index = block.first_row + row, h = index % a[1].tiles, d = index / a[1].tiles % a[0].tiles;
        const int64_t n = first_image_ + index / (a[1].tiles * a[0].tiles);
        const int64_t first_window[AXES] = {d * a[0].outputs, h * a[1].outputs, block.first_tile * a[2].outputs};
        int64_t first[AXES], length[AXES];
        for (int i = 0; i < AXES; ++i) {
            first[i] = a[i].first_output(g_.axis[i], first_window[i]);
            length[i] = g_.axis[i].out_step() * a[i].outputs * (i == 2 ? block.tiles : 1);
        }
        place_tiles(block, row, products, first_window, first, length, lines);
        const int64_t first_channel = block.panel * PANEL_WIDTH,
                      channel = block.group * g_.out_channels + first_channel;
        const int64_t channels = least<int64_t>(PANEL_WIDTH, g_.out_channels - first_channel);
        const int64_t low = most<int64_t>(0, -first[2]), high = least(length[2], out_.size[2] - first[2]);
        for (int64_t i = 0; i < length[0] * length[1] && low < high; ++i) {
            const int64_t od = first[0] + i / length[1], oh = first[1] + i % length[1];
            if (od < 0 || od >= out_.size[0] || oh < 0 || oh >= out_.size[1])
                continue;
            float* line = lines + (i * length[2] + low) * PANEL_WIDTH;
            epilogue_.apply(line, high - low, PANEL_WIDTH, channels, channel);
            write_line(line, PANEL_WIDTH, high - low, channels, out_, n, channel, od, oh, first[2] + low);
        }
    }

    void place_tiles(const Block& block, int64_t row, const float* products, const int64_t* first_window,
                     const int64_t* first, const int64_t* length, float* lines) const {
        const WindowAxis* a = plan_.axis_;
        const int64_t tiles = block.rows * block.tiles;
        for (int64_t phase = 0; phase < g_.phases(); ++phase) {
            const PhaseTaps of(g_, phase);
            const float* from = products + (phase * plan_.points_ * tiles + row * block.tiles) * PANEL_WIDTH;
            int64_t at[AXES], step[AXES];
            for (int i = 0; i < AXES; ++i) {
                at[i] = a[i].output(g_.axis[i], of.phase[i], first_window[i]) - first[i];
                step[i] = g_.axis[i].out_step();
            }
            for (int64_t tile = 0; tile < block.tiles; ++tile, at[2] += step[2] * a[2].outputs)
                place_tile(from + tile * PANEL_WIDTH, tiles * PANEL_WIDTH, at, step, length, lines);
        }
    }

    void place_tile(const float* products, int64_t point_step, const int64_t* at, const int64_t* step,
                    const int64_t* length, float* lines) const {
        const WindowAxis* a = plan_.axis_;
        const int64_t pd = a[0].points, ph = a[1].points, pw = a[2].points;
        for (int v = 0; v < PANEL_WIDTH; v += VF) {
            vf grid[POINTS * POINTS * POINTS];
            for (int64_t p = 0; p < plan_.points_; ++p)
                grid[p] = load(products + p * point_step + v);
            for (int64_t i = 0; i < ph * pw; ++i)
                inverse(grid + i, a[0].reach, ph * pw);
            for (int64_t d = 0; d < a[0].outputs; ++d)
                for (int64_t w = 0; w < pw; ++w)
                    inverse(grid + d * ph * pw + w, a[1].reach, pw);
            for (int64_t d = 0; d < a[0].outputs; ++d)
                for (int64_t h = 0; h < a[1].outputs; ++h) {
                    vf* last = grid + (d * ph + h) * pw;
                    inverse(last, a[2].reach, 1);
                    const int64_t line = (at[0] + d * step[0]) * length[1] + at[1] + h * step[1];
                    for (int64_t w = 0; w < a[2].outputs; ++w)
                        store(lines + (line * length[2] + at[2] + w * step[2]) * PANEL_WIDTH + v, last[w]);
                }
        }
    }

    const Winograd& plan_;
    const Geometry& g_;
    const Image &in_, &out_;
    const float* packed_;
    const Epilogue& epilogue_;
    const int64_t pixel_;
    Box box_;
    int64_t tiles_, value_step_, first_image_;
    float *pixels_, *values_;
};

// False where the input holds values that the transform would spread or overflow: nothing usable is written then.
bool Winograd::run(const Image& in, const Image& out, const float* packed, const Epilogue& epilogue) const {
    return WinogradRun(*this, in, out, packed, epilogue).run();
}

}
}
