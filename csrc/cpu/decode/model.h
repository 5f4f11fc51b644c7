// A decoder as data: its sizes, what its layers are made of, and where their weights lie. It owns none of them.
#pragma once

#include "core/compact.h"
#include "core/kernel.h"

namespace aigc::AIGC_LEVEL::decode {

AIGC_CODES(Norm, LAYER_NORM, RMS_NORM)
AIGC_CODES(Activation, GELU, GELU_TANH, SILU, RELU)

struct NormWeights {
    const float *weight, *bias; // without a bias null
};

// Columns that are made of `depth` numbers.
struct Matrix {
    int64_t weights, depth, columns;
    const char* packed;
    const float* bias; // or null

    int64_t panels() const { return compact_panels(columns); }
    const char* panel(int64_t i) const { return packed + i * compact_panel_bytes(weights, depth); }
    int64_t bytes() const { return packed ? compact_bytes(weights, depth, columns) : 0; }
};

// Rows of float32 or bfloat16 that are looked up.
struct Table {
    const char* data;
    int64_t dtype, stride; // in bytes

    explicit Table(const Tensor* tensor = nullptr) : data(nullptr), dtype(FLOAT32), stride(0) {
        if (!tensor)
            return;
        data = static_cast<const char*>(tensor->data());
        dtype = tensor->dtype();
        stride = tensor->strides[0] * ELEMENT_BYTES[dtype];
    }
    const char* row(int64_t i) const { return data + i * stride; }
};

struct Layer {
    NormWeights before_attention, before_units;
    Matrix projections; // queries, keys and values, one after the other
    Matrix out;
    Matrix up, gate; // without a gate null
    Matrix down;
    float scale; // of the scores
};

// What the numbers of `decode_create` are, in their order.
struct Sizes {
    int64_t layers, hidden, heads, kv_heads, head_size, units, embedded, vocabulary, positions, rotated, weights,
        head_weights, norm, activation;
};
constexpr int64_t SIZES = sizeof(Sizes) / sizeof(int64_t);

class Decoder {
  public:
    static constexpr const char* handle_name = "aigc_fast.Decoder";

    Sizes sizes;
    float epsilon, rotation_scale;
    Table embedding, positions; // learned positions, or none
    const float* frequencies;   // of a rotation, or null
    NormWeights last_norm;
    Layer* layers;
    Matrix head;

    explicit Decoder(const Sizes& of) : sizes(of), layers(new Layer[static_cast<size_t>(of.layers)]) {}
    ~Decoder() { delete[] layers; }
    Decoder(const Decoder&) = delete;
    Decoder& operator=(const Decoder&) = delete;

    int64_t query_columns() const { return sizes.heads * sizes.head_size; }
    int64_t key_columns() const { return sizes.kv_heads * sizes.head_size; }
    // Of weights that a step reads.
    int64_t bytes() const {
        int64_t total = head.bytes();
        for (int64_t i = 0; i < sizes.layers; ++i) {
            const Layer& layer = layers[i];
            total += layer.projections.bytes() + layer.out.bytes() + layer.up.bytes() + layer.gate.bytes() +
                     layer.down.bytes();
        }
        return total;
    }
};

}
