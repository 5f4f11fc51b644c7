// The products between transformed input and transformed weights; see windows.h.
#pragma once

#include "cpu/conv_transpose/direct.h"
#include "cpu/conv_transpose/windows.h"

namespace aigc::AIGC_LEVEL::conv_transpose {
namespace {

constexpr int64_t TILE_BLOCK = 48;         // tiles of a product
constexpr int64_t BLOCK_FLOATS = 96 << 10; // products that are kept before their output transform

class Winograd {
  public:
    explicit Winograd(const Windows& windows) : w_(windows), g_(windows.g), panels_(panels_of(g_.out_channels)) {}

    int64_t weight_size() const { return g_.groups * panels_ * panel_size(); }

    bool pack(const Weight& weight, float* packed) const;
    bool run(const Image& in, const Image& out, const float* packed, const Epilogue& epilogue) const;

  private:
    friend class WinogradRun;

    // Packed weights: [group][panel][point][phase][map][input channel][PANEL_WIDTH].
    int64_t term_size() const { return w_.maps * g_.in_channels * PANEL_WIDTH; }
    int64_t panel_size() const { return w_.points * g_.phases() * term_size(); }

    void transform_taps(const float* taps, const int64_t* phase, const int64_t* map, float* out) const;
    const Windows& w_;
    const Geometry& g_;
    const int64_t panels_;
};

// taps: [tap of the whole kernel][PANEL_WIDTH] -> out: [point][PANEL_WIDTH] for one phase and one map.
void Winograd::transform_taps(const float* taps, const int64_t* phase, const int64_t* map, float* out) const {
    float grid[27 * PANEL_WIDTH] = {}, other[64 * PANEL_WIDTH];
    const int64_t* place[AXES];
    for (int i = 0; i < AXES; ++i)
        place[i] = w_.axis[i].taps[w_.apart.phases ? phase[i] : map[i]];
    const int64_t rd = w_.axis[0].reach, rh = w_.axis[1].reach, rw = w_.axis[2].reach;
    for (int64_t d = 0; d < rd; ++d)
        for (int64_t h = 0; h < rh; ++h)
            for (int64_t w = 0; w < rw; ++w)
                if (place[0][d] >= 0 && place[1][h] >= 0 && place[2][w] >= 0) {
                    const int64_t tap =
                        (place[0][d] * g_.axis[1].kernel + place[1][h]) * g_.axis[2].kernel + place[2][w];
                    __builtin_memcpy(grid + ((d * rh + h) * rw + w) * PANEL_WIDTH, taps + tap * PANEL_WIDTH,
                                     sizeof(float) * PANEL_WIDTH);
                }
    const int64_t pd = w_.axis[0].points, ph = w_.axis[1].points, pw = w_.axis[2].points;
    float third[36 * PANEL_WIDTH];
    for (int64_t row = 0; row < rd * rh; ++row)
        filter(grid + row * rw * PANEL_WIDTH, rw, pw, PANEL_WIDTH, third + row * pw * PANEL_WIDTH, PANEL_WIDTH,
               PANEL_WIDTH);
    for (int64_t d = 0; d < rd; ++d)
        for (int64_t w = 0; w < pw; ++w)
            filter(third + (d * rh * pw + w) * PANEL_WIDTH, rh, ph, pw * PANEL_WIDTH,
                   other + (d * ph * pw + w) * PANEL_WIDTH, pw * PANEL_WIDTH, PANEL_WIDTH);
    for (int64_t hw = 0; hw < ph * pw; ++hw)
        filter(other + hw * PANEL_WIDTH, rd, pd, ph * pw * PANEL_WIDTH, out + hw * PANEL_WIDTH, ph * pw * PANEL_WIDTH,
               PANEL_WIDTH);
}

// False where a weight is not finite: the caller takes the direct way, which keeps it from spreading.
bool Winograd::pack(const Weight& weight, float* packed) const {
    const int64_t kernel = g_.taps(), phases = g_.phases();
    const int64_t grain = most<int64_t>(1, LEAST_WORK / most<int64_t>(1, w_.points * phases * w_.maps * PANEL_WIDTH));
    return parallel_all(0, g_.groups * panels_ * g_.in_channels, grain, [&](int64_t begin, int64_t end) {
        Scope scope;
        auto* taps = scope.take<float>((kernel + w_.points) * PANEL_WIDTH);
        float* transformed = taps + kernel * PANEL_WIDTH;
        bool all_finite = true;
        for (int64_t item = begin; item < end; ++item) {
            const int64_t i = item % g_.in_channels, panel = item / g_.in_channels % panels_;
            const int64_t group = item / (g_.in_channels * panels_);
            all_finite &= read_taps(g_, weight, group, panel, i, taps);
            float* out = packed + (group * panels_ + panel) * panel_size() + i * PANEL_WIDTH;
            for (int64_t phase = 0; phase < phases; ++phase)
                for (int64_t map = 0; map < w_.maps; ++map) {
                    int64_t map_of[AXES];
                    w_.map_of(map, map_of);
                    transform_taps(taps, PhaseTaps(g_, phase).phase, map_of, transformed);
                    for (int64_t point = 0; point < w_.points; ++point)
                        __builtin_memcpy(out +
                                             ((point * phases + phase) * w_.maps + map) * g_.in_channels * PANEL_WIDTH,
                                         transformed + point * PANEL_WIDTH, sizeof(float) * PANEL_WIDTH);
                }
        }
        return all_finite;
    });
}

template <int N>
struct Constant {
    static constexpr int value = N;
};

// One call's transformed input and products.
class WinogradRun {
  public:
    WinogradRun(const Winograd& plan, const Image& in, const Image& out, const float* packed, const Epilogue& epilogue)
        : plan_(plan), g_(plan.g_), out_(out), packed_(packed), epilogue_(epilogue), values_(plan.w_, in, true) {}

    bool run() {
        const Strips strips(plan_.w_, out_.batch, g_.in_channels * g_.groups);
        Scope scope;
        auto* memory = scope.take<float>(values_.size(strips.largest()));
        return strips.all([&](const Strip& strip) {
            if (!values_.read(strip, memory))
                return false;
            multiply_tiles();
            return true;
        });
    }

  private:
    // A part of a row of the strip's tiles along W, for one panel of output channels, or several whole rows.
    struct Block {
        int64_t group, panel, first_row, rows, first_tile, tiles;
    };

    void multiply_tiles() const {
        const int64_t width = values_.strip().count[2];
        const int64_t room = BLOCK_FLOATS / (plan_.w_.points * g_.phases() * PANEL_WIDTH);
        const int64_t most_tiles = most<int64_t>(TILE_ROWS, least(TILE_BLOCK, room));
        // Tiles that lie within each other are of one block.
        const int64_t spread = plan_.w_.axis[2].spread, whole = width / spread;
        const int64_t segments = ceil_div(whole, most_tiles / spread), segment = spread * ceil_div(whole, segments);
        const int64_t rows = values_.strip().tiles() / width,
                      rows_per_block = least(rows, most<int64_t>(1, most_tiles / segment));
        const int64_t row_blocks = ceil_div(rows, rows_per_block), columns = g_.groups * plan_.panels_;
        parallel_for(0, columns * segments * row_blocks, 1, [&](int64_t begin, int64_t end) {
            for (int64_t index = begin; index < end; ++index) {
                const int64_t column = index % columns, part = index / columns % segments;
                const int64_t row_block = index / (columns * segments);
                Block block{
                    column / plan_.panels_, column % plan_.panels_, row_block * rows_per_block, 0, part * segment, 0};
                block.rows = least(rows_per_block, rows - block.first_row);
                block.tiles = least(segment, width - block.first_tile);
                multiply_block(block);
            }
        });
    }

    void multiply_block(const Block& block) const {
        const WindowAxis* a = plan_.w_.axis;
        const int64_t tiles = block.rows * block.tiles,
                      products_size = plan_.w_.points * g_.phases() * tiles * PANEL_WIDTH;
        int64_t line_floats = PANEL_WIDTH * block.tiles;
        for (int i = 0; i < AXES; ++i)
            line_floats *= a[i].line_length(g_.axis[i], 1);
        Scope scope;
        auto* products = scope.take<float>(products_size + line_floats);
        float* lines = products + products_size;
        multiply_points(block, products, scope.take<int64_t>(2 * plan_.w_.maps));
        for (int64_t row = 0; row < block.rows; ++row)
            write_row(block, row, products, lines);
    }

    // products: [phase][point][tile][PANEL_WIDTH]
    void multiply_points(const Block& block, float* products, int64_t* offsets) const {
        const int64_t tiles = block.rows * block.tiles, depth = g_.in_channels, maps = plan_.w_.maps;
        const float* from[TILE_BLOCK];
        float* to[TILE_BLOCK];
        for (int64_t i = 0; i < tiles; ++i) {
            const int64_t row = block.first_row + i / block.tiles, tile = block.first_tile + i % block.tiles;
            from[i] = values_.at(0, 0, row * values_.row_length() + tile) + block.group * depth;
        }
        const float* weights = packed_ + (block.group * plan_.panels_ + block.panel) * plan_.panel_size();
        const int64_t batch = most<int64_t>(1, DEPTH_BLOCK / depth), part = least(depth, DEPTH_BLOCK);
        for (int64_t point = 0; point < plan_.w_.points; ++point)
            for (int64_t phase = 0; phase < g_.phases(); ++phase, weights += plan_.term_size()) {
                const int64_t used = place_maps(point, phase, offsets);
                float* const first = products + (phase * plan_.w_.points + point) * tiles * PANEL_WIDTH;
                for (int64_t i = 0; i < tiles; ++i)
                    to[i] = first + i * PANEL_WIDTH;
                if (used == 0)
                    __builtin_memset(first, 0, sizeof(float) * tiles * PANEL_WIDTH);
                for (int64_t k = 0; k < depth; k += part) {
                    for (int64_t t = 0; t < used; t += batch)
                        multiply(Product{.rows = from,
                                         .a_step = 1,
                                         .a_offsets = offsets + t,
                                         .b = weights + k * PANEL_WIDTH,
                                         .b_step = PANEL_WIDTH,
                                         .b_offsets = offsets + maps + t,
                                         .batch = least(batch, used - t),
                                         .depth = least(part, depth - k),
                                         .c = to,
                                         .accumulate = t > 0 || k > 0},
                                 tiles, panel_vectors(g_.out_channels, block.panel));
                    for (int64_t t = 0; t < used; ++t)
                        offsets[t] += part;
                }
            }
    }

    // Where the maps that use a point lie: first in the input, then in the weights. Tells how many they are.
    int64_t place_maps(int64_t point, int64_t phase, int64_t* offsets) const {
        const int64_t maps = plan_.w_.maps;
        const PhaseTaps of(g_, phase);
        int64_t used = 0;
        for (int64_t map = 0; map < maps; ++map) {
            int64_t map_of[AXES];
            plan_.w_.map_of(map, map_of);
            if (!(plan_.w_.used_points(plan_.w_.apart.phases ? of.phase : map_of) >> point & 1))
                continue;
            offsets[used] = values_.offset(point, map);
            offsets[maps + used] = map * g_.in_channels * PANEL_WIDTH;
            ++used;
        }
        return used;
    }

    // Output lines that a row of tiles yields, [d][h][w][PANEL_WIDTH], finished and written.
    void write_row(const Block& block, int64_t row, const float* products, float* lines) const {
        const WindowAxis* a = plan_.w_.axis;
        const Strip& strip = values_.strip();
        const Strip::Place place = strip.at((block.first_row + row) * strip.count[2] + block.first_tile);
        const int64_t n = strip.first_image + place.n;
        int64_t first_window[AXES], first[AXES], length[AXES];
        for (int i = 0; i < AXES; ++i) {
            first_window[i] = a[i].window_of(strip.first[i] + place.of[i]);
            first[i] = a[i].first_output(g_.axis[i], first_window[i]);
            length[i] = a[i].line_length(g_.axis[i], i == 2 ? block.tiles : 1);
        }
        place_tiles(block, row, products, first_window, first, length, lines);
        const int64_t first_channel = block.panel * PANEL_WIDTH,
                      channel = block.group * g_.out_channels + first_channel;
        const int64_t channels = panel_columns(g_.out_channels, block.panel);
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
        const WindowAxis* a = plan_.w_.axis;
        const int64_t tiles = block.rows * block.tiles, vectors = panel_vectors(g_.out_channels, block.panel);
        for (int64_t phase = 0; phase < g_.phases(); ++phase) {
            const PhaseTaps of(g_, phase);
            const float* from = products + (phase * plan_.w_.points * tiles + row * block.tiles) * PANEL_WIDTH;
            int64_t at[AXES], step[AXES];
            for (int i = 0; i < AXES; ++i) {
                at[i] = a[i].output(g_.axis[i], of.phase[i], first_window[i]) - first[i];
                step[i] = a[i].tile_step(g_.axis[i]);
            }
            with_outputs(a[0].outputs, [&](auto depth) {
                with_outputs(a[1].outputs, [&](auto height) {
                    with_outputs(a[2].outputs, [&](auto width) {
                        const int64_t first_place = at[2], out_step = g_.axis[2].out_step();
                        for (int64_t tile = 0; tile < block.tiles; ++tile) {
                            at[2] = first_place + out_step * a[2].window_of(tile);
                            place_tile<depth.value, height.value, width.value>(
                                from + tile * PANEL_WIDTH, tiles * PANEL_WIDTH, vectors, at, step, length, lines);
                        }
                    });
                });
            });
        }
    }

    // Calls f with the number of outputs as a constant, so that a tile stays in registers.
    template <class F>
    static void with_outputs(int64_t outputs, const F& f) {
        outputs == 1 ? f(Constant<1>()) : outputs == 2 ? f(Constant<2>()) : f(Constant<3>());
    }

    template <int MD, int MH, int MW>
    static void place_tile(const float* products, int64_t point_step, int64_t vectors, const int64_t* at,
                           const int64_t* step, const int64_t* length, float* lines) {
        constexpr int PD = MD == 1 ? 1 : POINTS, PH = MH == 1 ? 1 : POINTS, PW = MW == 1 ? 1 : POINTS;
        for (int64_t v = 0; v < vectors * VF; v += VF) {
            vf grid[PD * PH * PW];
            for (int p = 0; p < PD * PH * PW; ++p)
                grid[p] = load(products + p * point_step + v);
            for (int i = 0; i < PH * PW; ++i)
                inverse(grid + i, MD, PH * PW);
            for (int d = 0; d < MD; ++d)
                for (int w = 0; w < PW; ++w)
                    inverse(grid + d * PH * PW + w, MH, PW);
            for (int d = 0; d < MD; ++d)
                for (int h = 0; h < MH; ++h) {
                    vf* last = grid + (d * PH + h) * PW;
                    inverse(last, MW, 1);
                    const int64_t line = (at[0] + d * step[0]) * length[1] + at[1] + h * step[1];
                    for (int w = 0; w < MW; ++w)
                        store(lines + (line * length[2] + at[2] + w * step[2]) * PANEL_WIDTH + v, last[w]);
                }
        }
    }

    const Winograd& plan_;
    const Geometry& g_;
    const Image& out_;
    const float* packed_;
    const Epilogue& epilogue_;
    WindowValues values_;
};

// False where the input holds values that the transform would spread or overflow: nothing usable is written then.
bool Winograd::run(const Image& in, const Image& out, const float* packed, const Epilogue& epilogue) const {
    return WinogradRun(*this, in, out, packed, epilogue).run();
}

}
}
