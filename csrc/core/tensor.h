// Tensors as PyTorch lends them for the length of a call, by the structs of DLPack 1.x: a stable binary interface, so
// that nothing of torch is compiled in.
#pragma once

#include <cstdint>

#include "core/dtypes.h"

namespace aigc {

struct Tensor {
    void* memory;
    int32_t device, device_index;
    int32_t dimensions;
    uint8_t type, bits; // of an element
    uint16_t lanes;
    const int64_t *sizes, *strides;
    uint64_t byte_offset;

    void* data() const { return static_cast<char*>(memory) + byte_offset; }
    bool is_on_cpu() const { return device == 1; }
    bool has(uint8_t of_type, uint8_t of_bits) const { return type == of_type && bits == of_bits && lanes == 1; }
    bool is_bool() const { return has(6, 8); }
    [[gnu::always_inline]] int64_t elements() const {
        int64_t count = 1;
        for (int d = 0; d < dimensions; ++d)
            count *= sizes[d];
        return count;
    }
    // As PyTorch has it: strides of sizes of 1, and of tensors without elements, say nothing.
    [[gnu::always_inline]] bool is_contiguous() const {
        bool contiguous = true;
        int64_t expected = 1;
        for (int d = dimensions - 1; d >= 0; --d) {
            contiguous &= sizes[d] == 1 || strides[d] == expected;
            expected *= sizes[d];
        }
        return contiguous || expected == 0;
    }
    // Whether the channels of (images, channels, ...) are neighbours, and pixels lie without gaps.
    bool is_channels_last() const {
        int64_t expected = sizes[1];
        bool dense = strides[1] == 1 || sizes[1] == 1;
        for (int d = dimensions - 1; d > 1; --d) {
            dense &= sizes[d] == 1 || strides[d] == expected;
            expected *= sizes[d];
        }
        return dense && (sizes[0] == 1 || strides[0] == expected);
    }
    // A Dtype, or -1.
    [[gnu::always_inline]] int64_t dtype() const {
        return has(2, 32) ? FLOAT32 : has(4, 16) ? BFLOAT16 : has(2, 16) ? FLOAT16 : has(2, 64) ? int64_t(FLOAT64) : -1;
    }
};

// What the capsule `torch.Tensor.__dlpack_c_exchange_api__` holds.
struct TensorExchange {
    uint32_t major, minor;
    const TensorExchange* previous;
    void *allocate, *lend_managed, *take_managed;
    int (*look)(void* object, Tensor* out); // 0, or else with a Python exception set
    void* current_stream;
};

}
