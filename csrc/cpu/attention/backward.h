// The gradients to Q, K and V, from the output and the log-sum-exp that the forward pass kept.
#pragma once

#include "cpu/attention/forward.h"

namespace aigc::AIGC_LEVEL {

template <class T>
struct Gradients {
    Rows<const T> out_gradient, out;
    const float* logsumexp;
    Rows<T> q, k, v; // results
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
    int64_t floats() const {
        return 2 * Floats::padded(p_.size * LANES) + Floats::padded(p_.value_size * LANES) +
               Floats::padded(width_ * LANES) + Floats::padded(value_width_ * LANES) +
               2 * Floats::padded(keys_ * LANES) + 2 * Floats::padded(LANES) +
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
        const int64_t lines = most(most(keys_, p_.value_size), p_.size), vectors = block.vectors();
        auto* const memory = static_cast<char*>(
            scratch(Slot::local, int64_t(sizeof(float)) * floats() + int64_t(sizeof(float*)) * 5 * lines));
        auto** const score_lines = reinterpret_cast<float**>(memory);
        auto **const slope_lines = score_lines + lines, **const query_lines = slope_lines + lines,
                     **const sum_lines = query_lines + lines;
        auto** const rows = const_cast<const float**>(sum_lines + lines);
        Floats floats(rows + lines);
        float *const queries = floats.take(p_.size * LANES), *const query_sums = floats.take(p_.size * LANES),
                     *const out_gradient = floats.take(p_.value_size * LANES),
                     *const query_rows = floats.take(width_ * LANES),
                     *const gradient_rows = floats.take(value_width_ * LANES),
                     *const scores = floats.take(keys_ * LANES), *const slopes = floats.take(keys_ * LANES),
                     *const logsumexp = floats.take(LANES), *const delta = floats.take(LANES),
                     *const buffer = floats.take(most(LANES, keys_) * widest()),
                     *const value_buffer = floats.take(most(LANES, keys_) * widest());
        Masks masks(p_, block, keys_, floats);
        pointers(score_lines, scores, block.line(), keys_);
        pointers(slope_lines, slopes, block.line(), keys_);
        pointers(query_lines, query_sums, block.line(), p_.size);

        gather_queries(p_, block, in_.q, buffer, queries);
        for (int64_t i = 0; i < p_.size * block.line(); i += VF)
            store(query_sums + i, vf{});
        read_logsumexp(block, logsumexp);
        read_delta(block, buffer, value_buffer, out_gradient, delta);
        pack_rows(p_, block, in_.q, p_.size, width_, 1.0f, query_rows);
        pack_rows(p_, block, grad_.out_gradient, p_.value_size, value_width_, 1.0f, gradient_rows);

        const T* const k = in_.k.at(block.batch, block.kv_head, 0);
        const T* const v = in_.v.at(block.batch, block.kv_head, 0);
        masks.for_each_block(0, p_.keys, keys_, 1, [&](int64_t key, int64_t count) {
            const FloatRows keys = float_rows(k + key * in_.k.row, in_.k.row, count, p_.size, buffer);
            pointers(rows, keys.data, keys.stride, count);
            multiply_into_lanes(rows, count, 1, p_.size, queries, score_lines, vectors, false);
            masks.apply(scores);
            const FloatRows values = float_rows(v + key * in_.v.row, in_.v.row, count, p_.value_size, value_buffer);
            pointers(rows, values.data, values.stride, count);
            multiply_into_lanes(rows, count, 1, p_.value_size, out_gradient, slope_lines, vectors, false);
            differentiate_softmax(scores, slopes, p_.dropout.on ? masks.dropout() : nullptr, logsumexp, delta, count,
                                  vectors);
            pointers(sum_lines, value_sums + key * value_width_, value_width_, count);
            add_over_lanes(score_lines, count, block.count, gradient_rows, value_width_, sum_lines);
            pointers(sum_lines, key_sums + key * width_, width_, count);
            add_over_lanes(slope_lines, count, block.count, query_rows, width_, sum_lines);
            pointers(rows, keys.data, 1, p_.size);
            multiply_into_lanes(rows, p_.size, keys.stride, count, slopes, query_lines, vectors, true);
        });
        for (int64_t i = 0; i < p_.size * block.line(); i += VF)
            store(query_sums + i, load(query_sums + i) * p_.scale);
        scatter_lanes(p_, block, query_sums, p_.size, buffer, grad_.q);
    }

    // In units of log2; a lane that saw no key gets infinity, so that its probabilities are 0.
    void read_logsumexp(const Block& block, float* out) const {
        for (int64_t v = 0; v < block.line(); v += VF)
            store(out + v, vf{});
        for_each_run(p_, block, [&](int64_t head, int64_t query, int64_t lane, int64_t count) {
            const float* const from = grad_.logsumexp + p_.logsumexp_at(block.batch, head, query);
            for (int64_t i = 0; i < count; ++i)
                out[lane + i] = from[i] == MINUS_INFINITY ? -MINUS_INFINITY : from[i] * LOG2_E;
        });
    }

    // The gradient to the output in lanes, and its product with the output: sum over i of dO[lane][i] * O[lane][i].
    void read_delta(const Block& block, float* buffer, float* out_lanes, float* out_gradient, float* delta) const {
        gather_lanes(p_, block, grad_.out_gradient, p_.value_size, buffer, out_gradient);
        gather_lanes(p_, block, grad_.out, p_.value_size, buffer, out_lanes);
        for (int64_t v = 0; v < block.line(); v += VF) {
            vf sum{};
            for (int64_t i = 0; i < p_.value_size; ++i)
                sum += load(out_gradient + i * block.line() + v) * load(out_lanes + i * block.line() + v);
            store(delta + v, sum);
        }
    }

    // Scores become probabilities after dropout, and slopes, the gradients to those, become the gradients to the
    // scores.
    static void differentiate_softmax(float* scores, float* slopes, const float* dropout, const float* logsumexp,
                                      const float* delta, int64_t keys, int64_t vectors) {
        const int64_t line = vectors * VF;
        for (int64_t j = 0; j < keys; ++j)
            for (int64_t v = 0; v < line; v += VF) {
                float *const score = scores + j * line + v, *const slope = slopes + j * line + v;
                const vf probability = exp2_of_negative(load(score) - load(logsumexp + v));
                const vf kept = dropout ? load(dropout + j * line + v) : broadcast(1.0f);
                store(score, probability * kept);
                store(slope, probability * (load(slope) * kept - load(delta + v)));
            }
    }

    const Problem& p_;
    const Inputs<T> in_;
    const Gradients<T> grad_;
    const int64_t keys_, width_, value_width_;
};

}
