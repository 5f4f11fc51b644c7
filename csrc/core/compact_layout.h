// The layout of compact weights (core/compact.h).
#pragma once

#include "core/packed.h"
#include "core/weight_codes.h"

namespace aigc {

// Groups without greater numbers become zeros in int8: the inverse of their scale is not a finite float.
constexpr float LEAST_SCALED = 1e-36f;

}

namespace aigc::AIGC_LEVEL {

// Narrow enough that few columns make panels for several threads.
constexpr int64_t COMPACT_VECTORS = AIGC_VECTOR_BYTES == 64 ? 2 : 4, COMPACT_WIDTH = COMPACT_VECTORS * VF;
constexpr int64_t SCALED_GROUP = 32; // numbers of the depth that share a scale
// Elements of the depth that are stored together: the depth is padded with zeros to a multiple of them.
constexpr int64_t TOGETHER[] = {1, 2, SCALED_GROUP, SCALED_GROUP};
// Sums of this many products are added up: that rounds less than one long sum, and a panel's block stays in cache.
constexpr int64_t SUM_DEPTH = 256;

static inline int64_t compact_depth(int64_t weights, int64_t depth) { return round_up(depth, TOGETHER[weights]); }

static inline int64_t compact_panels(int64_t columns) { return ceil_div(columns, COMPACT_WIDTH); }

static inline int64_t compact_panel_bytes(int64_t weights, int64_t depth) {
    constexpr int64_t WORD = sizeof(float);
    const int64_t padded = compact_depth(weights, depth);
    switch (weights) {
    case INT4: // scales in float16, then nibbles
        return padded / SCALED_GROUP * COMPACT_WIDTH * (2 + SCALED_GROUP / 2);
    case INT8: // scales, then bytes
        return COMPACT_WIDTH * (WORD + padded);
    case BF16:
        return padded / NUMBERS_IN<Pair> * COMPACT_WIDTH * WORD;
    default:
        return padded * COMPACT_WIDTH * WORD;
    }
}

static inline int64_t compact_bytes(int64_t weights, int64_t depth, int64_t columns) {
    return compact_panels(columns) * compact_panel_bytes(weights, depth);
}

}
