// The gradients to Q, K and V. The softmax is made anew, from the scores that it is multiplied with here, and so is the
// sum over keys that its gradient subtracts: where one key has nearly all the weight, what is left of the difference is
// less than the rounding of an output or of a log-sum-exp.
#pragma once

#include "cpu/attention/forward.h"

namespace aigc::AIGC_LEVEL::attention {

template <class T>
struct Gradients {
    Rows<const T> out_gradient;
    Rows<T> q, k, v; // results
};

// In units of log2: the rounding of greater scores would show in a gradient.
constexpr float LARGE_SCORE = 8.0f;
constexpr float DOUBLE_ROUNDING = 0x1p-54f;
// Two tiles of all keys stay in the second-level cache from where they are made to where they are used.
constexpr int64_t WIDEST_KEPT = 64;

// out[row][lane] = unit * (the row times column `lane` of B) - start[lane], found in double.
static inline void multiply_in_double(const float* const* rows, int64_t count, int64_t depth, const float* b,
                                      int64_t vectors, double unit, const float* start, float* out) {
    typedef double vd __attribute__((vector_size(VF * sizeof(double))));
    constexpr int ROWS = 4;
    const int64_t line = vectors * VF;
    for (int64_t v = 0; v < line; v += VF)
        for (int64_t row = 0; row < count; row += ROWS) {
            vd sum[ROWS]{};
            for (int64_t k = 0; k < depth; ++k) {
                const vd column = __builtin_convertvector(load(b + k * line + v), vd);
                for (int r = 0; r < ROWS; ++r)
                    sum[r] += column * static_cast<double>(rows[least(row + r, count - 1)][k]);
            }
            const vd begin = __builtin_convertvector(load(start + v), vd);
            for (int r = 0; r < ROWS && row + r < count; ++r)
                store(out + (row + r) * line + v, __builtin_convertvector(sum[r] * unit - begin, vf));
        }
}

// A block of lanes: the tiles of all keys that it sees, one block of keys after the other, and the running softmax.
template <class T>
class LaneGradients {
  public:
    LaneGradients(const Problem& p, const Inputs<T>& in, const Gradients<T>& grad, const Block& block)
        : p_(p), in_(in), grad_(grad), block_(block), keys_per_block_(keys_per_block(p)), vectors_(block.vectors()),
          line_(block.line()), width_(round_up(p.size, VF)), value_width_(round_up(p.value_size, VF)),
          k_(in.k.at(block.batch, block.kv_head, 0)), v_(in.v.at(block.batch, block.kv_head, 0)), floats_(allocate()),
          masks_(p, block, keys_per_block_, floats_) {
        probabilities_ = floats_.take(seen_ * line_);
        slopes_ = floats_.take(seen_ * line_);
        dropout_ = p.dropout.on ? floats_.take(seen_ * line_) : nullptr;
        tops_ = floats_.take(most_blocks_ * line_);
        queries_ = floats_.take(p.size * line_);
        query_sums_ = floats_.take(p.size * line_);
        out_gradient_ = floats_.take(p.value_size * line_);
        query_rows_ = floats_.take(line_ * width_);
        gradient_rows_ = floats_.take(line_ * value_width_);
        greatest_ = floats_.take(line_);
        total_ = floats_.take(line_);
        delta_ = floats_.take(line_);
        factor_ = floats_.take(line_);
        buffer_ = floats_.take(most(line_, keys_per_block_) * most(width_, value_width_));
    }

    // Adds to the sums over lanes, rows of whole vectors, and writes the gradient to the queries.
    void differentiate(float* key_sums, float* value_sums) {
        attend();
        if (p_.lanes() <= VERY_FEW_LANES) {
            if (IS_FLOAT<T> && has_large_scores())
                attend_exactly();
            subtract_heaviest();
        }
        share_rows();
        for (int64_t i = 0; i < p_.size * line_; i += VF)
            store(query_sums_ + i, vf{});
        for (const KeyBlock* b = blocks_; b < blocks_ + count_; ++b)
            add_gradients(*b, key_sums, value_sums);
        for (int64_t v = 0; v < line_; v += VF)
            store(factor_ + v, load(total_ + v) * p_.scale);
        multiply_lanes(query_sums_, p_.size, vectors_, factor_);
        scatter_lanes(p_, block_, query_sums_, p_.size, buffer_, grad_.q);
    }

  private:
    // Tiles [key][lane], and the greatest score that the softmax had seen when it made these probabilities.
    struct KeyBlock {
        int64_t key, count;
        float *probabilities, *slopes, *dropout, *greatest;
    };

    void* allocate() {
        const KeyRange range = keys_of(p_, block_);
        seen_ = most<int64_t>(0, range.end - range.begin);
        most_blocks_ = ceil_div(seen_, keys_per_block_);
        const int64_t lines = most(most(keys_per_block_, p_.value_size), p_.size);
        const int64_t floats =
            (p_.dropout.on ? 3 : 2) * Floats::padded(seen_ * line_) + Floats::padded(most_blocks_ * line_) +
            2 * Floats::padded(p_.size * line_) + Floats::padded(p_.value_size * line_) +
            Floats::padded(line_ * width_) + Floats::padded(line_ * value_width_) + 4 * Floats::padded(line_) +
            Floats::padded(most(line_, keys_per_block_) * most(width_, value_width_)) + Masks::floats(keys_per_block_);
        auto* const memory = scope_.take<char>(int64_t(sizeof(KeyBlock)) * most_blocks_ +
                                               int64_t(sizeof(float*)) * 2 * lines + int64_t(sizeof(float)) * floats);
        blocks_ = reinterpret_cast<KeyBlock*>(memory);
        rows_ = reinterpret_cast<const float**>(blocks_ + most_blocks_);
        lines_ = const_cast<float**>(rows_ + lines);
        return lines_ + lines;
    }

    // Scores become probabilities, relative to the greatest score so far.
    void attend() {
        gather_queries(p_, block_, in_.q, buffer_, queries_);
        gather_lanes(p_, block_, grad_.out_gradient, p_.value_size, buffer_, out_gradient_);
        start_softmax();
        int64_t at = 0;
        masks_.for_each_block(0, p_.keys, keys_per_block_, 1, [&](int64_t key, int64_t count) {
            const KeyBlock b{key,
                             count,
                             probabilities_ + at,
                             slopes_ + at,
                             dropout_ ? dropout_ + at : nullptr,
                             tops_ + count_ * line_};
            blocks_[count_++] = b;
            at += count * line_;
            read_rows(k_, in_.k.row, b, p_.size);
            multiply(b, p_.size, queries_, b.probabilities);
            masks_.apply(b.probabilities);
            read_rows(v_, in_.v.row, b, p_.value_size);
            multiply(b, p_.value_size, out_gradient_, b.slopes);
            if (b.dropout) {
                __builtin_memcpy(b.dropout, masks_.dropout(), static_cast<size_t>(count * line_) * sizeof(float));
                multiply_tile_of_lanes(b.slopes, b.dropout, count, vectors_);
            }
            add_to_softmax(b);
        });
    }

    bool has_large_scores() const {
        for (int64_t lane = 0; lane < block_.count; ++lane)
            if (__builtin_fabsf(greatest_[lane]) > LARGE_SCORE && __builtin_isfinite(greatest_[lane]))
                return true;
        return false;
    }

    // The same from scores in double, as far as they are from the greatest that was found in float.
    void attend_exactly() {
        gather_lanes(p_, block_, in_.q, p_.size, buffer_, queries_);
        for (int64_t v = 0; v < line_; v += VF) {
            const vf top = load(greatest_ + v);
            store(factor_ + v, top == MINUS_INFINITY ? vf{} : top);
        }
        const double unit = static_cast<double>(p_.scale) * static_cast<double>(LOG2_E);
        const KeyBlock* b = blocks_;
        masks_.for_each_block(0, p_.keys, keys_per_block_, 1, [&](int64_t, int64_t count) {
            read_rows(k_, in_.k.row, *b, p_.size);
            multiply_in_double(rows_, count, p_.size, queries_, vectors_, unit, factor_, b->probabilities);
            masks_.apply(b->probabilities);
            ++b;
        });
        start_softmax();
        for (const KeyBlock* each = blocks_; each < b; ++each)
            add_to_softmax(*each);
    }

    void start_softmax() {
        for (int64_t v = 0; v < line_; v += VF) {
            store(greatest_ + v, broadcast(MINUS_INFINITY));
            store(total_ + v, vf{});
            store(delta_ + v, vf{});
        }
    }

    // Its sum, and that of probability times slope.
    void add_to_softmax(const KeyBlock& b) {
        softmax_step(b.probabilities, b.count, vectors_, greatest_, total_, factor_);
        multiply_lanes(delta_, 1, vectors_, factor_);
        add_to_delta(b);
        __builtin_memcpy(b.greatest, greatest_, static_cast<size_t>(line_) * sizeof(float));
    }
    void add_to_delta(const KeyBlock& b) {
        constexpr int64_t SUMS = 4; // one alone would wait for itself
        for (int64_t v = 0; v < line_; v += VF) {
            const float *const probabilities = b.probabilities + v, *const slopes = b.slopes + v;
            vf sums[SUMS]{};
            int64_t j = 0;
            for (; j + SUMS <= b.count; j += SUMS)
                for (int64_t i = 0; i < SUMS; ++i)
                    sums[i] += load(probabilities + (j + i) * line_) * load(slopes + (j + i) * line_);
            for (; j < b.count; ++j)
                sums[0] += load(probabilities + j * line_) * load(slopes + j * line_);
            store(delta_ + v, load(delta_ + v) + ((sums[0] + sums[1]) + (sums[2] + sums[3])));
        }
    }

    // Slopes become relative to that of the key with the greatest score, which changes no gradient: where it has nearly
    // all the weight, the sum that is subtracted from it is nearly the same number.
    void subtract_heaviest() {
        const KeyBlock* const end = blocks_ + count_;
        float* const heaviest = buffer_;
        for (int64_t v = 0; v < line_; v += VF) {
            store(heaviest + v, vf{});
            store(delta_ + v, vf{});
        }
        for (const KeyBlock* b = blocks_; b < end; ++b) {
            find_factors(*b);
            multiply_lanes(b->probabilities, b->count, vectors_, factor_);
            for_each_of(*b, [&](float* probability, float* slope, int64_t v) AIGC_INLINE {
                store(heaviest + v, load(probability) == 1.0f ? load(slope) : load(heaviest + v));
            });
        }
        for (const KeyBlock* b = blocks_; b < end; ++b) {
            for_each_of(*b, [&](float*, float* slope, int64_t v)
                                AIGC_INLINE { store(slope, load(slope) - load(heaviest + v)); });
            add_to_delta(*b);
        }
        // What the sum would not show in double either is nothing, as there.
        for (int64_t v = 0; v < line_; v += VF) {
            const vf sum = load(delta_ + v), least = load(heaviest + v) * DOUBLE_ROUNDING;
            store(delta_ + v, greater(sum, -sum) < greater(least, -least) ? vf{} : sum);
        }
    }

    // Calls f(probabilities, slopes, lane) for every vector of a block's tiles.
    template <class F>
    void for_each_of(const KeyBlock& b, const F& f) const {
        for (int64_t j = 0; j < b.count; ++j)
            for (int64_t v = 0; v < line_; v += VF)
                f(b.probabilities + j * line_ + v, b.slopes + j * line_ + v, v);
    }

    // Rows that are divided by the softmax's sum leave the probabilities as they are.
    void share_rows() {
        for (int64_t v = 0; v < line_; v += VF) {
            const vf sum = load(total_ + v), inverse = sum == 0.0f ? vf{} : 1.0f / sum;
            store(total_ + v, inverse);
            store(delta_ + v, load(delta_ + v) * inverse);
        }
        const auto share = [&](int64_t lane) AIGC_INLINE { return total_[lane]; };
        pack_rows(p_, block_, in_.q, p_.size, width_, share, query_rows_);
        pack_rows(p_, block_, grad_.out_gradient, p_.value_size, value_width_, share, gradient_rows_);
    }

    void add_gradients(const KeyBlock& b, float* key_sums, float* value_sums) {
        differentiate_softmax(b);
        add_over_lanes(b, b.probabilities, gradient_rows_, value_width_, value_sums);
        add_over_lanes(b, b.slopes, query_rows_, width_, key_sums);
        const FloatRows keys = float_rows(k_ + b.key * in_.k.row, in_.k.row, b.count, p_.size, buffer_);
        multiply_into_lanes(pointers(rows_, keys.data, 1, p_.size), p_.size, keys.stride, b.count, b.slopes,
                            pointers(lines_, query_sums_, line_, p_.size), vectors_, true);
    }

    // What makes a block's probabilities relative to the greatest score of all.
    void find_factors(const KeyBlock& b) {
        for (int64_t v = 0; v < line_; v += VF) {
            const vf top = load(greatest_ + v);
            store(factor_ + v, exp2_of_negative(load(b.greatest + v) - (top == MINUS_INFINITY ? vf{} : top)));
        }
        __builtin_memcpy(b.greatest, greatest_, static_cast<size_t>(line_) * sizeof(float));
    }

    // Slopes, the gradients to the probabilities, become the gradients to the scores, and probabilities what dropout
    // leaves of them.
    void differentiate_softmax(const KeyBlock& b) {
        find_factors(b);
        for_each_of(b, [&](float* probability, float* slope, int64_t v) AIGC_INLINE {
            const vf finished = load(probability) * load(factor_ + v);
            store(probability, finished);
            store(slope, finished * (load(slope) - load(delta_ + v)));
        });
        if (b.dropout)
            multiply_tile_of_lanes(b.probabilities, b.dropout, b.count, vectors_);
    }

    // Rows of a block of keys, or of their values, as floats.
    void read_rows(const T* first, int64_t stride, const KeyBlock& b, int64_t size) {
        const FloatRows found = float_rows(first + b.key * stride, stride, b.count, size, buffer_);
        pointers(rows_, found.data, found.stride, b.count);
    }

    // tile[key][lane] = the row read last times column `lane`.
    void multiply(const KeyBlock& b, int64_t depth, const float* columns, float* tile) {
        float* const* const lines = pointers(lines_, tile, line_, b.count);
        if constexpr (IS_FLOAT<T>)
            multiply_in_sums(rows_, b.count, depth, length_of_sums(depth, p_.keys), columns, lines, vectors_);
        else
            multiply_into_lanes(rows_, b.count, 1, depth, columns, lines, vectors_, false);
    }

    // sums[key][i] += sum over the lanes of tile[key][lane] * rows[lane][i].
    void add_over_lanes(const KeyBlock& b, const float* tile, const float* rows, int64_t width, float* sums) {
        const Product product{.rows = pointers(rows_, tile, line_, b.count),
                              .a_step = 1,
                              .a_offsets = NO_OFFSET,
                              .b = rows,
                              .b_step = width,
                              .b_offsets = NO_OFFSET,
                              .batch = 1,
                              .depth = block_.count,
                              .c = pointers(lines_, sums + b.key * width, width, b.count),
                              .accumulate = true,
                              .steps_ahead = 0};
        AIGC_LEVEL::multiply(product, b.count, width / VF);
    }

    const Problem& p_;
    const Inputs<T>& in_;
    const Gradients<T>& grad_;
    const Block block_;
    const int64_t keys_per_block_, vectors_, line_, width_, value_width_;
    const T *const k_, *const v_;
    int64_t seen_ = 0, most_blocks_ = 0, count_ = 0;
    KeyBlock* blocks_ = nullptr;
    const float** rows_ = nullptr;
    float** lines_ = nullptr;
    Scope scope_;
    Floats floats_;
    Masks masks_;
    float *probabilities_, *slopes_, *dropout_, *tops_, *queries_, *query_sums_, *out_gradient_, *query_rows_,
        *gradient_rows_, *greatest_, *total_, *delta_, *factor_, *buffer_;
};

template <class T>
class Backward {
  public:
    Backward(const Problem& p, const Inputs<T>& in, const Gradients<T>& grad)
        : p_(p), in_(in), grad_(grad), width_(round_up(p.size, VF)), value_width_(round_up(p.value_size, VF)) {
        p_.widest_block = WIDEST_KEPT;
    }

    // The gradients of keys and values are sums over all blocks of lanes: one pair's at a time on each thread, or,
    // where there are few pairs, those of several parts of the blocks, which are added at the end.
    void run() const {
        const int64_t pairs = p_.batches * p_.kv_heads;
        const int64_t parts = least(p_.blocks(), ceil_div(PARTS_PER_THREAD * thread_count(), pairs));
        if (parts > 1)
            return run_in_parts(pairs, parts);
        parallel_for(0, pairs, 1, [&](int64_t begin, int64_t end) {
            Scope scope;
            float* const sums = scope.take<float>(sums_size());
            for (int64_t pair = begin; pair < end; ++pair) {
                differentiate_pair(pair, 0, 1, sums);
                write(pair, sums);
            }
        });
    }

  private:
    static constexpr int64_t PARTS_PER_THREAD = 2;

    int64_t sums_size() const { return p_.keys * (width_ + value_width_); }

    void run_in_parts(int64_t pairs, int64_t parts) const {
        const int64_t size = sums_size();
        Scope scope;
        float* const sums = scope.take<float>(pairs * parts * size);
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
            LaneGradients<T>(p_, in_, grad_, block_at(p_, pair, block)).differentiate(sums, sums + p_.keys * width_);
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

    Problem p_;
    const Inputs<T> in_;
    const Gradients<T> grad_;
    const int64_t width_, value_width_;
};

}
