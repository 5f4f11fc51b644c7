// The greatest logit without most of the head's weights: int8 ones say which columns may have it, and how far they may
// be wrong is bounded; of those columns alone the float ones are read. What is found is what all of them would give.
#pragma once

#include "cpu/decode/model.h"

namespace aigc::AIGC_LEVEL::decode {

// Of each column: how far its int8 weights are from its own, and how long these are, as Euclidean norms.
struct ColumnBounds {
    const float *off, *length;
};

// Norms are rounded up by more than what their sums may have lost.
constexpr float ROUNDED_UP = 1.0001f;

static inline float norm_of(const float* x, const float* y, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) {
        const double off = double(x[i]) - (y ? y[i] : 0.0f);
        sum += off * off;
    }
    return static_cast<float>(__builtin_sqrt(sum)) * ROUNDED_UP;
}

// The bounds of a panel from its float and its int8 form.
static inline void bound_panel(const float* lines, const char* bytes, int64_t depth, float* off, float* length) {
    const auto* const scales = reinterpret_cast<const float*>(bytes);
    const auto* const words = reinterpret_cast<const uint32_t*>(scales + COMPACT_WIDTH);
    for (int64_t c = 0; c < COMPACT_WIDTH; ++c) {
        double of_off = 0, of_length = 0;
        for (int64_t k = 0; k < depth; ++k) {
            const int64_t vector = k / SCALED_GROUP * COMPACT_VECTORS + c / VF;
            const uint32_t word = words[(vector * GROUP_WORDS<INT8> + k % SCALED_GROUP / 4) * VF + c % VF];
            const auto byte = static_cast<int32_t>(word >> (8 * (k % 4)) & 0xff);
            const int32_t number = BYTE_OFFSET ? byte - BYTE_OFFSET : int32_t(int8_t(byte));
            const double x = lines[k * COMPACT_WIDTH + c], difference = x - double(number) * double(scales[c]);
            of_off += difference * difference;
            of_length += x * x;
        }
        off[c] = static_cast<float>(__builtin_sqrt(of_off)) * ROUNDED_UP;
        length[c] = static_cast<float>(__builtin_sqrt(of_length)) * ROUNDED_UP;
    }
}

// A row that is multiplied: how long it is, and how far its int8 form is from it.
struct RowBounds {
    float off, length;

    RowBounds(const float* x, int64_t depth, const char* row) {
        const ByteRow places(depth);
        double of_off = 0;
        for (int64_t k = 0; k < depth; ++k) {
            const double difference =
                x[k] - double(int8_t(places.bytes(row)[k])) * double(places.scales(row)[k / SCALED_GROUP]);
            of_off += difference * difference;
        }
        off = static_cast<float>(__builtin_sqrt(of_off)) * ROUNDED_UP;
        length = norm_of(x, nullptr, depth);
    }
    // How far a vector of columns' products by int8 may be from what the float ones come to in float arithmetic.
    vf of(const ColumnBounds& columns, int64_t column, int64_t depth) const {
        // Terms of the longest chains of sums, of either product, and some more for scales and conversions.
        const float chain = static_cast<float>(SUM_DEPTH + depth / SUM_DEPTH + depth / SCALED_GROUP + 16) * 0x1p-23f;
        const vf column_off = load(columns.off + column), column_length = load(columns.length + column);
        const vf rounded = (column_length + column_off) * (length + off) * chain;
        return (column_off * length + (column_length + column_off) * off + rounded) * ROUNDED_UP;
    }
};

// The greatest of some logits, and its column; of equal ones the first.
struct Best {
    float logit = -__builtin_inff();
    int64_t column = -1;

    void take(float other, int64_t at) {
        if (column < 0 || other > logit || (other == logit && at < column))
            *this = {other, at};
    }
};

}
