// The products of attention as products of bfloat16 pairs, which AMX multiplies in tiles. Float operands are rounded to
// bfloat16 or split into two that add up to the number: three of their four products count.
#pragma once

#include "core/packed.h"
#include "cpu/attention/forward.h"

namespace aigc::AIGC_LEVEL::attention {

constexpr int64_t PAIR_KEYS = 2 * TILE_SIDE; // that tiles of values take at a time
constexpr int64_t KEYS_OF_PAIRS = 4 * PAIR_KEYS;
constexpr int64_t PACKED_BYTES = 16 << 20; // unless the keys and values of one pair are more

// The keys and values of some (batch, key head) pairs, rounded or split, as rows of pairs that tiles load.
template <class T>
class PackedPairs {
  public:
    PackedPairs(const Problem& p, const Inputs<T>& in, int64_t planes)
        : q(in.q), planes(planes), key_depth(tile_depth(elements_of<Pair>(p.size))), keys(round_up(p.keys, PAIR_KEYS)),
          value_rows(round_up(p.value_size, TILE_SIDE)), p_(p), in_(in),
          memory_(scope_.take<Pair>(pairs_at_once() * pair_size())) {}

    const Rows<const T> q;
    const int64_t planes;
    const int64_t key_depth; // pairs of a key's elements
    const int64_t keys, value_rows;

    int64_t key_plane() const { return keys * key_depth; }
    int64_t value_plane() const { return keys / 2 * value_rows; }
    int64_t pair_size() const { return planes * (key_plane() + value_plane()); }
    int64_t pairs_at_once() const {
        const int64_t fit = PACKED_BYTES / (int64_t(sizeof(Pair)) * most<int64_t>(1, pair_size()));
        return least(p_.batches * p_.kv_heads, most<int64_t>(1, fit));
    }

    // [plane][key][pair of elements]
    const Pair* keys_of(int64_t pair) const { return memory_ + (pair - first_) * pair_size(); }
    // [plane][32 keys][row][pair of keys]
    const Pair* values_of(int64_t pair) const { return keys_of(pair) + planes * key_plane(); }

    // At most pairs_at_once(). False where a number that should be split is not finite: its rest would spread.
    bool pack(int64_t first, int64_t count) {
        first_ = first;
        const int64_t before = p_.first_key(0) / PAIR_KEYS; // blocks that no query sees
        const int64_t blocks = most<int64_t>(0, ceil_div(p_.last_key(p_.queries - 1) + 1, PAIR_KEYS) - before);
        return parallel_all(0, count * blocks, LEAST_WORK / 8 / (PAIR_KEYS * (p_.size + p_.value_size)) + 1,
                            [&](int64_t begin, int64_t end) {
                                vi bad{};
                                for (int64_t i = begin; i < end; ++i) {
                                    const int64_t pair = first + i / blocks, key = (before + i % blocks) * PAIR_KEYS;
                                    bad |= pack_keys(pair, key) | pack_values(pair, key);
                                    if (planes == SPLIT_PLANES)
                                        bad |= look_at_queries(pair, i % blocks, blocks);
                                }
                                return !any(bad);
                            });
    }

  private:
    // A depth that divides into full tiles, or less than a tile.
    static int64_t tile_depth(int64_t pairs) {
        return pairs <= TILE_SIDE ? most<int64_t>(1, pairs) : round_up(pairs, TILE_SIDE);
    }

    vi pack_keys(int64_t pair, int64_t key) {
        vi bad{};
        for (int64_t j = key; j < key + PAIR_KEYS; ++j) {
            const T* const row = in_.k.at(pair / p_.kv_heads, pair % p_.kv_heads, j);
            bad |= pack_row(row, j < p_.keys ? p_.size : 0, key_depth, planes,
                            const_cast<Pair*>(keys_of(pair)) + j * key_depth, key_plane());
        }
        return bad;
    }

    // Rows of values become columns, two keys a pair.
    vi pack_values(int64_t pair, int64_t key) {
        Pair* const out = const_cast<Pair*>(values_of(pair)) + key / 2 * value_rows;
        constexpr int64_t TILE = TILE_SIDE * TILE_SIDE;
        alignas(64) float rows[PAIR_KEYS * TILE_SIDE];
        alignas(64) Pair pairs[SPLIT_PLANES * TILE];
        vi bad{};
        for (int64_t i = 0; i < value_rows; i += TILE_SIDE) {
            for (int64_t j = 0; j < PAIR_KEYS; ++j)
                for (int64_t v = 0; v < TILE_SIDE; v += VF)
                    store(rows + j * TILE_SIDE + v, value(pair, key + j, i + v));
            bad |= pack_pairs(rows, PAIR_KEYS, TILE_SIDE, TILE_SIDE, planes, pairs);
            for (int64_t plane = 0; plane < planes; ++plane)
                transpose_pairs(pairs + plane * TILE, out + plane * value_plane() + i * TILE_SIDE);
        }
        return bad;
    }
    vf value(int64_t pair, int64_t key, int64_t i) const {
        if (key >= p_.keys || i >= p_.value_size)
            return vf{};
        return load_up_to(in_.v.at(pair / p_.kv_heads, pair % p_.kv_heads, key) + i, p_.value_size - i);
    }
    static void transpose_pairs(const Pair* in, Pair* out) {
        transpose(reinterpret_cast<const float*>(in), TILE_SIDE, reinterpret_cast<float*>(out), TILE_SIDE, TILE_SIDE,
                  TILE_SIDE);
    }

    // One of `parts` parts of a pair's queries.
    vi look_at_queries(int64_t pair, int64_t part, int64_t parts) const {
        vi bad{};
        const int64_t lanes = p_.lanes(), begin = lanes * part / parts, end = lanes * (part + 1) / parts;
        for_each_run(p_, {pair / p_.kv_heads, pair % p_.kv_heads, begin, end - begin},
                     [&](int64_t head, int64_t query, int64_t, int64_t count) {
                         for (int64_t r = 0; r < count; ++r) {
                             const T* const row = q.at(pair / p_.kv_heads, head, query + r);
                             for_each_vector(p_.size, [&](int64_t i, int64_t width) AIGC_INLINE {
                                 bad |= not_finite(without_rounded(load_up_to(row + i, width)));
                             });
                         }
                     });
        return bad;
    }

    const Problem& p_;
    const Inputs<T> in_;
    Scope scope_;
    Pair* const memory_;
    int64_t first_ = 0;
};

// The same as FloatProducts.
template <class T>
class PairProducts {
  public:
    using Source = PackedPairs<T>;
    using Element = Pair;
    static constexpr int64_t ALIGNMENT = PAIR_KEYS;

    static int64_t most_keys(const Problem&) { return KEYS_OF_PAIRS; }
    static int64_t value_lines(const Problem& p) { return round_up(p.value_size, TILE_SIDE); }
    static int64_t floats(const Problem& p, const Source& packed) {
        return Floats::padded(p.size * LANES) + Floats::padded(packed.planes * packed.key_depth * LANES) +
               Floats::padded(packed.planes * KEYS_OF_PAIRS / 2 * LANES);
    }

    PairProducts(const Problem& p, const Source& packed, const Block& block, Floats& memory, float* buffer)
        : p_(p), packed_(packed), keys_(packed.keys_of(block.batch * p.kv_heads + block.kv_head)),
          values_(packed.values_of(block.batch * p.kv_heads + block.kv_head)), vectors_(block.vectors()),
          queries_(reinterpret_cast<Pair*>(memory.take(packed.planes * packed.key_depth * LANES))),
          probabilities_(reinterpret_cast<Pair*>(memory.take(packed.planes * KEYS_OF_PAIRS / 2 * LANES))) {
        // As they are: bfloat16 need no rounding before they are scaled.
        float* const columns = memory.take(p.size * LANES);
        gather_lanes(p, block, packed.q, p.size, buffer, columns);
        pack_pairs(columns, p.size, packed.key_depth, vectors_ * VF, packed.planes, queries_);
    }

    // Lines up to a multiple of PAIR_KEYS are written.
    void multiply_keys(int64_t key, int64_t count, const Pair** rows, float* const* scores) const {
        const int64_t depth = packed_.key_depth, lines = round_up(count, PAIR_KEYS);
        int64_t of_keys[SPLIT_TERMS], of_queries[SPLIT_TERMS], terms = 0;
        for_each_term(packed_.planes, [&](int64_t key_plane, int64_t query_plane) {
            of_keys[terms] = key_plane * packed_.key_plane();
            of_queries[terms++] = query_plane * depth * vectors_ * VF;
        });
        multiply_pairs(pointers(rows, keys_ + key * depth, depth, lines), lines, depth, of_keys, queries_, of_queries,
                       terms, scores, false);
        const float unit = p_.scale * LOG2_E;
        for (int64_t j = 0; j < count; ++j)
            for (int64_t v = 0; v < vectors_ * VF; v += VF)
                store(scores[j] + v, load(scores[j] + v) * unit);
    }

    void add_values(int64_t key, int64_t count, const float* probabilities, const Pair** rows,
                    float* const* sums) const {
        const int64_t blocks = ceil_div(count, PAIR_KEYS), depth = blocks * TILE_SIDE;
        pack_pairs(probabilities, count, depth, vectors_ * VF, packed_.planes, probabilities_);
        constexpr int64_t MOST = SPLIT_TERMS * KEYS_OF_PAIRS / PAIR_KEYS;
        int64_t of_values[MOST], of_probabilities[MOST], batch = 0;
        for_each_term(packed_.planes, [&](int64_t value_plane, int64_t probability_plane) {
            for (int64_t b = 0; b < blocks; ++b, ++batch) {
                of_values[batch] = value_plane * packed_.value_plane() + b * TILE_SIDE * packed_.value_rows;
                of_probabilities[batch] = (probability_plane * depth + b * TILE_SIDE) * vectors_ * VF;
            }
        });
        const Pair* const values = values_ + key / 2 * packed_.value_rows;
        multiply_pairs(pointers(rows, values, TILE_SIDE, packed_.value_rows), packed_.value_rows, TILE_SIDE, of_values,
                       probabilities_, of_probabilities, batch, sums, true);
    }

  private:
    void multiply_pairs(const Pair* const* rows, int64_t count, int64_t depth, const int64_t* row_offsets,
                        const Pair* lines, const int64_t* line_offsets, int64_t batch, float* const* c,
                        bool accumulate) const {
        const ProductOf<Pair> product{.rows = rows,
                                      .a_step = 1,
                                      .a_offsets = row_offsets,
                                      .b = lines,
                                      .b_step = vectors_ * VF,
                                      .b_offsets = line_offsets,
                                      .batch = batch,
                                      .depth = depth,
                                      .c = c,
                                      .accumulate = accumulate,
                                      .steps_ahead = 0,
                                      .run = count};
        multiply(product, count, vectors_);
    }

    const Problem& p_;
    const Source& packed_;
    const Pair *const keys_, *const values_;
    const int64_t vectors_;
    Pair *const queries_, *const probabilities_;
};

}
