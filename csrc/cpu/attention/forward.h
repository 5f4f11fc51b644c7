// softmax(scale * Q K^T + mask) V without the matrix in between (Dao et al., "FlashAttention", 2022).
#pragma once

#include "cpu/attention/scores.h"

namespace aigc::AIGC_LEVEL::attention {

// A block of keys and a block of values share the first-level cache with the lanes' panel, one after the other.
constexpr int64_t KEY_FLOATS = 8192, LEAST_KEYS = 2 * TILE_ROWS, MOST_KEYS = 20 * TILE_ROWS;
static inline int64_t keys_per_block(const Problem& p) {
    const int64_t fit = KEY_FLOATS / most<int64_t>(1, most(p.size, p.value_size)) / TILE_ROWS * TILE_ROWS;
    return least(MOST_KEYS, most(LEAST_KEYS, fit));
}

// Fewer multiply-adds than these are not worth another thread; fewer lanes than four vectors take as long as those.
constexpr int64_t LEAST_WORK = 1 << 17;
static inline int64_t items_per_thread(const Problem& p, int64_t blocks) {
    const int64_t work = most<int64_t>(p.lanes(), 4 * VF) * p.keys * (p.size + p.value_size) / most<int64_t>(1, blocks);
    return ceil_div(LEAST_WORK, most<int64_t>(1, work));
}

constexpr int64_t NO_OFFSET[1] = {0};

// out[i] = base + i * step.
template <class T>
static inline T** pointers(T** out, T* base, int64_t step, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
        out[i] = base + i * step;
    return out;
}

// C[row][lane] (+)= sum over k < depth of rows[row][k * step] * B[k][lane], lines of so many vectors in B and C.
static inline void multiply_into_lanes(const float* const* rows, int64_t count, int64_t step, int64_t depth,
                                       const float* b, float* const* c, int64_t vectors, bool accumulate) {
    const Product product{.rows = rows,
                          .a_step = step,
                          .a_offsets = NO_OFFSET,
                          .b = b,
                          .b_step = vectors * VF,
                          .b_offsets = NO_OFFSET,
                          .batch = 1,
                          .depth = depth,
                          .c = c,
                          .accumulate = accumulate,
                          .steps_ahead = 0};
    multiply(product, count, vectors);
}

// Over so few lanes, or keys, no error averages out: products, and gradients, take more care.
constexpr int64_t FEW_LANES = 64, VERY_FEW_LANES = 32, FEW_KEYS = 8;

// A product of float32 factors longer than LONG_SUM is a sum of sums of SHORT_SUM, which rounds less than one long sum;
// with few keys it costs little to add up SHORTEST_SUM at a time.
constexpr int64_t LONG_SUM = 64, SHORT_SUM = 32, SHORTEST_SUM = 16;
static inline int64_t length_of_sums(int64_t depth, int64_t keys) {
    return keys <= FEW_KEYS ? SHORTEST_SUM : depth > LONG_SUM ? SHORT_SUM : depth;
}

// The same as multiply_into_lanes, over contiguous rows and without what was there, in sums of sums of so many
// products.
static inline void multiply_in_sums(const float* const* rows, int64_t count, int64_t depth, int64_t length,
                                    const float* b, float* const* c, int64_t vectors) {
    if (depth <= length)
        return multiply_into_lanes(rows, count, 1, depth, b, c, vectors, false);
    for (int64_t row = 0; row < count; row += TILE_ROWS)
        for (int64_t first = 0; first < depth; first += length) {
            const Product product{.rows = rows + row,
                                  .a_step = 1,
                                  .a_offsets = &first,
                                  .b = b + first * vectors * VF,
                                  .b_step = vectors * VF,
                                  .b_offsets = NO_OFFSET,
                                  .batch = 1,
                                  .depth = least(length, depth - first),
                                  .c = c + row,
                                  .accumulate = first > 0,
                                  .steps_ahead = 0};
            multiply(product, least<int64_t>(TILE_ROWS, count - row), vectors);
        }
}

template <class T>
struct Inputs {
    Rows<const T> q, k, v;
};

// The products of a block of lanes with blocks of keys and of values, in float.
template <class T>
class FloatProducts {
  public:
    using Source = Inputs<T>;
    using Element = float;                  // of the rows that are multiplied
    static constexpr int64_t ALIGNMENT = 1; // of a block's first key

    static int64_t most_keys(const Problem& p) { return keys_per_block(p); }
    static int64_t value_lines(const Problem& p) { return p.value_size; }
    static int64_t floats(const Problem& p, const Source&) {
        return Floats::padded(p.size * LANES) + Floats::padded(most_keys(p) * most(p.size, p.value_size));
    }

    FloatProducts(const Problem& p, const Source& in, const Block& block, Floats& memory, float* buffer)
        : p_(p), in_(in), keys_(in.k.at(block.batch, block.kv_head, 0)),
          values_(in.v.at(block.batch, block.kv_head, 0)), vectors_(block.vectors()),
          few_(p.lanes() <= FEW_LANES || p.keys <= FEW_KEYS), queries_(memory.take(p.size * LANES)),
          buffer_(memory.take(most_keys(p) * most(p.size, p.value_size))) {
        gather_queries(p, block, in.q, buffer, queries_);
    }

    // scores[j] = key + j times the queries, in units of log2, for j < count.
    void multiply_keys(int64_t key, int64_t count, const float** rows, float* const* scores) const {
        const FloatRows keys = float_rows(keys_ + key * in_.k.row, in_.k.row, count, p_.size, buffer_);
        pointers(rows, keys.data, keys.stride, count);
        if (IS_FLOAT<T> && few_)
            multiply_in_sums(rows, count, p_.size, length_of_sums(p_.size, p_.keys), queries_, scores, vectors_);
        else
            multiply_into_lanes(rows, count, 1, p_.size, queries_, scores, vectors_, false);
    }

    // sums[i] += element i of the values from `key` on times their probabilities, for j < count.
    void add_values(int64_t key, int64_t count, const float* probabilities, const float** rows,
                    float* const* sums) const {
        const FloatRows values = float_rows(values_ + key * in_.v.row, in_.v.row, count, p_.value_size, buffer_);
        pointers(rows, values.data, 1, p_.value_size);
        multiply_into_lanes(rows, p_.value_size, values.stride, count, probabilities, sums, vectors_, true);
    }

  private:
    const Problem& p_;
    const Source& in_;
    const T *const keys_, *const values_;
    const int64_t vectors_;
    const bool few_;
    float *const queries_, *const buffer_;
};

template <class T, class Products>
class Forward {
  public:
    Forward(const Problem& p, const typename Products::Source& source, const Rows<T>& out, float* logsumexp)
        : p_(p), source_(source), out_(out), logsumexp_(logsumexp), keys_(Products::most_keys(p)),
          value_lines_(Products::value_lines(p)) {}

    // Of `pairs` (batch, key head) pairs in succession.
    void run(int64_t first_pair, int64_t pairs) const {
        const int64_t blocks = p_.blocks();
        parallel_for(0, pairs * blocks, items_per_thread(p_, blocks), [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                // One pair after the other, whose keys and values stay in the caches; heavy and light blocks of a
                // causal mask in turn, so that every range of items costs about the same.
                const int64_t index = i % blocks, half = index / 2;
                attend(block_at(p_, first_pair + i / blocks, index % 2 ? blocks - 1 - half : half));
            }
        });
    }

  private:
    int64_t widest() const { return most(p_.size, p_.value_size); }
    int64_t floats() const {
        return Products::floats(p_, source_) + Floats::padded(value_lines_ * LANES) + Floats::padded(keys_ * LANES) +
               3 * Floats::padded(LANES) + Floats::padded(LANES * widest()) + Masks::floats(keys_);
    }

    void attend(const Block& block) const {
        const int64_t lines = most(keys_, value_lines_), vectors = block.vectors();
        Scope scope;
        auto* const memory = scope.take<char>(int64_t(sizeof(float)) * floats() + int64_t(sizeof(float*)) * 3 * lines);
        auto** const score_lines = reinterpret_cast<float**>(memory);
        auto** const sum_lines = score_lines + lines;
        auto** const rows = static_cast<const typename Products::Element**>(static_cast<void*>(sum_lines + lines));
        Floats floats(rows + lines);
        float *const sums = floats.take(value_lines_ * LANES), *const scores = floats.take(keys_ * LANES),
                     *const greatest = floats.take(LANES), *const total = floats.take(LANES),
                     *const factor = floats.take(LANES), *const buffer = floats.take(LANES * widest());
        Masks masks(p_, block, keys_, floats);
        const Products products(p_, source_, block, floats, buffer);
        pointers(score_lines, scores, block.line(), keys_);
        pointers(sum_lines, sums, block.line(), value_lines_);

        for (int64_t i = 0; i < value_lines_ * block.line(); i += VF)
            store(sums + i, vf{});
        for (int64_t v = 0; v < block.line(); v += VF) {
            store(greatest + v, broadcast(MINUS_INFINITY));
            store(total + v, vf{});
        }

        masks.for_each_block(0, p_.keys, keys_, Products::ALIGNMENT, [&](int64_t key, int64_t count) {
            products.multiply_keys(key, count, rows, score_lines);
            masks.apply(scores);
            if (softmax_step(scores, count, vectors, greatest, total, factor))
                multiply_lanes(sums, p_.value_size, vectors, factor);
            if (p_.dropout.on)
                multiply_tile_of_lanes(scores, masks.dropout(), count, vectors);
            products.add_values(key, count, scores, rows, sum_lines);
        });
        finish(block, sums, greatest, total, factor, buffer);
    }

    // Lanes that saw no key get zeros.
    void finish(const Block& block, float* sums, const float* greatest, const float* total, float* factor,
                float* buffer) const {
        for (int64_t v = 0; v < block.line(); v += VF) {
            const vf sum = load(total + v);
            store(factor + v, sum == 0.0f ? vf{} : 1.0f / sum);
            store(buffer + v, logsumexp_of(load(greatest + v), sum));
        }
        if (logsumexp_)
            for_each_run(p_, block, [&](int64_t head, int64_t query, int64_t lane, int64_t count) {
                float* const out = logsumexp_ + p_.logsumexp_at(block.batch, head, query);
                __builtin_memcpy(out, buffer + lane, static_cast<size_t>(count) * sizeof(float));
            });
        multiply_lanes(sums, p_.value_size, block.vectors(), factor);
        scatter_lanes(p_, block, sums, p_.value_size, buffer, out_);
    }

    const Problem& p_;
    const typename Products::Source& source_;
    const Rows<T> out_;
    float* const logsumexp_;
    const int64_t keys_, value_lines_;
};

}
