// A decoder as data: its sizes, what its layers are made of, and where their weights lie. It owns none of them.
#pragma once

#include "core/compact.h"
#include "core/kernel.h"

namespace aigc::AIGC_LEVEL::decode {

AIGC_CODES(Norm, LAYER_NORM, RMS_NORM)
AIGC_CODES(Activation, GELU, GELU_TANH, SILU, RELU)
// Where the norms of a layer's parts are: before each of them, after what each adds to is added, or before both of two
// that begin with the same.
AIGC_CODES(Order, BEFORE, AFTER, PARALLEL)

// How the weights of a layer are kept that asks for these, or, as the last one, of the head. What int4 leaves out in
// the first layers grows in all that follow: of deep decoders up to a third of the layers are int8, so that no more
// than twenty or so follow that are not.
static inline int64_t kept_as(int64_t weights, int64_t layer, int64_t layers) {
    constexpr int64_t MOST_INT4 = 20;
    const int64_t first = least(layers / 3, most(layers / 12, layers - MOST_INT4));
    return weights == INT4 && (layer < first || layer == layers) ? int64_t(INT8) : weights;
}

struct NormWeights {
    const float *weight, *bias; // without a bias null; both where there is no norm
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

// Attention to a memory, or, without matrices, none.
struct Cross {
    NormWeights norm;
    Matrix query;
    Matrix memory; // keys and values, one after the other
    Matrix out;
    float scale;
};

struct Layer {
    NormWeights attention_norm, units_norm;
    Matrix projections; // queries, keys and values, one after the other
    Matrix out;
    Matrix up, gate; // without a gate null
    Matrix down;
    Cross cross;
    float scale;    // of the scores
    int64_t window; // tokens that one sees, itself among them; 0 for all before it

    bool has_cross() const { return cross.query.packed; }
};

// What the first numbers of `decode_create` are, in their order.
struct Sizes {
    int64_t layers, hidden, heads, kv_heads, head_size, units, embedded, vocabulary, positions, rotated, memory,
        weights, head_weights, norm, activation, order;
};
constexpr int64_t SIZES = sizeof(Sizes) / sizeof(int64_t);

class Decoder {
  public:
    static constexpr const char* handle_name = "aigc_fast.Decoder";

    Sizes sizes;
    float epsilon, rotation_scale, embedding_scale;
    Table embedding, positions; // what is added for a position, or none
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
                     layer.down.bytes() + layer.cross.query.bytes() + layer.cross.out.bytes();
        }
        return total;
    }
    // Of weights that a memory's projection reads.
    int64_t memory_bytes() const {
        int64_t total = 0;
        for (int64_t i = 0; i < sizes.layers; ++i)
            total += layers[i].cross.memory.bytes();
        return total;
    }
};

}
