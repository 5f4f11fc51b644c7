// Attention of few queries on the caller's stream, as other ops' sources call it too.
#pragma once

#include <cstdint>

namespace aigc::cuda::attention {

// `strides` of out, query, key and value are those of batches, heads and rows; `mask` has a kind and four strides;
// `sizes` are those of Sizes: batches, heads, groups, queries, keys, size, value_size, left, right, offset, splits.
// `parts` has a row of value_size floats for each part, batch, head and query, `part_sums` one float; null for one
// part. Heads have at most 256 elements. `length`, or null, and of float32 alone: an integer on the device, how many of
// the keys there are when the kernel runs, of which the last ones are the queries' own; the offset is of no account
// then. `sources`, likewise: of each batch whose keys, values and mask are its own; null for those of the same number.
void attention_few_queries(void* out, float* sums, float* parts, float* part_sums, const void* query, const void* key,
                           const void* value, const int64_t* strides, const void* mask, const int64_t* of_mask,
                           int64_t dtype, const int64_t* sizes, const void* length, const void* sources, double scale,
                           int64_t device, void* stream);

}
