// Tokens through all layers, as one team that waits for each other five times in a layer.
#pragma once

#include "cpu/attention/forward.h"
#include "cpu/decode/attention.h"
#include "cpu/decode/certified.h"
#include "cpu/decode/products.h"

namespace aigc::AIGC_LEVEL::decode {

// Tokens of a sequence that begins attend together, so many at a time, from so many on.
constexpr int64_t TOGETHER_TOKENS = 128, LEAST_TOGETHER = 16;
// Tokens that share what they see attend together as well: so many, which read the same once.
constexpr int64_t MOST_SHARING = 4;
static inline float gelu(float x) { return 0.5f * x * (1.0f + __builtin_erff(x * 0.70710678118654752f)); }

static inline vf activated(int64_t activation, vf x) {
    switch (activation) {
    case GELU:
        for (int i = 0; i < VF; ++i)
            x[i] = gelu(x[i]);
        return x;
    case GELU_TANH:
        return 0.5f * x * (1.0f + tanh(0.79788456080286536f * (x + 0.044715f * (x * x * x))));
    case SILU:
        return x * sigmoid(x);
    default:
        return x < 0.0f ? vf{} : x; // NaN stays
    }
}

static inline float sum_of(vf x) {
    float total = 0;
    for (int i = 0; i < VF; ++i)
        total += x[i];
    return total;
}

static inline void normalize(const Decoder& decoder, const NormWeights& norm, const float* x, float* out) {
    const int64_t size = decoder.sizes.hidden;
    const bool centred = decoder.sizes.norm == LAYER_NORM;
    vf sum{};
    for (int64_t i = 0; centred && i < size; i += VF)
        sum += load_up_to(x + i, size - i);
    const float mean = centred ? sum_of(sum) / static_cast<float>(size) : 0.0f;
    vf squares{};
    for_each_vector(size, [&](int64_t i, int64_t part) AIGC_INLINE {
        const vf off = load_up_to(x + i, part) - mean;
        // What fills a part up is not among the numbers.
        vf counted{};
        for (int64_t j = 0; j < VF; ++j)
            counted[j] = j < part ? off[j] : 0.0f;
        squares += part == VF ? off * off : counted * counted;
    });
    const float variance = sum_of(squares) / static_cast<float>(size);
    const float factor = 1.0f / __builtin_sqrtf(variance + decoder.epsilon);
    for_each_vector(size, [&](int64_t i, int64_t part) AIGC_INLINE {
        vf y = (load_up_to(x + i, part) - mean) * factor * load_up_to(norm.weight + i, part);
        if (norm.bias)
            y += load_up_to(norm.bias + i, part);
        store_up_to(out + i, y, part);
    });
}

// The tokens of a call, in the order of their times in each slot.
struct Tokens {
    int64_t count;
    const int64_t *ids, *positions, *slots, *times;
    const int64_t* visible; // whether later tokens of the slot, and this one, see it
    int64_t outputs;
    const int64_t* places; // of the tokens whose logits are wanted
};

// A head of which only the greatest logit is wanted, of at most FEW_ROWS rows.
struct Certified {
    const char* bytes; // the head as int8
    ColumnBounds columns;
    int64_t banned_count;
    const int64_t* banned; // columns that are out of question
    int64_t* found;        // of each row the column; -1 where the row is not finite
};

class Forward : Products {
  public:
    // Gives the logits, or what `certified` asks for in their place.
    Forward(const Decoder& decoder, Sequences& sequences, const Tokens& tokens, float* logits, Scope& scope,
            const Certified* certified = nullptr)
        : Products(scope, most(tokens.count, tokens.outputs),
                   most(most(decoder.sizes.hidden, decoder.query_columns()), decoder.sizes.units)),
          d_(decoder), s_(sequences), t_(tokens), logits_(logits), certified_(certified), half_(d_.sizes.rotated / 2),
          group_(d_.sizes.heads / d_.sizes.kv_heads), x_(scope, t_.count, d_.sizes.hidden),
          normal_(scope, d_.sizes.order == AFTER ? most(t_.count, t_.outputs) : 0, d_.sizes.hidden),
          projected_(scope, t_.count, d_.query_columns() + 2 * d_.key_columns()),
          attended_(scope, t_.count, d_.query_columns()), units_(scope, t_.count, d_.sizes.units),
          entries_(scope.take<int32_t>(t_.count)), seen_(scope.take<int64_t>(t_.count)),
          segments_(scope.take<Segment>(t_.count)), cosines_(scope.take<float>(t_.count * half_)),
          sines_(scope.take<float>(t_.count * half_)), counters_(take_counters(scope, PHASES * (d_.sizes.layers + 1))) {
        for (int64_t i = 0; i < t_.count; ++i) {
            entries_[i] = s_.append(t_.slots[i], t_.times[i], t_.visible[i] != 0);
            seen_[i] = s_.length(t_.slots[i]);
            alone_ &= i == 0 || t_.slots[i] != t_.slots[i - 1];
            embed(i);
        }
        // Keys are kept of all tokens, attention in the last layer is of those whose logits are wanted.
        alone_ &= t_.outputs == t_.count;
        for (int64_t i = 0, end; i < t_.count; i = end) {
            for (end = i + 1; end < t_.count && t_.slots[end] == t_.slots[i];)
                ++end;
            divide(i, end);
        }
    }

    void run() {
        const int64_t wanted = d_.bytes() * ceil_div(t_.count, FEW_ROWS) / LEAST_BYTES;
        Scope outer;
        const int64_t threads = thread_count();
        lower_ = outer.take<float>(threads * FEW_ROWS);
        best_ = outer.take<Best>(threads * FEW_ROWS);
        upper_ = outer.take<float>(certified_ ? FEW_ROWS * d_.head.panels() : 0);
        team(most<int64_t>(1, wanted), [&](int64_t index, int64_t members) {
            Scope scope;
            Runner self{member(scope, members), FloatRows(scope, FEW_ROWS, d_.sizes.hidden),
                        scope.take<const float*>(t_.count), nullptr};
            for (int64_t layer = 0; layer < d_.sizes.layers; ++layer)
                run_layer(self, layer);
            if (certified_)
                run_certified_head(self, index, scope.take<char>(rows_bytes(FEW_ROWS)));
            else if (t_.outputs > 0)
                run_head(self);
        });
    }

  private:
    // What is taken from counters in a layer; the head is one more layer.
    static constexpr int64_t NOT_TOGETHER = -1;
    enum Phase {
        PREPARE,
        PROJECT,
        KEEP,
        ATTEND,
        PREPARE_OUT,
        OUT,
        PREPARE_QUERY,
        QUERY,
        ATTEND_TO_MEMORY,
        PREPARE_OUT_OF_MEMORY,
        OUT_OF_MEMORY,
        PREPARE_UP,
        UP,
        PREPARE_DOWN,
        DOWN,
        PHASES
    };

    // Tokens that attend together: of a slot, and the first of those that they see, or NOT_TOGETHER and how many of the
    // first entries they all see.
    struct Segment {
        int64_t first, count, begin, common;
    };

    struct Runner : Member {
        FloatRows normal;           // of a few rows, what norms made of them
        const float** begun;        // of each row, what the part of a layer that runs began with, and adds to
        const NormWeights* pending; // what the sums of the last part are still to be normalised by, or null
    };

    Counter& counter(int64_t layer, Phase phase) const { return counters_[layer * PHASES + phase]; }

    // Tokens of one slot: whether they are all that they see, so that keys and values lie as they were projected.
    void divide(int64_t begin, int64_t end) {
        bool together = end - begin >= LEAST_TOGETHER && seen_[begin] == 1;
        for (int64_t i = begin; i < end; ++i)
            together &= t_.visible[i] != 0;
        if (together)
            for (int64_t i = begin; i < end; i += TOGETHER_TOKENS)
                segments_[segment_count_++] = {i, least(TOGETHER_TOKENS, end - i), begin, 0};
        else
            for (int64_t i = begin; i < end; ++i)
                if (!joins_last(i))
                    segments_[segment_count_++] = {i, 1, NOT_TOGETHER, seen_[i]};
    }

    // Whether a token shares most of what it sees with the last segment's.
    bool joins_last(int64_t i) {
        if (segment_count_ == 0)
            return false;
        Segment& last = segments_[segment_count_ - 1];
        if (last.begin != NOT_TOGETHER || last.count == MOST_SHARING)
            return false;
        const int64_t common = least(s_.common(t_.slots[last.first], t_.slots[i]), least(last.common, seen_[i]));
        if (2 * common < seen_[i])
            return false;
        last.common = common;
        ++last.count;
        return true;
    }

    void embed(int64_t i) const {
        const auto read = [&](const char* row, int64_t dtype, int64_t c) {
            const int64_t left = d_.sizes.hidden - c;
            return dtype == BFLOAT16 ? load_up_to(reinterpret_cast<const bfloat16*>(row) + c, left)
                                     : load_up_to(reinterpret_cast<const float*>(row) + c, left);
        };
        const int64_t position = t_.positions[i];
        for (int64_t c = 0; c < d_.sizes.hidden; c += VF) {
            vf found = read(d_.embedding.row(t_.ids[i]), d_.embedding.dtype, c) * d_.embedding_scale;
            if (d_.positions.data)
                found += read(d_.positions.row(position), d_.positions.dtype, c);
            store(x_[i] + c, found);
        }
        for (int64_t j = 0; j < half_; ++j) {
            const float angle = static_cast<float>(position) * d_.frequencies[j];
            cosines_[i * half_ + j] = __builtin_cosf(angle) * d_.rotation_scale;
            sines_[i * half_ + j] = __builtin_sinf(angle) * d_.rotation_scale;
        }
    }

    // The norm that comes before a part of a layer, if it does.
    const NormWeights* before(const NormWeights& norm) const { return d_.sizes.order == AFTER ? nullptr : &norm; }

    // What a part of a layer begins with, as products take it.
    void begin(Runner& self, const Wanted& wanted, const Matrix& matrix, const NormWeights* norm, Counter& counter) {
        const NormWeights* const pending = self.pending;
        const auto begun = [&](int64_t r) {
            return !pending ? x_[wanted[r]] : wanted.count <= FEW_ROWS ? self.normal[r] : normal_[r];
        };
        for (int64_t r = 0; r < wanted.count; ++r)
            self.begun[wanted[r]] = begun(r);
        prepare(self, wanted.count, matrix, counter, [&](int64_t r, float* made) -> const float* {
            if (pending)
                normalize(d_, *pending, x_[wanted[r]], begun(r));
            if (!norm || !norm->weight)
                return begun(r);
            normalize(d_, *norm, begun(r), made);
            return made;
        });
    }

    // Adds what a part of a layer made to what it began with.
    void end(Runner& self, const Wanted& wanted, const FloatRows& made, const Matrix& matrix, const NormWeights& norm,
             Counter& preparing, Counter& multiplying) {
        prepare(self, wanted.count, matrix, preparing, [&](int64_t r, float*) { return made[wanted[r]]; });
        multiply_to(self, wanted, matrix, multiplying, x_, self.begun);
        wait(self);
        self.pending = d_.sizes.order == AFTER ? &norm : nullptr;
    }

    void run_layer(Runner& self, int64_t i) {
        const Layer& layer = d_.layers[i];
        const bool is_last = i + 1 == d_.sizes.layers && t_.outputs < t_.count;
        const Wanted all{t_.count, nullptr}, wanted = is_last ? Wanted{t_.outputs, t_.places} : all;
        begin(self, all, layer.projections, before(layer.attention_norm), counter(i, PREPARE));
        multiply_to(self, all, layer.projections, counter(i, PROJECT), projected_);
        wait(self);
        if (!alone_) {
            for (int64_t r; (r = counter(i, KEEP).take()) < t_.count;)
                for (int64_t head = 0; head < d_.sizes.kv_heads; ++head)
                    keep(i, r, head);
            wait(self);
        }
        // Two parts that begin with the same: the second one begins before the first one ends.
        if (d_.sizes.order == PARALLEL)
            make_units(self, i, wanted);
        if (is_last)
            attend_one_by_one(self, i, wanted);
        else
            attend_in_segments(self, i);
        wait(self);
        end(self, wanted, attended_, layer.out, layer.attention_norm, counter(i, PREPARE_OUT), counter(i, OUT));
        if (layer.has_cross())
            attend_to_memory(self, i, wanted);
        if (d_.sizes.order != PARALLEL) {
            make_units(self, i, wanted);
            wait(self);
        }
        end(self, wanted, units_, layer.down, layer.units_norm, counter(i, PREPARE_DOWN), counter(i, DOWN));
    }

    void make_units(Runner& self, int64_t i, const Wanted& wanted) {
        const Layer& layer = d_.layers[i];
        const Matrix &up = layer.up, &gate = layer.gate;
        const int64_t activation = d_.sizes.activation;
        begin(self, wanted, up, before(layer.units_norm), counter(i, PREPARE_UP));
        multiply_all(self, wanted.count, up, gate.packed ? &gate : nullptr, counter(i, UP),
                     [&](int64_t row, int64_t first, const float* products, const float* gates) {
                         over_vectors(up, first, [&](int64_t column, int64_t v, int64_t part) {
                             const vf x = with_bias(up, load(products + v), column, part);
                             const vf y = gate.packed ? with_bias(gate, load(gates + v), column, part) : x;
                             store(units_[wanted[row]] + column,
                                   gate.packed ? activated(activation, y) * x : activated(activation, y));
                         });
                     });
    }

    void run_head(Runner& self) {
        const int64_t head = d_.sizes.layers;
        begin(self, {t_.outputs, t_.places}, d_.head, &d_.last_norm, counter(head, PREPARE));
        multiply_all(self, t_.outputs, d_.head, nullptr, counter(head, PROJECT),
                     [&](int64_t row, int64_t first, const float* products, const float*) {
                         over_vectors(d_.head, first, [&](int64_t column, int64_t v, int64_t part) {
                             store_up_to(logits_ + row * d_.head.columns + column,
                                         with_bias(d_.head, load(products + v), column, part), part);
                         });
                     });
    }

    bool is_banned(int64_t column) const {
        for (int64_t i = 0; i < certified_->banned_count; ++i)
            if (certified_->banned[i] == column)
                return true;
        return false;
    }

    // Two readings: of all columns as int8, for what bounds their logits, then of those that may be the greatest.
    void run_certified_head(Runner& self, int64_t member, char* bytes) {
        const int64_t layers = d_.sizes.layers, rows = t_.outputs, depth = d_.head.depth, panels = d_.head.panels();
        Scope scope;
        RowBounds* const bounds = scope.take<RowBounds>(rows);
        const char* byte_rows[FEW_ROWS];
        begin(self, {rows, t_.places}, d_.head, &d_.last_norm, counter(layers, PREPARE));
        bool finite = true;
        for (int64_t r = 0; r < rows; ++r) {
            char* const row = bytes + r * compact_row_bytes(INT8, depth);
            const auto* const x = reinterpret_cast<const float*>(self.rows[r]);
            prepare_row(INT8, x, depth, row);
            byte_rows[r] = row;
            bounds[r] = RowBounds(x, depth, row);
            finite &= bounds[r].length < __FLT_MAX__ && bounds[r].off < __FLT_MAX__;
            lower_[member * FEW_ROWS + r] = attention::MINUS_INFINITY;
            best_[member * FEW_ROWS + r] = Best();
        }
        const Matrix screen{INT8, depth, d_.head.columns, certified_->bytes, nullptr};
        Member screening{self.members, nullptr, self.products, byte_rows};
        if (finite)
            multiply_all(screening, rows, screen, nullptr, counter(layers, PROJECT),
                         [&](int64_t r, int64_t first, const float* products, const float*) {
                             bound_logits(r, first, products, bounds[r], lower_[member * FEW_ROWS + r]);
                         });
        wait(self);
        float *c[FEW_ROWS], least_wanted[FEW_ROWS];
        for (int64_t r = 0; r < rows; ++r) {
            c[r] = self.products + r * COMPACT_WIDTH;
            least_wanted[r] = lower_[r];
            for (int64_t m = 1; m < self.members; ++m)
                least_wanted[r] = most(least_wanted[r], lower_[m * FEW_ROWS + r]);
        }
        for (int64_t panel; finite && (panel = counter(layers, OUT).take()) < panels;) {
            bool wanted = false;
            for (int64_t r = 0; r < rows; ++r)
                wanted |= !(upper_[r * panels + panel] < least_wanted[r]);
            if (!wanted)
                continue;
            multiply_compact({d_.head.weights, depth, d_.head.panel(panel), self.rows, c}, rows);
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t i = 0; i < COMPACT_WIDTH && panel * COMPACT_WIDTH + i < d_.head.columns; ++i)
                    if (!is_banned(panel * COMPACT_WIDTH + i))
                        best_[member * FEW_ROWS + r].take(c[r][i], panel * COMPACT_WIDTH + i);
        }
        wait(self);
        for (int64_t r = 0; member == 0 && r < rows; ++r) {
            Best best = best_[r];
            for (int64_t m = 1; m < self.members; ++m)
                if (best_[m * FEW_ROWS + r].column >= 0)
                    best.take(best_[m * FEW_ROWS + r].logit, best_[m * FEW_ROWS + r].column);
            certified_->found[r] = best.column;
        }
    }

    void bound_logits(int64_t row, int64_t first, const float* products, const RowBounds& bounds, float& lower) const {
        float greatest = attention::MINUS_INFINITY;
        over_vectors(d_.head, first, [&](int64_t column, int64_t v, int64_t part) {
            const vf logit = load(products + v), bound = bounds.of(certified_->columns, column, d_.head.depth);
            const vf high = logit + bound, low = logit - bound;
            for (int64_t i = 0; i < part; ++i)
                if (low[i] > lower || high[i] > greatest) {
                    if (certified_->banned_count && is_banned(column + i))
                        continue;
                    lower = most(lower, low[i]);
                    greatest = most(greatest, high[i]);
                }
        });
        upper_[row * d_.head.panels() + first / COMPACT_WIDTH] = greatest;
    }

    // Queries of some heads of some tokens, and where their results go.
    struct Queries {
        float *data, **out;
        int64_t width, count = 0;

        Queries(Scope& scope, int64_t most, int64_t of_width)
            : data(scope.take<float>(most * of_width)), out(scope.take<float*>(most)), width(of_width) {}
        void take(const float* from, float* to, int64_t column, int64_t heads, int64_t size, float scale) {
            for (int64_t h = 0; h < heads; ++h, ++count, column += size) {
                copy_query(data + count * width, from + column, size, width, scale);
                out[count] = to + column;
            }
        }
    };

    // Turns a key head of a token, and the queries that share it, and keeps its key and its value.
    void keep(int64_t layer, int64_t row, int64_t head) const {
        float* const key = projected_[row] + d_.query_columns() + head * s_.size();
        const float *const cosines = cosines_ + row * half_, *const sines = sines_ + row * half_;
        rotate(key, half_, cosines, sines);
        for (int64_t h = head * group_; h < (head + 1) * group_; ++h)
            rotate(projected_[row] + h * s_.size(), half_, cosines, sines);
        copy_head(s_.at(layer, 0, head, entries_[row]), key, s_.size(), s_.width());
        copy_head(s_.at(layer, 1, head, entries_[row]), key + d_.key_columns(), s_.size(), s_.width());
    }

    // Calls f(key head, item) for items of all heads: head by head, so that rows that share keys find them in the
    // cache.
    template <class F>
    void over_heads(const Member& self, int64_t items, Counter& counter, const F& f) const {
        const int64_t tasks = d_.sizes.kv_heads * items;
        const int64_t grain = d_.sizes.kv_heads >= 4 * self.members ? least(items, FEW_ROWS) : 1;
        for (int64_t first; (first = counter.take(grain)) < tasks;)
            for (int64_t task = first; task < least(first + grain, tasks); ++task)
                f(task / items, task % items);
    }

    void attend_one_by_one(const Member& self, int64_t layer, const Wanted& wanted) const {
        over_heads(self, wanted.count, counter(layer, ATTEND), [&](int64_t head, int64_t i) {
            attend_to_cache(layer, {wanted[i], 1, NOT_TOGETHER, seen_[wanted[i]]}, head);
        });
    }

    void attend_in_segments(const Member& self, int64_t layer) const {
        over_heads(self, segment_count_, counter(layer, ATTEND), [&](int64_t head, int64_t i) {
            const Segment& segment = segments_[i];
            if (segment.begin == NOT_TOGETHER)
                attend_to_cache(layer, segment, head);
            else
                attend_together(layer, segment, head);
        });
    }

    // What a token sees in a layer: the last ones of so many entries.
    int64_t first_seen(const int32_t* entries, int64_t row, int64_t window) const {
        int64_t first = 0, end = seen_[row];
        while (window > 0 && first < end) {
            const int64_t middle = (first + end) / 2;
            s_.time_of(entries[middle]) > t_.times[row] - window ? end = middle : first = middle + 1;
        }
        return first;
    }

    void attend_to_cache(int64_t layer, const Segment& segment, int64_t head) const {
        const int64_t size = s_.size(), width = s_.width(), window = d_.layers[layer].window;
        Scope scope;
        Queries queries(scope, segment.count * group_, width);
        auto* const seen = scope.take<int64_t>(segment.count);
        const int32_t* all[MOST_SHARING];
        int64_t begin = 0, common = segment.common;
        for (int64_t t = 0; t < segment.count; ++t) {
            const int64_t row = segment.first + t;
            if (alone_)
                keep(layer, row, head);
            queries.take(projected_[row], attended_[row], head * group_ * size, group_, size, d_.layers[layer].scale);
            all[t] = s_.entries(t_.slots[row]);
            const int64_t first = first_seen(all[t], row, window);
            // What begins elsewhere has no keys in common at the same places.
            common = t > 0 && first != begin ? 0 : common;
            begin = first;
            all[t] += first;
            seen[t] = seen_[row] - first;
        }
        const int64_t rows = segment.count * group_;
        attend(
            {segment.count, group_, size, width, queries.data, queries.out, seen, most<int64_t>(0, common - begin)},
            [&](int64_t t, int64_t j) AIGC_INLINE { return s_.at(layer, 1, head, all[t][j]); },
            [&](int64_t, int64_t count, const float* const* values, float* scores)
                AIGC_INLINE { multiply_by_keys_before(values, count, queries.data, rows, width, scores); });
    }

    // Rows of the same source read its keys and values once.
    void attend_to_memory(Runner& self, int64_t i, const Wanted& wanted) {
        const Cross& cross = d_.layers[i].cross;
        begin(self, wanted, cross.query, before(cross.norm), counter(i, PREPARE_QUERY));
        multiply_to(self, wanted, cross.query, counter(i, QUERY), projected_);
        wait(self);
        over_heads(self, ceil_div(wanted.count, FEW_ROWS), counter(i, ATTEND_TO_MEMORY),
                   [&](int64_t head, int64_t few) {
                       const int64_t last = least((few + 1) * FEW_ROWS, wanted.count);
                       const auto source_of = [&](int64_t r) { return s_.source(t_.slots[wanted[r]]); };
                       for (int64_t first = few * FEW_ROWS, next; first < last; first = next) {
                           for (next = first + 1; next < last && source_of(next) == source_of(first);)
                               ++next;
                           attend_to_source(i, head, source_of(first), wanted, first, next - first);
                       }
                   });
        wait(self);
        end(self, wanted, attended_, cross.out, cross.norm, counter(i, PREPARE_OUT_OF_MEMORY),
            counter(i, OUT_OF_MEMORY));
    }

    void attend_to_source(int64_t layer, int64_t head, int64_t source, const Wanted& wanted, int64_t first,
                          int64_t count) const {
        const int64_t size = s_.size(), width = s_.width();
        const Memory& memory = *s_.memory();
        Scope scope;
        Queries queries(scope, count * group_, width);
        auto* const seen = scope.take<int64_t>(count);
        for (int64_t t = 0; t < count; ++t) {
            const int64_t row = wanted[first + t];
            queries.take(projected_[row], attended_[row], head * group_ * size, group_, size,
                         d_.layers[layer].cross.scale);
            seen[t] = memory.length(source);
        }
        constexpr int64_t NOWHERE = 0;
        const float *const keys = memory.keys(layer, head, source), *const all = memory.values(layer, head, source);
        const int64_t rows = count * group_;
        auto** const score_rows = scope.take<float*>(rows);
        auto** const query_rows = scope.take<const float*>(rows);
        for (int64_t r = 0; r < rows; ++r)
            query_rows[r] = queries.data + r * width;
        attend(
            {count, group_, size, width, queries.data, queries.out, seen, memory.length(source)},
            [&](int64_t, int64_t j) AIGC_INLINE { return all + j * width; },
            [&](int64_t begin, int64_t part, const float* const*, float* scores) AIGC_INLINE {
                for (int64_t r = 0; r < rows; ++r)
                    score_rows[r] = scores + r * SCORE_ROW;
                const Product product{query_rows, 1, &NOWHERE, keys + begin, memory.key_step(source),
                                      &NOWHERE,   1, size,     score_rows,   false,
                                      0};
                multiply_wide(product, rows, ceil_div(part, VF));
            });
    }

    // To keys and values where they were projected to.
    void attend_together(int64_t layer, const Segment& segment, int64_t head) const {
        using attention::Rows;
        const int64_t size = s_.size(), before = segment.first - segment.begin, stride = projected_.stride;
        attention::Problem problem{};
        problem.batches = problem.kv_heads = 1;
        problem.heads = group_;
        problem.queries = segment.count;
        problem.keys = before + segment.count;
        problem.size = problem.value_size = size;
        problem.left = d_.layers[layer].window - 1;
        problem.offset = before;
        problem.scale = d_.layers[layer].scale;
        problem.mask.kind = attention::NO_MASK;
        const float* const keys = projected_[segment.begin] + d_.query_columns() + head * size;
        const attention::Inputs<float> inputs{
            Rows<const float>{projected_[segment.first] + head * group_ * size, 0, size, stride},
            Rows<const float>{keys, 0, 0, stride}, Rows<const float>{keys + d_.key_columns(), 0, 0, stride}};
        const Rows<float> out{attended_[segment.first] + head * group_ * size, 0, size, attended_.stride};
        attention::Forward<float, attention::FloatProducts<float>>(problem, inputs, out, nullptr).run(0, 1);
    }

    const Decoder& d_;
    Sequences& s_;
    const Tokens& t_;
    float* const logits_; // (outputs, columns of the head)
    const Certified* const certified_;
    const int64_t half_;  // of the numbers that are rotated
    const int64_t group_; // heads that share a key head
    const FloatRows x_, normal_, projected_, attended_, units_;
    int32_t* const entries_; // of the tokens
    int64_t* const seen_;    // entries that each of them sees, itself among them
    Segment* const segments_;
    int64_t segment_count_ = 0;
    float *const cosines_, *const sines_;
    Counter* const counters_;
    // What members leave for each other: of each member and row; of each row and panel.
    float *lower_ = nullptr, *upper_ = nullptr;
    Best* best_ = nullptr;
    bool alone_ = true; // whether no slot has two tokens
};

}
