// Convolution and transposed convolution as batch-reduce products: a row of the tile is an output pixel, a column an
// output channel, a term of the batch a tap of the kernel.
#pragma once

#include "core/arena.h"
#include "cpu/conv_transpose/layout.h"

namespace aigc::AIGC_LEVEL::conv_transpose {
namespace {

constexpr int64_t CHANNEL_BLOCK = 64;                // output channels of a work item
constexpr int64_t PIXEL_BLOCK = HAS_TILES ? 64 : 48; // output pixels of a work item, per phase along W
constexpr int64_t CUT_PIXEL_BLOCK = 100;             // the same where borders cut them into smaller products
constexpr int64_t DEPTH_BLOCK = 384;    // terms of a sum before the next tile: keeps a panel of weights in L1
constexpr int64_t BOX_FLOATS = 3 << 19; // input kept packed at a time
constexpr int64_t LEAST_WORK = 1 << 16; // multiply-adds that are worth another thread
constexpr double LEAST_OUTSIDE = 0.02;  // share of the products that pays for the smaller regions

template <class A>
int64_t direct_weight_size(const Geometry& g, int64_t planes = 1) {
    return g.groups * g.taps() * packed_size<A>(g.in_channels, g.out_channels, planes);
}

// Where every tap starts in a group's packed weights of `depth` elements per output channel, for one panel.
void place_taps(const Geometry& g, int64_t depth, int64_t panel, int64_t panels, int64_t* place) {
    int64_t phase_start = 0;
    for (int64_t phase = 0; phase < g.phases(); ++phase) {
        const PhaseTaps taps(g, phase);
        const int64_t panel_size = taps.taps(g) * depth * PANEL_WIDTH;
        taps.each(g, [&](int64_t rank, int64_t kd, int64_t kh, int64_t kw) {
            const int64_t tap = (kd * g.axis[1].kernel + kh) * g.axis[2].kernel + kw;
            place[tap] = phase_start + panel * panel_size + rank * depth * PANEL_WIDTH;
        });
        phase_start += panels * panel_size;
    }
}

template <class T>
void gather_taps(const Geometry& g, const Weight& weight, const T* from, int64_t width, float* taps) {
    float* at = taps;
    for (int64_t kd = 0; kd < g.axis[0].kernel; ++kd)
        for (int64_t kh = 0; kh < g.axis[1].kernel; ++kh)
            for (int64_t kw = 0; kw < g.axis[2].kernel; ++kw, at += PANEL_WIDTH) {
                const T* tap = from + kd * weight.stride[0] + kh * weight.stride[1] + kw * weight.stride[2];
                for (int64_t o = 0; o < width; ++o)
                    at[o] = to_float(tap[o * weight.out_stride]);
            }
}

// The taps of one input channel for a panel of output channels, [tap][PANEL_WIDTH]. Tells whether all are finite, with
// room for the sums of a transform.
bool read_taps(const Geometry& g, const Weight& weight, int64_t group, int64_t panel, int64_t in_channel, float* taps) {
    const int64_t width = panel_columns(g.out_channels, panel), size = g.taps() * PANEL_WIDTH;
    const char* at = weight.at(group, panel * PANEL_WIDTH, in_channel);
    if (width < PANEL_WIDTH)
        __builtin_memset(taps, 0, sizeof(float) * size);
    if (weight.dtype == BFLOAT16)
        gather_taps(g, weight, reinterpret_cast<const uint16_t*>(at), width, taps);
    else if (weight.out_stride != 1 && weight.taps_are_adjacent(g))
        transpose(reinterpret_cast<const float*>(at), weight.out_stride, taps, PANEL_WIDTH, width, g.taps());
    else
        gather_taps(g, weight, reinterpret_cast<const float*>(at), width, taps);
    vf zero{};
    for (int64_t i = 0; i < size; i += VF)
        zero += load(taps + i) * 16.0f * 0.0f;
    return !any(zero != 0.0f);
}

// The taps of one element for a panel, all its planes one after another, by way of `stage`. Tells whether all are
// finite.
bool read_elements(const Geometry& g, const Weight& weight, int64_t group, int64_t panel, int64_t element, int64_t,
                   float*, float* taps) {
    return read_taps(g, weight, group, panel, element, taps);
}
bool read_elements(const Geometry& g, const Weight& weight, int64_t group, int64_t panel, int64_t element,
                   int64_t planes, float* stage, Pair* taps) {
    const int64_t size = g.taps() * PANEL_WIDTH, first = NUMBERS_IN<Pair> * element;
    const int64_t channels = least(NUMBERS_IN<Pair>, g.in_channels - first);
    bool finite = true;
    for (int64_t i = 0; i < channels; ++i)
        finite &= read_taps(g, weight, group, panel, first + i, stage + i * size);
    return !any(pack_pairs(stage, channels, 1, size, planes, taps)) && finite;
}

// Packed weights: [group][phase][panel of output channels][tap][plane][element of input channels][PANEL_WIDTH].
// Tells whether all are finite.
template <class A>
bool pack_direct_weight(const Geometry& g, const Weight& weight, int64_t planes, A* packed) {
    const int64_t panels = panels_of(g.out_channels), taps_count = g.taps();
    const int64_t group_size = direct_weight_size<A>(g, planes) / g.groups, depth = elements_of<A>(g.in_channels);
    const int64_t taps_size = taps_count * PANEL_WIDTH, staged = IS_PAIR<A> ? NUMBERS_IN<A> * taps_size : 0;
    const int64_t grain = most<int64_t>(1, LEAST_WORK / taps_size);
    return parallel_all(0, g.groups * panels * depth, grain, [&](int64_t begin, int64_t end) {
        Scope scope;
        auto* taps = scope.take<A>(planes * taps_size);
        auto* stage = scope.take<float>(staged);
        auto* place = scope.take<int64_t>(taps_count);
        int64_t placed_panel = -1;
        bool all_finite = true;
        for (int64_t item = begin; item < end; ++item) {
            const int64_t i = item % depth, panel = item / depth % panels, group = item / (depth * panels);
            if (panel != placed_panel)
                place_taps(g, planes * depth, panel, panels, place);
            placed_panel = panel;
            all_finite &= read_elements(g, weight, group, panel, i, planes, stage, taps);
            A* out = packed + group * group_size + i * PANEL_WIDTH;
            for (int64_t plane = 0; plane < planes; ++plane)
                for (int64_t tap = 0; tap < taps_count; ++tap)
                    __builtin_memcpy(out + place[tap] + plane * depth * PANEL_WIDTH,
                                     taps + plane * taps_size + tap * PANEL_WIDTH, sizeof(A) * PANEL_WIDTH);
        }
        return all_finite;
    });
}

// A part of the output: images, and along each axis the steps j of every phase.
struct Chunk {
    int64_t first_image, images, first[AXES], steps[AXES];
};

template <class A>
class Direct {
  public:
    Direct(const Geometry& g, const Image& in, const Image& out, int64_t planes, const A* packed,
           const Epilogue& epilogue)
        : g_(g), in_(in), out_(out), packed_(packed), epilogue_(epilogue), planes_(planes),
          depth_(elements_of<A>(g.in_channels)),
          pixel_(planes * g.groups * depth_ < 8 ? planes * g.groups * depth_
                                                : pixel_stride(planes * g.groups * depth_)),
          reach_{Reach(g.axis[0]), Reach(g.axis[1]), Reach(g.axis[2])} {
        for (int i = 0; i < AXES; ++i) {
            const Axis& a = g_.axis[i];
            cut_[i] = !in.with.reflects && a.products() - a.products_inside() >= LEAST_OUTSIDE * a.products();
        }
    }

    // False where the input holds values that cannot be split into planes.
    bool run() {
        Chunk chunk = choose_chunk();
        const Chunk full = chunk;
        for (int64_t n = 0; n < out_.batch; n += full.images)
            for (int64_t d = 0; d < g_.axis[0].steps(); d += full.steps[0])
                for (int64_t h = 0; h < g_.axis[1].steps(); h += full.steps[1])
                    for (int64_t w = 0; w < g_.axis[2].steps(); w += full.steps[2]) {
                        chunk.first_image = n;
                        chunk.images = least(full.images, out_.batch - n);
                        const int64_t first[AXES] = {d, h, w};
                        for (int i = 0; i < AXES; ++i) {
                            chunk.first[i] = first[i];
                            chunk.steps[i] = least(full.steps[i], g_.axis[i].steps() - first[i]);
                        }
                        if (!run_chunk(chunk))
                            return false;
                    }
        return true;
    }

  private:
    Box box_of(const Chunk& chunk) const {
        Box box{chunk.first_image, chunk.images, {}, {}};
        for (int i = 0; i < AXES; ++i) {
            box.origin[i] = reach_[i].origin(g_.axis[i], chunk.first[i]);
            box.length[i] = reach_[i].length(g_.axis[i], chunk.steps[i]);
        }
        return box;
    }

    // As many images as fit the packed box; where one image does not, a part of it, cut along its outer axes first.
    Chunk choose_chunk() const {
        Chunk chunk{0, 1, {}, {}};
        for (int i = 0; i < AXES; ++i)
            chunk.steps[i] = g_.axis[i].steps();
        for (int i = 0; i < AXES; ++i)
            while (box_of(chunk).pixels() * pixel_ > BOX_FLOATS && chunk.steps[i] > (i == 2 ? PIXEL_BLOCK : 1))
                chunk.steps[i] = ceil_div(chunk.steps[i], 2);
        chunk.images = most<int64_t>(1, BOX_FLOATS / most<int64_t>(1, box_of(chunk).pixels() * pixel_));
        chunk.images = least(chunk.images, out_.batch);
        chunk.images = ceil_div(out_.batch, ceil_div(out_.batch, chunk.images));
        return chunk;
    }

    struct Item {
        int64_t group, first_channel, channels, phase_d, phase_h, first_line, lines, first_w, steps_w;
    };

    // How a chunk is cut into items; the weights' index is the outermost, so that a thread keeps its panels in cache.
    struct Cut {
        int64_t steps_w, segments, lines_per_item, line_groups, channel_blocks, dh_phases;
        int64_t items(const Geometry& g) const {
            return g.groups * channel_blocks * dh_phases * segments * line_groups;
        }
    };

    Cut cut_of(const Chunk& chunk) const {
        Cut cut;
        cut.segments = ceil_div(chunk.steps[2], PIXEL_BLOCK);
        cut.steps_w = ceil_div(chunk.steps[2], cut.segments);
        const int64_t lines = chunk.images * chunk.steps[0] * chunk.steps[1];
        cut.lines_per_item = most<int64_t>(1, least(lines, (cut_[2] ? CUT_PIXEL_BLOCK : PIXEL_BLOCK) / cut.steps_w));
        cut.line_groups = ceil_div(lines, cut.lines_per_item);
        cut.channel_blocks = ceil_div(g_.out_channels, CHANNEL_BLOCK);
        cut.dh_phases = g_.axis[0].phases() * g_.axis[1].phases();
        return cut;
    }

    Item item_of(const Cut& cut, const Chunk& chunk, int64_t index) const {
        Item item;
        const int64_t lines = chunk.images * chunk.steps[0] * chunk.steps[1];
        item.first_line = index % cut.line_groups * cut.lines_per_item;
        item.lines = least(cut.lines_per_item, lines - item.first_line);
        index /= cut.line_groups;
        item.first_w = index % cut.segments * cut.steps_w;
        item.steps_w = least(cut.steps_w, chunk.steps[2] - item.first_w);
        index /= cut.segments;
        item.phase_h = index % g_.axis[1].phases();
        item.phase_d = index / g_.axis[1].phases() % g_.axis[0].phases();
        index /= cut.dh_phases;
        item.first_channel = index % cut.channel_blocks * CHANNEL_BLOCK;
        item.channels = least(CHANNEL_BLOCK, g_.out_channels - item.first_channel);
        item.group = index / cut.channel_blocks;
        return item;
    }

    // Float maps with channels innermost that need no border are read where they lie, all others through a packed box.
    bool open_box(const Chunk& chunk, Scope& scope) {
        const Box box = box_of(chunk);
        bool inside = !IS_PAIR<A> && in_.dtype == FLOAT32 && in_.channel_stride == 1 && in_.with.is_read_as_it_lies();
        for (int i = 0; i < AXES; ++i)
            inside = inside && box.origin[i] >= 0 && box.origin[i] + box.length[i] <= in_.size[i];
        if (inside) {
            image_step_ = in_.batch_stride;
            for (int i = 0; i < AXES; ++i)
                step_[i] = in_.stride[i];
            pixels_ =
                reinterpret_cast<const A*>(in_.at(box.first_image, 0, box.origin[0], box.origin[1], box.origin[2]));
            return true;
        }
        step_[2] = pixel_;
        step_[1] = box.length[2] * pixel_;
        step_[0] = box.length[1] * step_[1];
        image_step_ = box.length[0] * step_[0];
        auto* pixels = scope.take<A>(box.pixels() * pixel_ + 16);
        pixels_ = pixels;
        if constexpr (IS_PAIR<A>)
            if (planes_ == SPLIT_PLANES)
                return read_split_box(in_, box, pixels, pixel_);
        read_box(in_, box, pixels, pixel_);
        return true;
    }

    bool run_chunk(const Chunk& chunk) {
        Scope scope;
        if (!open_box(chunk, scope))
            return false;
        // Runs and tiles go along W.
        cut_[2] = cut_[2] && !taps_are_one_run() && !(IS_PAIR<A> && amx_depth(depth_, chunk.steps[2]) > 0);
        const Cut cut = cut_of(chunk);
        const int64_t work = g_.multiply_adds(out_) / most<int64_t>(1, cut.items(g_));
        parallel_for(0, cut.items(g_), most<int64_t>(1, LEAST_WORK / most<int64_t>(1, work)),
                     [&](int64_t begin, int64_t end) {
                         for (int64_t index = begin; index < end; ++index)
                             run_item(chunk, cut, item_of(cut, chunk, index));
                     });
        return true;
    }

    int64_t out_segment(const Cut& cut) const { return cut.steps_w * g_.axis[2].out_step(); }

    void run_item(const Chunk& chunk, const Cut& cut, const Item& item) const {
        const int64_t width = padded_columns(item.channels), segment = out_segment(cut);
        const int64_t sums_size = item.lines * segment * width;
        Scope scope;
        auto* sums = scope.take<float>(sums_size);
        auto* offsets = scope.take<int64_t>(2 * most_terms());
        for (int64_t phase_w = 0; phase_w < g_.axis[2].phases(); ++phase_w)
            run_phase(chunk, item, phase_w, segment, width, sums, offsets);
        epilogue_.apply(sums, item.lines * segment, width, item.channels,
                        item.group * g_.out_channels + item.first_channel);
        write_item(chunk, item, segment, width, sums);
    }

    // Steps of one phase that read the same taps, along each axis; where an axis is not cut at its borders, all of
    // them.
    struct Region {
        const PhaseTaps& taps;
        int64_t first[AXES], last[AXES];
    };

    // Calls f(region) for the regions that an item's lines and steps fall into.
    template <class F>
    void for_each_region(const Chunk& chunk, const Item& item, const PhaseTaps& taps, const F& f) const {
        Region region{taps, {}, {}};
        const int64_t first[AXES] = {0, 0, item.first_w},
                      last[AXES] = {chunk.steps[0], chunk.steps[1], item.first_w + item.steps_w};
        const auto along = [&](auto&& self, int axis) -> void {
            if (axis == AXES)
                return f(region);
            for (int64_t& step = region.first[axis] = first[axis]; step < last[axis]; step = region.last[axis]) {
                region.last[axis] = last[axis];
                if (cut_[axis])
                    region.last[axis] =
                        least(last[axis], g_.axis[axis].end_of_same_taps(taps.phase[axis], chunk.first[axis] + step) -
                                              chunk.first[axis]);
                self(self, axis + 1);
            }
        };
        along(along, 0);
    }

    void run_phase(const Chunk& chunk, const Item& item, int64_t phase_w, int64_t segment, int64_t width, float* sums,
                   int64_t* offsets) const {
        const int64_t phase = (item.phase_d * g_.axis[1].phases() + item.phase_h) * g_.axis[2].phases() + phase_w;
        const PhaseTaps taps(g_, phase);
        const Axis& axis_w = g_.axis[2];
        const A* from[CUT_PIXEL_BLOCK];
        float* to[CUT_PIXEL_BLOCK];
        for_each_region(chunk, item, taps, [&](const Region& region) {
            int64_t rows = 0;
            for (int64_t line = 0; line < item.lines; ++line) {
                if (!is_in(region, chunk, item.first_line + line))
                    continue;
                const A* line_at = pixels_ + line_start(chunk, item.first_line + line) + item.group * depth_;
                for (int64_t j = region.first[2]; j < region.last[2]; ++j, ++rows) {
                    from[rows] = line_at + axis_w.in_step() * j * step_[2];
                    to[rows] = sums + (line * segment + axis_w.output(phase_w, j - item.first_w)) * width;
                }
            }
            if (rows > 0)
                multiply_region(chunk, item, phase, region, rows, width, from, to, offsets);
        });
    }

    bool is_in(const Region& region, const Chunk& chunk, int64_t line) const {
        const int64_t h = line % chunk.steps[1], d = line / chunk.steps[1] % chunk.steps[0];
        return h >= region.first[1] && h < region.last[1] && d >= region.first[0] && d < region.last[0];
    }

    int64_t most_terms() const { return g_.taps() * terms_of(planes_); }

    // With few input channels the taps along W are neighbours in the map as in the weights: one long sum, not many
    // short.
    bool taps_are_one_run() const {
        const Axis& w = g_.axis[2];
        return !w.transposed && w.dilation == 1 && step_[2] == depth_;
    }

    // Where the terms of a region's sums start in the map and in a panel of weights. Returns how many they are.
    int64_t place_terms(const Chunk& chunk, const Region& region, int64_t run, int64_t* maps, int64_t* weights) const {
        const auto is_read = [&](int axis, int64_t tap) {
            return !cut_[axis] ||
                   g_.axis[axis].reads(region.taps.phase[axis], tap, chunk.first[axis] + region.first[axis]);
        };
        const auto start = [&](int axis, int64_t tap) {
            return (g_.axis[axis].offset(region.taps.phase[axis], tap) - reach_[axis].low) * step_[axis];
        };
        const int64_t in_plane = g_.groups * depth_, weight_plane = depth_ * run * PANEL_WIDTH;
        int64_t terms = 0;
        region.taps.each(g_, [&](int64_t rank, int64_t kd, int64_t kh, int64_t kw) {
            if (rank % run != 0 || !is_read(0, kd) || !is_read(1, kh) || !is_read(2, kw))
                return;
            const int64_t map = start(0, kd) + start(1, kh) + start(2, kw),
                          weight = rank / run * planes_ * weight_plane;
            for_each_term(planes_, [&](int64_t of_map, int64_t of_weight) {
                maps[terms] = map + of_map * in_plane;
                weights[terms++] = weight + of_weight * weight_plane;
            });
        });
        return terms;
    }

    void multiply_region(const Chunk& chunk, const Item& item, int64_t phase, const Region& region, int64_t rows,
                         int64_t width, const A* const* from, float* const* to, int64_t* offsets) const {
        const int64_t run = taps_are_one_run() ? g_.axis[2].kernel : 1, depth = run * depth_;
        const int64_t panel_size = planes_ * region.taps.taps(g_) * depth_ * PANEL_WIDTH;
        int64_t* steps = offsets + most_terms();
        const int64_t terms = place_terms(chunk, region, run, offsets, steps);
        if (terms == 0) {
            for (int64_t row = 0; row < rows; ++row)
                __builtin_memset(to[row], 0, sizeof(float) * width);
            return;
        }
        const A* weights = packed_ + phase_start(item.group, phase) + item.first_channel / PANEL_WIDTH * panel_size;
        const int64_t steps_w = region.last[2] - region.first[2];
        // Tiles keep their sums to the end: what they read is large either way.
        const bool in_tiles = IS_PAIR<A> && amx_depth(depth, steps_w) > 0;
        const int64_t batch = in_tiles ? terms : most<int64_t>(1, DEPTH_BLOCK / depth);
        const int64_t part = in_tiles ? depth : least(depth, DEPTH_BLOCK);
        for (int64_t column = 0; column < width; column += PANEL_WIDTH, weights += panel_size)
            for (int64_t t = 0; t < terms; t += batch)
                for (int64_t k = 0; k < depth; k += part) {
                    const A* rows_at[CUT_PIXEL_BLOCK];
                    float* sums_at[CUT_PIXEL_BLOCK];
                    for (int64_t row = 0; row < rows; ++row) {
                        rows_at[row] = from[row] + k;
                        sums_at[row] = to[row] + column;
                    }
                    const ProductOf<A> product{.rows = rows_at,
                                               .a_step = 1,
                                               .a_offsets = offsets + t,
                                               .b = weights + k * PANEL_WIDTH,
                                               .b_step = PANEL_WIDTH,
                                               .b_offsets = steps + t,
                                               .batch = least(batch, terms - t),
                                               .depth = least(part, depth - k),
                                               .c = sums_at,
                                               .accumulate = t > 0 || k > 0,
                                               .run = steps_w};
                    multiply(product, rows, panel_vectors(item.channels, column / PANEL_WIDTH));
                }
    }

    int64_t phase_start(int64_t group, int64_t phase) const {
        int64_t taps = group * g_.taps();
        for (int64_t earlier = 0; earlier < phase; ++earlier)
            taps += PhaseTaps(g_, earlier).taps(g_);
        return taps * planes_ * depth_ * padded_columns(g_.out_channels);
    }

    // Where the first step of a line of the chunk reads.
    int64_t line_start(const Chunk& chunk, int64_t line) const {
        const int64_t h = line % chunk.steps[1], d = line / chunk.steps[1] % chunk.steps[0];
        const int64_t n = line / (chunk.steps[1] * chunk.steps[0]);
        return n * image_step_ + d * g_.axis[0].in_step() * step_[0] + h * g_.axis[1].in_step() * step_[1];
    }

    void write_item(const Chunk& chunk, const Item& item, int64_t segment, int64_t width, const float* sums) const {
        const int64_t first_w = (chunk.first[2] + item.first_w) * g_.axis[2].out_step();
        const int64_t pixels = least(item.steps_w * g_.axis[2].out_step(), out_.size[2] - first_w);
        for (int64_t i = 0; i < item.lines; ++i) {
            const int64_t line = item.first_line + i;
            const int64_t jh = chunk.first[1] + line % chunk.steps[1];
            const int64_t jd = chunk.first[0] + line / chunk.steps[1] % chunk.steps[0];
            const int64_t n = chunk.first_image + line / (chunk.steps[1] * chunk.steps[0]);
            const int64_t h = g_.axis[1].output(item.phase_h, jh), d = g_.axis[0].output(item.phase_d, jd);
            if (h < out_.size[1] && d < out_.size[0])
                write_line(sums + i * segment * width, width, pixels, item.channels, out_, n,
                           item.group * g_.out_channels + item.first_channel, d, h, first_w);
        }
    }

    const Geometry& g_;
    const Image &in_, &out_;
    const A* packed_;
    const Epilogue& epilogue_;
    const int64_t planes_;
    const int64_t depth_, pixel_; // elements of a group in a plane of a pixel, and between neighbouring pixels
    const Reach reach_[AXES];
    bool cut_[AXES]; // whether the products outside the map are left out along an axis
    int64_t image_step_ = 0, step_[AXES] = {};
    const A* pixels_ = nullptr;
};

}
}
