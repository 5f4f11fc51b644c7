// What stands between the two products: the mask, the band, the softmax and the dropout of scores[key][lane].
#pragma once

#include "cpu/attention/problem.h"

namespace aigc::AIGC_LEVEL::attention {

// 2^x for x <= 0 by a minimax polynomial, within 1e-7 and exactly 1 for 0; 0 below the normal numbers, NaN for NaN.
static inline vf exp2_of_negative(vf x) {
    constexpr float ROUNDER = 0x1.8p23f; // added, it leaves the nearest integer in the low bits
    x = greater(broadcast(-127.0f), x);
    const vf shifted = x + ROUNDER;
    const vf r = x - (shifted - ROUNDER);
    vf p = r * 1.5355155307e-4f + 1.3398935184e-3f;
    p = p * r + 9.6184293336e-3f;
    p = p * r + 5.5503323479e-2f;
    p = p * r + 2.4022648005e-1f;
    p = p * r + 6.9314720283e-1f;
    p = p * r + 1.0f;
    return p * power_of_two(vi(shifted) - vi(broadcast(ROUNDER)));
}

// A row of a mask as what is added to scores in units of log2, and what was seen in it.
struct Seen {
    bool visible, not_zero;
};
typedef uint8_t vbytes __attribute__((vector_size(VF)));
typedef uint8_t unaligned_vbytes __attribute__((vector_size(VF), aligned(1), may_alias));
static inline vf added(const uint8_t* p) {
    const vi visible = __builtin_convertvector(vbytes(*reinterpret_cast<const unaligned_vbytes*>(p)), vi);
    return visible != 0 ? vf{} : broadcast(MINUS_INFINITY);
}
static inline vf added_up_to(const uint8_t* p, int64_t count) {
    uint8_t padded[VF] = {};
    __builtin_memcpy(padded, p, static_cast<size_t>(count));
    return count == VF ? added(p) : added(padded);
}
// The greatest finite numbers, which masks fill rows with, stay finite in units of log2: a row of nothing else is even.
template <class T>
static inline vf added_up_to(const T* p, int64_t count) {
    const vf lowest = broadcast(-__FLT_MAX__), given = load_up_to(p, count), scaled = given * LOG2_E;
    const vf limited = -greater(lowest, -greater(lowest, scaled));
    return given - given == 0.0f ? limited : scaled;
}
template <int... I>
static inline vi lane_numbers(Indices<I...>) {
    return vi{I...};
}
// Of a row of bytes that are 0 or 1, eight at a time.
static inline Seen seen_in(const uint8_t* row, int64_t count) {
    constexpr uint64_t ALL = 0x0101010101010101u;
    uint64_t some = 0, every = ALL;
    for (int64_t i = 0; i < count; i += 8) {
        uint64_t bytes = 0;
        const int64_t width = least<int64_t>(8, count - i);
        __builtin_memcpy(&bytes, row + i, static_cast<size_t>(width));
        some |= bytes;
        every &= width == 8 ? bytes : bytes | ALL << (8 * width);
    }
    return {some != 0, every != ALL};
}

template <class T>
static inline Seen read_mask(const void* row, int64_t at, int64_t step, int64_t count, float* out) {
    const T* const elements = static_cast<const T*>(row) + at;
    vi visible{}, not_zero{};
    for_each_vector(count, [&](int64_t i, int64_t width) AIGC_INLINE {
        vf value;
        if (step == 1) {
            value = added_up_to(elements + i, width);
        } else {
            T gathered[VF] = {};
            for (int64_t e = 0; e < width; ++e)
                gathered[e] = elements[(i + e) * step];
            value = added_up_to(gathered, width);
        }
        store_up_to(out + i, value, width);
        value = load_part(out + i, width);
        // NaN is visible. The lanes beyond the row's end hold zeros: they must not count as visible.
        const vi inside = lane_numbers(Lanes()) < static_cast<int32_t>(width);
        visible |= (value != MINUS_INFINITY) & inside;
        not_zero |= value != 0.0f;
    });
    return {any(visible), any(not_zero)};
}

// The masks of a block of lanes over one block of keys after another.
class Masks {
  public:
    static int64_t floats(int64_t keys) {
        const int64_t row = keys + 2 * RANDOM_STEP;
        return Floats::padded(LANES * row) + Floats::padded(keys * LANES) + 2 * Floats::padded(LANES);
    }
    Masks(const Problem& p, const Block& block, int64_t keys, Floats& memory)
        : p_(p), block_(block), range_(keys_of(p, block)), row_(keys + 2 * RANDOM_STEP),
          rows_(memory.take(LANES * row_)), tile_(memory.take(keys * LANES)),
          first_(reinterpret_cast<int32_t*>(memory.take(LANES))),
          last_(reinterpret_cast<int32_t*>(memory.take(LANES))) {
        for (int64_t lane = 0; lane < block.line(); ++lane)
            first_[lane] = 0, last_[lane] = static_cast<int32_t>(p.keys);
        for_each_run(p, block, [&](int64_t, int64_t query, int64_t lane, int64_t count) {
            for (int64_t i = 0; i < count; ++i) {
                first_[lane + i] = static_cast<int32_t>(least(p_.first_key(query + i), p_.keys));
                last_[lane + i] = static_cast<int32_t>(most<int64_t>(p_.last_key(query + i), -1));
            }
        });
        one_head_ = block.first / p.queries == (block.first + block.count - 1) / p.queries;
        shared_ = p.mask.row == 0 && (p.mask.head == 0 || one_head_);
    }

    // Calls f(key, count) for every block of keys in [begin, end) that some lane sees; the mask over it has been read.
    // The first key is a multiple of `alignment`, of which begin and keys are.
    template <class F>
    void for_each_block(int64_t begin, int64_t end, int64_t keys, int64_t alignment, const F& f) {
        end = least(end, range_.end);
        for (int64_t key = most(begin, range_.begin / alignment * alignment); key < end; key += keys) {
            const int64_t count = least(keys, end - key);
            if (read(key, count))
                f(key, count);
        }
    }

    // Adds the mask that was read last and hides the keys outside the band.
    void apply(float* scores) const {
        const bool cut = range_.cuts(key_, count_);
        if (!seen_.not_zero && !cut)
            return;
        if (seen_.not_zero && !shared_)
            transpose(rows_, row_, tile_, block_.line(), block_.count, count_);
        const int64_t line = block_.line();
        for (int64_t j = 0; j < count_; ++j)
            for (int64_t v = 0; v < line; v += VF) {
                vf score = load(scores + j * line + v);
                if (seen_.not_zero)
                    score += shared_ ? broadcast(rows_[j]) : load(tile_ + j * line + v);
                if (cut) {
                    const auto key = static_cast<int32_t>(key_ + j);
                    const vi inside = (vi(load(reinterpret_cast<const float*>(first_ + v))) <= key) &
                                      (vi(load(reinterpret_cast<const float*>(last_ + v))) >= key);
                    score = inside != 0 ? score : broadcast(MINUS_INFINITY);
                }
                store(scores + j * line + v, score);
            }
    }

    // The same for the scores of one lane, which lie in a row that ends with a whole vector.
    void apply_to_row(float* scores, int64_t lane) const {
        const bool cut = range_.cuts(key_, count_);
        const float* const row = rows_ + (shared_ ? 0 : lane * row_);
        const auto first = static_cast<int32_t>(first_[lane] - key_), last = static_cast<int32_t>(last_[lane] - key_);
        for (int64_t j = 0; j < count_; j += VF) {
            vf score = load(scores + j);
            if (seen_.not_zero)
                score += load(row + j);
            const vi number = lane_numbers(Lanes()) + static_cast<int32_t>(j);
            vi inside = number < static_cast<int32_t>(count_);
            if (cut)
                inside &= (number >= first) & (number <= last);
            store(scores + j, inside != 0 ? score : broadcast(MINUS_INFINITY));
        }
    }

    // What dropout multiplies the probabilities of the keys read last with, as a tile: 0 or the scale.
    const float* dropout() {
        draw_dropout();
        transpose(rows_, row_, tile_, block_.line(), block_.count, count_);
        return tile_;
    }
    // The same for one lane, once drawn.
    const float* dropout_row(int64_t lane) const { return rows_ + lane * row_; }

    // Element ((batch * heads + head) * queries + query) * keys + key of the draw belongs to a probability.
    void draw_dropout() {
        const Dropout& d = p_.dropout;
        const vi scale = vi(broadcast(static_cast<float>(d.keep.scale)));
        for_each_run(p_, block_, [&](int64_t head, int64_t query, int64_t lane, int64_t lanes) {
            for (int64_t i = 0; i < lanes; ++i) {
                float* const row = rows_ + (lane + i) * row_;
                const int64_t first = ((block_.batch * p_.heads + head) * p_.queries + query + i) * p_.keys + key_;
                random_words(d.key, first / 4 * 4, first % 4 + count_, row);
                for (int64_t j = 0; j < count_; j += VF)
                    store(row + j, vf((vu(load(row + first % 4 + j)) < d.keep.below) & scale));
            }
        });
    }

  private:
    // False where no lane sees any of these keys.
    bool read(int64_t key, int64_t count) {
        key_ = key;
        count_ = count;
        seen_ = {true, false};
        if (p_.mask.kind == NO_MASK)
            return true;
        seen_ = {false, false};
        if (shared_) {
            seen_ = read_row(block_.kv_head * p_.heads_per_kv() + block_.first / p_.queries, 0, rows_);
            return seen_.visible;
        }
        if (p_.mask.kind == BOOLEAN && p_.mask.element == 1) {
            scan();
            if (!seen_.visible || !seen_.not_zero)
                return seen_.visible;
        }
        for_each_run(p_, block_, [&](int64_t head, int64_t query, int64_t lane, int64_t lanes) {
            for (int64_t i = 0; i < lanes; ++i) {
                const Seen seen = read_row(head, query + i, rows_ + (lane + i) * row_);
                seen_.visible |= seen.visible;
                seen_.not_zero |= seen.not_zero;
            }
        });
        return seen_.visible;
    }

    int64_t mask_at(int64_t head, int64_t query) const {
        const Mask& m = p_.mask;
        return block_.batch * m.batch + head * m.head + query * m.row + key_ * m.element;
    }

    // Most blocks of a mask are all of one kind, which is seen sooner than it is read.
    void scan() {
        for_each_run(p_, block_, [&](int64_t head, int64_t query, int64_t, int64_t lanes) {
            for (int64_t i = 0; i < lanes && !(seen_.visible && seen_.not_zero); ++i) {
                const Seen seen = seen_in(static_cast<const uint8_t*>(p_.mask.data) + mask_at(head, query + i), count_);
                seen_.visible |= seen.visible;
                seen_.not_zero |= seen.not_zero;
            }
        });
    }

    Seen read_row(int64_t head, int64_t query, float* out) const {
        const Mask& m = p_.mask;
        const int64_t at = mask_at(head, query);
        switch (m.kind) {
        case BOOLEAN:
            return read_mask<uint8_t>(m.data, at, m.element, count_, out);
        case BFLOAT16:
            return read_mask<bfloat16>(m.data, at, m.element, count_, out);
        case FLOAT16:
            return read_mask<float16>(m.data, at, m.element, count_, out);
        default:
            return read_mask<float>(m.data, at, m.element, count_, out);
        }
    }

    const Problem& p_;
    const Block block_;
    const KeyRange range_;
    const int64_t row_;
    float *rows_, *tile_;
    int32_t *first_, *last_;
    bool one_head_, shared_;
    int64_t key_ = 0, count_ = 0;
    Seen seen_{true, false};
};

// The running softmax of Milakov and Gimelshein ("Online normalizer calculation for softmax", 2018): scores become
// probabilities relative to the greatest so far. False where the greatest stayed, so that earlier sums stand.
static inline bool softmax_step(float* scores, int64_t keys, int64_t vectors, float* greatest, float* sums,
                                float* rescale) {
    const int64_t line = vectors * VF;
    vi changed{};
    for (int64_t v = 0; v < line; v += VF) {
        const vf before = load(greatest + v);
        vf top = before;
        for (int64_t j = 0; j < keys; ++j) {
            top = greater(load(scores + j * line + v), top);
        }
        // Lanes that have seen nothing yet: minus infinity less itself would be NaN.
        const vf safe = top == MINUS_INFINITY ? vf{} : top;
        const vf factor = exp2_of_negative(before - safe);
        vf sum{}; // of this block alone: sums of sums round less than one long sum
        for (int64_t j = 0; j < keys; ++j) {
            const vf probability = exp2_of_negative(load(scores + j * line + v) - safe);
            sum += probability;
            store(scores + j * line + v, probability);
        }
        changed |= top != before;
        store(greatest + v, top);
        store(sums + v, load(sums + v) * factor + sum);
        store(rescale + v, factor);
    }
    return any(changed);
}

// From the greatest score in units of log2 and the sum of the probabilities relative to it; both may be NaN.
template <class V>
static inline vf logsumexp_of(V greatest, vf sum) {
    const vf found = greatest * LN_2 + log(sum);
    return sum == 0.0f ? broadcast(MINUS_INFINITY) : sum == sum ? found : sum;
}

static inline void multiply_tile_of_lanes(float* lines, const float* factors, int64_t count, int64_t vectors) {
    for (int64_t i = 0; i < count * vectors * VF; i += VF)
        store(lines + i, load(lines + i) * load(factors + i));
}

static inline void multiply_lanes(float* lines, int64_t count, int64_t vectors, const float* factor) {
    for (int64_t i = 0; i < count; ++i)
        for (int64_t v = 0; v < vectors * VF; v += VF)
            store(lines + i * vectors * VF + v, load(lines + i * vectors * VF + v) * load(factor + v));
}

}
