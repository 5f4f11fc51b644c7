// Attention of few queries to many keys, as in decoding: bound by memory, so that every key and value is read once for
// all the heads that share it. Queries lie in rows; where there are few pairs, several parts of the keys go to several
// threads.
#pragma once

#include "cpu/attention/forward.h"
#include "cpu/attention/rows_by_keys.h"

namespace aigc::AIGC_LEVEL::attention {

constexpr int64_t FEW_QUERIES = VF / 2; // more fill half a vector of lanes
constexpr int64_t ROW_KEYS = 128;       // per block
template <class T>
class FewQueries {
  public:
    FewQueries(const Problem& p, const Inputs<T>& in, const Rows<T>& out, float* logsumexp)
        : p_(p), in_(in), out_(out), logsumexp_(logsumexp), lanes_(p.lanes()), width_(round_up(p.size, VF)),
          value_width_(round_up(p.value_size, VF)) {}

    static bool suits(const Problem& p) { return p.lanes() <= FEW_QUERIES; }

    void run() const {
        const int64_t pairs = p_.batches * p_.kv_heads;
        const KeyRange range = keys_of(p_, block(0)); // as of every pair
        const int64_t seen = most<int64_t>(0, range.end - range.begin);
        const int64_t wanted =
            most<int64_t>(1, least(seen / LEAST_PART, p_.splits ? p_.splits : ceil_div(PARTS, pairs)));
        const int64_t step = round_up(ceil_div(seen, wanted), ROW_KEYS), parts = step == 0 ? 1 : ceil_div(seen, step);
        const int64_t size = Floats::padded(lanes_ * value_width_) + Floats::padded(2 * lanes_);
        Scope scope;
        auto* const sums = scope.take<float>(pairs * parts * size);
        const auto states = [&](int64_t i) {
            return reinterpret_cast<RowState*>(sums + i * size + Floats::padded(lanes_ * value_width_));
        };
        const int64_t read = least(step, seen) * (p_.size + p_.value_size);
        parallel_for(0, pairs * parts, LEAST_READ / most<int64_t>(1, read) + 1, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const int64_t first = range.begin + i / pairs * step;
                attend(i % pairs, first, least(range.end, first + step), sums + i * size, states(i));
            }
        });
        parallel_for(0, pairs, LEAST_READ / (parts * size) + 1, [&](int64_t begin, int64_t end) {
            for (int64_t pair = begin; pair < end; ++pair) {
                for (int64_t part = 1; part < parts; ++part)
                    merge(sums + pair * size, states(pair), sums + (part * pairs + pair) * size,
                          states(part * pairs + pair));
                finish(pair, sums + pair * size, states(pair));
            }
        });
    }

  private:
    static constexpr int64_t PARTS = 128; // of all pairs: enough for the threads, whose number must change no result
    static constexpr int64_t LEAST_PART = 512;     // keys
    static constexpr int64_t LEAST_READ = 1 << 15; // fewer elements are not worth another thread

    Block block(int64_t pair) const { return {pair / p_.kv_heads, pair % p_.kv_heads, 0, lanes_}; }

    void attend(int64_t pair, int64_t begin, int64_t end, float* sums, RowState* states) const {
        const Block block = this->block(pair);
        const bool copies = !IS_FLOAT<T> || value_width_ != p_.value_size;
        constexpr int64_t SCORE_ROW = ROW_KEYS + VF;
        const int64_t floats = Floats::padded(lanes_ * width_) + Floats::padded(lanes_ * SCORE_ROW) +
                               (copies ? Floats::padded(ROW_KEYS * value_width_) : 0) + Masks::floats(ROW_KEYS);
        Scope scope;
        Floats memory(scope.take<float>(floats));
        float *const queries = memory.take(lanes_ * width_), *const scores = memory.take(lanes_ * SCORE_ROW),
                     *const buffer = copies ? memory.take(ROW_KEYS * value_width_) : nullptr;
        Masks masks(p_, block, ROW_KEYS, memory);
        const float* score_rows[FEW_QUERIES];
        float* sum_rows[FEW_QUERIES];
        pointers(score_rows, static_cast<const float*>(scores), SCORE_ROW, lanes_);
        pointers(sum_rows, sums, value_width_, lanes_);
        pack_rows(p_, block, in_.q, p_.size, width_, [&](int64_t) { return p_.scale * LOG2_E; }, queries);
        for (int64_t i = 0; i < lanes_ * value_width_; i += VF)
            store(sums + i, vf{});
        for (int64_t r = 0; r < lanes_; ++r)
            states[r] = {MINUS_INFINITY, 0.0f};

        const T* const k = in_.k.at(block.batch, block.kv_head, 0);
        const T* const v = in_.v.at(block.batch, block.kv_head, 0);
        masks.for_each_block(begin, end, ROW_KEYS, 1, [&](int64_t key, int64_t count) {
            const T* const keys = k + key * in_.k.row;
            multiply_by_keys<T>(
                queries, width_, lanes_, [&](int64_t j) AIGC_INLINE { return keys + j * in_.k.row; }, count, p_.size,
                scores, SCORE_ROW);
            for (int64_t r = 0; r < lanes_; ++r) {
                masks.apply_to_row(scores + r * SCORE_ROW, r);
                softmax_row(scores + r * SCORE_ROW, count, states[r], sum_rows[r], value_width_);
            }
            if (p_.dropout.on)
                drop(masks, scores, SCORE_ROW, count);
            const FloatRows values = value_rows(v + key * in_.v.row, count, buffer);
            const Product product{.rows = score_rows,
                                  .a_step = 1,
                                  .a_offsets = NO_OFFSET,
                                  .b = values.data,
                                  .b_step = values.stride,
                                  .b_offsets = NO_OFFSET,
                                  .batch = 1,
                                  .depth = count,
                                  .c = sum_rows,
                                  .accumulate = true,
                                  .steps_ahead = 8};
            multiply_wide(product, lanes_, value_width_ / VF);
        });
    }

    void drop(Masks& masks, float* scores, int64_t row, int64_t count) const {
        masks.draw_dropout();
        for (int64_t r = 0; r < lanes_; ++r)
            for (int64_t j = 0; j < count; j += VF)
                store(scores + r * row + j, load(scores + r * row + j) * load(masks.dropout_row(r) + j));
    }

    // Rows of whole vectors of floats.
    FloatRows value_rows(const T* values, int64_t count, float* buffer) const {
        if constexpr (IS_FLOAT<T>)
            if (!buffer)
                return {values, in_.v.row};
        for (int64_t j = 0; j < count; ++j)
            for_each_vector(p_.value_size, [&](int64_t i, int64_t part) AIGC_INLINE {
                store(buffer + j * value_width_ + i, load_up_to(values + j * in_.v.row + i, part));
            });
        return {buffer, value_width_};
    }

    void merge(float* sums, RowState* states, float* others, const RowState* other_states) const {
        for (int64_t r = 0; r < lanes_; ++r) {
            RowState& state = states[r];
            const float greatest = most(state.greatest, other_states[r].greatest),
                        safe = greatest == MINUS_INFINITY ? 0.0f : greatest,
                        factor = exp2_of_negative(broadcast(state.greatest - safe))[0],
                        other_factor = exp2_of_negative(broadcast(other_states[r].greatest - safe))[0];
            float *const own = sums + r * value_width_, *const other = others + r * value_width_;
            for (int64_t i = 0; i < value_width_; i += VF)
                store(own + i, load(own + i) * factor + load(other + i) * other_factor);
            state = {greatest, state.total * factor + other_states[r].total * other_factor};
        }
    }

    void finish(int64_t pair, float* sums, const RowState* states) const {
        const Block block = this->block(pair);
        for_each_run(p_, block, [&](int64_t head, int64_t query, int64_t lane, int64_t count) {
            for (int64_t r = 0; r < count; ++r) {
                const RowState& state = states[lane + r];
                const float factor = state.total == 0.0f ? 0.0f : 1.0f / state.total;
                T* const out = out_.at(block.batch, head, query + r);
                for_each_vector(p_.value_size, [&](int64_t i, int64_t part) AIGC_INLINE {
                    store_up_to(out + i, load(sums + (lane + r) * value_width_ + i) * factor, part);
                });
                if (logsumexp_)
                    logsumexp_[p_.logsumexp_at(block.batch, head, query + r)] =
                        logsumexp_of(state.greatest, broadcast(state.total))[0];
            }
        });
    }

    const Problem& p_;
    const Inputs<T> in_;
    const Rows<T> out_;
    float* const logsumexp_;
    const int64_t lanes_, width_, value_width_;
};

}
