// The gradients to Q, K and V. The softmax is made anew, from the scores that it is multiplied with here, and so is the
// sum over keys that its gradient subtracts: where one key has nearly all the weight, what is left of the difference is
// less than the rounding of an output or of a log-sum-exp.
#pragma once

#include "cpu/attention/forward.h"

namespace aigc::AIGC_LEVEL {

template <class T>
struct Gradients {
    Rows<const T> out_gradient;
    Rows<T> q, k, v; // results
};

// One block of keys of a block of lanes: its tiles, [key][lane], and the greatest score that the softmax had seen when
// it made the probabilities.
struct KeyBlock {
    int64_t key, count;
    float *probabilities, *slopes, *dropout, *greatest;
};

template <class T>
class Backward {
  public:
    Backward(const Problem& p, const Inputs<T>& in, const Gradients<T>& grad)
        : p_(p), in_(in), grad_(grad), keys_(keys_per_block(p)), width_(round_up(p.size, VF)),
          value_width_(round_up(p.value_size, VF)) {}

    // The gradients of keys and values are sums over all blocks of lanes: one pair's at a time on each thread, or,
    // where there are few pairs, those of several parts of the blocks, which are added at the end.
    void run() const {
        const int64_t pairs = p_.batches * p_.kv_heads;
        const int64_t parts = least(p_.blocks(), ceil_div(PARTS_PER_THREAD * thread_count(), pairs));
        if (parts > 1)
            return run_in_parts(pairs, parts);
        parallel_for(0, pairs, 1, [&](int64_t begin, int64_t end) {
            float* const sums = static_cast<float*>(scratch(Slot::sums, int64_t(sizeof(float)) * sums_size()));
            for (int64_t pair = begin; pair < end; ++pair) {
                differentiate_pair(pair, 0, 1, sums);
                write(pair, sums);
            }
        });
    }

  private:
    static constexpr int64_t PARTS_PER_THREAD = 2;

    int64_t sums_size() const { return p_.keys * (width_ + value_width_); }
    int64_t widest() const { return most(width_, value_width_); }
    // So many floats for a block of lanes that sees so many keys, in so many blocks.
    int64_t floats(int64_t keys, int64_t blocks) const {
        const int64_t tiles = p_.dropout.on ? 3 : 2;
        return 2 * Floats::padded(p_.size * LANES) + Floats::padded(p_.value_size * LANES) +
               Floats::padded(width_ * LANES) + Floats::padded(value_width_ * LANES) +
               tiles * Floats::padded(keys * LANES) + Floats::padded(blocks * LANES) + 4 * Floats::padded(LANES) +
               2 * Floats::padded(most(LANES, keys_) * widest()) + Masks::floats(keys_);
    }

    void run_in_parts(int64_t pairs, int64_t parts) const {
        const int64_t size = sums_size();
        float* const sums = static_cast<float*>(scratch(Slot::sums, int64_t(sizeof(float)) * pairs * parts * size));
        parallel_for(0, pairs * parts, 1, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i)
                differentiate_pair(i % pairs, i / pairs, parts, sums + i * size);
        });
        parallel_for(0, pairs, 1, [&](int64_t begin, int64_t end) {
            for (int64_t pair = begin; pair < end; ++pair) {
                float* const first = sums + pair * size;
                for (int64_t part = 1; part < parts; ++part)
                    for (int64_t i = 0; i < size; i += VF)
                        store(first + i, load(first + i) + load(first + part * pairs * size + i));
                write(pair, first);
            }
        });
    }

    // Every block from `part` on that is `parts` further.
    void differentiate_pair(int64_t pair, int64_t part, int64_t parts, float* sums) const {
        __builtin_memset(sums, 0, static_cast<size_t>(sums_size()) * sizeof(float));
        for (int64_t block = part; block < p_.blocks(); block += parts)
            differentiate(block_at(p_, pair, block), sums, sums + p_.keys * width_);
    }

    void write(int64_t pair, const float* sums) const {
        const int64_t batch = pair / p_.kv_heads, head = pair % p_.kv_heads;
        write(sums, width_, p_.size, p_.scale, grad_.k.at(batch, head, 0), grad_.k.row);
        write(sums + p_.keys * width_, value_width_, p_.value_size, 1.0f, grad_.v.at(batch, head, 0), grad_.v.row);
    }
    void write(const float* from, int64_t width, int64_t size, float scale, T* to, int64_t row) const {
        for (int64_t j = 0; j < p_.keys; ++j)
            for_each_vector(size, [&](int64_t i, int64_t count) AIGC_INLINE {
                store_up_to(to + j * row + i, load(from + j * width + i) * scale, count);
            });
    }

    // C[key][i] += sum over the lanes of weights[key][lane] * rows[lane][i].
    void add_over_lanes(const float* const* weights, int64_t keys, int64_t lanes, const float* rows, int64_t width,
                        float* const* c) const {
        const Product product{.rows = weights,
                              .a_step = 1,
                              .a_offsets = NO_OFFSET,
                              .b = rows,
                              .b_step = width,
                              .b_offsets = NO_OFFSET,
                              .batch = 1,
                              .depth = lanes,
                              .c = c,
                              .accumulate = true,
                              .steps_ahead = 0};
        multiply(product, keys, width / VF);
    }

    void differentiate(const Block& block, float* key_sums, float* value_sums) const {
        const KeyRange range = keys_of(p_, block);
        const int64_t seen = most<int64_t>(0, range.end - range.begin), most_blocks = ceil_div(seen, keys_);
        const int64_t lines = most(most(keys_, p_.value_size), p_.size), line = block.line(), vectors = block.vectors();
        const int64_t pointer_bytes = int64_t(sizeof(float*)) * 5 * lines,
                      block_bytes = int64_t(sizeof(KeyBlock)) * most_blocks;
        auto* const memory = static_cast<char*>(
            scratch(Slot::local, int64_t(sizeof(float)) * floats(seen, most_blocks) + pointer_bytes + block_bytes));
        auto** const score_lines = reinterpret_cast<float**>(memory);
        auto **const slope_lines = score_lines + lines, **const query_lines = slope_lines + lines,
                     **const sum_lines = query_lines + lines;
        auto** const rows = const_cast<const float**>(sum_lines + lines);
        auto* const blocks = reinterpret_cast<KeyBlock*>(rows + lines);
        Floats floats(blocks + most_blocks);
        float *const queries = floats.take(p_.size * LANES), *const query_sums = floats.take(p_.size * LANES),
                     *const out_gradient = floats.take(p_.value_size * LANES),
                     *const query_rows = floats.take(width_ * LANES),
                     *const gradient_rows = floats.take(value_width_ * LANES),
                     *const probabilities = floats.take(seen * LANES), *const slopes = floats.take(seen * LANES),
                     *const dropout = p_.dropout.on ? floats.take(seen * LANES) : nullptr,
                     *const tops = floats.take(most_blocks * LANES), *const greatest = floats.take(LANES),
                     *const total = floats.take(LANES), *const delta = floats.take(LANES),
                     *const factor = floats.take(LANES), *const buffer = floats.take(most(LANES, keys_) * widest()),
                     *const value_buffer = floats.take(most(LANES, keys_) * widest());
        Masks masks(p_, block, keys_, floats);
        pointers(query_lines, query_sums, line, p_.size);
        gather_queries(p_, block, in_.q, buffer, queries);
        gather_lanes(p_, block, grad_.out_gradient, p_.value_size, buffer, out_gradient);
        for (int64_t i = 0; i < p_.size * line; i += VF)
            store(query_sums + i, vf{});
        for (int64_t v = 0; v < line; v += VF) {
            store(greatest + v, broadcast(MINUS_INFINITY));
            store(total + v, vf{});
            store(delta + v, vf{});
        }

        const T* const k = in_.k.at(block.batch, block.kv_head, 0);
        const T* const v = in_.v.at(block.batch, block.kv_head, 0);
        int64_t count_of_blocks = 0, at = 0;
        masks.for_each_block(0, p_.keys, keys_, 1, [&](int64_t key, int64_t count) {
            const KeyBlock b{key,
                             count,
                             probabilities + at,
                             slopes + at,
                             dropout ? dropout + at : nullptr,
                             tops + count_of_blocks * line};
            blocks[count_of_blocks++] = b;
            at += count * line;
            const FloatRows keys = float_rows(k + key * in_.k.row, in_.k.row, count, p_.size, buffer);
            pointers(rows, keys.data, keys.stride, count);
            pointers(score_lines, b.probabilities, line, count);
            multiply_into_lanes(rows, count, 1, p_.size, queries, score_lines, vectors, false);
            masks.apply(b.probabilities);
            const FloatRows values = float_rows(v + key * in_.v.row, in_.v.row, count, p_.value_size, value_buffer);
            pointers(rows, values.data, values.stride, count);
            pointers(slope_lines, b.slopes, line, count);
            multiply_into_lanes(rows, count, 1, p_.value_size, out_gradient, slope_lines, vectors, false);
            if (dropout) {
                __builtin_memcpy(b.dropout, masks.dropout(), static_cast<size_t>(count * line) * sizeof(float));
                multiply_tile_of_lanes(b.slopes, b.dropout, count, vectors);
            }
            softmax_step(b.probabilities, count, vectors, greatest, total, factor);
            add_to_delta(b, vectors, factor, delta);
            __builtin_memcpy(b.greatest, greatest, static_cast<size_t>(line) * sizeof(float));
        });
        // Rows that are divided by the softmax's sum leave the probabilities as they are.
        for (int64_t i = 0; i < line; i += VF) {
            const vf sum = load(total + i), inverse = sum == 0.0f ? vf{} : 1.0f / sum;
            store(total + i, inverse);
            store(delta + i, load(delta + i) * inverse);
        }
        const auto share = [&](int64_t lane) AIGC_INLINE { return total[lane]; };
        pack_rows(p_, block, in_.q, p_.size, width_, share, query_rows);
        pack_rows(p_, block, grad_.out_gradient, p_.value_size, value_width_, share, gradient_rows);

        for (const KeyBlock* b = blocks; b < blocks + count_of_blocks; ++b) {
            finish_probabilities(*b, vectors, greatest, factor);
            differentiate_softmax(*b, delta, vectors);
            pointers(score_lines, b->probabilities, line, b->count);
            pointers(sum_lines, value_sums + b->key * value_width_, value_width_, b->count);
            add_over_lanes(score_lines, b->count, block.count, gradient_rows, value_width_, sum_lines);
            pointers(slope_lines, b->slopes, line, b->count);
            pointers(sum_lines, key_sums + b->key * width_, width_, b->count);
            add_over_lanes(slope_lines, b->count, block.count, query_rows, width_, sum_lines);
            const FloatRows keys = float_rows(k + b->key * in_.k.row, in_.k.row, b->count, p_.size, buffer);
            pointers(rows, keys.data, 1, p_.size);
            multiply_into_lanes(rows, p_.size, keys.stride, b->count, b->slopes, query_lines, vectors, true);
        }
        for (int64_t i = 0; i < line; i += VF)
            store(total + i, load(total + i) * p_.scale);
        multiply_lanes(query_sums, p_.size, vectors, total);
        scatter_lanes(p_, block, query_sums, p_.size, buffer, grad_.q);
    }

    // The sum over keys of probability times slope, relative to the greatest score as the softmax's sum is.
    static void add_to_delta(const KeyBlock& b, int64_t vectors, const float* factor, float* delta) {
        const int64_t line = vectors * VF;
        for (int64_t v = 0; v < line; v += VF) {
            vf sum{};
            for (int64_t j = 0; j < b.count; ++j)
                sum += load(b.probabilities + j * line + v) * load(b.slopes + j * line + v);
            store(delta + v, load(delta + v) * load(factor + v) + sum);
        }
    }

    // Makes probabilities relative to the greatest score of all, where it came later.
    static void finish_probabilities(const KeyBlock& b, int64_t vectors, const float* greatest, float* factor) {
        vi changed{};
        for (int64_t v = 0; v < vectors * VF; v += VF) {
            const vf top = load(greatest + v), before = load(b.greatest + v);
            store(factor + v, exp2_of_negative(before - (top == MINUS_INFINITY ? vf{} : top)));
            changed |= top != before;
        }
        if (any(changed))
            multiply_lanes(b.probabilities, b.count, vectors, factor);
    }

    // Slopes, the gradients to the probabilities, become the gradients to the scores, and the probabilities what is
    // left of them after dropout.
    static void differentiate_softmax(const KeyBlock& b, const float* delta, int64_t vectors) {
        const int64_t line = vectors * VF;
        for (int64_t j = 0; j < b.count; ++j)
            for (int64_t v = 0; v < line; v += VF) {
                float* const slope = b.slopes + j * line + v;
                store(slope, load(b.probabilities + j * line + v) * (load(slope) - load(delta + v)));
            }
        if (b.dropout)
            multiply_tile_of_lanes(b.probabilities, b.dropout, b.count, vectors);
    }

    const Problem& p_;
    const Inputs<T> in_;
    const Gradients<T> grad_;
    const int64_t keys_, width_, value_width_;
};

}
