// What an attention call is given: sizes, strides, the band of keys that a query sees, the mask and the dropout.
//
// The queries of one (batch, key head) pair are its lanes: those of all the query heads that share the key head, one
// head after the other. Lanes lie side by side in vectors, so that every step of the softmax is vertical, keys and
// values are read where they are, and grouped heads read them once.
#pragma once

#include "core/arena.h"
#include "core/elements.h"
#include "core/gemm.h"
#include "core/integers.h"
#include "core/kernel.h"
#include "core/philox.h"

namespace aigc::AIGC_LEVEL::attention {

constexpr int64_t LANES = 8 * VF; // at most, of a block
constexpr int64_t LEAST_WIDE_QUERIES = 640;
constexpr float MINUS_INFINITY = -__builtin_inff();
constexpr float LOG2_E = 1.44269504088896341f, LN_2 = 0.693147180559945309f;

template <class T>
constexpr bool IS_FLOAT = false;
template <>
constexpr bool IS_FLOAT<float> = true;

// A (batch, head, row, element) tensor whose elements are contiguous.
template <class T>
struct Rows {
    T* data;
    int64_t batch, head, row; // strides
    T* at(int64_t b, int64_t h, int64_t r) const { return data + b * batch + h * head + r * row; }
    Rows from(int64_t r) const { return {data + r * row, batch, head, row}; }
};

enum MaskKind : int64_t { NO_MASK = -1, BOOLEAN = 4 }; // or the Dtype of what is added

struct Mask {
    const void* data;
    int64_t kind;
    int64_t batch, head, row, element; // strides, 0 where it is broadcast
};

struct Dropout {
    bool on;
    Key key;
    Keep keep;
};

struct Problem {
    int64_t batches, heads, kv_heads, queries, keys, size, value_size;
    // Query i sees the keys from i + offset - left to i + offset + right; a side below 0 is open.
    int64_t left, right, offset;
    float scale;
    int64_t logsumexp_row; // of a head
    Mask mask;
    Dropout dropout;
    int64_t splits; // into so many parts few queries' keys are cut at most, 0 for as many as suit them
    int64_t widest_block = LANES;

    int64_t heads_per_kv() const { return heads / kv_heads; }
    int64_t lanes() const { return heads_per_kv() * queries; }
    // Wide blocks read keys and values seldom; narrow ones compute less of a causal mask's other half.
    int64_t lanes_per_block() const { return least(widest_block, queries < LEAST_WIDE_QUERIES ? LANES / 2 : LANES); }
    int64_t blocks() const { return ceil_div(lanes(), lanes_per_block()); }
    int64_t logsumexp_at(int64_t batch, int64_t head, int64_t query) const {
        return (batch * heads + head) * logsumexp_row + query;
    }
    int64_t first_key(int64_t query) const { return left < 0 ? 0 : most<int64_t>(0, query + offset - left); }
    int64_t last_key(int64_t query) const { return right < 0 ? keys - 1 : least(keys - 1, query + offset + right); }
};

// Some lanes in succession, and the pair that they belong to.
struct Block {
    int64_t batch, kv_head, first, count;
    int64_t vectors() const { return ceil_div(count, VF); }
    int64_t line() const { return vectors() * VF; }
};

static inline Block block_at(const Problem& p, int64_t pair, int64_t index) {
    const int64_t step = p.lanes_per_block(), first = index * step;
    return {pair / p.kv_heads, pair % p.kv_heads, first, least(step, p.lanes() - first)};
}

// Calls f(head, query, lane, count) for every run of lanes that are successive queries of one head.
template <class F>
static inline void for_each_run(const Problem& p, const Block& block, const F& f) {
    for (int64_t lane = 0; lane < block.count;) {
        const int64_t at = block.first + lane, query = at % p.queries;
        const int64_t count = least(block.count - lane, p.queries - query);
        f(block.kv_head * p.heads_per_kv() + at / p.queries, query, lane, count);
        lane += count;
    }
}

// Half-open ranges of keys: those that some lane of a block sees, and those that all of them see.
struct KeyRange {
    int64_t begin, end, all_begin, all_end;
    bool cuts(int64_t first, int64_t count) const { return first < all_begin || first + count > all_end; }
};

static inline KeyRange keys_of(const Problem& p, const Block& block) {
    KeyRange range{p.keys, 0, 0, p.keys};
    for_each_run(p, block, [&](int64_t, int64_t query, int64_t, int64_t count) {
        const int64_t last = query + count - 1;
        range.begin = least(range.begin, p.first_key(query));
        range.end = most(range.end, p.last_key(last) + 1);
        range.all_begin = most(range.all_begin, p.first_key(last));
        range.all_end = least(range.all_end, p.last_key(query) + 1);
    });
    return range;
}

// Rows of floats: the tensor's own where it holds them, else widened into a buffer.
struct FloatRows {
    const float* data;
    int64_t stride;
};
static inline FloatRows float_rows(const float* rows, int64_t stride, int64_t, int64_t, float*) {
    return {rows, stride};
}
template <class T>
static inline FloatRows float_rows(const T* rows, int64_t stride, int64_t count, int64_t size, float* buffer) {
    for (int64_t r = 0; r < count; ++r)
        for_each_vector(size, [&](int64_t i, int64_t width) AIGC_INLINE {
            store_up_to(buffer + r * size + i, load_up_to(rows + r * stride + i, width), width);
        });
    return {buffer, size};
}

// columns[i][lane] = rows[lane][i]: `size` lines of the block, zeros in the lanes beyond its own.
template <class T>
static inline void gather_lanes(const Problem& p, const Block& block, const Rows<const T>& from, int64_t size,
                                float* buffer, float* columns) {
    const int64_t line = block.line();
    if (block.count < line)
        for (int64_t i = 1; i <= size; ++i)
            store(columns + i * line - VF, vf{});
    for_each_run(p, block, [&](int64_t head, int64_t query, int64_t lane, int64_t count) {
        const auto rows = float_rows(from.at(block.batch, head, query), from.row, count, size, buffer);
        transpose(rows.data, rows.stride, columns + lane, line, count, size);
    });
}

// The queries in lanes, in units in which their scores are logarithms to the base 2.
template <class T>
static inline void gather_queries(const Problem& p, const Block& block, const Rows<const T>& from, float* buffer,
                                  float* columns) {
    gather_lanes(p, block, from, p.size, buffer, columns);
    for (int64_t i = 0; i < p.size * block.line(); i += VF)
        store(columns + i, load(columns + i) * (p.scale * LOG2_E));
}

// rows[lane][i] = columns[i][lane].
static inline void scatter_rows(const float* columns, int64_t line, float* out, int64_t stride, int64_t count,
                                int64_t size, float*) {
    transpose(columns, line, out, stride, size, count);
}
template <class T>
static inline void scatter_rows(const float* columns, int64_t line, T* out, int64_t stride, int64_t count, int64_t size,
                                float* buffer) {
    transpose(columns, line, buffer, size, size, count);
    for (int64_t r = 0; r < count; ++r)
        for_each_vector(size, [&](int64_t i, int64_t width) AIGC_INLINE {
            store_up_to(out + r * stride + i, load_up_to(buffer + r * size + i, width), width);
        });
}
template <class T>
static inline void scatter_lanes(const Problem& p, const Block& block, const float* columns, int64_t size,
                                 float* buffer, const Rows<T>& to) {
    for_each_run(p, block, [&](int64_t head, int64_t query, int64_t lane, int64_t count) {
        scatter_rows(columns + lane, block.line(), to.at(block.batch, head, query), to.row, count, size, buffer);
    });
}

// The block's rows as floats times factor(lane), with zeros from `size` up to `width`, whole vectors.
template <class T, class F>
static inline void pack_rows(const Problem& p, const Block& block, const Rows<const T>& from, int64_t size,
                             int64_t width, const F& factor, float* rows) {
    for_each_run(p, block, [&](int64_t head, int64_t query, int64_t lane, int64_t count) {
        for (int64_t r = 0; r < count; ++r) {
            const T* const row = from.at(block.batch, head, query + r);
            for_each_vector(size, [&](int64_t i, int64_t part) AIGC_INLINE {
                store(rows + (lane + r) * width + i, load_up_to(row + i, part) * factor(lane + r));
            });
        }
    });
}

// Memory that is cut into arrays of floats, each at the beginning of a cache line.
class Floats {
  public:
    explicit Floats(void* memory) : next_(static_cast<float*>(memory)) {}
    float* take(int64_t count) {
        float* const taken = next_;
        next_ += padded(count);
        return taken;
    }
    static int64_t padded(int64_t count) { return round_up(count, 16) + 16; }

  private:
    float* next_;
};

}
